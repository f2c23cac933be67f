"""What people say about answers, and which answers look wrong. Frozen records."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """What was said about an answer."""

    RIGHT = "right"
    WRONG = "wrong"


class NoisyReason(StrEnum):
    """Why a question is a noisy case."""

    NEAR_THRESHOLD = "near_threshold"  # a candidate's relevance is close to η
    RANKS_DISAGREE = "ranks_disagree"  # the best by relevance has a low retrieval rank
    NO_EVIDENCE = "no_evidence"  # every candidate was dropped
    FRAGILE_ANSWER = "fragile_answer"  # another answer without the least relevant of the kept images
    LOW_CONFIDENCE = "low_confidence"  # the answer's tokens were unlikely
    SAID_WRONG = "said_wrong"  # by a person or a gold label
    UNLABELLED_RELEVANT = "unlabelled_relevant"  # an image without a label looks relevant: label it before a training


class NoisyState(StrEnum):
    """What became of a noisy case."""

    OPEN = "open"
    LABELLED = "labelled"
    DISMISSED = "dismissed"


@dataclass(frozen=True, slots=True)
class NoisyCase:
    """A logged question that looks wrong. `details` has a sentence or figures for each reason, by its name."""

    question_no: int
    reasons: tuple[NoisyReason, ...]
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Label:
    """What was said about the answer to one question. Images are ids of the archive's.

    `answer` is the right one, None if it was not said; `source` is `person` or `gold`. `reviewer` is who gave it; two
    labels that differ in nothing else are equal.
    """

    job_id: int
    question_no: int
    verdict: Verdict
    answer: str | None
    relevant: tuple[int, ...]
    irrelevant: tuple[int, ...]
    source: str
    reviewer: str | None = field(default=None, compare=False)

    @property
    def key(self) -> tuple[int, int]:
        """The question's address: job and number."""
        return self.job_id, self.question_no

    def says_the_same(self, other: Label | None) -> bool:
        """Whether there is another label and it differs in nothing, unless in who says so."""
        return other is not None and replace(other, source=self.source) == self
