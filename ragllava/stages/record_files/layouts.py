"""Records of a file, what a kind of file has, and what is wrong with either.

Each record has its line; one that is broken has the reason in its place and hides no other record. The fields are
checked by the callers, which raise Rejected too. Names of columns are compared as `clean_key` spells them: `Custom ID`
is `custom_id`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from ragllava.errors import InvalidInput, LineError
from ragllava.metadata import clean_key

UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # characters that Postgres does not store

_MAX_ERRORS = 100  # reported of one file by `check_all`

Result = TypeVar("Result")


class Rejected(Exception):
    """Why a record, or the whole file, is not accepted; `line` is the line in the file where it is known."""

    def __init__(self, code: str, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.line = line

    def at(self, line: int, custom_id: object = None) -> LineError:
        """The error of a line; a `custom_id` that is not text is left out."""
        return LineError(self.code, line, self.message, custom_id if isinstance(custom_id, str) else None)


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of a file: its line, what it holds, and its name where it has no line.

    In a JSON list and in Parquet, `line` is the number of the entry, from 1. `value` has the names of the file. Of a
    record with a `problem`, it is what was readable.
    """

    line: int
    value: Any
    name: str = ""
    problem: Rejected | None = None


@dataclass(frozen=True)
class CheckedFile(Generic[Result]):
    """All input lines of a file in order, each as what it says or as its error; `notes` are remarks on the file."""

    name: str
    lines: list[Result | LineError]
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def valid(self) -> list[Result]:
        """The valid lines."""
        return [line for line in self.lines if not isinstance(line, LineError)]

    @property
    def errors(self) -> list[LineError]:
        """The invalid lines."""
        return [line for line in self.lines if isinstance(line, LineError)]

    def require_valid(self) -> None:
        """Raise InvalidInput with every invalid line, if there is one."""
        if errors := self.errors:
            raise InvalidInput(self.name, errors)


@dataclass(frozen=True, slots=True)
class Layout:
    """What a kind of file has.

    A column has one or several names, as `clean_key` spells them: the first is the one that callers use, and where a
    file has several of them, the first in this order counts. `required` columns must exist in a file with a header.
    `content`, `example` (an object in JSON) and `advice` on missing columns are for messages. `unfold` gives the
    records of a JSON file that is one value; `headerless` the names of the columns of a tab-separated file whose first
    row (given) is no header, None if it is one.
    """

    content: str
    example: str
    required: tuple[tuple[str, ...], ...]
    optional: tuple[tuple[str, ...], ...] = ()
    may_be_empty: bool = False
    advice: str = ""
    unfold: Callable[[Any], Iterable[Any]] | None = None
    headerless: Callable[[list[str]], list[str] | None] | None = None

    def columns(self) -> str:
        """The required columns in words."""
        names = [f"`{name}`" + (f" ({_alternatives(others)})" if others else "") for name, *others in self.required]
        return f"the column{'s' if len(names) > 1 else ''} {' and '.join(names)}"

    def find(self, names: Iterable[str]) -> dict[str, str]:
        """The columns among `names`: our name and that of the file."""
        return dict(_columns_of(self, tuple(names)))

    def pick(self, names: Iterable[str]) -> dict[str, str]:
        """As `find`. Raises Rejected if a required column is missing."""
        names = tuple(names)
        columns = self.find(names)
        if any(name not in columns for name, *_ in self.required):
            message = f"expected {self.columns()}, found {named(names)}{self.advice}"
            raise Rejected("missing_column", message)
        return columns

    def split(self, value: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The values of the columns by our names, and all others by the names of the file."""
        columns = self.find(value)
        taken = set(columns.values())
        others = {name: item for name, item in value.items() if name not in taken}
        return {name: value[stored] for name, stored in columns.items()}, others


@lru_cache(maxsize=256)  # most files have the same keys in all records
def _columns_of(layout: Layout, names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    by_key: dict[str, str] = {}
    for name in names:
        by_key.setdefault(clean_key(name), name)
    groups = (*layout.required, *layout.optional)
    stored = ((group[0], next((by_key[key] for key in group if key in by_key), None)) for group in groups)
    return tuple((name, column) for name, column in stored if column is not None)


def _alternatives(names: Sequence[str]) -> str:
    return f"or {', '.join(names[:5])}" + (", …" if len(names) > 5 else "")


def named(names: Iterable[str]) -> str:
    """The names of columns or keys for a message: the first ten, in quotes."""
    listed = [f'"{name}"' for name in names if name.strip()]
    more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
    return (", ".join(listed[:10])[:300] + more) or "none"


def check_all(name: str | Path, records: Iterable[Record], check: Callable[[Record], Result]) -> list[Result]:
    """`check` applied to each record; those that are broken or rejected by it become one InvalidInput."""
    return list(checked_records(name, records, check))


def checked_records(name: str | Path, records: Iterable[Record], check: Callable[[Record], Result]) -> Iterator[Result]:
    """As `check_all`, one result after the other; the InvalidInput is raised at the end."""
    errors: list[LineError] = []
    for record in records:
        try:
            if record.problem:
                raise record.problem
            result = check(record)
        except Rejected as rejected:
            message = rejected.message if record.line else f"{record.name}: {rejected.message}"
            errors.append(LineError(rejected.code, record.line, message, record.name or None))
            if len(errors) == _MAX_ERRORS:
                break
        else:
            if not errors:
                yield result
    if errors:
        raise InvalidInput(str(name), errors)
