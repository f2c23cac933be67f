"""What is kept of a training beside its adapter: curves, settings with their origin, data, base."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragllava.json_records import from_json, to_json
from ragllava.records import Role
from ragllava.svg import Panel, Points, draw_panels, smoothed

_REPORT, _CURVES = "report.json", "curves.svg"


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step: the loss on its examples, the learning rate it was taken with, the gradient's norm before clipping.

    `token_weight` is the mean weight of the answers' tokens, 1 without the noise loss. The norm is None where it was
    no number: in float16 the first steps are often left out for that.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float | None
    token_weight: float


@dataclass(frozen=True, slots=True)
class LeftOut:
    """So many examples that could not be trained on, for one reason; `question` is that of the first."""

    reason: str
    count: int
    question: str

    def sentence(self) -> str:
        """For people."""
        return f"{self.count} example{'' if self.count == 1 else 's'} left out, as {self.question!r}: {self.reason}"


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """A finished training. `settings` holds each value with its origin; `seconds` counts all attempts.

    `examples` counts those that were trained on.
    """

    role: Role
    base: str
    snapshot: str
    examples: int
    seconds: float
    settings: dict[str, Any]
    steps: tuple[StepRecord, ...]
    left_out: tuple[LeftOut, ...] = ()

    def panels(self) -> list[Panel]:
        """The loss and the learning rate over the steps."""
        losses: Points = [(record.step, record.loss) for record in self.steps]
        rates: Points = [(record.step, record.learning_rate) for record in self.steps]
        return [
            Panel(f"Loss of the {self.role}", "step", "loss", {"each step": losses, "smoothed": smoothed(losses)}),
            Panel("Learning rate", "step", "learning rate", {"learning rate": rates}),
        ]


def write_report(report: TrainingReport, folder: Path) -> None:
    """Write `report.json` and the curves as `curves.svg`; a number that is not finite becomes null."""
    (folder / _REPORT).write_text(json.dumps(to_json(report), indent=1), encoding="utf-8")
    (folder / _CURVES).write_text(draw_panels(report.panels()), encoding="utf-8")


def read_report(folder: Path) -> TrainingReport:
    """Read what `write_report` wrote; NaN and infinity, which an earlier version wrote, become None."""
    text = (folder / _REPORT).read_text(encoding="utf-8")
    return from_json(TrainingReport, json.loads(text, parse_constant=lambda _: None))
