"""Filters: which images of an archive may be candidates of a question.

A filter is a JSON object of conditions, all of which must hold:

| condition | holds for an image |
|---|---|
| `{"city": "Port Ansel"}` | whose city is this one |
| `{"city": ["Port Ansel", "Wenby"]}` | whose city is one of these |
| `{"city": null}` | that has no city |
| `{"keywords": {"all": ["barn", "boat"]}}` | that has all of these |
| `{"year": {"from": 1950, "to": 1969}}` | whose year is in this range, both ends included; one end may be missing |
| `{"year": {"above": 1950, "below": 1969}}` | the same without the ends |
| `{"taken": "1968-05"}`, `{"taken": {"to": 1968}}` | taken in this month; until the end of this year |
| `{"caption": {"contains": "barn"}}` | whose caption contains this text, or all texts of a list |
| `{"folder": "1968/holshire"}` | that is in this folder or below it |

`caption`, `source` (the name of the picture) and `folder` are fields of every image; all other names are keys of its
metadata (ragllava/metadata.py). A condition does not hold for an image without the key, and it holds for a list if it
holds for one of its members. Texts are compared without regard to case and accents. A text that is a number (`"1968"`)
is compared as a number, and one that is a date as a date: `1968` and `1968-05` cover their year and month, a value that
has no day counts as the beginning of its period, and time zones are not regarded.

`parse_where` reads the same from text: `city=Port Ansel`, `city in Port Ansel, Wenby`, `year>=1950`, `year<1969`,
`caption~barn`, `folder=1968/`, or a JSON object.
"""

from __future__ import annotations

import csv
import datetime
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ragllava.errors import UsageError
from ragllava.metadata import FIELDS, MAX_KEYS, MAX_VALUE, clean_key, clean_line

MAX_VALUES = 1_000  # of a list in a filter

RANGE = ("from", "to", "above", "below")
OPERATORS = (*RANGE, "contains", "in", "all")

# The same patterns decide in the database which values are numbers and dates (stores/archives/filtering.py).
NUMBER = r"[+-]?[0-9]{1,30}([.][0-9]{1,30})?"
DATE = r"[0-9]{4}(-[0-9]{2}(-[0-9]{2}([T ][0-9]{2}:[0-9]{2}.*)?)?)?"
_MOMENT = re.compile(r"\d{4}(?:-\d\d(?:-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?)?)?)?")
_ZONE = re.compile(r"(?<=:\d\d)(?:\.\d+)?\s*(?:Z|[+-]\d\d:?\d\d)?$")
_TEXT = re.compile(r"\s*(?P<key>.*?)(?:\s*(?P<sign>>=|<=|!=|==?|>|<|~)\s*|\s+(?P<in>in)\s+)(?P<value>.*)", re.I | re.S)
_SIGNS = {">=": "from", "<=": "to", ">": "above", "<": "below", "~": "contains"}

Filter = dict[str, Any]
Plain = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Value:
    """A value of a filter, and as what else it is compared: a `number` in decimal digits, a `date` in ISO 8601."""

    text: str
    number: str | None = None
    date: str | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """What must hold for one key. Of a range, `bounds` has each bound by its operator.

    An image fulfils it if it has no such key (`is_absent`); else if it has one of `any_of`, each of `all_of`, a value
    within `bounds`, and each of the texts of `contains`, as far as they are given.
    """

    key: str
    is_absent: bool = False
    any_of: tuple[Value, ...] = ()
    all_of: tuple[Value, ...] = ()
    bounds: tuple[tuple[str, Value], ...] = ()
    contains: tuple[str, ...] = ()


def check_filter(given: object) -> Filter | None:
    """A filter in its one stored form, with clean keys; None for one without conditions. Raises UsageError."""
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise UsageError(f'a filter is an object like {{"city": "Port Ansel"}}, not {_shown(given)}')
    if len(given) > MAX_KEYS:
        raise UsageError(f"a filter has at most {MAX_KEYS} conditions, this one has {len(given)}")
    checked: Filter = {}
    for name, test in given.items():
        key = clean_key(str(name))
        if not key:
            raise UsageError(f"{_shown(name)} in the filter is not a name of a field or of metadata")
        if key in checked:
            raise UsageError(f'the filter has two conditions on "{key}"; put them into one object')
        checked[key] = _checked_test(key, test)
        _condition(key, checked[key])
    return checked or None


