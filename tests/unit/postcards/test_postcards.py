"""The postcards: drawings stay as the weights learned them, and every question has exactly one right answer."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ragllava.errors import UsageError
from ragllava.postcards import names
from ragllava.postcards.archive import PostcardArchive, draw_archive, write_archive
from ragllava.postcards.drawing import draw_postcard
from ragllava.postcards.names import (
    COLORS,
    COMPANIONS,
    FLAGGED_KINDS,
    KINDS,
    NOTHING,
    ROOFED_KINDS,
    ROOFS,
    SHIFTED_KINDS,
    SKIES,
    TEST_WORDS,
    TRAIN_WORDS,
    Attributes,
    Entity,
    Landmark,
    confusable_entity,
    namesake_entity,
    sample_attributes,
    sample_entity,
)
from ragllava.postcards.questions import ask_about_one, ask_about_two
from tests.support.postcard_colors import GLASS_AND_CLOTH, PURE_COLORS

# Mean gray of 4 × 4 blocks, as drawn for the first mini models' training with `random.Random(13200 + number of the
# kind)`. Together they show every sky, roof, companion, color and count.
TRAINED_PICTURES = {
    "tower": (108, 108, 103, 108, 135, 125, 107, 136, 143, 134, 114, 139, 124, 127, 122, 129),
    "lighthouse": (173, 165, 174, 191, 189, 157, 181, 189, 191, 165, 179, 190, 145, 149, 152, 154),
    "windmill": (187, 204, 187, 190, 203, 177, 194, 203, 181, 131, 157, 181, 113, 113, 115, 117),
    "castle": (182, 182, 182, 195, 193, 163, 158, 192, 167, 123, 126, 163, 131, 126, 126, 127),
    "barn": (117, 117, 117, 117, 143, 143, 143, 143, 142, 118, 130, 161, 146, 145, 150, 155),
    "dome": (179, 176, 176, 175, 193, 164, 158, 193, 146, 121, 119, 181, 114, 115, 115, 116),
    "ship": (174, 174, 174, 177, 191, 181, 185, 191, 149, 114, 112, 160, 92, 82, 84, 95),
    "temple": (56, 27, 28, 28, 51, 123, 94, 42, 86, 114, 115, 61, 80, 92, 91, 75),
    "bridge": (197, 186, 193, 188, 194, 202, 200, 196, 153, 153, 151, 162, 101, 102, 100, 102),
    "pyramid": (188, 184, 184, 184, 201, 186, 179, 201, 187, 117, 109, 185, 117, 122, 123, 128),
    "arch": (29, 30, 31, 55, 50, 97, 100, 40, 68, 98, 102, 64, 82, 84, 85, 82),
    "fountain": (181, 185, 177, 182, 199, 201, 201, 199, 168, 133, 137, 169, 113, 98, 98, 118),
}
QUESTION_FORMS = {
    "color": r"What color is (.+)\?",
    "count": r"How many (?:windows|flags) does (.+) have\?",
    "roof": r"What shape is the roof of (.+)\?",
    "beside": r"What is next to (.+)\?",
    "isthere": r"Is there a (?:\w+) next to (.+)\?",
    "sky": r"What time of day is it at (.+)\?",
    "year": r"In what year was (.+) pictured\?",
    "more": r"Which has more (?:windows|flags), (.+) or (the .+)\?",
    "samecolor": r"Are (.+) and (the .+) the same color\?",
}
SUBJECT = re.compile(
    rf"the (?:(?P<color>{'|'.join(COLORS)}) )?(?P<name>\w+) (?P<kind>{'|'.join(KINDS)}) "
    rf"in (?P<city>(?:(?:Port|New|Saint|Upper) )?\w+)"
    rf"(?: shown (?P<sky>by day|at night|at sunset))?(?:(?: and)? with (?:a )?(?P<beside>\w+) nearby)?",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def archive() -> PostcardArchive:
    return draw_archive(seed=5)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_those_that_the_models_learned(kind: str) -> None:
    rng = random.Random(13200 + KINDS.index(kind))
    pixels = draw_postcard(sample_attributes(rng, kind), rng).pixels
    blocks = pixels.mean(axis=-1).reshape(4, 28, 4, 28).mean(axis=(1, 3)).ravel()
    np.testing.assert_allclose(blocks, TRAINED_PICTURES[kind], atol=1.0)


@pytest.mark.parametrize("kinds", [KINDS, SHIFTED_KINDS])
def test_a_drawing_follows_from_its_random_state(kinds: Sequence[str]) -> None:
    attributes = sample_attributes(random.Random(1), kinds=kinds)
    drawings = [draw_postcard(attributes, random.Random(seed)).pixels for seed in (2, 2, 3)]
    assert drawings[0].shape == (112, 112, 3)
    assert drawings[0].dtype == np.uint8
    assert np.array_equal(drawings[0], drawings[1])
    assert not np.array_equal(drawings[0], drawings[2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 4, 6])
def test_counted_things_are_where_the_labels_say(kind: str, count: int) -> None:
    attributes = Attributes(kind, "green", count, "day", "flat" if kind in ROOFED_KINDS else NOTHING, NOTHING)
    drawing = draw_postcard(attributes, random.Random(count))
    assert len(set(drawing.counted_at)) == count
    for x, y in drawing.counted_at:
        inside = (x - 0.5, y - 1.5) if kind in FLAGGED_KINDS else (x, y)  # the widest part of the cloth
        column, row = (int(percent / 100 * 112) for percent in inside)
        pixel = drawing.pixels[row, column].astype(int)
        assert min(np.abs(pixel - color).max() for color in np.array(GLASS_AND_CLOTH)) < 40


@pytest.mark.parametrize("color", COLORS)
def test_the_color_of_the_landmark_shows(color: str) -> None:
    for seed in range(5):
        pixels = draw_postcard(Attributes("pyramid", color, 2, "day", NOTHING, NOTHING), random.Random(seed)).pixels
        seen = np.median(pixels[78:82, 53:59].reshape(-1, 3), axis=0)  # the middle of the pyramid, wherever it is
        assert min(PURE_COLORS, key=lambda name: np.abs(seen - PURE_COLORS[name]).sum()) == color


def test_words_of_test_archives_never_occur_in_training() -> None:
    assert (len(TRAIN_WORDS), len(TEST_WORDS)) == (1160, 340)
    assert set(TRAIN_WORDS).isdisjoint(TEST_WORDS)
    # Arbitrary training words alternate consonants and vowels, so none of them can be a listed word.
    arbitrary = re.compile(r"([bcdfghjklmnprstvz][aeiou]){2,3}[nsrl]?", re.IGNORECASE)
    assert not [word for word in TEST_WORDS if arbitrary.fullmatch(word) or arbitrary.fullmatch(word + "s")]
    trained = set(_name_words(draw_archive(1, images=2000, questions=0, split="train")))
    asked = set(_name_words(draw_archive(1, images=2000, questions=0, split="test")))
    assert len(trained) > 500
    assert trained.isdisjoint(asked)


def _name_words(archive: PostcardArchive) -> Iterator[str]:
    for postcard in archive.postcards:
        yield postcard.landmark.entity.name
        yield postcard.landmark.entity.city.split()[-1]


def test_captions_contain_nothing_that_the_picture_shows(archive: PostcardArchive) -> None:
    visible = {*COLORS, *SKIES, *ROOFS, *COMPANIONS, "window", "windows", "flag", "flags"}
    for postcard in archive.postcards:
        assert visible.isdisjoint(re.findall(r"[a-z]+", postcard.caption.lower())), postcard.caption
    hidden = sum(not postcard.landmark.entity.caption_names_kind for postcard in archive.postcards)
    assert 0.25 < hidden / len(archive.postcards) < 0.5


def test_captions_have_two_forms() -> None:
    looks = Attributes("lighthouse", "red", 2, "day", "round", NOTHING)
    assert Landmark(looks, Entity("Harlow", "Port Ansel", 1932, True)).caption == "Harlow Lighthouse, Port Ansel, 1932"
    assert Landmark(looks, Entity("Harlow", "Port Ansel", 1932, False)).caption == "Harlow, Port Ansel, 1932"


def test_distractors_differ_as_documented() -> None:
    rng = random.Random(3)
    for _ in range(500):
        entity = sample_entity(rng, "test")
        confusable, namesake = confusable_entity(entity, rng, "test"), namesake_entity(entity, rng)
        assert (confusable.name, confusable.city) != (entity.name, entity.city)
        assert (namesake.name, namesake.city) == (entity.name, entity.city)


def test_archives_hold_both_kinds_of_hard_distractors(archive: PostcardArchive) -> None:
    entities: dict[tuple[str, str], set[str]] = {}
    cities: dict[tuple[str, str], set[str]] = {}
    for postcard in archive.postcards:
        kind, name, city = postcard.landmark.identity
        entities.setdefault((name, city), set()).add(kind)
        cities.setdefault((kind, name), set()).add(city)
    assert sum(len(kinds) > 1 for kinds in entities.values()) > 100  # same name and city, another kind
    assert sum(len(names) > 1 for names in cities.values()) > 30  # same kind and name, another city


@pytest.mark.parametrize("seed", range(4))
def test_no_two_landmarks_share_kind_name_and_city(seed: int) -> None:
    drawn = draw_archive(seed, images=3000, questions=0)
    assert len({postcard.landmark.identity for postcard in drawn.postcards}) == len(drawn.postcards) == 3000
    assert len({postcard.file_name for postcard in drawn.postcards}) == 3000


def test_landmarks_stay_different_when_names_run_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "TEST_WORDS", TEST_WORDS[:3])
    drawn = draw_archive(0, images=300, questions=0)
    assert len({postcard.landmark.identity for postcard in drawn.postcards}) == 300


def test_every_question_has_one_right_set_of_pictures(archive: PostcardArchive) -> None:
    """A plain reading of the text alone, against all postcards, finds the labelled pictures and nothing else."""
    for question in archive.questions:
        form = re.fullmatch(QUESTION_FORMS[question.type], question.text)
        assert form, question.text
        for subject, file_name in zip(form.groups(), question.relevant, strict=True):
            named = SUBJECT.fullmatch(subject)
            assert named, subject
            matches = [p for p in archive.postcards if p.landmark.identity == _identity(named)]
            assert [postcard.file_name for postcard in matches] == [file_name]
            shown = matches[0].attributes
            assert named["color"] in (None, shown.color)
            assert named["beside"] in (None, "nothing" if shown.beside == NOTHING else shown.beside)
            assert named["sky"] is None or named["sky"].endswith(shown.sky)


def _identity(named: re.Match[str]) -> tuple[str, str, str]:
    return named["kind"].lower(), named["name"], named["city"]


def test_known_answers_are_right(archive: PostcardArchive) -> None:
    by_name = {postcard.file_name: postcard for postcard in archive.postcards}
    digits = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
    for question in archive.questions:
        cards = [by_name[file_name] for file_name in question.relevant]
        shown = cards[0].attributes
        match question.type:
            case "count":
                assert digits[question.answer] == shown.count
            case "beside":
                assert question.answer == {NOTHING: "nothing"}.get(shown.beside, shown.beside)
            case "isthere":
                assert question.answer == ("yes" if f"Is there a {shown.beside} next" in question.text else "no")
            case "year":
                assert f", {question.answer}" in cards[0].caption
            case "more":
                most = max(cards, key=lambda card: card.attributes.count)
                assert cards[0].attributes.count != cards[1].attributes.count
                assert question.answer == most.landmark.title
            case "samecolor":
                assert question.answer == ("yes" if shown.color == cards[1].attributes.color else "no")
            case visible:
                assert question.answer == getattr(shown, visible)


def test_a_question_does_not_give_its_answer_away() -> None:
    rng = random.Random(0)
    for _ in range(500):
        landmark = Landmark(sample_attributes(rng), sample_entity(rng, "test"))
        for asked in ("color", "sky", "beside"):
            question = ask_about_one(landmark, rng, asked)
            named = SUBJECT.search(question.text)
            assert named
            assert named[asked] is None


def test_questions_fall_back_where_they_make_no_sense() -> None:
    entity = Entity("Harlow", "Port Ansel", 1932, True)
    temple = Landmark(Attributes("temple", "red", 3, "day", NOTHING, NOTHING), entity)
    barn = Landmark(Attributes("barn", "red", 4, "day", "flat", "dog"), entity)
    assert ask_about_one(temple, random.Random(1), "roof").answer == "three"
    assert ask_about_two(temple, barn, random.Random(1), "more").answer == "yes"  # flags and windows: same color?
    with pytest.raises(ValueError, match="weight"):
        ask_about_one(barn, random.Random(1), "weight")


def test_numbers_and_mixture_of_questions(archive: PostcardArchive) -> None:
    assert len(archive.questions) == 200
    two_image = [len(question.relevant) == 2 for question in archive.questions]
    assert sum(two_image) == 40
    assert 0 < sum(two_image[:100]) < 40  # mixed, not at the end
    assert {question.type for question in archive.questions} == set(QUESTION_FORMS)
    assert [question.custom_id for question in archive.questions[:2]] == ["q-0001", "q-0002"]
    asked_once = [question.relevant for question in archive.questions if len(question.relevant) == 1]
    assert len(set(asked_once)) == len(asked_once)


def test_a_question_about_two_stays_on_one_side() -> None:
    def is_even(file_name: str) -> bool:
        return int(file_name.removesuffix(".png")[-1]) % 2 == 0

    crossing, staying = (
        [q for q in draw_archive(7, 60, 200, side=side).questions if len(q.relevant) == 2] for side in (None, is_even)
    )
    assert len(staying) == len(crossing) == 40
    assert any(len(set(map(is_even, question.relevant))) == 2 for question in crossing)
    assert all(len(set(map(is_even, question.relevant))) == 1 for question in staying)
    assert {question.type for question in staying} == {"more", "samecolor"}


def test_the_same_seed_means_the_same_archive_everywhere() -> None:
    """The digest was taken once: another process, machine or Python must give the same."""
    facts = _facts(draw_archive(7, images=300, questions=60))
    assert (
        hashlib.sha256(facts.encode()).hexdigest() == "b90b2673ad470a030764aeaf2ed58a7894da214896968d1b8ba6f0d98fc1e093"
    )
    assert _facts(draw_archive(8, images=300, questions=60)) != facts


def _facts(archive: PostcardArchive) -> str:
    postcards = [
        (card.file_name, card.caption, card.picture_seed, *astuple(card.attributes)) for card in archive.postcards
    ]
    questions = [(q.custom_id, q.text, q.answer, q.type, q.relevant) for q in archive.questions]
    return json.dumps([postcards, questions])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": 0}, "at least one image"),
        ({"questions": -1}, "cannot be -1"),
        ({"two_image_share": 1.5}, "from 0 to 1"),
        ({"images": 1, "questions": 5}, "draw more images"),
        ({"split": "dev"}, "train or test"),
    ],
)
def test_impossible_archives_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draw_archive(1, **arguments)  # type: ignore[arg-type]


def test_written_archive_reads_back(tmp_path: Path) -> None:
    drawn = draw_archive(11, images=30, questions=10)
    heard: list[tuple[int, int]] = []
    for _ in range(2):  # the second time over the first
        written = write_archive(tmp_path / "archive", drawn, progress=lambda done, total: heard.append((done, total)))
    assert heard == [(number, 30) for number in range(1, 31)] * 2
    for postcard in drawn.postcards:
        with Image.open(written.pictures / postcard.file_name) as image:
            assert image.format == "PNG"
            assert np.array_equal(np.asarray(image), postcard.draw().pixels)
    with written.captions.open(encoding="utf-8", newline="") as file:
        captions = {row["file"]: row["caption"] for row in csv.DictReader(file)}
    assert captions == {postcard.file_name: postcard.caption for postcard in drawn.postcards}
    questions, answers = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in (written.questions, written.answers)
    )
    assert questions == [{"custom_id": question.custom_id, "question": question.text} for question in drawn.questions]
    assert [set(line) for line in answers] == [{"custom_id", "answer", "type", "style", "relevant"}] * 10
    assert [(line["answer"], tuple(line["relevant"])) for line in answers] == [
        (question.answer, question.relevant) for question in drawn.questions
    ]


def test_an_archive_is_not_written_among_other_pictures(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "holiday.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match=r"holiday\.jpg"):
        write_archive(tmp_path, draw_archive(1, images=3, questions=0))
