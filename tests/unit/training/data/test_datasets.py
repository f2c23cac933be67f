"""Data sets for training: which pairs get in, which never, and what the card says."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragllava.errors import UsageError
from ragllava.records import Role
from ragllava.training.data.datasets import (
    DatasetOptions,
    LabelledQuestion,
    Retrieved,
    build_answer_dataset,
    build_rank_dataset,
    is_held_out,
    is_judging,
    merge_questions,
    read_dataset,
    snapshot_id,
    write_dataset,
)
from ragllava.training.data.examples import AnswerExample, Evidence, RankExample


def question(number: int, *, relevant: tuple[str, ...] = ("a",), found: str = "abcdefgh") -> LabelledQuestion:
    return LabelledQuestion(
        f"How many windows has house {number}?",
        str(number),
        tuple(Evidence(image, f"caption {image}") for image in relevant),
        tuple(Retrieved(image, f"caption {image}", relevance=0.2) for image in found),
    )


def pairs(examples: object) -> list[RankExample]:
    assert isinstance(examples, tuple)
    return [example for example in examples if isinstance(example, RankExample)]


def answers(examples: object) -> list[AnswerExample]:
    assert isinstance(examples, tuple)
    return [example for example in examples if isinstance(example, AnswerExample)]


OPTIONS = DatasetOptions(seed=1)
THREE = replace(OPTIONS, pictures_shown=3)


@given(
    st.lists(st.tuples(st.sets(st.sampled_from("abcdefgh")), st.text("abcdefgh", max_size=12)), max_size=8),
    st.integers(0, 99),
    st.floats(0, 3),
    st.integers(1, 8),
)
def test_no_labelled_image_is_ever_a_negative(
    rows: list[tuple[set[str], str]], seed: int, ratio: float, top_k: int
) -> None:
    questions = [
        question(number % 3, relevant=tuple(sorted(labelled)), found=found)
        for number, (labelled, found) in enumerate(rows)
    ]
    labelled: dict[str, set[str]] = {}
    retrieved: dict[str, set[str]] = {}
    for item in questions:
        labelled.setdefault(item.text, set()).update(evidence.image for evidence in item.relevant)
        retrieved.setdefault(item.text, set()).update(found.image for found in item.retrieved[:top_k])
    options = DatasetOptions(seed=seed, ratio=ratio, top_k=top_k)
    for example in pairs(build_rank_dataset(questions, options).examples):
        assert example.relevant == (example.image in labelled[example.question])
        if not example.relevant:
            assert example.image in retrieved[example.question]
            assert example.source == f"clip-top-{top_k}"
    for answer in answers(build_answer_dataset(questions, options).examples):
        right = set(answer.images) & labelled[answer.question]
        assert right == labelled[answer.question]
        assert len(answer.images) - len(right) == answer.injected


def test_negatives_come_in_the_ratio() -> None:
    many = [question(number, relevant=("a", "b")) for number in range(400)]
    for ratio in (0.0, 0.5, 1.0, 1.25):
        card = build_rank_dataset(many, replace(OPTIONS, ratio=ratio)).card
        assert card.positives == 800
        assert card.negatives == pytest.approx(800 * ratio, rel=0.05)
    # One negative for every second question that has one labelled image.
    singles = [question(number) for number in range(400)]
    assert build_rank_dataset(singles, replace(OPTIONS, ratio=0.5)).card.negatives == pytest.approx(200, rel=0.2)


def test_a_share_of_the_pairs_shows_no_caption() -> None:
    many = [question(number) for number in range(400)]
    bare: dict[float, set[tuple[str, str]]] = {}
    for share in (0.0, 0.1, 0.6, 1.0):
        examples = pairs(build_rank_dataset(many, replace(OPTIONS, bare_share=share)).examples)
        bare[share] = {(example.question, example.image) for example in examples if example.caption is None}
        assert len(bare[share]) == pytest.approx(len(examples) * share, rel=0.2)
        assert len(examples) == 800
    assert bare[0.0] < bare[0.1] < bare[0.6] < bare[1.0], "a larger share takes the captions of the same and more"
    shown = [e.relevant for e in examples if (e.question, e.image) in bare[0.6]]
    assert 0.4 < sum(shown) / len(shown) < 0.6, "relevant and irrelevant ones alike"


def test_only_the_top_k_counts_and_too_few_are_enough() -> None:
    dataset = build_rank_dataset([question(1)], replace(OPTIONS, top_k=3, ratio=5))
    assert {example.image for example in pairs(dataset.examples) if not example.relevant} == {"b", "c"}


def test_what_looks_relevant_is_set_aside_and_not_trained_on() -> None:
    sure = (Retrieved("a", None, 0.99), Retrieved("b", "Harlow", 0.9), Retrieved("c", None, 0.89), Retrieved("d", None))
    item = replace(question(1), retrieved=sure)
    for build in (build_rank_dataset, build_answer_dataset):
        dataset = build([item], replace(OPTIONS, ratio=9))
        assert [(aside.image, aside.relevance) for aside in dataset.set_aside] == [("b", 0.9)]
        assert dataset.card.set_aside == 1
    used = {example.image for example in pairs(build_rank_dataset([item], replace(OPTIONS, ratio=9)).examples)}
    assert used == {"a", "c", "d"}


def test_an_image_that_a_person_called_wrong_is_a_negative_though_the_reranker_is_sure() -> None:
    item = replace(question(1, found="a"), irrelevant=(Evidence("z", None),), retrieved=(Retrieved("z", None, 0.99),))
    dataset = build_rank_dataset([item], OPTIONS)
    assert [(e.image, e.source) for e in pairs(dataset.examples) if not e.relevant] == [("z", "labelled")]
    assert dataset.set_aside == ()


def test_a_question_asked_twice_is_one_with_all_its_labels() -> None:
    first = replace(question(1, relevant=("a", "c")), irrelevant=(Evidence("b", None), Evidence("d", None)))
    again = replace(question(1, relevant=("b",)), text=f"  {first.text.upper()} ", answer="2")
    again = replace(again, irrelevant=(Evidence("a", None), Evidence("b", None)))
    [merged] = merge_questions([first, again])
    assert {item.image for item in merged.relevant} == {"b", "c"}, "the last word on an image counts"
    assert {item.image for item in merged.irrelevant} == {"a", "d"}
    assert (merged.text, merged.answer) == (first.text, "2")


def test_a_question_keeps_its_negatives_when_others_join() -> None:
    few = [question(number) for number in range(5)]
    many = [question(number) for number in (7, 3, 1, 9, 0, 2, 4)]
    of_few = set(pairs(build_rank_dataset(few, OPTIONS).examples))
    of_many = set(pairs(build_rank_dataset(many, OPTIONS).examples))
    assert of_few <= of_many
    other_seed = set(pairs(build_rank_dataset(few, DatasetOptions(seed=2)).examples))
    assert other_seed != of_few


def test_wrong_pictures_fill_up_what_is_shown() -> None:
    items = [
        question(1),
        question(2, relevant=("a", "b")),
        question(3, relevant=("a", "b", "c")),
        question(4, found="ab"),
    ]
    for pictures_shown, expected in {
        1: {"1": {1}, "2": {2}, "3": {3}, "4": {1}},
        2: {"1": {2}, "2": {2}, "3": {3}, "4": {2}},
        3: {"1": {2, 3}, "2": {3}, "3": {3}, "4": {2}},
    }.items():
        shown: dict[str, Counter[int]] = defaultdict(Counter)
        options = replace(OPTIONS, draws=100, pictures_shown=pictures_shown)
        right = {"1": {"a"}, "2": {"a", "b"}, "3": {"a", "b", "c"}, "4": {"a"}}
        for example in answers(build_answer_dataset(items, options).examples):
            assert len(set(example.images)) == len(example.images)
            assert right[example.answer] <= set(example.images)
            assert example.injected == (right[example.answer] < set(example.images))
            assert example.captions == tuple(f"caption {image}" for image in example.images)
            shown[example.answer][len(example.images)] += 1
        assert {answer: set(counts) for answer, counts in shown.items()} == expected
        assert min(count for counts in shown.values() for count in counts.values()) > 25


def test_each_draw_has_a_wrong_picture_and_an_order_of_its_own() -> None:
    item = question(1, relevant=("a", "b"))
    drawn = answers(build_answer_dataset([item], replace(THREE, draws=200)).examples)
    assert len(drawn) == 200
    assert {(example.question, example.answer) for example in drawn} == {(item.text, "1")}
    wrong = Counter(image for example in drawn for image in example.images if image not in "ab")
    assert set(wrong) == set("cdefgh")
    places = Counter(tuple(image if image in "ab" else "wrong" for image in example.images) for example in drawn)
    assert set(places) == set(permutations(("a", "b", "wrong")))
    assert min(places.values()) > 200 / 6 / 2
    assert answers(build_answer_dataset([item], replace(THREE, draws=200)).examples) == drawn


def test_more_draws_and_a_larger_share_keep_what_fewer_draw() -> None:
    items = [question(number, relevant=("a", "b")) for number in range(40)]

    def drawn(draws: int, share: float) -> Counter[AnswerExample]:
        return Counter(answers(build_answer_dataset(items, replace(THREE, draws=draws, injected_share=share)).examples))

    assert drawn(1, 0.5) < drawn(3, 0.5)
    injected = [Counter(e for e in drawn(3, share).elements() if e.injected) for share in (0.3, 0.6, 1.0)]
    assert injected[0] < injected[1] < injected[2]
    assert injected[2].total() == 120


def test_a_place_in_the_prompt_tells_nothing() -> None:
    items = [question(number, relevant=("a", "b") if number % 2 else ("a",)) for number in range(400)]
    examples = answers(build_answer_dataset(items, replace(THREE, injected_share=0.5)).examples)
    for shown in (2, 3):
        firsts = [e.images[0] == "a" for e in examples if len(e.images) == shown and (e.injected or shown == 2)]
        assert sum(firsts) == pytest.approx(len(firsts) / shown, rel=0.4)


def test_the_injected_share_grows_from_the_same_questions() -> None:
    items = [question(number) for number in range(300)]
    chosen = []
    for share in (0.0, 0.3, 1.0):
        examples = answers(build_answer_dataset(items, replace(OPTIONS, injected_share=share)).examples)
        chosen.append({example.question for example in examples if example.injected})
        assert len(chosen[-1]) == pytest.approx(300 * share, rel=0.25)
    assert chosen[0] < chosen[1] < chosen[2]


def test_questions_without_answer_or_image_train_no_generator() -> None:
    items = [replace(question(1), answer=None), question(2, relevant=()), question(3)]
    assert [example.answer for example in answers(build_answer_dataset(items, OPTIONS).examples)] == ["3"]


def test_a_question_is_never_on_both_sides() -> None:
    items = [question(number) for number in range(500)]
    variants = [replace(item, text=f" {item.text.upper()}  ") for item in items]
    everything = [*items, *variants]
    aside = [item for item in everything if is_held_out(item.text, 0.2)]
    training = [item for item in everything if not is_held_out(item.text, 0.2)]
    assert len(aside) == pytest.approx(200, rel=0.25)
    keys = [{item.text.strip().casefold() for item in side} for side in (training, aside)]
    assert keys[0].isdisjoint(keys[1])
    assert len(keys[0]) + len(keys[1]) == 500
    assert all(is_held_out(item.text, 0.5) for item in aside), "a larger share holds a smaller one"
    assert not any(is_held_out(item.text, 0) for item in items)
    assert all(is_held_out(item.text, 1) for item in items)


def test_questions_about_a_held_out_image_judge() -> None:
    images = [f"image-{number}" for number in range(400)]
    held_out = {image for image in images if is_held_out(image, 0.25)}
    pairs = list(pairwise(images))
    judging = [pair for pair in pairs if is_judging("What is it?", pair, 0.25)]
    assert judging == [pair for pair in pairs if held_out & set(pair)]
    assert not held_out & {image for pair in pairs if pair not in judging for image in pair}, "none of them trains"
    assert is_judging("What is it?", (), 0.25) == is_held_out("What is it?", 0.25)


def test_the_snapshot_names_the_content_whatever_its_order() -> None:
    items = [question(number) for number in range(6)]
    dataset = build_rank_dataset(items, OPTIONS)
    assert dataset.card.snapshot == build_rank_dataset(items[::-1], OPTIONS).card.snapshot
    assert dataset.card.snapshot == snapshot_id(dataset.examples[::-1])
    assert dataset.card.snapshot != snapshot_id(dataset.examples[1:])


@pytest.mark.parametrize("role", list(Role))
def test_a_written_set_reads_the_same(tmp_path: Path, role: Role) -> None:
    build = build_rank_dataset if role is Role.RERANKER else build_answer_dataset
    items = [
        question(1),
        replace(question(2), text="Où\u2028est\nla maison ?", retrieved=(Retrieved("b", None, 0.95),)),
    ]
    dataset = build(items, OPTIONS)
    write_dataset(tmp_path / "set", dataset)
    assert read_dataset(tmp_path / "set") == dataset
    assert dataset.card.role == role
    assert dataset.card.options.seed == 1


def test_a_set_without_its_card_or_with_other_content_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path, build_rank_dataset([question(1)], OPTIONS))
    content = (tmp_path / "examples.jsonl").read_text()
    (tmp_path / "examples.jsonl").write_text(content.replace("true", "false"))
    with pytest.raises(UsageError, match="not the snapshot of its card"):
        read_dataset(tmp_path)
    (tmp_path / "card.json").unlink()
    with pytest.raises(UsageError, match="no complete data set"):
        read_dataset(tmp_path)