def conditions(checked: Filter) -> list[Condition]:
    """The conditions of a filter in its stored form."""
    return [_condition(key, test) for key, test in checked.items()]


def metadata_keys(checked: Filter | None) -> list[str]:
    """The keys of metadata that a filter in its stored form names."""
    return [key for key in checked or () if key not in FIELDS]


def parse_where(given: str | Iterable[str] | Mapping[str, Any] | None) -> Filter | None:
    """A filter from conditions as text or JSON, all of which must hold; None if there are none. Raises UsageError."""
    if given is None or isinstance(given, Mapping):
        return check_filter(given)
    texts = [given] if isinstance(given, str) else given
    return joined_filters(
        *(_parse_json(text) if text.lstrip().startswith("{") else _parse_text(text) for text in texts)
    )


def joined_filters(*filters: Mapping[str, Any] | None) -> Filter | None:
    """One filter that asks for all of these. Raises UsageError where they have the same operator for one key."""
    together: dict[str, Any] = {}
    for checked in map(check_filter, filters):
        for key, test in (checked or {}).items():
            together[key] = _joined(key, together[key], test) if key in together else test
    return check_filter(together)


# JSON


def _checked_test(key: str, test: object) -> Any:
    """The test of one key, with clean values."""
    if isinstance(test, list | tuple):
        return _checked_list(key, test)
    if not isinstance(test, Mapping):
        return None if test is None else _checked_value(key, test)
    if not test:
        raise UsageError(f'the condition on "{key}" is empty; use {_alternatives(OPERATORS)}')
    checked: dict[str, Any] = {}
    for operator, operand in test.items():
        if operator not in OPERATORS:
            raise UsageError(
                f'the condition on "{key}" has an unknown operator {_shown(operator)}; use {_alternatives(OPERATORS)}'
            )
        if operator in ("in", "all") or (operator == "contains" and isinstance(operand, list | tuple)):
            checked[operator] = _checked_list(key, operand)
        else:
            checked[operator] = _checked_value(key, operand)
    return checked


def _checked_list(key: str, values: object) -> list[Plain]:
    if not isinstance(values, list | tuple):
        raise UsageError(f'"in" and "all" of the condition on "{key}" take a list, not {_shown(values)}')
    if not 1 <= len(values) <= MAX_VALUES:
        raise UsageError(f'a list of the condition on "{key}" has 1 to {MAX_VALUES:,} values, not {len(values):,}')
    return [_checked_value(key, value) for value in values]


def _checked_value(key: str, value: object) -> Plain:
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if not isinstance(value, str):
        raise UsageError(f'the condition on "{key}" compares with {_shown(value)}, which is no text, number or boolean')
    line = clean_line(value, MAX_VALUE)
    if line is None:
        raise UsageError(f'the condition on "{key}" compares with an empty text; null asks for images without "{key}"')
    return line


def _condition(key: str, test: Any) -> Condition:
    """The condition of a test with clean values. Raises UsageError for a test that the key does not allow."""
    if test is None:
        if key == "source":
            raise UsageError('every image has a "source"')
        return Condition(key, is_absent=True)
    if isinstance(test, list):
        test = {"in": test}
    elif not isinstance(test, dict):
        test = {"in": [test]}
    if key in FIELDS and (ranges := [operator for operator in RANGE if operator in test]):
        raise UsageError(f'"{key}" is a text, so it has no range ("{ranges[0]}"); use a value, a list or "contains"')
    if key == "folder" and test.keys() != {"in"}:
        raise UsageError(
            'a condition on "folder" is a folder or a list of folders, such as {"folder": "1968/holshire"}'
        )
    contains = test.get("contains", ())
    return Condition(
        key,
        any_of=tuple(_value(_folder(value) if key == "folder" else value) for value in test.get("in", ())),
        all_of=tuple(_value(value) for value in test.get("all", ())),
        bounds=tuple((operator, _bound(key, test[operator])) for operator in RANGE if operator in test),
        contains=tuple(map(_value_text, contains if isinstance(contains, list) else [contains])) if contains else (),
    )


