"""What people see of model versions: one version in words and as curves, two versions beside each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from ragllava.cli.options import as_time
from ragllava.errors import UsageError

if TYPE_CHECKING:
    from ragllava.stores.learning.registry import VersionView
    from ragllava.svg import Panel

Figures = dict[str, float]

_PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
    "<style>body{{font:14px sans-serif;max-width:42rem;margin:2rem auto}}dt{{font-weight:bold}}</style>"
    "<h1>{title}</h1><dl>{facts}</dl>{curves}</html>\n"
)


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

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self) | {"difference": self.difference}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions of one role; `note` says how far their figures may be compared."""

    first: str
    second: str
    figures: tuple[ComparedFigure, ...]
    note: str

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "first": self.first,
            "second": self.second,
            "note": self.note,
            "figures": [figure.as_json() for figure in self.figures],
        }


def facts(view: VersionView) -> list[tuple[str, str]]:
    """A version in labelled lines, those that it has."""
    version = view.version
    training = version.training or {}
    found = [
        ("version", f"{version.role} {version.name} of profile {version.profile}"),
        ("state", f"{view.state}, registered {as_time(view.created_at)}, last promoted {as_time(view.promoted_at)}"),
        ("base", version.base_name),
        ("adapter", version.adapter_sha256 or "none: the base model as it is"),
        ("prompt", version.prompt),
        ("threshold", _threshold(view)),
        ("training", _training(training)),
        ("left out", _left_out(training)),
        ("gate", _gate(training.get("gate"))),
    ]
    return [(name, text) for name, text in found if text]


def gate_figures(view: VersionView) -> list[dict[str, Any]]:
    """The conditions that its gate looked at; empty for a version without a gate."""
    gate = (view.version.training or {}).get("gate") or {}
    return list(gate.get("figures", ()))


def draw(view: VersionView, *, as_page: bool) -> str:
    """The curves of its threshold and of its training as SVG, or as an HTML page with the facts.

    Raises UsageError for a version that has neither.
    """
    from ragllava.svg import draw_panels

    panels = [*_threshold_panels(view), *_training_panels(view)]
    if not panels:
        raise UsageError(f"{view.version.name} has neither a threshold that was fitted nor a training: nothing to draw")
    curves = draw_panels(panels)
    if not as_page:
        return curves
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts(view))
    return _PAGE.format(title=escape(f"{view.version.role} {view.version.name}"), facts=listed, curves=curves)


def compare(first: VersionView, second: VersionView) -> Comparison:
    """The figures of two versions of one role, from when they were trained.

    Where one of them was judged against the other, both columns come from that contest. Raises UsageError for
    versions of two roles.
    """
    if first.version.role is not second.version.role:
        raise UsageError(
            f"{first.version.name} is a {first.version.role}, {second.version.name} a {second.version.role}: "
            "only versions of one role can be compared"
        )
    ours, theirs, note = _measured(first, second)
    ours, theirs = _fit_figures(first) | ours, _fit_figures(second) | theirs
    names = [*ours, *(name for name in theirs if name not in ours)]
    figures = tuple(ComparedFigure(name, ours.get(name), theirs.get(name)) for name in names)
    return Comparison(first.version.name, second.version.name, figures, note)


def _measured(first: VersionView, second: VersionView) -> tuple[Figures, Figures, str]:
    if _opponent(second) == first.version.name:
        return _scores(second, "champion"), _scores(second, "challenger"), _same_contest(second)
    if _opponent(first) == second.version.name:
        return _scores(first, "challenger"), _scores(first, "champion"), _same_contest(first)
    ours, theirs = _scores(first, "challenger"), _scores(second, "challenger")
    without = [view.version.name for view, scores in ((first, ours), (second, theirs)) if not scores]
    if without:
        return (
            ours,
            theirs,
            f"no figures of {' and '.join(without)}: never judged as a challenger",
        )
    hold_outs = [(view.version.training or {}).get("hold_out") for view in (first, second)]
    if hold_outs[0] == hold_outs[1]:
        return ours, theirs, f"judged on the same hold-out {hold_outs[0]}, in two contests"
    return (
        ours,
        theirs,
        (
            f"judged on different hold-outs ({hold_outs[0]} and {hold_outs[1]}): "
            "the differences say little; `ragllava eval` measures both on the same questions"
        ),
    )


