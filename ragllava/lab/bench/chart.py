"""The rows as a picture: how far each ratio is from the line that is wanted, as a self-contained SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ragllava.lab.bench.rows import BenchRow

_WIDTH, _ROW_HEIGHT, _TOP, _BOTTOM = 1_000, 26, 56, 44
_NAME_WIDTH, _TEXT_WIDTH = 400, 170  # left and right of the bars
_LEFT, _RIGHT = _NAME_WIDTH, _WIDTH - _TEXT_WIDTH
_REACHED, _MISSED = "#6a994e", "#d1495b"
_STYLE = (
    "text{font:12px sans-serif;fill:#333}.title{font-weight:bold;font-size:14px}"
    ".line{stroke:#333;stroke-width:1.5}.grid{stroke:#ddd}"
)
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def draw_chart(rows: Sequence[BenchRow], title: str) -> str:
    """An SVG document: a bar for each row with a wanted ratio, on a logarithmic scale, from the wanted line outwards.

    To the right of the line is better than wanted, whichever way the row counts.
    """
    shown = [(row, margin) for row in rows if (margin := margin_of(row)) is not None]
    most = max([2.0, *(max(margin, 1 / margin) for _, margin in shown)])
    height = _TOP + _ROW_HEIGHT * len(shown) + _BOTTOM
    bars = "".join(_bar(row, margin, number, most) for number, (row, margin) in enumerate(shown))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}">'
        f'<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>'
        f'<text class="title" x="12" y="24">{escape(title)}</text>'
        f"{_grid(most, height)}{bars}</svg>\n"
    )


def margin_of(row: BenchRow) -> float | None:
    """How many times better than wanted a ratio is: 1 on the line, below 1 missed. None where nothing is wanted."""
    ratio = row.ratio
    if ratio is None or ratio <= 0:
        return None
    if row.wanted.at_least is not None:
        return ratio / row.wanted.at_least
    return None if row.wanted.at_most is None else row.wanted.at_most / ratio


def _place(margin: float, most: float) -> float:
    """Where a margin stands, in pixels from the left; the wanted line is in the middle."""
    middle = (_LEFT + _RIGHT) / 2
    return round(middle + math.log(margin) / math.log(most) * (_RIGHT - _LEFT) / 2, 1)


def _bar(row: BenchRow, margin: float, number: int, most: float) -> str:
    top = _TOP + number * _ROW_HEIGHT
    line, end = _place(1.0, most), _place(margin, most)
    colour = _REACHED if row.is_reached else _MISSED
    return (
        f'<text x="{_LEFT - 10}" y="{top + 16}" text-anchor="end">{escape(row.name)}</text>'
        f'<rect x="{min(line, end)}" y="{top + 4}" width="{max(abs(end - line), 1):.1f}" height="{_ROW_HEIGHT - 10}" '
        f'fill="{colour}"/>'
        f'<text x="{_RIGHT + 10}" y="{top + 16}">{row.ratio:.3g}, wanted {escape(str(row.wanted))}</text>'
    )


def _grid(most: float, height: int) -> str:
    bottom = height - _BOTTOM
    drawn = []
    for tick in _TICKS:
        if 1 / most <= tick <= most:
            x = _place(tick, most)
            kind = "line" if tick == 1 else "grid"
            drawn.append(f'<line class="{kind}" x1="{x}" x2="{x}" y1="{_TOP - 6}" y2="{bottom}"/>')
            drawn.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    x = _place(1.0, most)
    drawn.append(f'<text x="{x}" y="{bottom + 34}" text-anchor="middle">times better than wanted</text>')
    return "".join(drawn)
