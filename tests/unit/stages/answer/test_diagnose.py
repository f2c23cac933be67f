"""Reasons to doubt an answer, against cases worked by hand."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from ragllava.errors import DeviceOutOfMemory, JobRefused, RagllavaError, ScoreRejected
from ragllava.feedback import NoisyCase, NoisyReason
from ragllava.records import Answer, AnswerStatus, Candidate, ModelStamp, Origin, Question, StoredImage
from ragllava.stages.answer.doubts import DoubtLimits, Evidence, diagnose, find_noisy

LIMITS = DoubtLimits(top_n=2, near_threshold=1.0, low_confidence=0.5)


def candidate(name: str, retrieval_rank: int, relevance: float, evidence_no: int | None = None) -> Candidate:
    image = StoredImage(retrieval_rank + 1, f"{retrieval_rank:064x}", f"{name}.png", None)
    return Candidate(image, retrieval_rank, 0.9 - 0.01 * retrieval_rank, relevance, evidence_no)


def answered(
    *candidates: Candidate, threshold: float = 0.5, confidence: float = 0.9, text: str = "two", question_no: int = 0
) -> Answer:
    kept = [c for c in candidates if c.evidence_no is not None]
    stamp = ModelStamp("1:clip", "reranker", "generator", "prompt", threshold)
    status = AnswerStatus.ANSWERED if kept else AnswerStatus.NO_EVIDENCE
    return Answer(
        question_no,
        status,
        text=text if kept else None,
        confidence=confidence if kept else None,
        candidates=candidates,
        models=stamp,
    )


SURE = answered(candidate("right", 1, 0.99, 0), candidate("other", 0, 0.02), candidate("third", 2, 0.01))


def reasons(noisy: NoisyCase | None) -> list[NoisyReason]:
    return list(noisy.reasons) if noisy else []


def test_a_sure_answer_is_not_a_noisy_case() -> None:
    assert diagnose(SURE, LIMITS) is None


# Near the threshold: sigmoid(±1) = 0.731 and 0.269, so with η = 0.5 a margin of one logit begins there.


@pytest.mark.parametrize(("relevance", "is_near"), [(0.74, False), (0.72, True), (0.5, True)])
def test_a_kept_image_is_near_the_threshold_by_its_logit(relevance: float, is_near: bool) -> None:
    noisy = diagnose(answered(candidate("a", 0, relevance, 0), candidate("b", 1, 0.01)), LIMITS)
    assert (NoisyReason.NEAR_THRESHOLD in reasons(noisy)) is is_near
    if noisy:
        expected = f"a.png has a relevance of {relevance:.3f}, close to the threshold 0.500"
        assert noisy.details["near_threshold"] == expected


def test_a_dropped_image_can_be_near_as_well_but_only_where_it_could_have_been_kept() -> None:
    first, second = candidate("a", 0, 0.99, 0), candidate("b", 1, 0.45)
    assert reasons(diagnose(answered(first, second), LIMITS)) == [NoisyReason.NEAR_THRESHOLD]
    top_one = replace(LIMITS, top_n=1)
    assert diagnose(answered(first, second), top_one) is None


def test_distances_are_logits_so_that_a_low_threshold_does_not_take_in_every_dropped_image() -> None:
    # Of 0.02 and 0.001 the difference is small, their logits are 3 apart.
    answer = answered(candidate("a", 0, 0.97, 0), candidate("b", 1, 0.001), threshold=0.02)
    assert diagnose(answer, LIMITS) is None
    close = answered(candidate("a", 0, 0.97, 0), candidate("b", 1, 0.015), threshold=0.02)
    assert reasons(diagnose(close, LIMITS)) == [NoisyReason.NEAR_THRESHOLD]


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_threshold_that_decides_nothing_is_near_to_nothing(threshold: float) -> None:
    relevance = 1.0 if threshold else 0.0
    answer = answered(candidate("a", 0, relevance, 0), threshold=threshold)
    assert diagnose(answer, LIMITS) is None


def test_a_margin_of_zero_switches_it_off() -> None:
    answer = answered(candidate("a", 0, 0.5, 0))
    assert diagnose(answer, replace(LIMITS, near_threshold=0.0)) is None


# The two rankings


def ranked(best_rank: int, first_relevance: float = 0.01, best_relevance: float = 0.99) -> Answer:
    """Ten candidates; the most relevant has the retrieval rank `best_rank`."""
    lower = [candidate(f"c{n}", n, first_relevance if n == 0 else 0.001, None) for n in range(10) if n != best_rank]
    kept = 0 if best_relevance >= 0.5 else None
    return answered(candidate("best", best_rank, best_relevance, kept), *lower)


def test_the_rankings_disagree_when_the_best_stands_in_the_lower_half_by_retrieval() -> None:
    assert diagnose(ranked(4), LIMITS) is None
    noisy = diagnose(ranked(5), LIMITS)
    assert noisy is not None
    assert noisy.reasons == (NoisyReason.RANKS_DISAGREE,)
    expected = "best.png, the most relevant, has retrieval rank 6 of 10; rank 1, c0.png, has a relevance of only 0.010"
    assert noisy.details == {"ranks_disagree": expected}


def test_they_do_not_disagree_when_rank_one_is_relevant_too_or_nothing_is() -> None:
    assert diagnose(ranked(9, first_relevance=0.98), LIMITS) is None
    assert reasons(diagnose(ranked(9, best_relevance=0.02), LIMITS)) == [NoisyReason.NO_EVIDENCE]


# No evidence, low confidence, and what is never looked at


@pytest.mark.parametrize("origin", [Origin.CAPTION, Origin.BOTH])
def test_an_image_that_its_caption_found_is_well_retrieved_whatever_its_rank(origin: Origin) -> None:
    answer = ranked(best_rank=9)
    best, *lower = answer.candidates
    found = replace(answer, candidates=(replace(best, origin=origin, caption_rank=0, caption_score=9.0), *lower))
    assert reasons(diagnose(answer, LIMITS)) == [NoisyReason.RANKS_DISAGREE]
    assert diagnose(found, LIMITS) is None


def test_images_that_captions_found_do_not_make_the_list_of_pictures_longer() -> None:
    """The picture at rank 4 of 6 is in the lower half; four images found by their captions stand behind."""
    named = [replace(candidate(f"n{n}", n, 0.001), origin=Origin.CAPTION, caption_rank=n - 6) for n in range(6, 10)]
    answer = ranked(best_rank=3)
    pictures = [c for c in answer.candidates if c.retrieval_rank < 6]
    noisy = diagnose(replace(answer, candidates=(*pictures, *named)), LIMITS)
    assert noisy is not None and "best.png, the most relevant, has retrieval rank 4 of 6" in str(noisy.details)


def test_what_was_not_reranked_is_neither_near_the_threshold_nor_a_disagreement() -> None:
    best, first, *lower = ranked(best_rank=9).candidates
    unread = [replace(c, relevance=None) for c in lower]
    read = answered(best, first, *unread)
    assert reasons(diagnose(read, LIMITS)) == [NoisyReason.RANKS_DISAGREE]
    assert diagnose(answered(best, replace(first, relevance=None), *unread), LIMITS) is None, "rank 1 is not known"


def test_dropped_evidence_names_the_best() -> None:
    noisy = diagnose(answered(candidate("a", 0, 0.04)), LIMITS)
    assert noisy is not None
    assert noisy.details == {
        "no_evidence": "every image was dropped: the best, a.png, has a relevance of 0.040, below the threshold 0.500"
    }


def test_an_archive_without_pictures_teaches_nothing() -> None:
    assert diagnose(answered(), LIMITS) is None


@pytest.mark.parametrize(("confidence", "is_low"), [(0.49, True), (0.5, False)])
def test_an_unsure_answer_is_a_noisy_case(confidence: float, is_low: bool) -> None:
    noisy = diagnose(answered(candidate("a", 0, 0.99, 0), confidence=confidence), LIMITS)
    assert (reasons(noisy) == [NoisyReason.LOW_CONFIDENCE]) is is_low


@pytest.mark.parametrize("status", [AnswerStatus.FAILED, AnswerStatus.DEAD, AnswerStatus.CANCELLED])
def test_what_has_no_answer_has_a_reason_of_its_own(status: AnswerStatus) -> None:
    broken = replace(answered(candidate("a", 0, 0.5, 0), confidence=0.1), status=status)
    assert diagnose(broken, LIMITS) is None


def test_every_reason_is_reported() -> None:
    answer = answered(candidate("a", 9, 0.6, 0), *(candidate(f"c{n}", n, 0.01) for n in range(9)), confidence=0.2)
    assert reasons(diagnose(answer, LIMITS)) == [
        NoisyReason.NEAR_THRESHOLD,
        NoisyReason.RANKS_DISAGREE,
        NoisyReason.LOW_CONFIDENCE,
    ]


# The answer without the least relevant image

BOTH = answered(candidate("a", 0, 0.99, 0), candidate("b", 1, 0.9, 1), text="Two.", question_no=4)
QUESTIONS = [Question(0, 1, "q0", "which?"), Question(4, 5, "q4", "how many?")]


def saying(text: str, requests: list[list[str]]) -> object:
    def again(questions: Sequence[Question], evidence: Evidence) -> Mapping[int, str]:
        requests.extend(
            [question.text, *(c.image.source for c in evidence[question.question_no])] for question in questions
        )
        return {question.question_no: text for question in questions}

    return again


def fragile(again: object) -> list[NoisyCase]:
    return find_noisy(QUESTIONS, [SURE, BOTH], LIMITS, again)  # type: ignore[arg-type]


def test_only_questions_with_two_images_are_asked_again_without_the_least_relevant() -> None:
    requests: list[list[str]] = []
    [noisy] = fragile(saying("one", requests))
    assert requests == [["how many?", "a.png"]]
    assert (noisy.question_no, noisy.reasons) == (4, (NoisyReason.FRAGILE_ANSWER,))
    assert noisy.details == {"fragile_answer": "without b.png the answer is 'one', not 'Two.'"}


def test_the_same_answer_in_other_words_is_not_fragile() -> None:
    assert fragile(saying("2", [])) == []


def test_nothing_is_asked_again_when_that_is_switched_off() -> None:
    assert find_noisy(QUESTIONS, [SURE, BOTH], LIMITS, None) == []


def test_a_fragile_answer_keeps_its_other_reasons() -> None:
    unsure = replace(BOTH, confidence=0.1)
    [noisy] = find_noisy(QUESTIONS, [SURE, unsure], LIMITS, saying("one", []))  # type: ignore[arg-type]
    assert noisy.reasons == (NoisyReason.LOW_CONFIDENCE, NoisyReason.FRAGILE_ANSWER)
    assert set(noisy.details) == {"low_confidence", "fragile_answer"}


def raising(error: RagllavaError) -> object:
    def again(questions: Sequence[Question], evidence: Evidence) -> Mapping[int, str]:
        raise error

    return again


def test_a_second_answer_that_cannot_be_had_costs_no_first_one_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert fragile(raising(ScoreRejected("no number"))) == []
    assert [record.getMessage() for record in caplog.records] == ["no number"]


@pytest.mark.parametrize("error", [DeviceOutOfMemory("full"), JobRefused("another base")])
def test_what_concerns_the_whole_shard_is_passed_on(error: RagllavaError) -> None:
    with pytest.raises(type(error)):
        fragile(raising(error))
