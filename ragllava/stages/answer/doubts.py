"""Which answers look wrong, and why: the noisy cases that people label and models are retrained on.

`diagnose` uses only the stored answer. `find_noisy` also asks again without the least relevant kept image where two or
more were kept, unless RAGLLAVA_LEAVE_ONE_OUT=false.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ragllava.answer_text import exact_match
from ragllava.errors import JobRefused, RagllavaError
from ragllava.feedback import NoisyCase, NoisyReason
from ragllava.records import Answer, AnswerStatus, Candidate, Origin, Question, evidence_of
from ragllava.settings import Settings

log = logging.getLogger(__name__)

_MARGIN = 1e-6  # relevance is clipped to this distance from 0 and 1, where its logit would be infinite

Evidence = Mapping[int, Sequence[Candidate]]  # by question_no
AnswerAgain = Callable[[Sequence[Question], Evidence], Mapping[int, str]]


@dataclass(frozen=True, slots=True)
class DoubtLimits:
    """Limits of the doubts. `near_threshold` is a distance in logits, `low_confidence` a confidence."""

    top_n: int
    near_threshold: float
    low_confidence: float

    @classmethod
    def of(cls, settings: Settings, top_n: int) -> DoubtLimits:
        """The limits of the settings; `top_n` is the job's."""
        return cls(top_n, settings.near_threshold_logits, settings.low_confidence)


def diagnose(answer: Answer, limits: DoubtLimits, fragile: str | None = None) -> NoisyCase | None:
    """The reasons to doubt an answer that are visible in it, and that it is `fragile`; None if there is none.

    Only questions that ended as `answered` or `no_evidence` are diagnosed: a failure has its own reason, and an empty
    archive gives nothing to learn from.
    """
    has_outcome = answer.status in (AnswerStatus.ANSWERED, AnswerStatus.NO_EVIDENCE)
    if not has_outcome or not answer.candidates or answer.models is None:
        return None
    threshold = answer.models.threshold
    sentences = {
        NoisyReason.NEAR_THRESHOLD: _near_threshold(answer, threshold, limits),
        NoisyReason.RANKS_DISAGREE: _ranks_disagree(answer, threshold),
        NoisyReason.NO_EVIDENCE: _no_evidence(answer, threshold),
        NoisyReason.LOW_CONFIDENCE: _low_confidence(answer, limits),
        NoisyReason.FRAGILE_ANSWER: fragile,
    }
    details = {reason: sentence for reason, sentence in sentences.items() if sentence}
    if not details:
        return None
    return NoisyCase(
        answer.question_no, tuple(details), {reason.value: sentence for reason, sentence in details.items()}
    )


def find_noisy(
    questions: Sequence[Question], answers: Sequence[Answer], limits: DoubtLimits, answer_again: AnswerAgain | None
) -> list[NoisyCase]:
    """The noisy cases among the answers of a sub-batch, in their order.

    `answer_again` answers questions from the evidence given, and may leave some out; None: no question is asked
    twice. When second answers fail permanently, the failure is logged and the first answers stay without that check.
    """
    fragile = _fragile(questions, answers, answer_again) if answer_again else {}
    cases = [diagnose(answer, limits, fragile.get(answer.question_no)) for answer in answers]
    return [case for case in cases if case]


def _near_threshold(answer: Answer, threshold: float, limits: DoubtLimits) -> str | None:
    """Distances are in logits: relevance is a sigmoid, and near 0 and 1, where η often lies, a fixed distance would
    include every candidate or none. With η = 0 or 1 no candidate is close to the decision."""
    if not 0 < threshold < 1:
        return None
    # Only the first top_n can be evidence, so only of them does η decide.
    first = [(c.relevance, c.image.source) for c in answer.candidates[: limits.top_n] if c.relevance is not None]
    distances = [abs(_logit(relevance) - _logit(threshold)) for relevance, _ in first]
    if not distances or min(distances) >= limits.near_threshold:
        return None
    relevance, source = first[distances.index(min(distances))]
    return f"{source} has a relevance of {relevance:.3f}, close to the threshold {threshold:.3f}"


def _ranks_disagree(answer: Answer, threshold: float) -> str | None:
    """The most relevant image is in the lower half of the retriever's list, and the retriever's first is not relevant.

    The reranker is meant to change the order. But if its best image was almost not retrieved, either the reranker is
    wrong, or the right image was not retrieved at all. An image that was found by its caption was well retrieved,
    however far its picture is from the question.
    """
    best = answer.candidates[0]
    nearest = [candidate for candidate in answer.candidates if candidate.origin is not Origin.CAPTION]
    if best.origin is not Origin.PICTURE or best.relevance is None:
        return None
    first = min(nearest, key=lambda candidate: candidate.retrieval_rank)
    total = len(nearest)
    first_is_relevant = first.relevance is None or first.relevance >= threshold
    if best.retrieval_rank * 2 < total or best.relevance < threshold or first_is_relevant:
        return None
    return (
        f"{best.image.source}, the most relevant, has retrieval rank {best.retrieval_rank + 1} of {total}; "
        f"rank 1, {first.image.source}, has a relevance of only {first.relevance:.3f}"
    )


def _no_evidence(answer: Answer, threshold: float) -> str | None:
    if answer.status is not AnswerStatus.NO_EVIDENCE:
        return None
    best = answer.candidates[0]
    return (
        f"every image was dropped: the best, {best.image.source}, has a relevance of {best.relevance:.3f}, below the "
        f"threshold {threshold:.3f}"
    )


def _low_confidence(answer: Answer, limits: DoubtLimits) -> str | None:
    if answer.confidence is None or answer.confidence >= limits.low_confidence:
        return None
    return f"the answer's confidence is only {answer.confidence:.2f}"


def _fragile(questions: Sequence[Question], answers: Sequence[Answer], answer_again: AnswerAgain) -> dict[int, str]:
    """A sentence for each question whose answer changes without its least relevant kept image."""
    texts = {answer.question_no: answer.text for answer in answers}
    evidence = {answer.question_no: evidence_of(answer.candidates) for answer in answers}
    repeated = [question for question in questions if len(evidence.get(question.question_no, ())) > 1]
    if not repeated:
        return {}
    try:
        second = answer_again(repeated, {q.question_no: evidence[q.question_no][:-1] for q in repeated})
    except JobRefused:
        raise
    except RagllavaError as error:
        if error.retryable:
            raise
        log.warning(str(error), extra={"action": "second_answer_failed", "question": repeated[0].question_no})
        return {}
    return {
        number: f"without {evidence[number][-1].image.source} the answer is {text!r}, not {texts[number]!r}"
        for number, text in second.items()
        if not exact_match(text, texts[number] or "")
    }


def _logit(relevance: float) -> float:
    clipped = min(max(relevance, _MARGIN), 1 - _MARGIN)
    return math.log(clipped / (1 - clipped))
