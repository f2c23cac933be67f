"""Records (dataclasses) as JSON values and back: in the database, in the object store and in files."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from ragllava.visible import visible_json

Value = TypeVar("Value")


def to_json(record: object) -> Any:
    """The record as JSON knows it: its fields by name in their order, tuples as lists, enums by value.

    Instants become ISO 8601 text, and a number that JSON cannot write (NaN, infinity) null.
    """
    return to_jsonable_python(record, inf_nan_mode="null")


def from_json(form: type[Value], value: Any) -> Value:
    """The record that `to_json` made `value` from. `form` is a dataclass, or for example `tuple[Dataclass, ...]`.

    A field that an earlier version did not write takes its default; what `form` does not have is left out. Raises
    ValueError with one sentence that names the first field that does not fit.
    """
    try:
        adapter: TypeAdapter[Value] = _adapter(cast("Hashable", form))
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the value"
        raise ValueError(f"not a {error.title}: {field}: {first['msg']}") from None


def write_json_lines(lines: Iterable[dict[str, Any]], path: Path) -> int:
    """Write a JSONL file and return the number of its lines. Raises ValueError for NaN and infinity."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for line in lines:
            count += 1
            # JSON allows control characters and line separators inside strings; terminals and readers obey them.
            file.write(visible_json(json.dumps(line, ensure_ascii=False, allow_nan=False)) + "\n")
    return count


def rounded(value: Any, decimals: int = 4) -> Any:
    """A JSON value with all its floats rounded."""
    if isinstance(value, float):
        return round(value, decimals)
    if isinstance(value, dict):
        return {key: rounded(item, decimals) for key, item in value.items()}
    return [rounded(item, decimals) for item in value] if isinstance(value, list) else value


@cache
def _adapter(form: Any) -> TypeAdapter[Any]:
    return TypeAdapter(form)
