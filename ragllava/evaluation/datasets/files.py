"""Reading the files of data sets: where they are, what is missing, and which row is wrong.

A missing file is one UsageError that names it and where it comes from. Wrong rows are collected into one
InvalidInput by `check_all`; a row that cannot be used raises BadRow inside.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ragllava.errors import InvalidInput, LineError, UsageError
from ragllava.evaluation.datasets.records import EvaluationImage, FilePicture
from ragllava.stages.record_files.json_files import json_records
from ragllava.stages.record_files.layouts import Record, Rejected

PICTURE_SUFFIXES = (".jpg", ".png", ".jpeg", ".gif", ".tif", ".tiff", ".webp")

_GZIP = b"\x1f\x8b"


class BadRow(Rejected):
    """A row cannot be used; the message says why, for a person."""

    def __init__(self, message: str) -> None:
        super().__init__("invalid_row", message)


def spellings(*names: str, folders: Sequence[str] = ("", "datasets/"), ends: Sequence[str] = ("",)) -> list[str]:
    """Where a file may be, relative to the folder of its data set: each name in each folder with each end."""
    return [f"{folder}{name}{end}" for name in names for folder in folders for end in ends]


def find_path(folder: Path, paths: Sequence[str]) -> Path | None:
    """The first of `paths`, relative to `folder`, that exists."""
    return next((folder / path for path in paths if (folder / path).exists()), None)


def need_path(folder: Path, paths: Sequence[str], origin: str) -> Path:
    """As `find_path`; UsageError when none exists. `origin` says where to get it."""
    path = find_path(folder, paths)
    if path is None:
        others = f" (nor {', '.join(paths[1:])})" if len(paths) > 1 else ""
        raise UsageError(f"{folder / paths[0]} is missing{others}; {origin}")
    return path


def read_text(path: Path) -> str:
    """The text of a file, unpacked if it is gzip whatever its name (browsers unpack and keep the name)."""
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if data.startswith(_GZIP) else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"cannot read {path}: {error}; is the download complete?") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: {error}") from error


def read_json(path: Path) -> Any:
    """The JSON value in a file."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        message = f"the file is not JSON: {error.msg}; is the download complete?"
        raise InvalidInput(str(path), [LineError("invalid_json", error.lineno, message)]) from None


def read_map(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UsageError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def json_rows(path: Path) -> list[Record]:
    """The entries of a JSON file: of an object under their keys, of a list under `entry 1`, `entry 2`, …"""
    value = read_json(path)
    if isinstance(value, dict):
        return [Record(0, entry, key) for key, entry in value.items()]
    if isinstance(value, list):
        return [Record(0, entry, f"entry {number}") for number, entry in enumerate(value, start=1)]
    raise UsageError(f"{path} must hold a JSON object or list, not a {type(value).__name__}")


def json_lines(path: Path) -> Iterator[Record]:
    """The objects of a JSONL file; an empty line is none."""
    return json_records(read_text(path).split("\n"), '{"id": …}')


def need_object(value: Any) -> dict[str, Any]:
    """`value` if it is a JSON object, else BadRow."""
    if not isinstance(value, dict):
        raise BadRow(f"expected a JSON object, found {value!r:.80}")
    return value


def need_text(entry: dict[str, Any], key: str) -> str:
    """The text under `key`, on one line; BadRow when it is missing, empty or no text."""
    value = entry.get(key)
    text = " ".join(value.split()) if isinstance(value, str) else ""
    if not text:
        raise BadRow(f"{key!r} must be text and not empty, found {value!r:.80}")
    return text


def need_list(entry: dict[str, Any], key: str) -> list[Any]:
    """The list under `key`; BadRow when it is missing or something else."""
    value = entry.get(key)
    if not isinstance(value, list):
        raise BadRow(f"{key!r} must be a list, found {value!r:.80}")
    return value


def need_number(value: Any, name: str) -> str:
    """An id of digits only, as text; BadRow for anything else. `name` is for the message."""
    image_id = need_id(value)
    if not image_id.isdecimal():
        raise BadRow(f"{name} must be a whole number, found {image_id!r:.80}")
    return image_id


def need_id(value: Any) -> str:
    """An id as text; data sets write ids as numbers and as text. BadRow for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not str(value).strip():
        raise BadRow(f"an id must be a number or text, found {value!r:.80}")
    return str(value).strip()


def unique(ids: Iterable[str]) -> tuple[str, ...]:
    """`ids` without repetitions, in the order of their first occurrence."""
    return tuple(dict.fromkeys(ids))


def find_images(folder: Path, listed: Mapping[str, tuple[str, str | None]], origin: str) -> tuple[EvaluationImage, ...]:
    """The images of a pool; `listed` maps their ids to the name of the file in `folder` and the caption.

    A name may come without its suffix, or with that of another format (sets are converted on the way); the file of
    exactly that name goes first. UsageError names the first missing one and says how many are missing.
    """
    try:
        files = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise UsageError(f"cannot list the pictures in {folder}: {error.strerror or error}") from error
    matches = {name: _file_name(name, files) for name, _ in listed.values()}
    missing = [name for name, _ in listed.values() if matches[name] is None]
    if missing:
        raise UsageError(
            f"{len(missing)} of {len(listed)} pictures are missing in {folder}, first {missing[0]}; {origin}"
        )
    return tuple(
        EvaluationImage(image_id, caption, FilePicture(folder / str(matches[name])))
        for image_id, (name, caption) in listed.items()
    )


def _file_name(name: str, files: set[str]) -> str | None:
    if name in files:
        return name
    stem, dot, suffix = name.rpartition(".")
    bare = stem if dot + suffix.lower() in PICTURE_SUFFIXES else name
    spellings = (bare + spelling for suffix in PICTURE_SUFFIXES for spelling in (suffix, suffix.upper()))
    return next((file for file in spellings if file in files), None)
