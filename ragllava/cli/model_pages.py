"""One model version in words and as curves."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

from ragllava.cli.options import as_time
from ragllava.client.learning.comparison import fit_panel, threshold_fit
from ragllava.errors import UsageError

if TYPE_CHECKING:
    from ragllava.client import VersionView
    from ragllava.svg import Panel

_PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
    "<style>body{{font:14px sans-serif;max-width:42rem;margin:2rem auto}}dt{{font-weight:bold}}</style>"
    "<h1>{title}</h1><dl>{facts}</dl>{curves}</html>\n"
)


def facts(view: VersionView) -> list[tuple[str, str]]:
    """The labelled lines that a version has."""
    version = view.version
    training = version.training or {}
    lines = [
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
    return [(name, text) for name, text in lines if text]


def draw(view: VersionView, *, as_page: bool) -> str:
    """The curves of its threshold and of its training as SVG, or as an HTML page with the facts.

    Raises UsageError for a version that has neither.
    """
    from ragllava.svg import draw_panels

    fitted = fit_panel(view)
    panels = [*([fitted] if fitted else []), *_training_panels(view)]
    if not panels:
        raise UsageError(f"{view.version.name} has neither a fitted threshold nor a training: nothing to draw")
    curves = draw_panels(panels)
    if not as_page:
        return curves
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts(view))
    return _PAGE.format(title=escape(f"{view.version.role} {view.version.name}"), facts=listed, curves=curves)


def _threshold(view: VersionView) -> str:
    if view.version.threshold is None:
        return ""
    fit, text = threshold_fit(view), f"{view.version.threshold:.4g}"
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
    items = training.get("report", {}).get("left_out", ())
    return "; ".join(f"{item['count']} of the examples, as {item['question']!r}: {item['reason']}" for item in items)


def _gate(gate: dict[str, Any] | None) -> str:
    if not gate:
        return ""
    return f"{'passed' if gate['passed'] else 'refused'} against {gate['champion']}: {'; '.join(gate['reasons'])}"


def _training_panels(view: VersionView) -> Iterator[Panel]:
    from ragllava.json_records import from_json
    from ragllava.training.finetune.report import TrainingReport

    report = (view.version.training or {}).get("report")
    if report:
        yield from from_json(TrainingReport, {**report, "role": view.version.role}).panels()
