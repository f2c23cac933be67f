"""Which answers look wrong, and why: the noisy cases that people label and models are retrained on.

`diagnose` looks only at what an answer already holds. `find_noisy` also asks once more without the least relevant
kept image, where two or more were kept; RAGLLAVA_LEAVE_ONE_OUT=false spares that.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ragllava.answer_text import exact_match
from ragllava.errors import JobRefused, RagllavaError
from ragllava.records import Answer, AnswerStatus, Candidate, NoisyCase, NoisyReason, Question
from ragllava.settings import Settings

log = logging.getLogger(__name__)

_LEAST = 1e-6  # a relevance is held this far from 0 and 1, where its logit would be infinite

Evidence = Mapping[int, Sequence[Candidate]]  # by question_no
AnswerAgain = Callable[[Sequence[Question], Evidence], Mapping[int, str]]


@dataclass(frozen=True, slots=True)
class DoubtLimits:
    """Where doubt begins. `near_threshold` is a distance in logits, `low_confidence` a confidence."""

    top_n: int
    near_threshold: float
    low_confidence: float

    @classmethod
    def of(cls, settings: Settings, top_n: int) -> DoubtLimits:
        """As set; `top_n` is the job's."""
        return cls(top_n, settings.near_threshold_logits, settings.low_confidence)


def diagnose(answer: Answer, threshold: float, limits: DoubtLimits) -> NoisyCase | None:
    """The reasons to doubt an answer that can be read off it, None if there is none.

    Only questions that were answered or dropped for want of evidence are looked at: what failed has its own reason,
    and of an empty archive nothing can be learned.
    """
    if answer.status not in (AnswerStatus.ANSWERED, AnswerStatus.NO_EVIDENCE) or not answer.candidates:
        return None
    found = {
        NoisyReason.NEAR_THRESHOLD: _near_threshold(answer, threshold, limits),
        NoisyReason.RANKS_DISAGREE: _ranks_disagree(answer, threshold),
        NoisyReason.NO_EVIDENCE: _no_evidence(answer, threshold),
        NoisyReason.LOW_CONFIDENCE: _low_confidence(answer, limits),
    }
    details = {reason: sentence for reason, sentence in found.items() if sentence}
    return _as_case(answer.question_no, details) if details else None


def find_noisy(
    questions: Sequence[Question], answers: Sequence[Answer], limits: DoubtLimits, answer_again: AnswerAgain | None
) -> list[NoisyCase]:
    """The noisy cases among the answers of a sub-batch, in their order.

    `answer_again` answers questions from the evidence given, and may leave some out; None: no question is asked
    twice. When a second answer cannot be had for good, that doubt is logged as unknown and the first answers stand.
    """
    fragile = _fragile(questions, answers, answer_again) if answer_again else {}
    cases = []
    for answer in answers:
        noisy = diagnose(answer, answer.models.threshold, limits) if answer.models else None
        if sentence := fragile.get(answer.question_no):
            added = _as_case(answer.question_no, {NoisyReason.FRAGILE_ANSWER: sentence})
            noisy = _joined(noisy, added) if noisy else added
        if noisy is not None:
            cases.append(noisy)
    return cases


def _near_threshold(answer: Answer, threshold: float, limits: DoubtLimits) -> str | None:
    """Distances are in logits: relevance is a sigmoid, and near 0 and 1, where η often lies, a fixed distance would
    take in every candidate or none. η of 0 or 1 decides nothing that could have been close."""
    if not 0 < threshold < 1:
        return None
    # Only the first top_n can be evidence, so only of them does η decide.
    closest = min(answer.candidates[: limits.top_n], key=lambda c: abs(_logit(c.relevance) - _logit(threshold)))
    if abs(_logit(closest.relevance) - _logit(threshold)) >= limits.near_threshold:
        return None
    return f"{closest.image.source} reaches {closest.relevance:.3f}, close to the threshold {threshold:.3f}"


def _ranks_disagree(answer: Answer, threshold: float) -> str | None:
    """The most relevant image stands in the lower half of CLIP's list, and CLIP's first is not relevant.

    That the reranker changes the order is its work; that its best nearly was not retrieved is doubtful: either it
    errs, or the image that is really right was not retrieved at all.
    """
    best = answer.candidates[0]
    first = min(answer.candidates, key=lambda candidate: candidate.retrieval_rank)
    number = len(answer.candidates)
    if best.retrieval_rank * 2 < number or best.relevance < threshold or first.relevance >= threshold:
        return None
    return (
        f"{best.image.source}, the most relevant, is number {best.retrieval_rank + 1} of {number} in CLIP's list; "
        f"its first, {first.image.source}, reaches only {first.relevance:.3f}"
    )


def _no_evidence(answer: Answer, threshold: float) -> str | None:
    if answer.status is not AnswerStatus.NO_EVIDENCE:
        return None
    best = answer.candidates[0]
    return f"every image was dropped: the best, {best.image.source}, reaches {best.relevance:.3f} of {threshold:.3f}"


def _low_confidence(answer: Answer, limits: DoubtLimits) -> str | None:
    if answer.confidence is None or answer.confidence >= limits.low_confidence:
        return None
    return f"the answer's confidence is only {answer.confidence:.2f}"


def _fragile(questions: Sequence[Question], answers: Sequence[Answer], answer_again: AnswerAgain) -> dict[int, str]:
    """A sentence for each question whose answer becomes another one without its least relevant kept image."""
    kept = {answer.question_no: answer for answer in answers if len(_evidence(answer)) > 1}
    asked = [question for question in questions if question.question_no in kept]
    if not asked:
        return {}
    try:
        second = answer_again(asked, {number: _evidence(answer)[:-1] for number, answer in kept.items()})
    except JobRefused:
        raise
    except RagllavaError as error:
        if error.retryable:
            raise
        log.warning(str(error), extra={"action": "second_answer_failed", "question": asked[0].question_no})
        return {}
    return {
        number: f"without {_evidence(kept[number])[-1].image.source} the answer is {text!r}, not {kept[number].text!r}"
        for number, text in second.items()
        if not exact_match(text, kept[number].text or "")
    }


def _evidence(answer: Answer) -> list[Candidate]:
    """The kept candidates in rank order."""
    return [candidate for candidate in answer.candidates if candidate.evidence_no is not None]


def _as_case(question_no: int, details: Mapping[NoisyReason, str]) -> NoisyCase:
    return NoisyCase(question_no, tuple(details), {reason.value: sentence for reason, sentence in details.items()})


def _joined(one: NoisyCase, other: NoisyCase) -> NoisyCase:
    return replace(one, reasons=one.reasons + other.reasons, details=one.details | other.details)


def _logit(relevance: float) -> float:
    inside = min(max(relevance, _LEAST), 1 - _LEAST)
    return math.log(inside / (1 - inside))
