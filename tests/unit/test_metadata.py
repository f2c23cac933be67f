"""Captions and metadata in the form in which they are stored."""

from __future__ import annotations

import datetime
import json
import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragllava.metadata import (
    MAX_KEY,
    MAX_KEYS,
    MAX_VALUE,
    all_metadata,
    clean_embedded,
    clean_key,
    clean_metadata,
    merge_metadata,
)

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=30)
ANYTHING = st.dictionaries(
    st.text(max_size=12),
    st.recursive(SCALARS | st.binary(max_size=4), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)),
)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("City", "city"),
        (" Photo Date ", "photo_date"),
        ("GPS-Lat (deg.)", "gps_lat_deg"),
        ("dc:title", "dc_title"),
        ("ANNÉE", "année"),
        ("anne\u0301e", "année"),  # decomposed, as macOS writes it
        ("Straße", "strasse"),
        ("撮影地", "撮影地"),
        ("शहर", "शहर"),
        ("a;DROP TABLE 'x'--", "a_drop_table_x"),
        ("x\x00y\ud800", "x_y"),
        ("%_.$", ""),
        ("k" * 100, "k" * MAX_KEY),
    ],
)
def test_keys(name: str, key: str) -> None:
    assert clean_key(name) == key == clean_key(key)


def test_values_keep_their_types() -> None:
    given = {
        "year": 1968,
        "share": 0.25,
        "colour": True,
        "text": " two\nlines\x00",
        "words": ["a", "a", "b", None, 1, True, ""],
        "size": Decimal("1200"),
        "price": Decimal("1.5"),
        "day": datetime.date(1968, 5, 12),
        "at": datetime.datetime(1968, 5, 12, 10, 30),
    }
    assert clean_metadata(given) == {
        "year": 1968,
        "share": 0.25,
        "colour": True,
        "text": "two lines",
        "words": ["a", "b", 1, True],
        "size": 1200,
        "price": 1.5,
        "day": "1968-05-12",
        "at": "1968-05-12T10:30:00",
    }


def test_what_is_no_metadata_is_left_out() -> None:
    given: dict[Any, Any] = {
        "": "no name",
        "empty": "  ",
        "none": None,
        "nan": math.nan,
        "infinite": [math.inf],
        "bytes": b"x",
        "huge": 10**40,
        "list": [],
        "object": {},
        "City": "first",
        "CITY": "second",
    }
    assert clean_metadata(given) == {"city": "first"}
    assert clean_metadata({}) is None


def test_objects_are_taken_apart_and_names_of_fields_avoided() -> None:
    given = {"place": {"city": "Ansel", "at": {"lat": 1}}, "Source": "Library", "caption": "c", "folder": "f"}
    assert clean_metadata(given) == {
        "place_city": "Ansel",
        "place_at_lat": 1,
        "source_": "Library",
        "caption_": "c",
        "folder_": "f",
    }


def test_limits() -> None:
    cleaned = clean_metadata({f"key {number}": "x" * 5_000 for number in range(100)})
    assert cleaned is not None
    assert list(cleaned) == [f"key_{number}" for number in range(MAX_KEYS)]
    assert {len(value) for value in cleaned.values()} == {MAX_VALUE}
    assert clean_metadata({"words": ["x" * 1_999, "y" * 2_001, "z"]}) == {"words": ["x" * 1_999, "y" * 2_001]}
    deep: Any = "bottom"
    for _ in range(5_000):
        deep = {"a": deep}
    assert clean_metadata({"deep": deep, "b": 1}) == {"b": 1}


@given(ANYTHING)
def test_anything_becomes_storable(given: dict[str, Any]) -> None:
    cleaned = clean_metadata(given)
    stored = json.dumps(cleaned, allow_nan=False)
    assert "\\u0000" not in stored
    assert "\\ud8" not in stored.lower() or json.loads(stored) == cleaned
    if cleaned is not None:
        assert clean_metadata(cleaned) == cleaned
        assert 0 < len(cleaned) <= MAX_KEYS


def test_different_values_of_one_key_become_a_list() -> None:
    first = {"city": "Ansel", "year": 1968, "words": ["a", "b"]}
    second = {"city": "Ansel", "year": 1969, "words": "b", "by": "Ada"}
    merged = {"city": "Ansel", "year": [1968, 1969], "words": ["a", "b"], "by": "Ada"}
    assert merge_metadata(first, second) == merged
    assert merge_metadata(merged, second) == merged
    assert merge_metadata(None, second) == second
    assert merge_metadata(first, None) == first
    assert merge_metadata(None, None) is None


def test_what_is_given_wins_over_what_is_inside() -> None:
    inside = {"caption": "A barn", "city": "Inside", "camera": "C1"}
    assert all_metadata(inside, {"city": "Given", "year": 1}) == {"city": "Given", "camera": "C1", "year": 1}
    assert all_metadata(inside, None) == {"city": "Inside", "camera": "C1"}
    assert all_metadata({"caption": "A barn"}, None) is None
    assert all_metadata(None, None) is None


def test_embedded_metadata_have_a_clean_caption() -> None:
    assert clean_embedded({"caption": " A\nbarn ", "City": "Ansel", "source": "x"}) == {
        "caption": "A barn",
        "city": "Ansel",
    }
    assert clean_embedded({"caption": ["no text"], "city": None}) == {}
