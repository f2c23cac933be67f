"""Filters of images as SQL: which images may be found at all.

Conditions are written for the table `images` under the alias `i`. Keys and values are parameters; no text of a filter
becomes part of a statement.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import Connection, text

from ragllava.errors import UsageError
from ragllava.filters import DATE, NUMBER, Condition, Filter, Value, check_filter, conditions, metadata_keys
from ragllava.metadata import FIELDS

_SIGNS = {"from": ">=", "to": "<=", "above": ">", "below": "<"}
_SHOWN_KEYS = 20


@dataclass(frozen=True)
class FilterSql:
    """A condition on the table `images` under the alias `i`, with psycopg's named parameters (`%(name)s`)."""

    condition: str
    parameters: Mapping[str, Any]


def compile_filter(*filters: Filter | None) -> FilterSql | None:
    """The condition that all of these filters hold; None if there is no filter. Raises UsageError for a wrong one."""
    writer = _Writer()
    written = [writer.write(condition) for given in filters for condition in conditions(check_filter(given) or {})]
    return FilterSql(" AND ".join(written), writer.parameters) if written else None


def unknown_keys(connection: Connection, archive_id: int, keys: Iterable[str]) -> list[str]:
    """Those of these keys of metadata that no image of the archive has, retired ones left out.

    For a key that many images have, only the first of them is read.
    """
    query = text("""
        SELECT EXISTS (
            SELECT FROM images WHERE archive_id = :archive_id AND NOT retired AND jsonb_exists(metadata, :key)
        )
    """)
    return [key for key in keys if not connection.scalar(query, {"archive_id": archive_id, "key": key})]


def archive_keys(connection: Connection, archive_id: int) -> list[str]:
    """All keys of metadata that images of the archive have, the most frequent first. Reads all its images."""
    query = text("""
        SELECT key FROM images CROSS JOIN LATERAL jsonb_object_keys(metadata) AS key
        WHERE archive_id = :archive_id AND NOT retired GROUP BY key ORDER BY count(*) DESC, key
    """)
    return list(connection.scalars(query, {"archive_id": archive_id}))


def check_keys(connection: Connection, archive_id: int, archive_name: str, *filters: Filter | None) -> None:
    """Raise UsageError for a filter with a key that no image of the archive has."""
    named = dict.fromkeys(key for checked in filters for key in metadata_keys(checked))
    unknown = unknown_keys(connection, archive_id, named)
    if unknown:
        raise UsageError(unknown_key_message(unknown[0], archive_name, archive_keys(connection, archive_id)))


def unknown_key_message(key: str, archive_name: str, existing: list[str]) -> str:
    """What is wrong with a filter on a key that no image has, and which keys there are."""
    close = difflib.get_close_matches(key, [*existing, *FIELDS])
    if close:
        hint = f"did you mean {' or '.join(close)}?"
    elif existing:
        hint = f"there are {', '.join(existing[:_SHOWN_KEYS])}{', …' if len(existing) > _SHOWN_KEYS else ''}"
    else:
        hint = "its images have no metadata"
    return f'no image of the archive {archive_name} has the metadata "{key}" that the filter asks for; {hint}'


def folded(expression: str) -> str:
    """A text in SQL without the differences that filters do not regard: case, and marks that accents are made of.

    The index ix_images_folded_metadata has this expression of the whole metadata. Canonical decomposition makes no
    quotation mark or backslash of another character, so JSON stays JSON.
    """
    lower = f'lower(normalize({expression}, NFD) COLLATE "pg_c_utf8")'
    return f"regexp_replace({lower}, '[\\u0300-\\u036f]', '', 'g')"


FOLDED_METADATA = f"CAST({folded('CAST(i.metadata AS text)')} AS jsonb)"


