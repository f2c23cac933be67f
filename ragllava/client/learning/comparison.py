"""Two model versions beside each other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ragllava.errors import UsageError
from ragllava.stores.learning.registry import VersionView
from ragllava.svg import Panel, Points

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class ComparedFigure:
    """One figure of two versions; None where a version has none of this name."""

    name: str
    first: float | None
    second: float | None

    @property
    def difference(self) -> float | None:
        """The second less the first."""
        return None if self.first is None or self.second is None else round(self.second - self.first, 4)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions of one role; `note` says how far their figures may be compared."""

    first: str
    second: str
    figures: tuple[ComparedFigure, ...]
    note: str

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        figures = [asdict(figure) | {"difference": figure.difference} for figure in self.figures]
        return {"first": self.first, "second": self.second, "note": self.note, "figures": figures}


def compare_versions(first: VersionView, second: VersionView) -> Comparison:
    """The figures of two versions. Raises UsageError for versions of two roles."""
    if first.version.role is not second.version.role:
        raise UsageError(
            f"{first.version.name} is a {first.version.role}, {second.version.name} a {second.version.role}: "
            "only versions of one role can be compared"
        )
    ours, theirs, note = _measured(first, second)
    ours, theirs = _fit_figures(first) | ours, _fit_figures(second) | theirs
    figures = tuple(ComparedFigure(name, ours.get(name), theirs.get(name)) for name in ours | theirs)
    return Comparison(first.version.name, second.version.name, figures, note)


def threshold_fit(view: VersionView) -> dict[str, Any]:
    """The stored ThresholdFit of a version; that of a profile lies beside a note on its data. Empty without any."""
    curve = view.threshold_curve or {}
    fit: dict[str, Any] = curve.get("fit", curve)
    return fit


def fit_panel(view: VersionView) -> Panel | None:
    """The densities that the stored fit of a version found its threshold η by, and η; None without them."""
    curve, threshold = threshold_fit(view).get("curve"), view.version.threshold
    if not curve or threshold is None:
        return None
    lines: dict[str, Points] = {
        name: list(zip(curve["relevance"], curve[name], strict=True)) for name in ("correct", "wrong")
    }
    lines[f"η = {threshold:.3g}"] = [(threshold, 0.0), (threshold, max(*curve["correct"], *curve["wrong"]))]
    return Panel("Threshold", "relevance of a candidate", "density", lines)


def _measured(first: VersionView, second: VersionView) -> tuple[Figures, Figures, str]:
    if _opponent(second) == first.version.name:
        return _scores(second, "champion"), _scores(second, "challenger"), _same_contest(second)
    if _opponent(first) == second.version.name:
        return _scores(first, "challenger"), _scores(first, "champion"), _same_contest(first)
    ours, theirs = _scores(first, "challenger"), _scores(second, "challenger")
    without = [view.version.name for view, scores in ((first, ours), (second, theirs)) if not scores]
    if without:
        return ours, theirs, f"no figures of {' and '.join(without)}: never evaluated as a challenger"
    hold_outs = [(view.version.training or {}).get("hold_out") for view in (first, second)]
    if hold_outs[0] == hold_outs[1]:
        return ours, theirs, f"evaluated on the same hold-out {hold_outs[0]}, in two contests"
    note = (
        f"evaluated on different hold-outs ({hold_outs[0]} and {hold_outs[1]}): "
        "the differences mean little; `ragllava eval` measures both on the same questions"
    )
    return ours, theirs, note


def _opponent(view: VersionView) -> str | None:
    opponent: str | None = ((view.version.training or {}).get("gate") or {}).get("champion")
    return opponent


def _same_contest(view: VersionView) -> str:
    training = view.version.training or {}
    return f"evaluated against each other on the hold-out {training.get('hold_out')} of job {training.get('job')}"


def _scores(view: VersionView, side: str) -> Figures:
    archives = (view.version.training or {}).get("scores", {})
    return {
        f"{archive}, {condition}, {name}": value
        for archive, sides in archives.items()
        for condition, figures in sides[side]["conditions"].items()
        for name, value in figures.items()
    }


def _fit_figures(view: VersionView) -> Figures:
    fit = threshold_fit(view)
    threshold = {} if view.version.threshold is None else {"threshold": view.version.threshold}
    return threshold | {f"threshold's {name}": fit[name] for name in ("precision", "recall") if name in fit}
