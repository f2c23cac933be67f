"""The results of the recipes of wrong pictures, as a table and as JSON. Loads no torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ragllava.evaluation.paper_table import markdown_table
from ragllava.json_records import rounded, to_json
from ragllava.lab.ablation.table import ADDED, CLEAN, ArmScores, percent, spread

SHIPPED, PLAIN = "model as included", "plain fine-tuning"
_HEAD = (
    "", "one picture", "… and a wrong one", "two pictures", "… and a wrong one", "lost by it", "of plain's",
    '"which has more"', "… and a wrong one",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RecipeRow:
    """The scores of one generator by seed, in the order of the seeds."""

    label: str
    scores: tuple[ArmScores, ...]

    def shares(self, condition: str, *, two: bool) -> list[float]:
        """The shares of right answers to questions about one picture or about two, by seed."""
        return [(scores.about_two if two else scores.about_one)[condition] for scores in self.scores]

    def losses(self) -> list[float]:
        """What a wrong picture beside two right ones costs, by seed."""
        return [scores.about_two[CLEAN] - scores.about_two[ADDED] for scores in self.scores]

    @property
    def lost(self) -> float:
        """The mean of `losses`."""
        return statistics.mean(self.losses())

    def as_json(self) -> dict[str, Any]:
        """Means, spreads and the values of each seed; shares with four decimals."""
        values: dict[str, Any] = rounded(
            {
                "label": self.label,
                "one": spread(self.shares(CLEAN, two=False)),
                "one_with_wrong_added": spread(self.shares(ADDED, two=False)),
                "two": spread(self.shares(CLEAN, two=True)),
                "two_with_wrong_added": spread(self.shares(ADDED, two=True)),
                "two_lost": spread(self.losses()),
                "by_type": [to_json(scores.by_type) for scores in self.scores],
            }
        )
        return values

    def cells(self, plain: RecipeRow) -> list[str]:
        """The row as texts, in percent: mean ± spread."""
        columns = [
            self.shares(CLEAN, two=False),
            self.shares(ADDED, two=False),
            self.shares(CLEAN, two=True),
            self.shares(ADDED, two=True),
            self.losses(),
        ]
        more = [[scores.by_type[condition].get("more", 0.0) for scores in self.scores] for condition in (CLEAN, ADDED)]
        share = f"{self.lost / plain.lost:.2f}" if plain.lost > 0 else "–"
        return [self.label, *map(percent, columns), share, *map(percent, more)]


@dataclass(frozen=True, slots=True)
class RecipeTable:
    """The complete result. `base` names the weights; `setup` contains the options of the run.

    The first row is the model as included, the second one plain fine-tuning.
    """

    base: str
    setup: Mapping[str, Any]
    rows: tuple[RecipeRow, ...]
    seconds: float

    def row(self, label: str) -> RecipeRow:
        """The row of that label. Raises KeyError."""
        return {row.label: row for row in self.rows}[label]

    def share_lost(self, label: str) -> float | None:
        """What a wrong picture beside two right ones costs this recipe, as a share of what it costs plain fine-tuning.

        None if plain fine-tuning loses nothing.
        """
        plain = self.row(PLAIN).lost
        return round(self.row(label).lost / plain, 4) if plain > 0 else None

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            "base": self.base,
            "setup": dict(self.setup),
            "rows": [row.as_json() | {"share_lost": self.share_lost(row.label)} for row in self.rows],
            "seconds": round(self.seconds),
        }

    def as_text(self) -> str:
        """The setup and the table."""
        setup, plain = self.setup, self.row(PLAIN)
        world = "shifted" if setup["shifted"] else "in-domain"
        return "\n".join(
            [
                f"base: {self.base}; recipes: LoRA on it, {setup['steps']} steps, from {setup['labelled']} labelled "
                f"questions about {world} postcards, half of them about two pictures",
                f"asked: {setup['questions']} questions about other postcards for each of {setup['seeds']} seeds, half "
                "of them about two pictures; percent right, mean ± standard deviation",
                "",
                markdown_table([list(_HEAD), *(row.cells(plain) for row in self.rows)]),
                f"{self.seconds / 60:.0f} minutes",
            ]
        )
