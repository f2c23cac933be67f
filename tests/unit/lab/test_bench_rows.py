"""The rows of the benchmark: ratios, comparisons in turns, the chart, drawn vectors, peaks of memory."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable

import numpy as np
import psutil
import pytest

from ragllava.errors import UsageError
from ragllava.lab.bench.chart import draw_chart
from ragllava.lab.bench.groups import GROUPS, choose_groups
from ragllava.lab.bench.processes import BENCH, peak_mib, watched_memory
from ragllava.lab.bench.rows import BenchRow, Wanted, compare
from ragllava.lab.bench.synthetic import draw_vectors, mix_vectors

SVG = "{http://www.w3.org/2000/svg}"


def row(ours: float, reference: float | None, wanted: Wanted, name: str = "search") -> BenchRow:
    return BenchRow("search", name, "a scan", "s", ours, reference, wanted)


@pytest.mark.parametrize(
    ("ours", "reference", "wanted", "reached", "margin"),
    [
        (30.0, 1.5, Wanted(at_least=20.0), True, 1.0),
        (30.0, 2.0, Wanted(at_least=20.0), False, 0.75),
        (10.5, 10.0, Wanted(at_most=1.05), True, 1.0),
        (21.0, 10.0, Wanted(at_most=1.05), False, 0.5),
        (5.0, 10.0, Wanted(at_most=1.0), True, 2.0),
        (5.0, 10.0, Wanted(), None, None),
        (5.0, None, Wanted(at_least=2.0), None, None),
    ],
)
def test_a_ratio_is_compared_with_the_wanted_limits(
    ours: float, reference: float | None, wanted: Wanted, reached: bool | None, margin: float | None
) -> None:
    made = row(ours, reference, wanted)
    assert made.ratio == (None if reference is None else pytest.approx(ours / reference))
    assert made.is_reached is reached
    assert made.margin == (None if margin is None else pytest.approx(margin))
    assert made.as_json()["ratio"] == made.ratio and made.as_json()["reached"] is reached


def test_limits_are_written_with_signs() -> None:
    assert [str(Wanted(at_least=10.0)), str(Wanted(at_most=1.05)), str(Wanted())] == ["≥ 10", "≤ 1.05", ""]


def test_both_ways_run_in_turns_and_the_reference_may_do_a_part() -> None:
    order: list[str] = []

    def way(name: str, results: list[float]) -> Callable[[], list[float]]:
        def run() -> list[float]:
            order.append(name)
            return results

        return run

    ours = way("ours", [float(number) for number in range(10)])
    comparison = compare(ours, way("reference", [0.25, 3.5, 6.0, 9.0]), rounds=3, every=3)
    assert order == ["ours", "reference"] * 3
    assert comparison.largest_difference == 0.5  # of items 0, 3, 6 and 9
    assert comparison.ours_per_s > 0 and comparison.reference_per_s > 0


def test_groups_keep_their_order() -> None:
    assert choose_groups(None) == list(GROUPS)
    assert [group.name for group in choose_groups("search, rerank")] == ["rerank", "search"]
    with pytest.raises(UsageError, match="there is no group of rows 'speed'; there are: rerank, "):
        choose_groups("rerank,speed")


def test_bars_end_right_of_the_wanted_line_where_it_is_reached() -> None:
    rows = [
        row(40, 1, Wanted(at_least=20), "twice as good"),
        row(5, 1, Wanted(at_least=20), "a quarter & less"),
        row(2, 1, Wanted(), "nothing wanted"),
    ]
    drawn = ET.fromstring(draw_chart(rows, "a <machine>"))
    texts = [text.text for text in drawn.iter(f"{SVG}text")]
    assert "a <machine>" in texts and "a quarter & less" in texts and "nothing wanted" not in texts
    [wanted_line] = [
        float(line.attrib["x1"]) for line in drawn.iter(f"{SVG}line") if line.attrib["class"] == "reference"
    ]
    reached, missed = [bar.attrib for bar in drawn.iter(f"{SVG}rect") if "x" in bar.attrib]
    assert float(reached["x"]) == wanted_line
    assert float(missed["x"]) + float(missed["width"]) == pytest.approx(wanted_line)
    assert float(missed["width"]) == pytest.approx(2 * float(reached["width"]))  # a quarter is two halvings
    assert reached["fill"] != missed["fill"]


def test_a_chart_of_no_rows_is_a_picture() -> None:
    assert ET.fromstring(draw_chart([], "nothing")).tag == f"{SVG}svg"


def test_drawn_vectors_have_the_cosines_of_clip() -> None:
    images, questions = draw_vectors(2_000, 100, 128, seed=3)
    assert np.linalg.norm(images, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert np.linalg.norm(questions, axis=1) == pytest.approx(1.0, abs=1e-5)
    among = images[:1_000] @ images[1_000:].T
    asked = questions @ images.T
    assert among.mean() == pytest.approx(0.5, abs=0.05)
    assert asked.mean() == pytest.approx(0.2, abs=0.08)
    # Each question is about an image: a few images are much nearer than the others.
    assert (asked.max(axis=1) > asked.mean(axis=1) + 0.3).mean() > 0.9
    again = draw_vectors(2_000, 100, 128, seed=3)
    assert np.array_equal(again[0], images) and np.array_equal(again[1], questions)


def test_mixed_vectors_have_the_spread_of_the_real_ones() -> None:
    real, _ = draw_vectors(300, 1, 64, seed=4)
    mixed = mix_vectors(real, 5_000, seed=5)
    assert mixed.shape == (5_000, 64)
    assert np.linalg.norm(mixed, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert len(np.unique(mixed, axis=0)) > 4_950  # a few are the real one itself
    cosines = (mixed @ real.mean(axis=0)) / np.linalg.norm(real.mean(axis=0))
    assert cosines.mean() == pytest.approx(
        float((real @ real.mean(axis=0)).mean() / np.linalg.norm(real.mean(axis=0))), abs=0.1
    )


def test_the_watch_sees_the_peak_of_this_process() -> None:
    with watched_memory() as peaks_mib:
        block = np.ones(8_000_000)  # 61 MiB
        while_in_use = peaks_mib()[BENCH]
        del block
        assert peaks_mib()[BENCH] >= while_in_use  # a peak never falls
    assert while_in_use >= 61
    assert peak_mib(psutil.Process()) >= 61
