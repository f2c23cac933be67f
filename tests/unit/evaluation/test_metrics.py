"""Metrics against cases worked by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragllava.answer_text import exact_match, normalise_answer
from ragllava.errors import UsageError
from ragllava.evaluation.metrics import retrieval_at, score_job, webqa_score
from ragllava.records import AnswerStatus, Candidate, KnownAnswer, Origin, StoredImage
from ragllava.stages.results.results import ResultRow

PIECES = ["a", "one", "two", "twenty", "hundred", "thousand", "and", "3.5m", "2,000", "1920s", "u.s.", "don't", "dogs'"]
PIECES += ["ies", "'s", ".", "-"]


def test_retrieval_sums_before_it_divides() -> None:
    ranked = [["a", "x", "y"], ["x", "b", "c"], []]
    relevant = [["a"], ["b", "c"], ["d"]]
    top_two = retrieval_at(2, ranked, relevant)
    # Question 1: a of a, x. Question 2: b of x, b. Question 3: nothing was kept.
    assert (top_two.hits, top_two.kept, top_two.labelled) == (2, 4, 4)
    assert (top_two.precision, top_two.recall, top_two.f1) == (0.5, 0.5, 0.5)
    assert retrieval_at(1, ranked, relevant).recall == 0.25
    top_three = retrieval_at(3, ranked, relevant)
    assert (top_three.precision, top_three.recall) == (0.5, 0.75)
    assert top_three.f1 == pytest.approx(2 * 0.5 * 0.75 / (0.5 + 0.75))


def test_micro_average_differs_from_the_mean_over_questions() -> None:
    figures = retrieval_at(2, [["a"], ["x", "y"]], [["a"], ["b", "c"]])
    assert figures.recall == pytest.approx(1 / 3)  # the mean of 1 and 0 would be a half


def test_retrieval_of_nothing_is_zero() -> None:
    nothing = retrieval_at(5, [[]], [[]])
    assert (nothing.precision, nothing.recall, nothing.f1) == (0.0, 0.0, 0.0)


def test_retrieval_needs_a_list_for_every_question() -> None:
    with pytest.raises(ValueError, match="longer"):
        retrieval_at(1, [["a"]], [["a"], ["b"]])


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Harlow Lighthouse.", "harlow lighthouse"),
        ("  An apple, a day!  ", "apple day"),
        ("It is 3.5 km.", "it is 3.5 km"),
        ("red/white", "red white"),
        ("under_score", "under score"),
        ("Théâtre", "théâtre"),
        ("The", "the"),
        ("A", "a"),
        ("anthem", "anthem"),
        # Number words, with their scales.
        ("three", "3"),
        ("Twenty-one dogs", "21 dog"),
        ("twenty ten", "20 10"),
        ("twenty one two", "21 2"),
        ("ninety nine, zero", "99 0"),
        ("a hundred", "100"),
        ("two hundred", "200"),
        ("two hundred and five", "205"),
        ("one thousand two hundred thirty-four", "1234"),
        ("three thousand and six", "3006"),
        ("twelve hundred", "1200"),
        ("two million", "2000000"),
        ("hundreds of birds", "hundreds of bird"),
        ("three and four", "3 and 4"),
        ("one hundred and a boat", "100 and boat"),
        ("nineteen fifty", "19 50"),
        ("two hundred, three hundred", "200 300"),
        ("2.5 million", "2500000"),
        ("a hundred thousand", "100000"),
        ("zero five", "0 5"),
        ("sizes of houses", "size of house"),
        # Figures and their units.
        ("1,000 windows", "1000 window"),
        ("3.5m", "3.5 m"),
        ("3.5 m", "3.5 m"),
        ("10am", "10 am"),
        ("the 1920s", "1920s"),
        ("1st and 22nd", "1st and 22nd"),
        ("St. Mary e.g. .5", "st mary eg 5"),
        # Abbreviations, possessives, contractions.
        ("U.S.A.", "usa"),
        ("USA", "usa"),
        ("J.F. Kennedy", "jf kennedy"),
        ("the dog's tail", "dog tail"),
        ("the dog’s tail", "dog tail"),
        ("the dogs' tails", "dog tail"),
        ("it's red", "it is red"),
        ("don't", "do not"),
        ("they don’t", "they do not"),
        ("can't", "can not"),
        ("cannot", "can not"),
        ("won't", "will not"),
        # Plural endings.
        ("cherries, boxes, glasses", "cherry box glass"),
        ("buses and churches", "bus and church"),
        ("glass, bus, iris, James, gas", "glass bus iris jame gas"),
        ("knives and leaves", "knife and leaf"),
        ("two men and three women", "2 man and 3 woman"),
        ("no", "no"),
        ("yes", "yes"),
    ],
)
def test_normalised_answers(text: str, normal: str) -> None:
    assert normalise_answer(text) == normal
    assert normalise_answer(normal) == normal


@given(st.lists(st.sampled_from(PIECES)))
def test_the_normal_form_is_final(pieces: list[str]) -> None:
    for text in (" ".join(pieces), "".join(pieces)):
        assert normalise_answer(normalise_answer(text)) == normalise_answer(text)


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("Two.", "2", True),
        ("the Harlow Lighthouse", "Harlow Lighthouse", True),
        ("Harlow", "Harlow Lighthouse", False),
        ("windows", "window", True),
        ("U.S.", "US", True),
        ("200", "two hundred", True),
        ("do not", "don't", True),
        ("3.5", "35", False),
        ("", "no", False),
        # Nothing is no answer, not even to nothing.
        ("", "", False),
        ("the", "", False),
        ("!", "?", False),
    ],
)
def test_exact_match_looks_at_the_normal_form(answer: str, reference: str, same: bool) -> None:
    assert exact_match(answer, reference) is same


@pytest.mark.parametrize(
    ("answer", "reference", "category", "score"),
    [
        # Only the colors count: one of the two given and one of the one wanted → 2·1 / (2 + 1).
        ("The roof is red and blue", "The tower has a red roof", "color", 2 / 3),
        ("The roof is flat", "The tower has a red roof", "color", 0.0),
        ("They are red", "red, red and red", "color", 1.0),
        ("Both are circles", "It is a circle", "shape", 1.0),
        ("a square window", "a round window", "shape", 0.0),
        ("There are four", "4 windows in 2 rows", "number", 2 / 3),
        ("3.5", "3.5 metres", "number", 1.0),
        ("yes, it is", "No, it is not", "YesNo", 0.0),
        ("Yes!", "yes, both have one", "YesNo", 1.0),
        # No color in the reference: all words count. {striped, pattern} and {striped} → 2·1 / 3.
        ("striped pattern", "the striped", "color", 2 / 3),
        # Any other category: recall of the reference's words, whatever else is said.
        ("The church of Mary with two towers and a bell", "Church towers of stone", "Others", 3 / 4),
        ("a window", "the windows", "choose", 1.0),
        ("cherry boxes and glass", "cherries, box, glasses", "Others", 1.0),
        ("iri", "iris", "Others", 0.0),
        ("", "a word", "Others", 0.0),
        ("", "", "Others", 0.0),
        ("", "", "color", 0.0),
        ("It is curved", "Curved.", "shape", 1.0),
        ("two hundred", "200 windows", "number", 1.0),
        ("3.5m", "3.5 m high", "number", 1.0),
        ("No, they don't", "they do not", "YesNo", 2 * 3 / (4 + 3)),
    ],
)
def test_webqa_scores(answer: str, reference: str, category: str, score: float) -> None:
    assert webqa_score(answer, reference, category) == pytest.approx(score)


def _result(custom_id: str, status: str, answer: str | None, *candidates: tuple[str, float, float | None]) -> ResultRow:
    """Candidates are (source, retrieval score, relevance); their retrieval rank is the order of their scores."""
    nearest = [source for source, *_ in sorted(candidates, key=lambda candidate: -candidate[1])]
    return ResultRow(
        1,
        custom_id,
        "?",
        AnswerStatus(status),
        answer,
        candidates=tuple(
            Candidate(
                StoredImage(number, f"sha-{source}", source, None), nearest.index(source), retrieval_score, relevance
            )
            for number, (source, retrieval_score, relevance) in enumerate(candidates)
        ),
    )


KNOWN = [
    KnownAnswer("q-1", "red", "color", ("a.png",)),
    KnownAnswer("q-2", "two", "count", ("b.png",)),
    KnownAnswer("q-3", "red", "color", ("c.png",)),
    KnownAnswer("q-4", "yes", "samecolor", ("a.png", "b.png")),
    KnownAnswer("q-5", "blue", "color", ("d.png",)),
]
RESULTS = [
    # Right, found at the retriever's second place, reranked to the first.
    _result("q-1", "answered", "Red.", ("x.png", 0.9, 0.1), ("a.png", 0.8, 0.9)),
    # Wrong; both ranks are first; the order in the list means nothing.
    _result("q-2", "answered", "three", ("y.png", 0.1, 0.2), ("b.png", 0.7, 0.8)),
    _result("q-3", "no_evidence", None, ("x.png", 0.5, 0.1)),
    # One of two pictures found, at the retriever's third place and the reranker's second.
    _result("q-4", "answered", "yes", ("x.png", 0.9, 0.9), ("y.png", 0.8, 0.1), ("b.png", 0.7, 0.6)),
    _result("of another file", "answered", "yes"),
]


def test_figures_of_a_job() -> None:
    figures = score_job(KNOWN, reversed(RESULTS))
    everything = figures.all
    assert (everything.questions, everything.answered, everything.no_evidence) == (5, 3, 1)
    assert (everything.failed, everything.missing) == (0, 1)  # q-5 has no result
    # Six labelled pictures: b of q-2 at the retriever's first place, a of q-1 at the second, b of q-4 at the third.
    assert everything.retrieval_recall == pytest.approx({1: 1 / 6, 2: 2 / 6, 5: 3 / 6, 20: 3 / 6})
    assert everything.candidate_recall == pytest.approx(3 / 6)
    assert everything.reranked_recall == pytest.approx({1: 2 / 6, 2: 3 / 6})
    assert everything.answer_accuracy == pytest.approx(2 / 5)


def test_figures_of_groups_and_types() -> None:
    figures = score_job(KNOWN, RESULTS)
    assert figures.one_image is not None
    assert figures.two_image is not None
    assert (figures.one_image.questions, figures.two_image.questions) == (4, 1)
    assert figures.one_image.retrieval_recall[20] == pytest.approx(2 / 4)
    assert figures.one_image.answer_accuracy == pytest.approx(1 / 4)
    assert figures.two_image.retrieval_recall == pytest.approx({1: 0, 2: 0, 5: 1 / 2, 20: 1 / 2})
    assert figures.two_image.reranked_recall == pytest.approx({1: 0, 2: 1 / 2})
    color = figures.by_type["color"]
    assert color.questions == 3
    assert color.score == pytest.approx(1 / 3)
    assert color.majority_share == pytest.approx(2 / 3)  # always "red"


@pytest.mark.parametrize("status", ["failed", "dead", "cancelled", "no_evidence"])
def test_only_answered_questions_can_be_right(status: str) -> None:
    figures = score_job(KNOWN[:1], [_result("q-1", status, "red")]).all
    assert figures.answer_accuracy == 0
    assert figures.failed == (status != "no_evidence")
    assert figures.questions == figures.answered + figures.no_evidence + figures.failed + figures.missing


def test_ties_keep_the_order_of_the_retrieval() -> None:
    tied = _result("q-1", "answered", "red", ("x.png", 0.5, 0.5), ("a.png", 0.5, 0.5))
    figures = score_job(KNOWN[:1], [replace(tied, candidates=tied.candidates[::-1])]).all
    assert figures.retrieval_recall[1] == figures.reranked_recall[1] == 0
    assert figures.retrieval_recall[2] == figures.reranked_recall[2] == 1


def test_recall_of_the_retrieval_is_by_rank_and_not_by_score() -> None:
    """A picture that its caption found is behind the nearest ones, whatever its cosine is."""
    by_caption = Candidate(StoredImage(3, "sha-a", "a.png", None), 2, 0.99, 0.9, origin=Origin.CAPTION)
    row = _result("q-1", "answered", "red", ("x.png", 0.5, 0.1), ("y.png", 0.4, 0.2))
    figures = score_job(KNOWN[:1], [replace(row, candidates=(by_caption, *row.candidates))]).all
    assert figures.retrieval_recall == {1: 0, 2: 0, 5: 1, 20: 1}
    assert figures.reranked_recall == {1: 1, 2: 1}


def test_what_was_not_reranked_comes_behind_what_was() -> None:
    row = _result("q-1", "answered", "red", ("a.png", 0.9, 0.0), ("x.png", 0.5, 0.2), ("y.png", 0.4, 0.0))
    not_reranked = replace(row.candidates[0], relevance=None)
    figures = score_job(KNOWN[:1], [replace(row, candidates=(not_reranked, *row.candidates[1:]))]).all
    assert figures.reranked_recall == {1: 0, 2: 0}
    assert figures.retrieval_recall[1] == 1


def test_all_candidates_can_have_what_no_depth_of_the_table_has() -> None:
    wrong = [(f"x{number}.png", 1 - number / 100, 0.1) for number in range(20)]
    found = score_job(KNOWN[:1], [_result("q-1", "answered", "red", *wrong, ("a.png", 0.0, None))]).all
    lost = score_job(KNOWN[:1], [_result("q-1", "answered", "red", *wrong)]).all
    assert (found.retrieval_recall[20], found.candidate_recall, lost.candidate_recall) == (0, 1, 0)


def test_figures_as_json() -> None:
    figures = json.loads(json.dumps(score_job(KNOWN, RESULTS).as_json()))
    assert figures["retrieval_recall_at_1"] == 0.1667
    assert figures["reranked_recall_at_2"] == 0.5
    assert figures["two_image"]["questions"] == 1
    assert figures["by_type"]["color"] == {"questions": 3, "right": 1, "accuracy": 0.3333, "majority_share": 0.6667}
    assert score_job(KNOWN[:1], []).as_json()["two_image"] is None


def test_what_cannot_be_scored_is_said() -> None:
    with pytest.raises(UsageError, match="no known answers"):
        score_job([], RESULTS)
    with pytest.raises(UsageError, match="q-1 has two results"):
        score_job(KNOWN, [RESULTS[0], RESULTS[0]])
