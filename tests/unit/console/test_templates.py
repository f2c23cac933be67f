"""How values are shown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ragllava.console.templates import commands, duration, environment, moment, percent, size, told
from tests.support.hostile_texts import HOSTILE


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_escaped_isolated_and_cut(text: str) -> None:
    shown = str(told(text))
    inner = shown.removeprefix('<bdi dir="auto">').removesuffix("</bdi>")
    assert len(shown) - len(inner) == len('<bdi dir="auto"></bdi>')
    assert not set('<>"\u202e\u2066\x07\x1b') & set(inner)
    assert str(told("x" * 3_000)).count("x") == 2_000


def test_every_template_escapes() -> None:
    template = environment().from_string("{{ value }}")
    assert template.render(value="<b>") == "&lt;b&gt;"
    assert environment().autoescape is True


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "unknown"), (0.2, "less than a second"), (1, "1 second"), (59.6, "60 seconds"), (90, "2 minutes")],
)
def test_durations(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


def test_other_values() -> None:
    assert (percent(0), percent(0.125), percent(1)) == ("0 %", "12.5 %", "100 %")
    assert (size(12), size(2048)) == ("12 bytes", "2.0 KiB")
    assert str(commands("run `a<b>` now")) == "run <code>a&lt;b&gt;</code> now"
    assert "3 hours ago" in str(moment(datetime.now(UTC) - timedelta(hours=3)))
    assert str(moment(None)) == "–"
