"""Filters as JSON and as text: what they mean, and what is wrong with those that mean nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragllava.errors import UsageError
from ragllava.filters import Condition, Value, check_filter, conditions, metadata_keys, parse_where

NUMBER_1950 = Value("1950", "1950", "1950")


def only(given: dict[str, Any]) -> Condition:
    """The one condition of a filter."""
    checked = check_filter(given)
    assert checked is not None
    [condition] = conditions(checked)
    return condition


@pytest.mark.parametrize(
    ("test", "condition"),
    [
        ("Port Ansel", Condition("city", any_of=(Value("Port Ansel"),))),
        (["A", 7], Condition("city", any_of=(Value("A"), Value("7", "7")))),
        (True, Condition("city", any_of=(Value("true"),))),
        (None, Condition("city", is_absent=True)),
        ({"all": ["a", "b"]}, Condition("city", all_of=(Value("a"), Value("b")))),
        ({"contains": " barn "}, Condition("city", contains=("barn",))),
        ({"contains": ["barn", "boat"]}, Condition("city", contains=("barn", "boat"))),
        (
            {"to": 1950, "from": "1949-05"},
            Condition("city", bounds=(("from", Value("1949-05", None, "1949-05")), ("to", NUMBER_1950))),
        ),
        ({"above": -2.50}, Condition("city", bounds=(("above", Value("-2.5", "-2.5")),))),
        (1e-7, Condition("city", any_of=(Value("0.0000001", "0.0000001"),))),
        (1_000_000, Condition("city", any_of=(Value("1000000", "1000000"),))),
        ("1968-05-12 10:30", Condition("city", any_of=(Value("1968-05-12 10:30", None, "1968-05-12T10:30"),))),
        (
            "1968-05-12T10:30:00.5+02:00",
            Condition("city", any_of=(Value("1968-05-12T10:30:00.5+02:00", None, "1968-05-12T10:30:00"),)),
        ),
        ("1968-13", Condition("city", any_of=(Value("1968-13"),))),  # no date, but perhaps a number of an inventory
    ],
)
def test_tests(test: Any, condition: Condition) -> None:
    assert only({"city": test}) == condition


def test_folders_are_written_in_any_way() -> None:
    for written in ("1968/holshire", "1968/holshire/", "./1968//holshire", "1968\\holshire\\"):
        assert only({"folder": written}) == Condition("folder", any_of=(Value("1968/holshire/"),))


def test_keys_are_those_of_metadata() -> None:
    checked = check_filter({"Photo Year": 1968, "CAPTION": "x", "Source": "a.png"})
    assert checked == {"photo_year": 1968, "caption": "x", "source": "a.png"}
    assert metadata_keys(checked) == ["photo_year"]
    assert metadata_keys(None) == []
    assert check_filter(None) is check_filter({}) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("city=x", r"a filter is an object like \{\"city\": \"Port Ansel\"\}, not \"city=x\""),
        ({"city": {"gte": 1}}, 'the condition on "city" has an unknown operator "gte"; use from, to, above, below, '),
        ({"city": {}}, 'the condition on "city" is empty'),
        ({"city": []}, 'a list of the condition on "city" has 1 to 1,000 values, not 0'),
        ({"city": {"in": "A"}}, 'the condition on "city" take a list, not "A"'),
        ({"city": {"from": {"year": 1}}}, 'the condition on "city" compares with {"year": 1}'),
        ({"city": [["A"]]}, 'compares with \\["A"\\]'),
        ({"city": ["A", None]}, "compares with null"),
        ({"city": " "}, 'compares with an empty text; null asks for images without "city"'),
        ({"city": math.nan}, "compares with NaN"),
        (
            {"city": {"from": "A"}},
            'the range of "city" ends at "A", which is neither a number nor a date; write a number',
        ),
        (
            {"taken": {"to": "1968-02-30"}},
            'the range of "taken" ends at "1968-02-30", which is no date of the calendar',
        ),
        ({"taken": {"to": True}}, 'the range of "taken" ends at true, which is neither'),
        ({"caption": {"from": 1}}, r'"caption" is a text, so it has no range \("from"\)'),
        ({"folder": {"contains": "x"}}, 'a condition on "folder" is a folder or a list of folders'),
        ({"folder": "./"}, '"folder": "./" is every folder'),
        ({"source": None}, 'every image has a "source"'),
        ({"%": 1}, '"%" in the filter is not a name'),
        ({"City": 1, "city": 2}, 'two conditions on "city"'),
        ({f"k{n}": 1 for n in range(65)}, "at most 64 conditions, this one has 65"),
    ],
)
def test_what_is_wrong_is_said(given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_filter(given)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["city=Port Ansel"], {"city": "Port Ansel"}),
        (["city = Port Ansel "], {"city": "Port Ansel"}),
        (['city="Port Ansel"'], {"city": "Port Ansel"}),
        (["city==A"], {"city": "A"}),
        (["Photo Year>=1950"], {"photo_year": {"from": "1950"}}),
        (["year>=1950", "year<=1969"], {"year": {"from": "1950", "to": "1969"}}),
        (["year>1950", "year < 1969"], {"year": {"above": "1950", "below": "1969"}}),
        (["caption~barn"], {"caption": {"contains": "barn"}}),
        (["caption~barn", "caption ~ boat"], {"caption": {"contains": ["barn", "boat"]}}),
        (['city in A, B , "C, D"'], {"city": {"in": ["A", "B", "C, D"]}}),
        (["city IN A"], {"city": {"in": ["A"]}}),
        (["city in a=b"], {"city": {"in": ["a=b"]}}),
        (["place=in between"], {"place": "in between"}),
        (["keywords=a", "keywords=b", "keywords=c"], {"keywords": {"all": ["a", "b", "c"]}}),
        (["keywords=a", "keywords~b"], {"keywords": {"all": ["a"], "contains": "b"}}),
        (["folder=1968/"], {"folder": "1968/"}),
        (["title=a > b"], {"title": "a > b"}),
        (['{"city": null, "year": 1}', "year>=1"], {"city": None, "year": {"all": [1], "from": "1"}}),
        (['{"city": null}', "year>=1"], {"city": None, "year": {"from": "1"}}),
        (['{"year": {"from": 1}}', "year<=3"], {"year": {"from": 1, "to": "3"}}),
        ([], None),
        (["{}"], None),
    ],
)
def test_conditions_as_text(texts: list[str], expected: Any) -> None:
    assert parse_where(texts) == expected


def test_one_text_and_an_object_are_filters_too() -> None:
    assert parse_where("city=A") == parse_where({"City": "A"}) == {"city": "A"}
    assert parse_where(None) is None


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["city"], 'the filter "city" is not a condition; write it like city=Port Ansel'),
        (["=x"], "is not a condition"),
        (["city!=A"], "operator !=, which does not exist"),
        (["city=>A"], 'the filter "city=>A" has an unknown operator'),
        (["city="], 'has no value; {"city": null} asks for images without "city"'),
        (["city in "], "is not a condition|1 to 1,000 values"),
        (["year>=x"], 'the range of "year" ends at "x"'),
        (["year>=1", "year>=2"], 'two conditions "from" on "year"; give one'),
        (["city in A", "city in B"], 'two conditions "in" on "city"; give one'),
        (["{city: 1}"], "is not valid JSON"),
        (["{" * 5_000], "is not valid JSON"),
        (['{"city": null}', "city=A"], 'images without "city" and with it'),
        (["folder=a", "folder=b"], 'a condition on "folder" is a folder'),
    ],
)
def test_what_is_wrong_with_a_text_is_said(texts: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_where(texts)


PLAIN = st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
TESTS = st.recursive(
    st.none() | PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["from", "in", "all", "x"]), inner),
)


@given(st.dictionaries(st.text(max_size=8), TESTS, max_size=4))
def test_any_object_is_a_filter_or_is_refused_with_a_sentence(given: dict[str, Any]) -> None:
    try:
        checked = check_filter(given)
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        assert check_filter(checked) == checked
        assert len(conditions(checked or {})) == len(given)


@given(st.text(max_size=30))
def test_any_text_is_a_condition_or_is_refused_with_a_sentence(text: str) -> None:
    try:
        parse_where([text])
    except UsageError as error:
        assert len(str(error)) < 1_000