@dataclass
class _Writer:
    """Writes conditions and collects their parameters."""

    parameters: dict[str, Any] = field(default_factory=dict)

    def write(self, condition: Condition) -> str:
        """The condition in parentheses."""
        if condition.is_absent:
            return f"({self._absent(condition.key)})"
        tests = []
        if condition.any_of:
            tests.append(" OR ".join(self._equals(condition.key, value) for value in condition.any_of))
        tests += [self._equals(condition.key, value) for value in condition.all_of]
        tests += [self._some(condition.key, partial(self._contains, part)) for part in condition.contains]
        if condition.bounds:
            bounds = [(_SIGNS[operator], value) for operator, value in condition.bounds]
            tests.append(self._some(condition.key, partial(self._compared, bounds)))
        return f"({' AND '.join(f'({test})' for test in tests)})"

    def _parameter(self, value: str) -> str:
        name = f"filter_{len(self.parameters)}"
        self.parameters[name] = value
        return f"%({name})s::text"

    def _absent(self, key: str) -> str:
        if key == "caption":
            return "i.caption IS NULL"
        if key == "folder":
            return "position('/' IN i.source) = 0"
        return f"i.metadata -> {self._parameter(key)} IS NULL"

    def _equals(self, key: str, value: Value) -> str:
        """Whether a value of the key equals this one."""
        if key == "folder":
            return f"starts_with({folded('i.source')}, {folded(self._parameter(value.text))})"
        if key in FIELDS:
            return f"{folded(f'i.{key}')} = {folded(self._parameter(value.text))}"
        if value.number is None and value.date is None:
            return self._has(key, value.text)
        return self._some(key, partial(self._compared, [("=", value)]))

    def _has(self, key: str, wanted: str) -> str:
        """Whether the key has this text, alone or in a list; answered by the index."""
        forms: list[Any] = [wanted, [wanted]]
        if wanted in ("true", "false"):
            forms += [wanted == "true", [wanted == "true"]]
        documents = (self._parameter(json.dumps({key: form}, ensure_ascii=False)) for form in forms)
        return " OR ".join(f"{FOLDED_METADATA} @> CAST({folded(document)} AS jsonb)" for document in documents)

    def _some(self, key: str, test: Callable[[str], str]) -> str:
        """Whether `test` holds for the value of the key, or for a member of its list."""
        if key in FIELDS:
            return test(f"i.{key}")
        value = f"i.metadata -> {self._parameter(key)}"
        members = f"jsonb_array_elements_text({value}) AS member (value)"
        return (
            f"CASE jsonb_typeof({value}) WHEN 'array' THEN EXISTS (SELECT FROM {members} WHERE {test('member.value')}) "
            f"ELSE {test(f'(i.metadata ->> {self._parameter(key)})')} END"
        )

    def _contains(self, part: str, x: str) -> str:
        return f"coalesce(position({folded(self._parameter(part))} IN {folded(x)}) > 0, false)"

    def _compared(self, bounds: Sequence[tuple[str, Value]], x: str) -> str:
        """The comparisons (operator in SQL, value) as numbers, or as dates by the parts that each of the values has.

        False for a value that is no number, if the bounds are, and no date, if the bounds are.
        """
        whens = []
        numbers = [(sign, value.number) for sign, value in bounds if value.number is not None]
        dates = [(sign, value.date) for sign, value in bounds if value.date is not None]
        if len(numbers) == len(bounds):
            number = f"CAST({x} AS numeric)"
            tests = (f"{number} {sign} CAST({self._parameter(value)} AS numeric)" for sign, value in numbers)
            whens.append(f"WHEN {x} ~ '^{NUMBER}$' THEN {' AND '.join(tests)}")
        if len(dates) == len(bounds):
            tests = (f"{_beginning(x, value)} {sign} {self._parameter(value)}" for sign, value in dates)
            whens.append(f"WHEN {x} ~ '^{DATE}$' THEN {' AND '.join(tests)}")
        return f"CASE {' '.join(whens)} ELSE false END" if whens else "false"


def _beginning(x: str, date: str) -> str:
    """As much of a date or time in SQL as `date` has."""
    return f"left(replace({x}, ' ', 'T'), {len(date):d}) COLLATE \"C\""
