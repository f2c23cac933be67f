"""What the noise ablation found, as a table for people and as JSON. Loads no torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ragllava.errors import UsageError
from ragllava.evaluation.paper_table import markdown_table

ADDED = "a wrong one added"
CLEAN = "0% wrong"
_PLAIN, _BOTH = "plain fine-tuning", "both levels"
_ABSENT = "–"


@dataclass(frozen=True, slots=True)
class Scores:
    """Shares of right answers of one generator on one seed's questions, by condition.

    `about_one` counts the questions about one picture only. `token_weight` is the mean weight of the answers' tokens
    in training, None for a base.
    """

    accuracy: Mapping[str, float]
    about_one: Mapping[str, float]
    by_type: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    token_weight: float | None = None

    @property
    def lost(self) -> float:
        """What is lost of its own clean accuracy when a wrong picture is added."""
        return self.accuracy[CLEAN] - self.accuracy[ADDED]

    @property
    def lost_about_one(self) -> float:
        """The same of questions about one picture."""
        return self.about_one[CLEAN] - self.about_one[ADDED]


@dataclass(frozen=True, slots=True)
class AblationRow:
    """One generator: its scores by seed, in the order of the seeds."""

    label: str
    scores: tuple[Scores, ...]

    @property
    def lost(self) -> float:
        """Mean over the seeds of what an added wrong picture costs."""
        return statistics.mean(scores.lost for scores in self.scores)

    @property
    def lost_about_one(self) -> float:
        """The same of questions about one picture."""
        return statistics.mean(scores.lost_about_one for scores in self.scores)

    def as_json(self) -> dict[str, Any]:
        """Means and spreads by condition, and all values of each seed; shares with four decimals."""
        return {
            "label": self.label,
            "accuracy": {name: _as_json(self._of(name)) for name in self.scores[0].accuracy},
            "lost_with_wrong_added": _as_json([scores.lost for scores in self.scores]),
            "lost_with_wrong_added_about_one": _as_json([scores.lost_about_one for scores in self.scores]),
            "token_weight": _rounded([s.token_weight for s in self.scores if s.token_weight is not None]),
            "about_one": [_shares(scores.about_one) for scores in self.scores],
            "by_type": [{name: _shares(found) for name, found in s.by_type.items()} for s in self.scores],
        }

    def cells(self) -> list[str]:
        """The row as texts, in percent: mean ± spread."""
        weights = [scores.token_weight for scores in self.scores if scores.token_weight is not None]
        return [
            self.label,
            *(_percent(self._of(name)) for name in self.scores[0].accuracy),
            _percent([scores.lost for scores in self.scores]),
            _percent([scores.lost_about_one for scores in self.scores]),
            f"{statistics.mean(weights):.2f}" if weights else _ABSENT,
        ]

    def _of(self, condition: str) -> list[float]:
        return [scores.accuracy[condition] for scores in self.scores]


@dataclass(frozen=True, slots=True)
class Ablation:
    """The whole result. `base` and `shipped` name weights; `setup` holds the counts that a run can choose."""

    base: str
    shipped: str
    setup: Mapping[str, float]
    rows: tuple[AblationRow, ...]
    seconds: float

    def row(self, label: str) -> AblationRow:
        """The row of that label. Raises UsageError."""
        for row in self.rows:
            if row.label == label:
                return row
        raise UsageError(f"the ablation has no row {label!r}")

    @property
    def share_lost(self) -> float | None:
        """What both levels lose to an added wrong picture, as a share of what plain fine-tuning loses.

        None when plain fine-tuning loses nothing: then there is nothing to save.
        """
        return _share(self.row(_BOTH).lost, self.row(_PLAIN).lost)

    @property
    def share_lost_about_one(self) -> float | None:
        """The same of questions about one picture."""
        return _share(self.row(_BOTH).lost_about_one, self.row(_PLAIN).lost_about_one)

    def as_json(self) -> dict[str, Any]:
        """Everything; `share_lost` must be at most 0.5."""
        return {
            "base": self.base,
            "shipped": self.shipped,
            "setup": dict(self.setup),
            "rows": [row.as_json() for row in self.rows],
            "share_lost": self.share_lost,
            "share_lost_about_one": self.share_lost_about_one,
            "seconds": round(self.seconds),
        }

    def as_text(self) -> str:
        """What was done, the table, and the sentence that it is made for."""
        setup, shipped, base = self.setup, self.rows[0], self.rows[1]
        lines = [
            f"base: {self.base}, made naive from {self.shipped}: the last {setup['naive_layers']} layers of the "
            f"language model drawn anew and trained {setup['naive_steps']} steps without a wrong picture; an added "
            f"wrong one costs it {100 * base.lost:.1f} points, the shipped model {100 * shipped.lost:.1f}",
            f"arms: LoRA on that base, {setup['steps']} steps of {setup['examples_per_step']} examples, learning rate "
            f"{setup['learning_rate']:g}; a quarter of the examples shows one picture, half of them two, a quarter "
            "three; with noise on data level one is wrong in three quarters of those of two and in all of three, "
            "without it none is, and the third is one of the others shown once more",
            f"asked: {setup['questions']} held-out questions for each of {setup['seeds']} seeds; percent right, mean "
            "± standard deviation. One question in five is about two pictures: with a wrong one it sees three",
            "",
            markdown_table([self._head(), *(row.cells() for row in self.rows)]),
        ]
        return "\n".join([*lines, self._verdict(), f"{self.seconds / 60:.0f} minutes"])

    def _head(self) -> list[str]:
        return ["", *self.rows[0].scores[0].accuracy, "lost by it", "lost, one-picture", "token weight"]

    def _verdict(self) -> str:
        plain, both = self.row(_PLAIN), self.row(_BOTH)
        everything = _comparison(plain.lost, both.lost, self.share_lost)
        about_one = _comparison(plain.lost_about_one, both.lost_about_one, self.share_lost_about_one)
        return (
            f"an added wrong picture costs plain fine-tuning {everything}; of questions about one picture alone, it "
            f"costs {about_one}"
        )


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole > 0 else None


def _comparison(plain: float, both: float, share: float | None) -> str:
    """`20.0 points, both levels 5.0: 0.25 of it`."""
    text = f"{100 * plain:.1f} points, both levels {100 * both:.1f}"
    return text if share is None else f"{text}: {share:.2f} of it"


def _percent(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _as_json(values: Sequence[float]) -> dict[str, Any]:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {
        "mean": round(statistics.mean(values), 4),
        "spread": None if spread is None else round(spread, 4),
        "values": _rounded(values),
    }


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(value, 4) for value in values]


def _shares(found: Mapping[str, float]) -> dict[str, float]:
    return {name: round(share, 4) for name, share in found.items()}
