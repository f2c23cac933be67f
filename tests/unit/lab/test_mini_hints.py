"""Where the hints of the mini models' recipe are: at captions, names, words and answers."""

from __future__ import annotations

import random
from typing import Any

import torch

from ragllava.lab.mini_recipe.examples import PackSampler
from ragllava.lab.mini_recipe.language import (
    fitting_words,
    second_of_pair,
    visible_words,
)
from ragllava.lab.mini_recipe.packing import Packer
from ragllava.lab.mini_recipe.vision import ATTRIBUTE_VALUES, attribute_labels
from ragllava.lab.mini_recipe.wordings import ANSWER_SHARES, STYLE_SHARES
from ragllava.postcards.names import Attributes
from ragllava.postcards.questions import COUNT_WORDS

PATCHES = 49


def test_hints_point_at_the_right_places(llava_and_processor: tuple[Any, Any], attributes: list[Attributes]) -> None:
    """Read back from the tokens: the caption before each line end, the ending before each answer."""
    processor = llava_and_processor[1]
    tokenizer = processor.tokenizer
    sampler, rng = PackSampler(attributes, "train"), random.Random(12)
    packs = [sampler.one_picture_pack(rng)] + [sampler.several_pictures_pack(rng) for _ in range(12)]
    batch = Packer(processor, PATCHES).batch(packs)
    landmarks = [shown.landmark for pack in packs for shown in pack.shown]
    assert batch.years.tolist() == [landmark.entity.year - 1900 for landmark in landmarks]
    for landmark, (row, column) in zip(landmarks, batch.caption_ends.tolist(), strict=True):
        before = tokenizer.decode(batch.tokens[row, : column + 1])
        assert before.endswith(f"Image Caption: {landmark.caption}\n")
    for row, column, picture in batch.pointers.tolist():
        ending = packs[row].endings[int(batch.endings[row, column]) - 1]
        assert packs[row].shown[picture] == ending.about
        assert batch.labels[row, column] < 0 <= batch.labels[row, column + 1]
        if ending.task == "more":
            assert ending.about is not None
            assert ending.about.landmark.title == ending.answer


def test_two_pictures_are_compared_after_the_second_name_of_a_question(
    llava_and_processor: tuple[Any, Any], attributes: list[Attributes]
) -> None:
    sampler, rng = PackSampler(attributes, "train"), random.Random(15)
    packs = [sampler.one_picture_pack(rng), *(sampler.three_pictures_pack(rng) for _ in range(6))]
    batch = Packer(llava_and_processor[1], PATCHES).batch(packs)
    subjects = [
        (row, subject.about is not None, number == 1)
        for row, pack in enumerate(packs)
        for ending in pack.endings
        for number, subject in enumerate(ending.subjects)
    ]
    expected = [
        is_second and shown and subjects[position - 1][1] for position, (_, shown, is_second) in enumerate(subjects)
    ]
    assert second_of_pair(batch.subjects, batch.endings).tolist() == expected
    assert sum(expected) > 50


def test_hints_of_questions_are_where_these_name_or_describe(
    llava_and_processor: tuple[Any, Any], attributes: list[Attributes]
) -> None:
    """Read back from the tokens, in all styles; a comparison ends there and has no answer."""
    tokenizer = llava_and_processor[1].tokenizer
    sampler = PackSampler(attributes, "train", styles=STYLE_SHARES, answer_styles=ANSWER_SHARES)
    rng = random.Random(14)
    packs = [sampler.one_picture_pack(rng) for _ in range(12)] + [sampler.several_pictures_pack(rng) for _ in range(12)]
    packs += [sampler.comparison_pack(rng) for _ in range(3)]
    batch = Packer(llava_and_processor[1], PATCHES).batch(packs)
    subjects = [
        (row, ending, subject)
        for row, pack in enumerate(packs)
        for ending in pack.endings
        for subject in ending.subjects
    ]
    described = [entry for entry in subjects if entry[2].kind_end is not None]
    assert len(subjects) == len(batch.subjects)
    assert 0 < len(described) == len(batch.kinds)

    def text_until(row: int, column: int) -> str:
        ending = batch.endings[row, column]
        asked = batch.endings[row, : column + 1] == ending
        return str(tokenizer.decode(batch.tokens[row, : column + 1][asked]))

    for (row, ending, subject), (at, column, picture, *compared) in zip(subjects, batch.subjects.tolist(), strict=True):
        assert (row, f"Question: {ending.question[: subject.end]}") == (at, text_until(at, column).strip())
        assert picture == (-1 if subject.about is None else packs[row].shown.index(subject.about))
        assert compared == [-1 if same is None else same for same in (subject.same_name, subject.same_city)]
    for (row, ending, subject), (at, column, is_same) in zip(described, batch.kinds.tolist(), strict=True):
        kind = text_until(at, column).rsplit(" ", 1)[-1]
        assert ending.question[: subject.kind_end].endswith(f" {kind}")
        assert (at, bool(is_same)) == (row, kind == packs[row].shown[0].landmark.attributes.kind)
    in_comparisons = batch.labels[-3:]
    assert (in_comparisons == -100).all()


def test_visible_words_fit_as_the_picture_shows_them(
    llava_and_processor: tuple[Any, Any], attributes: list[Attributes]
) -> None:
    processor = llava_and_processor[1]
    sampler, rng = PackSampler(attributes, "train"), random.Random(13)
    labels = attribute_labels(attributes)
    words = visible_words(processor.tokenizer)
    packs = [sampler.one_picture_pack(rng) for _ in range(10)] + [sampler.several_pictures_pack(rng)]
    batch = Packer(processor, PATCHES).batch(packs)
    looks = torch.stack([labels[name][batch.pictures] for name in ATTRIBUTE_VALUES], dim=1)
    fits = fitting_words(batch, looks, words)
    assert (fits[-1] == -1).all()  # with two pictures it is ambiguous which one is meant
    assert {0, 1} <= set(fits.flatten().tolist())
    for row, pack in enumerate(packs[:-1]):
        visible = pack.shown[0].landmark.attributes
        beside = visible.beside.replace("none", "nothing")
        true = {visible.kind, visible.color, visible.sky, beside, visible.roof, COUNT_WORDS[visible.count]}
        for token, fit in zip(batch.tokens[row].tolist(), fits[row].tolist(), strict=True):
            if fit >= 0:
                assert (processor.tokenizer.decode(token).strip().lower() in true) == bool(fit)
