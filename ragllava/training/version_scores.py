"""The scores of a model version on held-out questions, one for each question, under several conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from statistics import fmean
from typing import Any, Generic, TypeVar

from ragllava.training.data.datasets import DatasetOptions
from ragllava.training.gate import PRIMARY_SHARES, SOFTENED, WITH_CAPTIONS
from ragllava.training.softened_f1 import softened_f1

UNLABELLED = "no unlabelled image taken for relevant"
LABELLED_IMAGES = "from the labelled images"
WRONG_IMAGE = "with a wrong image beside them"
WITHOUT_CAPTIONS = "without captions"

Score = TypeVar("Score", "RankScore", "AnswerScore")


@dataclass(frozen=True, slots=True)
class RankedImage:
    """A candidate or labelled image of a question, with its relevance; `correct` if it is labelled relevant.

    `labelled` tells whether a label says anything about it.
    """

    image: str
    relevance: float
    correct: bool
    kept: bool
    labelled: bool = True


@dataclass(frozen=True, slots=True)
class RankScore:
    """One question: F1 of the kept images, average precision of the whole ranking, and the ranking, best first.

    `unscored` says why there is no ranking; then both figures are 0.
    """

    f1: float
    average_precision: float
    ranking: tuple[RankedImage, ...] = ()
    unscored: str | None = None


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """One question: 1 for the right answer after normalisation, else 0. `unscored` says why there is no answer."""

    score: float
    answer: str | None = None
    unscored: str | None = None


@dataclass(frozen=True, slots=True)
class _ConditionScores(Generic[Score]):
    """The scores of a version; each condition has one for each question."""

    version: str
    questions: tuple[str, ...]
    relevant: tuple[tuple[str, ...], ...]
    conditions: Mapping[str, tuple[Score, ...]]

    def _as_json(self, facts: Mapping[str, Any], means: Mapping[str, Callable[[Score], float]]) -> dict[str, Any]:
        """These facts and, of each condition, these means with four decimals and how many questions have no score."""
        conditions = {
            name: {
                **{mean: round(fmean(map(of, scores)), 4) if scores else 0.0 for mean, of in means.items()},
                "unscored": sum(score.unscored is not None for score in scores),
            }
            for name, scores in self.conditions.items()
        }
        return {"version": self.version, **facts, "questions": len(self.questions), "conditions": conditions}


@dataclass(frozen=True, slots=True)
class RerankerScores(_ConditionScores[RankScore]):
    """Scores of a reranker version at its own η.

    A candidate without a label counts as wrong, unless it was left out (`without`). `certain` is the relevance from
    which an unlabelled image is taken for relevant; `takes_unlabelled` tells for which questions this version does so.
    """

    threshold: float
    top_n: int
    certain: float = DatasetOptions(seed=0).certain
    takes_unlabelled: tuple[bool, ...] = ()

    @property
    def primary(self) -> dict[str, float]:
        """Better evidence counts; softened around η, few questions can prove it, so that gets most of the error."""
        if SOFTENED in self.by_condition:
            return dict(PRIMARY_SHARES)
        return {WITH_CAPTIONS: 1.0}

    @property
    def tolerances(self) -> dict[str, float]:
        """A version may find relevant images that nobody labelled, but not in every question."""
        return {UNLABELLED: 0.25}

    @property
    def by_condition(self) -> dict[str, tuple[float, ...]]:
        """What the gate compares of each question: the F1 at η, also softened around η; where η was not fitted, the
        average precision; and whether no unlabelled image was taken for relevant.

        η is fitted with captions; without them hardly any image reaches it: the F1 would measure η, not the ranking.
        """
        compared = {
            name: tuple(score.f1 if name == WITH_CAPTIONS else score.average_precision for score in scores)
            for name, scores in self.conditions.items()
        }
        if WITH_CAPTIONS in self.conditions:
            compared[SOFTENED] = self._softened()
        if self.takes_unlabelled:
            compared[UNLABELLED] = tuple(float(not takes) for takes in self.takes_unlabelled)
        return compared

    def _softened(self) -> tuple[float, ...]:
        rankings = [score.ranking[: self.top_n] for score in self.conditions[WITH_CAPTIONS]]
        best = [[(image.relevance, image.correct) for image in ranking] for ranking in rankings]
        return softened_f1(best, [len(images) for images in self.relevant], self.threshold)

    def doubtful(self) -> tuple[frozenset[str], ...]:
        """The unlabelled images of each question that this version takes for relevant."""
        return tuple(
            frozenset(image.image for image in score.ranking if not image.labelled and image.relevance >= self.certain)
            for score in self.conditions[WITH_CAPTIONS]
        )

    def without(self, images: Sequence[frozenset[str]]) -> RerankerScores:
        """The scores if these images had not been candidates; one set for each question."""
        left = {
            name: tuple(
                score
                if score.unscored is not None or not names
                else score_ranking(
                    [image for image in score.ranking if image.image not in names],
                    len(relevant),
                    top_n=self.top_n,
                    threshold=self.threshold,
                )
                for score, names, relevant in zip(scores, images, self.relevant, strict=True)
            )
            for name, scores in self.conditions.items()
        }
        return replace(self, conditions=left, takes_unlabelled=tuple(map(bool, self.doubtful())))

    def calibration(self, *, with_doubtful: bool = True) -> tuple[list[float], list[bool]]:
        """Relevance of every ranked image with captions, and whether it is correct: what η is fitted on
        (docs/method.md 3). Unlabelled images that are taken for relevant can be left out."""
        left_out = [frozenset[str]()] * len(self.questions) if with_doubtful else self.doubtful()
        images = [
            image
            for score, names in zip(self.conditions[WITH_CAPTIONS], left_out, strict=True)
            for image in score.ranking
            if image.image not in names
        ]
        return [image.relevance for image in images], [image.correct for image in images]

    @property
    def calibration_questions(self) -> list[int]:
        """The number of the question of each image of `calibration`, those that are taken for relevant included."""
        return [number for number, score in enumerate(self.conditions[WITH_CAPTIONS]) for _ in score.ranking]

    def as_json(self) -> dict[str, Any]:
        """The means of each condition, with four decimals."""
        facts = {"threshold": self.threshold, "top_n": self.top_n}
        return self._as_json(facts, {"f1": attrgetter("f1"), "average_precision": attrgetter("average_precision")})


@dataclass(frozen=True, slots=True)
class GeneratorScores(_ConditionScores[AnswerScore]):
    """Scores of a generator version."""

    @property
    def primary(self) -> dict[str, float]:
        """The one condition that decides."""
        return {LABELLED_IMAGES: 1.0}

    @property
    def tolerances(self) -> dict[str, float]:
        """None of its own."""
        return {}

    @property
    def by_condition(self) -> dict[str, tuple[float, ...]]:
        """The score of each question, which the gate compares."""
        return {name: tuple(score.score for score in scores) for name, scores in self.conditions.items()}

    def as_json(self) -> dict[str, Any]:
        """The share of right answers in each condition, with four decimals."""
        return self._as_json({}, {"right": attrgetter("score")})


def score_ranking(images: Sequence[RankedImage], relevant: int, *, top_n: int, threshold: float) -> RankScore:
    """The score of a ranking, best first, of a question with so many relevant images."""
    ranking = tuple(
        replace(image, kept=rank < top_n and image.relevance >= threshold) for rank, image in enumerate(images)
    )
    ranks = [rank for rank, image in enumerate(ranking, start=1) if image.correct]
    kept = [image for image in ranking if image.kept]
    hits = sum(image.correct for image in kept)
    return RankScore(
        f1=2 * hits / (len(kept) + relevant) if hits else 0.0,
        average_precision=fmean(hit / rank for hit, rank in enumerate(ranks, start=1)) if ranks else 0.0,
        ranking=ranking,
    )
