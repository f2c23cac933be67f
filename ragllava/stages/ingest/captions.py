"""Captions of pictures: caption files (CSV, JSONL, JSON, Parquet) and sidecar text files.

A caption is one line of plain text of at most MAX_CAPTION characters; `clean_caption` enforces that for every source.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from ragllava.errors import InvalidInput, LineError, UsageError

MAX_CAPTION = 2_000  # characters
MAX_SIDECAR_BYTES = 65_536  # read of a sidecar; its caption is the first line

IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "path", "source", "name")
CAPTION_COLUMNS = ("caption", "text", "description")

_MAX_ERRORS = 100  # reported for one file
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


_Row = tuple[str, str]  # the name of a picture and its caption


class Captions:
    """The captions of caption files, by the names of the pictures."""

    def __init__(self, captions: Mapping[str, str]) -> None:
        """`captions` maps the pictures' names, with forward slashes, to clean captions."""
        self._captions = {_normalized(name): caption for name, caption in captions.items()}
        self._used: set[str] = set()

    def __len__(self) -> int:
        return len(self._captions)

    def items(self) -> Iterable[tuple[str, str]]:
        """The pictures' names with their captions, in the order of the caption file."""
        return self._captions.items()

    def assign(self, sources: Sequence[str]) -> list[str | None]:
        """A caption or None for each of `sources`, the names of all files offered (SourceFile.source).

        A caption belongs to the file of exactly its name. If there is no such file, it belongs to the file of the same
        base name, if only one such caption and only one file without caption have this base name.
        """
        keys = [_normalized(source) for source in sources]
        exact = set(keys) & self._captions.keys()
        by_base_name = _by_base_name(self._captions.keys() - exact)
        base_names = Counter(posixpath.basename(key) for key in keys if key not in exact)
        assigned: list[str | None] = []
        for key in keys:
            base_name = posixpath.basename(key)
            name = key if key in exact else by_base_name.get(base_name) if base_names[base_name] == 1 else None
            if name is not None:
                self._used.add(name)
            assigned.append(None if name is None else self._captions[name])
        return assigned

    def unused(self) -> list[str]:
        """The names whose captions were not assigned to any file so far, in the order of the caption file."""
        return [name for name in self._captions if name not in self._used]


def clean_caption(text: str) -> str | None:
    """`text` on one line, without characters that Postgres rejects, cut to MAX_CAPTION; None if nothing is left."""
    storable = text.replace("\x00", " ").encode("utf-8", "replace").decode("utf-8").lstrip("\ufeff")
    return " ".join(storable.split())[:MAX_CAPTION].rstrip() or None


def sidecar_caption(data: bytes) -> str | None:
    """The caption of a sidecar text file: its first line that is not empty; the others may be translations."""
    lines = decode_text(data[:MAX_SIDECAR_BYTES]).splitlines()
    return next((caption for caption in map(clean_caption, lines) if caption is not None), None)