def _folder(value: Plain) -> str:
    """The folder as names of pictures begin."""
    parts = [part for part in _value_text(value).replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts:
        raise UsageError(f'"folder": {_shown(value)} is every folder; leave the condition out')
    return "/".join(parts) + "/"


def _value(value: Plain) -> Value:
    text = _value_text(value)
    if isinstance(value, bool):
        return Value(text)
    return Value(text, text if re.fullmatch(NUMBER, text) else None, _date(text))


def _bound(key: str, value: Plain) -> Value:
    bound = _value(value)
    if bound.number is None and bound.date is None:
        is_date = re.match(r"\d{4}-", bound.text)
        problem = "which is no date of the calendar" if is_date else "which is neither a number nor a date"
        raise UsageError(
            f'the range of "{key}" ends at {_shown(value)}, {problem}; write a number, or 1968, 1968-05 or 1968-05-12'
        )
    return bound


def _value_text(value: Plain) -> str:
    """The value as the database writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return format(Decimal(str(value)).normalize(), "f") if isinstance(value, int | float) else value


def _date(text: str) -> str | None:
    """The date or time in the form of DATE, without fractions of a second and zone; None for any other text."""
    moment = _ZONE.sub("", text)
    if not _MOMENT.fullmatch(moment):
        return None
    try:
        datetime.datetime.fromisoformat(moment + "-01-01"[(len(moment) - 4) :] if len(moment) < 10 else moment)
    except ValueError:
        return None
    return moment.replace(" ", "T")


# Text


def _parse_json(text: str) -> Mapping[str, Any]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = (
            error.msg if isinstance(error, json.JSONDecodeError) else "a number too long or brackets nested too deep"
        )
        raise UsageError(f"the filter {_shown(text)} is not valid JSON: {reason}") from None
    return check_filter(parsed) or {}


def _parse_text(text: str) -> Filter:
    match = _TEXT.fullmatch(text)
    key = clean_key(match["key"]) if match else ""
    if match is None or not key:
        raise UsageError(
            f"the filter {_shown(text)} is not a condition; write it like city=Port Ansel, year>=1950, caption~barn or "
            "city in Port Ansel, Wenby"
        )
    sign, value = match["sign"], match["value"].strip()
    if sign == "!=":
        raise UsageError(f"the filter {_shown(text)} has the operator !=, which does not exist; use = or in")
    if match["in"]:
        return {key: {"in": next(csv.reader([value], skipinitialspace=True), [])}}
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = value[1:-1]
    if value.startswith(("=", "<", ">", "~", "!")):
        raise UsageError(f"the filter {_shown(text)} has an unknown operator; use =, >=, >, <=, <, ~ or in")
    if not value:
        raise UsageError(f'the filter {_shown(text)} has no value; {{"{key}": null}} asks for images without "{key}"')
    if sign in _SIGNS:
        return {key: {_SIGNS[sign]: value}}
    return {key: value}


def _joined(key: str, first: Any, second: Any) -> dict[str, Any]:
    """Two tests of one key as one that asks for both."""
    if first is None or second is None:
        raise UsageError(f'the filter asks for images without "{key}" and with it')
    joined = _as_operators(first)
    for operator, operand in _as_operators(second).items():
        if operator not in joined:
            joined[operator] = operand
        elif operator in ("all", "contains"):
            joined[operator] = [*_listed(joined[operator]), *_listed(operand)]
        else:
            raise UsageError(f'the filter has two conditions "{operator}" on "{key}"; give one')
    return joined


def _as_operators(test: Any) -> dict[str, Any]:
    if isinstance(test, Mapping):
        return dict(test)
    return {"in": test} if isinstance(test, list) else {"all": [test]}


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _alternatives(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
