"""Charts of the learning pages as inline SVG, without styles: console.css and learning.css say how they look."""

from __future__ import annotations

import json
from collections.abc import Sequence

from markupsafe import Markup

from ragllava.client import StepLoss, ThresholdCurve, VersionView
from ragllava.client.learning.comparison import fit_panel
from ragllava.svg import Panel, Plot, Points, draw_inline, smoothed


def loss_chart(losses: Sequence[StepLoss], steps: int) -> Markup:
    """The loss of each step so far, and its smoothed course; `steps` are those of the whole training."""
    points: Points = [(loss.step, loss.loss) for loss in losses]
    lines = {"each step": points, "smoothed": smoothed(points)}
    newest = f", {losses[-1].loss:.3g} at step {losses[-1].step}" if losses else ""
    panel = Panel(f"Loss over the steps{newest}", "step", "loss", lines, (0, max(steps, 1)), (0, 0))
    return Markup(draw_inline(panel))  # noqa: S704 - it escapes its texts


def rate_chart(losses: Sequence[StepLoss], steps: int) -> Markup:
    """The learning rate of each step."""
    lines: dict[str, Points] = {"learning rate": [(loss.step, loss.learning_rate) for loss in losses]}
    panel = Panel("Learning rate over the steps", "step", "learning rate", lines, (0, max(steps, 1)), (0, 0))
    return Markup(draw_inline(panel))  # noqa: S704 - it escapes its texts


def fit_chart(view: VersionView) -> Markup | None:
    """The densities that a version's threshold was fitted on; None for a version without them."""
    panel = fit_panel(view)
    return Markup(draw_inline(panel)) if panel else None  # noqa: S704 - it escapes its texts


def threshold_chart(curve: ThresholdCurve) -> Markup:
    """Precision, recall and the share without evidence over η, and a slider at the version's own η."""
    lines: dict[str, Points] = {
        name: [(point.threshold, value) for point in curve.points if (value := getattr(point, name)) is not None]
        for name in ("precision", "recall", "no_evidence")
    }
    title = f"What each threshold does to {curve.questions} labelled questions of {curve.archive}"
    panel = Panel(title, "threshold η", "share", lines, x_range=(0, 1), y_range=(0, 1))
    return Markup(draw_inline(panel, _slider(curve)))  # noqa: S704 - it escapes its texts


def _slider(curve: ThresholdCurve) -> str:
    """The line that is dragged. learning.js moves it; without scripts it stays at the version's own η."""
    plot, at = Plot(), curve.threshold if curve.threshold is not None else 0.5
    x = plot.left + at * (plot.right - plot.left)
    points = [[point.threshold, point.precision, point.recall, point.no_evidence] for point in curve.points]
    return (
        f'<rect class="plot" x="{plot.left}" y="{plot.top}" width="{plot.right - plot.left}" '
        f'height="{plot.bottom - plot.top}" data-points="{Markup.escape(json.dumps(points))}" data-own="{at:.4f}"/>'
        f'<g id="eta" class="eta-slider" role="slider" tabindex="0" aria-label="threshold η" aria-valuemin="0" '
        f'aria-valuemax="1" aria-valuenow="{at:.3f}" transform="translate({x:.2f} 0)">'
        f'<rect class="eta-grip" x="-14" y="{plot.top - 12}" width="28" height="{plot.bottom - plot.top + 24}"/>'
        f'<line class="eta-line" x1="0" x2="0" y1="{plot.top}" y2="{plot.bottom}"/>'
        f'<circle class="eta-handle" cx="0" cy="{plot.top}" r="8"/></g>'
    )
