"""Captions and metadata in the form in which they are stored.

A caption is one line of plain text of at most MAX_CAPTION characters. Metadata are what else is known about a picture:
up to MAX_KEYS values by key. A value is text on one line, a number, a boolean, or a list of them.

A key is compared without regard to case, and has underscores where its name has white space or punctuation: `Photo
Date`, `photo-date` and `photo_date` are one key. `caption`, `source` and `folder` are fields of every picture, so
metadata of these names get an underscore at the end (`source_`).
"""

from __future__ import annotations

import datetime
import math
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

MAX_CAPTION = 2_000  # characters
MAX_KEYS = 64
MAX_KEY = 64  # characters
MAX_VALUE = 4_000  # characters, of a list together

FIELDS = ("caption", "source", "folder")  # of every picture; no metadata has such a key

_SEPARATORS = re.compile(r"[\s\x00-/:-@\[-`{-\x7f]+")  # white space and ASCII punctuation
_LARGEST = 10**30  # of whole numbers; no measure is larger, and Postgres compares them without loss

Metadata = dict[str, Any]


def clean_caption(text: str) -> str | None:
    """`text` as a caption; None if nothing is left."""
    return clean_line(text, MAX_CAPTION)


def is_cut(text: str) -> bool:
    """Whether `clean_caption` cuts this text."""
    return len(text) > MAX_CAPTION and len(clean_line(text, len(text)) or "") > MAX_CAPTION


def clean_line(text: str, most: int) -> str | None:
    """`text` on one line, without characters that Postgres rejects, cut to `most`; None if nothing is left."""
    storable = text.replace("\x00", " ").encode("utf-8", "replace").decode("utf-8").lstrip("\ufeff")
    return " ".join(storable.split())[:most].rstrip() or None


def picture_name(name: str) -> str:
    """One spelling for names of the same picture in caption files: forward slashes, no leading `./`."""
    return posixpath.normpath(name.strip().replace("\\", "/")).lstrip("/")


def clean_key(name: str) -> str:
    """The key that a name stands for; an empty text if nothing is left of it."""
    storable = name.encode("utf-8", "replace").decode("utf-8")
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", storable).casefold())
    return _SEPARATORS.sub("_", folded).strip("_")[:MAX_KEY].rstrip("_")


def clean_metadata(given: Mapping[Any, Any]) -> Metadata | None:
    """Values of any kind by their names as metadata; None if nothing is left.

    Empty values, and values that are no metadata (bytes, NaN), are left out. An object inside is taken apart:
    `{"place": {"city": …}}` is `place_city`. Dates become ISO 8601 text. Of two names of one key, the first counts.
    """
    cleaned: Metadata = {}
    for name, value in _flat(given):
        key = clean_key(name)
        key = f"{key}_" if key in FIELDS else key
        if key and key not in cleaned and len(cleaned) < MAX_KEYS and (stored := _clean_value(value)) is not None:
            cleaned[key] = stored
    return cleaned or None


def merge_metadata(first: Metadata | None, second: Metadata | None) -> Metadata | None:
    """Both; a key with different values gets a list of them."""
    if not first or not second:
        return first or second
    merged = dict(first)
    for key, value in second.items():
        if key not in merged:
            merged[key] = value
        elif merged[key] != value:
            merged[key] = [*_listed(merged[key]), *_listed(value)]
    return clean_metadata(merged)


def clean_embedded(given: Mapping[str, Any]) -> Metadata:
    """What a picture file says about itself: metadata, and its caption under `caption`."""
    caption = given.get("caption")
    cleaned = clean_metadata({key: value for key, value in given.items() if key not in FIELDS}) or {}
    if isinstance(caption, str) and (line := clean_caption(caption)) is not None:
        cleaned["caption"] = line
    return cleaned


def all_metadata(embedded: Metadata | None, given: Metadata | None) -> Metadata | None:
    """The metadata of an image: those inside the picture, and those given beside it, which win."""
    inside = {key: value for key, value in (embedded or {}).items() if key not in FIELDS}
    return inside | (given or {}) or None


def _flat(given: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> Iterable[tuple[str, Any]]:
    for name, value in given.items():
        full = f"{prefix}{name}"
        if isinstance(value, Mapping):
            if depth < MAX_KEYS:  # deeper, no key would be short enough
                yield from _flat(value, f"{full}_", depth + 1)
        else:
            yield full, value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _clean_value(value: Any) -> Any:
    """The value as it is stored; None if there is nothing to store."""
    if isinstance(value, list | tuple | set | frozenset):
        return _clean_list(value)
    return _clean_scalar(value)


def _clean_list(values: Iterable[Any]) -> list[Any] | None:
    kept: list[Any] = []
    length = 0
    for value in values:
        stored = _clean_scalar(value)
        # True == 1 in Python, and they are two values.
        if stored is None or any(type(stored) is type(other) and stored == other for other in kept):
            continue
        length += len(str(stored))
        if length > MAX_VALUE:
            break
        kept.append(stored)
    return kept or None


def _clean_scalar(value: Any) -> str | int | float | bool | None:
    if isinstance(value, Decimal):
        value = (int(value) if value == value.to_integral_value() else float(value)) if value.is_finite() else None
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < _LARGEST else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    return clean_line(value, MAX_VALUE) if isinstance(value, str) else None
