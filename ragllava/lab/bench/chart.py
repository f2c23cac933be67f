"""The rows as a picture: how far each ratio is from the line that is wanted, as a self-contained SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ragllava.lab.bench.rows import BenchRow
from ragllava.svg import draw_bar, draw_document, draw_line, draw_text

_WIDTH, _ROW_HEIGHT, _TOP, _BOTTOM = 1_000, 26, 56, 44
_NAME_WIDTH, _TEXT_WIDTH = 400, 170  # left and right of the bars
_LEFT, _RIGHT = _NAME_WIDTH, _WIDTH - _TEXT_WIDTH
_REACHED, _MISSED = "#6a994e", "#d1495b"
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def draw_chart(rows: Sequence[BenchRow], title: str) -> str:
    """An SVG document: a bar for each row with a wanted ratio, on a logarithmic scale, from the wanted line outwards.

    To the right of the line is better than wanted, whichever way the row counts.
    """
    shown = [(row, margin) for row in rows if (margin := row.margin) is not None]
    most = max([2.0, *(max(margin, 1 / margin) for _, margin in shown)])
    height = _TOP + _ROW_HEIGHT * len(shown) + _BOTTOM
    bars = "".join(_bar(row, margin, number, most) for number, (row, margin) in enumerate(shown))
    heading = draw_text(12, 24, title, style="font-size:14px", css_class="title")
    return draw_document(_WIDTH, height, heading + _grid(most, height) + bars)


def _place(margin: float, most: float) -> float:
    """Where a margin stands, in pixels from the left; the wanted line is in the middle."""
    middle = (_LEFT + _RIGHT) / 2
    return round(middle + math.log(margin) / math.log(most) * (_RIGHT - _LEFT) / 2, 1)


def _bar(row: BenchRow, margin: float, number: int, most: float) -> str:
    top = _TOP + number * _ROW_HEIGHT
    line, end = _place(1.0, most), _place(margin, most)
    colour = _REACHED if row.is_reached else _MISSED
    return (
        draw_text(_LEFT - 10, top + 16, row.name, "end")
        + draw_bar(min(line, end), top + 4, round(max(abs(end - line), 1), 1), _ROW_HEIGHT - 10, colour)
        + draw_text(_RIGHT + 10, top + 16, f"{row.ratio:.3g}, wanted {row.wanted}")
    )


def _grid(most: float, height: int) -> str:
    bottom = height - _BOTTOM
    drawn = []
    for tick in _TICKS:
        if 1 / most <= tick <= most:
            x = _place(tick, most)
            drawn.append(draw_line(x, _TOP - 6, x, bottom, "reference" if tick == 1 else "grid"))
            drawn.append(draw_text(x, bottom + 16, f"{tick:g}", "middle"))
    drawn.append(draw_text(_place(1.0, most), bottom + 34, "times better than wanted", "middle"))
    return "".join(drawn)
