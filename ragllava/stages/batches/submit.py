"""A request for a batch: its archive and options come from `metadata`, or the archive from the model of its lines."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ragllava.errors import UsageError
from ragllava.filters import parse_where
from ragllava.json_records import to_json
from ragllava.records import AnswerOptions
from ragllava.stages.answer.submit import as_options, check_options

MODEL = "ragllava"
_HOUR_S = 3_600.0
_UNITS = {"h": _HOUR_S, "d": 24 * _HOUR_S}
_WINDOW = re.compile(r"([1-9]\d?\d?)([hd])")
_LONGEST_WINDOW_S = 7 * 24 * _HOUR_S
_NUMBERS: dict[str, type[int] | type[float]] = {"top_k": int, "top_n": int, "threshold": float}
_WORDS = ("retrieval", "depth")
_BOOLEANS = {"true": True, "false": False}
OPTIONS = (*_NUMBERS, *_WORDS, "captions_in_answer", "where")


def window_seconds(window: str) -> float:
    """`24h`, or as an extension `1h` to `7d`, in seconds. Raises UsageError."""
    match = _WINDOW.fullmatch(window)
    length_s = int(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < length_s <= _LONGEST_WINDOW_S:
        raise UsageError(f"completion_window: {window[:40]!r} is not a time from 1h to 7d, such as 24h")
    return length_s


def options_of(metadata: Mapping[str, str]) -> AnswerOptions:
    """How questions are answered, from the texts of `metadata`; other keys belong to the client. Raises UsageError."""
    given: dict[str, Any] = {name: metadata[name] for name in _WORDS if name in metadata}
    for name, kind in _NUMBERS.items():
        if name in metadata:
            given[name] = _number(name, kind, metadata[name])
    if "captions_in_answer" in metadata:
        given["captions_in_answer"] = flag("captions_in_answer", metadata["captions_in_answer"])
    options = as_options(given)
    return check_options(options) if "where" not in metadata else _with_filter(options, metadata["where"])


def flag(name: str, value: str) -> bool:
    """A text that is true or false. Raises UsageError."""
    if value.lower() not in _BOOLEANS:
        raise UsageError(f"metadata.{name} must be true or false, not {value[:40]!r}")
    return _BOOLEANS[value.lower()]


def archive_named(model: object) -> str | None:
    """The archive in `ragllava/<archive>`; None for any other model."""
    if not isinstance(model, str) or not model.startswith(f"{MODEL}/"):
        return None
    return model.removeprefix(f"{MODEL}/") or None


def archive_of_first_line(line: bytes) -> str | None:
    """The archive that the first line of a batch file names by its model."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    body = value.get("body") if isinstance(value, dict) else None
    return archive_named(body.get("model")) if isinstance(body, dict) else None


def content_digest(*parts: object) -> str:
    """The hash (hex) of what was asked for."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def options_json(options: AnswerOptions) -> dict[str, Any]:
    """As stored with a batch."""
    stored: dict[str, Any] = to_json(options)
    return stored


def _with_filter(options: AnswerOptions, where: str) -> AnswerOptions:
    return check_options(replace(options, filter=parse_where(where)))


def _number(name: str, kind: type[int] | type[float], value: str) -> int | float:
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"metadata.{name} must be a number, not {value[:40]!r}") from None
