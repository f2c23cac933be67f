"""Records as JSON and back, and what an earlier version wrote."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ragllava.json_records import from_json, rounded, to_json, write_json_lines
from ragllava.records import Role


@dataclass(frozen=True, slots=True)
class Item:
    name: str
    score: float


@dataclass(frozen=True, slots=True)
class Case:
    role: Role
    items: tuple[Item, ...]
    since: datetime | None = None
    note: str | None = None


CASE = Case(Role.RERANKER, (Item("a", 0.25), Item("b", 1.0)), datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC))


def test_there_and_back() -> None:
    stored = json.loads(json.dumps(to_json(CASE)))
    assert list(stored) == ["role", "items", "since", "note"]
    assert stored["role"] == "reranker"
    assert stored["items"] == [{"name": "a", "score": 0.25}, {"name": "b", "score": 1.0}]
    assert from_json(Case, stored) == CASE
    assert from_json(tuple[Item, ...], stored["items"]) == CASE.items


def test_what_an_earlier_or_a_later_version_wrote() -> None:
    assert from_json(Case, {"role": "generator", "items": [], "unknown": 1}) == Case(Role.GENERATOR, ())


def test_an_instant_as_python_writes_it() -> None:
    stored = to_json(CASE) | {"since": "2026-01-02T03:04:05.000006+00:00"}
    assert from_json(Case, stored) == CASE


def test_what_json_cannot_write_becomes_null() -> None:
    assert to_json([math.nan, math.inf, 1.5]) == [None, None, 1.5]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"role": "painter", "items": []}, "not a Case: role: Input should be 'reranker' or 'generator'"),
        ({"role": "reranker", "items": [{"name": "a"}]}, "not a Case: items.0.score: Field required"),
        ("text", "not a Case: the value: "),
    ],
)
def test_what_does_not_fit_is_one_sentence(stored: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        from_json(Case, stored)
    assert "\n" not in str(raised.value)


def test_rounded() -> None:
    value = {"a": 1 / 3, "b": [2 / 3, 1, "x"], "c": None}
    assert rounded(value) == {"a": 0.3333, "b": [0.6667, 1, "x"], "c": None}


def test_lines_are_the_same_values_and_control_no_terminal(tmp_path: Path) -> None:
    hostile = {"caption": "a\x1b[2J\x9b31m\x7f\u202e\u2028b ü"}
    assert write_json_lines([hostile], tmp_path / "lines") == 1
    written = (tmp_path / "lines").read_text("utf-8")
    assert json.loads(written) == hostile and written.rstrip("\n").isprintable() and "ü" in written
