"""Curves as SVG: points land where the axes say, and the document is whole."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragllava.records import Role
from ragllava.svg import Panel, draw_panels, nice_ticks, smoothed
from ragllava.training.finetune.report import StepRecord, TrainingReport

SVG = "{http://www.w3.org/2000/svg}"


def panel(*points: tuple[float, float]) -> Panel:
    return Panel("Loss <of> the reranker", "step", "loss", {"loss": points})


def places(document: str) -> list[tuple[float, float]]:
    [line] = ElementTree.fromstring(document).iter(f"{SVG}polyline")
    return [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]  # type: ignore[misc]


def ticks(document: str, anchor: str) -> dict[float, float]:
    """The number at each tick, by its place: along y for `end`, along x for `middle`."""
    found = {}
    for label in ElementTree.fromstring(document).iter(f"{SVG}text"):
        text = label.text or ""
        if label.attrib.get("text-anchor") == anchor and re.fullmatch(r"-?[\d.e+-]+", text):
            found[float(text)] = float(label.attrib["y"]) - 4 if anchor == "end" else float(label.attrib["x"])
    return found


def test_points_stand_where_the_ticks_say() -> None:
    document = draw_panels([panel((1, 0.0), (5, 2.5), (10, 1.0))])
    across, up = ticks(document, "middle"), ticks(document, "end")
    first, second, third = places(document)
    assert first[1] == pytest.approx(up[0.0], abs=0.1)
    assert third == pytest.approx((across[10.0], up[1.0]), abs=0.1)
    # 2.5 is halfway between the ticks at 2 and 3, if these are there; always in step with any two ticks.
    scale = (up[1.0] - up[0.0]) / 1.0
    assert second[1] == pytest.approx(up[0.0] + 2.5 * scale, abs=0.1)
    assert up[1.0] < up[0.0], "more is higher"


def test_two_panels_do_not_overlap_and_names_are_text() -> None:
    document = draw_panels([panel((1, 1), (2, 2)), Panel("Rate & co", "step", "rate", {"a": [(0, 1), (1, 3)]})])
    root = ElementTree.fromstring(document)
    texts = [label.text for label in root.iter(f"{SVG}text")]
    assert {"Loss <of> the reranker", "Rate & co", "step", "loss", "rate"} <= set(texts)
    shifts = [group.attrib["transform"] for group in root.findall(f"{SVG}g")]
    assert shifts == ["translate(0,0)", "translate(0,240)"]
    assert root.attrib["viewBox"] == "0 0 640 480"
    assert "http" not in document.replace("http://www.w3.org/2000/svg", ""), "nothing is fetched"


@pytest.mark.parametrize("points", [[], [(3.0, 0.7)], [(1.0, 2.0), (2.0, 2.0)], [(1.0, float("nan")), (2.0, 5.0)]])
def test_few_flat_or_broken_points_are_drawn(points: list[tuple[float, float]]) -> None:
    document = draw_panels([panel(*points)])
    ElementTree.fromstring(document)
    assert "nan" not in document


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))  # a narrower width beside 1e6 drowns in the resolution of a float
def test_ticks_are_round_and_cover(low: float, width: float) -> None:
    found = nice_ticks(low, low + width)
    step = found[1] - found[0]
    assert found[0] <= low + 1e-6 * width
    assert found[-1] >= low + width - 1e-6 * width
    assert len(found) <= 8
    assert float(f"{step:.0e}") == pytest.approx(step, rel=1e-4)
    assert f"{step:e}"[0] in "12459"  # 1, 2 or 5, with room for rounding


def test_smoothing_worked_by_hand() -> None:
    assert smoothed([(1, 4.0), (2, 1.0), (3, 1.0)], keep=0.5) == [
        (1, 4.0),
        (2, pytest.approx((2 + 1) / 1.5)),
        (3, pytest.approx((1 + 0.5 + 1) / 1.75)),
    ]


def test_a_report_draws_its_loss_and_its_learning_rate() -> None:
    steps = tuple(StepRecord(step, 1 / step, 1e-3 * step, 1.0, 1.0) for step in (1, 2, 3))
    report = TrainingReport(Role.GENERATOR, "tiny@0", "ab", 9, 1.0, {}, steps)
    losses, rates = report.panels()
    assert losses.lines["each step"] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert rates.lines["learning rate"] == [(1, 0.001), (2, 0.002), (3, 0.003)]
    assert "generator" in draw_panels([losses])