def decode_text(data: bytes) -> str:
    """Text by its byte order mark, else UTF-8, else Windows-1252, which can decode any bytes."""
    content, encoding = _split_mark(data)
    if encoding is not None:
        return content.decode(encoding, "replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start > len(data) - 4 and len(data) >= MAX_SIDECAR_BYTES:  # a character cut by the limit
            return data[: error.start].decode("utf-8")
        return data.decode("cp1252", "replace")


def read_captions(path: str | Path) -> Captions:
    """Read a caption file: CSV (comma, semicolon or tab), JSONL, a JSON list, or Parquet.

    One column names the picture (IMAGE_COLUMNS), another one holds the caption (CAPTION_COLUMNS). Several captions of
    one picture are joined; a row without caption is skipped. Raises UsageError if the file cannot be read at all and
    InvalidInput with the lines that are wrong.
    """
    path = Path(path)
    if path.suffix.lower() not in _PARSERS:
        raise UsageError(f"{path}: a caption file ends in .csv, .tsv, .txt, .json, .jsonl or .parquet")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the caption file {path}: {error.strerror or error}") from error
    return parse_captions(path.name, content)


def parse_captions(name: str, content: bytes) -> Captions:
    """As `read_captions`, of the content of a caption file `name` with one of the known extensions."""
    captions: dict[str, list[str]] = {}
    errors: list[LineError] = []
    for row in _PARSERS[PurePath(name).suffix.lower()](content):
        if isinstance(row, LineError):
            errors.append(row)
            if len(errors) == _MAX_ERRORS:
                break
            continue
        image, caption = _normalized(row[0]), clean_caption(row[1])
        if caption is not None and caption not in captions.setdefault(image, []):
            captions[image].append(caption)
    if errors:
        raise InvalidInput(name, errors)
    return Captions({image: " ".join(parts)[:MAX_CAPTION] for image, parts in captions.items() if parts})


def _normalized(name: str) -> str:
    """One spelling for names of the same file: forward slashes, no leading ./"""
    return posixpath.normpath(name.strip().replace("\\", "/")).lstrip("/")


def _by_base_name(keys: Iterable[str]) -> dict[str, str]:
    """The keys by their last part, without those that share it."""
    keys = list(keys)
    count = Counter(map(posixpath.basename, keys))
    return {posixpath.basename(key): key for key in keys if count[posixpath.basename(key)] == 1}


def _split_mark(data: bytes) -> tuple[bytes, str | None]:
    """`data` without its byte order mark, and the encoding that the mark stands for."""
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data[len(mark) :], encoding
    return data, None


def _text(data: bytes) -> str | LineError:
    content, encoding = _split_mark(data)
    try:
        return content.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return LineError("invalid_encoding", line, "this line is not UTF-8 text; save the file as UTF-8")


def _csv_rows(content: bytes) -> Iterator[_Row | LineError]:
    text = _text(content)
    if isinstance(text, LineError):
        yield text
        return
    line = 1
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
        header = _lower(next(reader, []))
        columns = _two_columns(header)
        if isinstance(columns, LineError):
            yield columns
            return
        image_column, caption_column = map(header.index, columns)
        line = reader.line_num + 1
        for cells in reader:
            if any(cells):
                yield _csv_row(cells, line, image_column, caption_column)
            line = reader.line_num + 1  # of the next row: a quoted cell may span lines
    except csv.Error as error:
        yield LineError("invalid_csv", line, f"this row cannot be read as CSV: {error}")


def _delimiter(text: str) -> str:
    """The separator with which the header names both columns; a comma if there is none."""
    for delimiter in (",", ";", "\t"):
        header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        if not isinstance(_two_columns(_lower(header)), LineError):
            return delimiter
    return ","


def _lower(names: Iterable[object]) -> list[str]:
    return [str(name).strip().lower() for name in names]


def _csv_row(cells: list[str], line: int, image_column: int, caption_column: int) -> _Row | LineError:
    if len(cells) <= max(image_column, caption_column):
        return LineError("missing_column", line, f"this row has only {len(cells)} columns; is a quote missing?")
    return _row(cells[image_column], cells[caption_column], line, "")


def _two_columns(names: Sequence[str]) -> tuple[str, str] | LineError:
    """The columns of the picture and of the caption among `names` (lower case)."""
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    caption = next((name for name in CAPTION_COLUMNS if name in names), None)
    if image is not None and caption is not None:
        return image, caption
    missing, expected = ("picture", IMAGE_COLUMNS) if image is None else ("caption", CAPTION_COLUMNS)
    columns = ", ".join(names[:10])[:200] or "none"
    message = f"no column for the {missing}: expected one of {', '.join(expected)}, found {columns}"
    return LineError("missing_column", 1, message)


def _json_rows(content: bytes) -> Iterator[_Row | LineError]:
    text = _text(content)
    if isinstance(text, LineError):
        yield text
        return
    if text.lstrip().startswith("["):
        yield from _json_list_rows(text)
        return
    for line, row in enumerate(text.split("\n"), start=1):
        if not row.strip():
            continue
        try:
            entry = json.loads(row)
        except (ValueError, RecursionError) as error:
            yield LineError("invalid_json", line, f"this line is not JSON: {error}")
            continue
        yield _entry_row(entry, line, "")


def _json_list_rows(text: str) -> Iterator[_Row | LineError]:
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        yield LineError("invalid_json", error.lineno, f"the file is not JSON: {error.msg}")
        return
    except RecursionError:
        yield LineError("invalid_json", 0, "the file is nested too deeply")
        return
    for number, entry in enumerate(entries, start=1):
        yield _entry_row(entry, 0, f"entry {number}: ")


def _entry_row(entry: Any, line: int, prefix: str) -> _Row | LineError:
    if not isinstance(entry, dict):
        return LineError("not_an_object", line, f'{prefix}expected an object such as {{"image": …, "caption": …}}')
    lower = dict(zip(_lower(entry), entry.values(), strict=True))
    columns = _two_columns(list(lower))
    if isinstance(columns, LineError):
        return LineError(columns.code, line, prefix + columns.message)
    return _row(lower[columns[0]], lower[columns[1]], line, prefix)


def _parquet_rows(content: bytes) -> Iterator[_Row | LineError]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        stored = file.schema_arrow.names
        names = dict(zip(_lower(stored), stored, strict=True))
        columns = _two_columns(list(names))
        if isinstance(columns, LineError):
            yield LineError(columns.code, 0, columns.message)
            return
        table = file.read([names[column] for column in columns])
        images, captions = (table.column(names[column]).to_pylist() for column in columns)
        for row, (image, caption) in enumerate(zip(images, captions, strict=True), start=1):
            yield _row(image, caption, row, "")
    except (pyarrow.ArrowException, OSError) as error:  # OSError: of a damaged footer
        yield LineError("invalid_parquet", 0, f"the file cannot be read as Parquet: {error}")


def _row(image: Any, caption: Any, line: int, prefix: str) -> _Row | LineError:
    if isinstance(image, int) and not isinstance(image, bool):
        image = str(image)
    if not isinstance(image, str) or not image.strip():
        return LineError("invalid_image", line, f"{prefix}the name of the picture must be text and not empty")
    if caption is None:
        caption = ""
    if not isinstance(caption, str):
        return LineError("invalid_caption", line, f"{prefix}the caption of {image[:200]!r} must be text")
    return image, caption


_PARSERS: Mapping[str, Callable[[bytes], Iterator[_Row | LineError]]] = {
    **dict.fromkeys((".csv", ".tsv", ".txt"), _csv_rows),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), _json_rows),
    **dict.fromkeys((".parquet", ".pq"), _parquet_rows),
}
