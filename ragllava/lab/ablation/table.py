"""The results of the noise ablation, as a table and as JSON. Loads no torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ragllava.evaluation.paper_table import markdown_table
from ragllava.json_records import rounded

ADDED = "a wrong one added"
CLEAN = "0% wrong"
_PLAIN, _BOTH = "plain fine-tuning", "both levels"
_ABSENT = "–"


@dataclass(frozen=True, slots=True)
class ArmScores:
    """Shares of right answers of one generator on the questions of one seed, by condition.

    `about_one` and `about_two` count only the questions about as many pictures. `token_weight` is the mean weight of
    the tokens of the answers in training, None for a base.
    """

    accuracy: Mapping[str, float]
    about_one: Mapping[str, float]
    by_type: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    token_weight: float | None = None
    about_two: Mapping[str, float] = field(default_factory=dict)

    def lost(self, *, about_one: bool = False) -> float:
        """How much accuracy an added wrong picture costs; of all questions or of those about one picture."""
        shares = self.about_one if about_one else self.accuracy
        return shares[CLEAN] - shares[ADDED]


@dataclass(frozen=True, slots=True)
class AblationRow:
    """One generator: its scores by seed, in the order of the seeds."""

    label: str
    scores: tuple[ArmScores, ...]

    def losses(self, *, about_one: bool = False) -> list[float]:
        """How much accuracy an added wrong picture costs, by seed."""
        return [scores.lost(about_one=about_one) for scores in self.scores]

    def lost(self, *, about_one: bool = False) -> float:
        """The mean of `losses`."""
        return statistics.mean(self.losses(about_one=about_one))

    def as_json(self) -> dict[str, Any]:
        """Means and spreads by condition, and all values of each seed; shares with four decimals."""
        values: dict[str, Any] = rounded(
            {
                "label": self.label,
                "accuracy": {name: spread(values) for name, values in self._accuracies().items()},
                "lost_with_wrong_added": spread(self.losses()),
                "lost_with_wrong_added_about_one": spread(self.losses(about_one=True)),
                "token_weight": self._token_weights(),
                "about_one": [scores.about_one for scores in self.scores],
                "by_type": [scores.by_type for scores in self.scores],
            }
        )
        return values

    def cells(self) -> list[str]:
        """The row as texts, in percent: mean ± spread."""
        weights = self._token_weights()
        columns = [*self._accuracies().values(), self.losses(), self.losses(about_one=True)]
        return [
            self.label,
            *(percent(values) for values in columns),
            f"{statistics.mean(weights):.2f}" if weights else _ABSENT,
        ]

    def _accuracies(self) -> dict[str, list[float]]:
        return {name: [scores.accuracy[name] for scores in self.scores] for name in self.scores[0].accuracy}

    def _token_weights(self) -> list[float]:
        return [scores.token_weight for scores in self.scores if scores.token_weight is not None]


@dataclass(frozen=True, slots=True)
class Ablation:
    """The complete result. `base` and `shipped` name weights; `setup` contains the options of the run.

    The first rows are the shipped model and the base, then one row for each arm.
    """

    base: str
    shipped: str
    setup: Mapping[str, float]
    rows: tuple[AblationRow, ...]
    seconds: float

    def row(self, label: str) -> AblationRow:
        """The row of that label. Raises KeyError."""
        return {row.label: row for row in self.rows}[label]

    def share_lost(self, *, about_one: bool = False) -> float | None:
        """The loss of both levels to an added wrong picture, as a share of the loss of plain fine-tuning.

        None if plain fine-tuning loses nothing.
        """
        both, plain = (self.row(label).lost(about_one=about_one) for label in (_BOTH, _PLAIN))
        return round(both / plain, 4) if plain > 0 else None

    def as_json(self) -> dict[str, Any]:
        """Everything; `share_lost` must be at most 0.5."""
        return {
            "base": self.base,
            "shipped": self.shipped,
            "setup": dict(self.setup),
            "rows": [row.as_json() for row in self.rows],
            "share_lost": self.share_lost(),
            "share_lost_about_one": self.share_lost(about_one=True),
            "seconds": round(self.seconds),
        }

    def as_text(self) -> str:
        """The setup, the table, and the comparison of both levels with plain fine-tuning."""
        setup, shipped, base = self.setup, self.rows[0], self.rows[1]
        head = ["", *shipped.scores[0].accuracy, "lost by it", "lost, one-picture", "token weight"]
        lines = [
            f"base: {self.base}, made naive from {self.shipped}: the last {setup['naive_layers']} layers of the "
            f"language model reinitialized and trained {setup['naive_steps']} steps without wrong pictures; an added "
            f"wrong one costs it {100 * base.lost():.1f} points, the shipped model {100 * shipped.lost():.1f}",
            f"arms: LoRA on that base, {setup['steps']} steps of {setup['examples_per_step']} examples, learning rate "
            f"{setup['learning_rate']:g}; a quarter of the examples shows one picture, half of them two, a quarter "
            "three; with noise on data level one is wrong in three quarters of those with two and in all with three, "
            "without it none is wrong, and the third repeats one of the others",
            f"asked: {setup['questions']} held-out questions for each of {setup['seeds']} seeds; percent right, mean "
            "± standard deviation. One question in five is about two pictures: with a wrong one it shows three",
            "",
            markdown_table([head, *(row.cells() for row in self.rows)]),
            f"an added wrong picture costs plain fine-tuning {self._comparison()}; of questions about one picture "
            f"only, it costs {self._comparison(about_one=True)}",
            f"{self.seconds / 60:.0f} minutes",
        ]
        return "\n".join(lines)

    def _comparison(self, *, about_one: bool = False) -> str:
        """`20.0 points, both levels 5.0: 0.25 of it`."""
        plain, both = (100 * self.row(label).lost(about_one=about_one) for label in (_PLAIN, _BOTH))
        share = self.share_lost(about_one=about_one)
        return f"{plain:.1f} points, both levels {both:.1f}" + ("" if share is None else f": {share:.2f} of it")


def percent(values: Sequence[float]) -> str:
    """`81.3 ± 2.1`: the mean and the standard deviation of shares, in percent."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (None of a single value) and the values."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "spread": deviation, "values": values}