def _opponent(view: VersionView) -> str | None:
    gate = (view.version.training or {}).get("gate") or {}
    found: str | None = gate.get("champion")
    return found


def _same_contest(view: VersionView) -> str:
    training = view.version.training or {}
    return f"judged against each other on the hold-out {training.get('hold_out')} of job {training.get('job')}"


def _scores(view: VersionView, side: str) -> Figures:
    archives = (view.version.training or {}).get("scores", {})
    return {
        f"{archive}, {condition}, {name}": value
        for archive, sides in archives.items()
        for condition, figures in sides[side]["conditions"].items()
        for name, value in figures.items()
    }


def _fit(view: VersionView) -> dict[str, Any]:
    """The stored ThresholdFit; the one of a profile lies beside a note on its data."""
    curve = view.threshold_curve or {}
    found: dict[str, Any] = curve.get("fit", curve)
    return found


def _fit_figures(view: VersionView) -> Figures:
    fit = _fit(view)
    found = {} if view.version.threshold is None else {"threshold": view.version.threshold}
    return found | {f"threshold's {name}": fit[name] for name in ("precision", "recall") if name in fit}


def _threshold(view: VersionView) -> str:
    if view.version.threshold is None:
        return ""
    fit, text = _fit(view), f"{view.version.threshold:.4g}"
    if "precision" not in fit:
        return text
    data = (view.threshold_curve or {}).get("data")
    return (
        f"{text}, {fit['method']}: precision {fit['precision']:.3f} and recall {fit['recall']:.3f} on "
        f"{fit['correct_count']} correct and {fit['wrong_count']} wrong candidates"
        + (f" of {data}" if data else "")
        + f"; {fit['reason']}"
    )


def _training(training: dict[str, Any]) -> str:
    report = training.get("report", {})
    parts = [
        f"job {training['job']}" if "job" in training else "",
        f"archives {', '.join(training['archives'])}" if "archives" in training else "",
        f"snapshot {training['snapshot']}" if "snapshot" in training else "",
        f"{report['examples']} examples in {report['seconds']:.0f} s" if report else "",
    ]
    return ", ".join(part for part in parts if part)


def _left_out(training: dict[str, Any]) -> str:
    found = training.get("report", {}).get("left_out", ())
    return "; ".join(f"{item['count']} of the examples, as {item['question']!r}: {item['reason']}" for item in found)


def _gate(gate: dict[str, Any] | None) -> str:
    if not gate:
        return ""
    return f"{'passed' if gate['passed'] else 'refused'} against {gate['champion']}: {'; '.join(gate['reasons'])}"


def _threshold_panels(view: VersionView) -> Iterator[Panel]:
    from ragllava.svg import Panel, Points

    curve = _fit(view).get("curve")
    if not curve or view.version.threshold is None:
        return
    lines: dict[str, Points] = {
        name: list(zip(curve["relevance"], curve[name], strict=True)) for name in ("correct", "wrong")
    }
    top = max(height for name in ("correct", "wrong") for height in curve[name])
    lines[f"η = {view.version.threshold:.3g}"] = [(view.version.threshold, 0.0), (view.version.threshold, top)]
    yield Panel("Threshold", "relevance of a candidate", "density", lines)


def _training_panels(view: VersionView) -> Iterator[Panel]:
    report = (view.version.training or {}).get("report")
    if not report:
        return
    from ragllava.json_records import from_json
    from ragllava.training.finetune.report import TrainingReport

    yield from from_json(TrainingReport, {**report, "role": view.version.role}).panels()
