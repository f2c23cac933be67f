"""Read the records of a file: JSON lines, a JSON list, CSV or Parquet.

Each record has its line; one that is broken has the reason in its place and hides no other record. The fields are
checked by the callers, which raise Rejected too.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import string
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Generic, TextIO, TypeVar

from ragllava.errors import InvalidInput, LineError, UsageError
from ragllava.records import FileFormat

MAX_LINE_CHARACTERS = 16 * 2**20
MAX_LINES = 1_000_000  # of a question or feedback file
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # characters that Postgres does not store

EXTENSIONS = {
    ".jsonl": FileFormat.JSONL,
    ".ndjson": FileFormat.JSONL,
    ".csv": FileFormat.CSV,
    ".tsv": FileFormat.CSV,
    ".parquet": FileFormat.PARQUET,
}

_HEAD_BYTES = 2**16  # enough to recognise a format and to hold a CSV header
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# An undecodable byte becomes a lone surrogate, which valid UTF-8 cannot contain: only its record is rejected.
_UNDECODABLE = re.compile("[\ud800-\udfff]")
_DELIMITERS = ",;\t|"
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
    """One entry of a file: its line (0 in a JSON list), what it holds, and its name where it has no line.

    Of a record with a `problem`, `value` is what was readable.
    """

    line: int
    value: Any
    name: str = ""
    problem: Rejected | None = None


@dataclass(frozen=True)
class CheckedFile(Generic[Result]):
    """All input lines of a file in order, each as what it says or as its error."""

    name: str
    lines: list[Result | LineError]

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

    `required` columns have one or several names, the preferred one first; `optional` columns are read if they exist.
    `content` and `example` (an object in JSON) are for messages. A lenient layout is for files of other programs: they
    may be empty, a JSON list or UTF-16 with a byte order mark, CSV records may have more cells than the header, and
    Parquet columns any type and case. With `reads_others`, all columns are read, except those of a Parquet file that
    hold bytes. Without `skips_empty_rows`, a CSV record of empty cells is a record.
    """

    content: str
    example: str
    required: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()
    skips_empty_rows: bool = False
    is_lenient: bool = False
    reads_others: bool = False

    def columns(self) -> str:
        """The required columns in words."""
        names = [f"`{name}`" + (f" (or {', '.join(others)})" if others else "") for name, *others in self.required]
        return f"the column{'s' if len(names) > 1 else ''} {' and '.join(names)}"

    def pick(self, names: Iterable[str]) -> list[str]:
        """The columns to read among `names`, the required ones first. Raises Rejected if one of those is missing."""
        names = list(names)
        picked = [next((name for name in group if name in names), None) for group in self.required]
        columns = [name for name in picked if name is not None]
        if len(columns) < len(picked):
            present = ", ".join(names[:10])[:200] or "none"
            raise Rejected("missing_column", f"expected {self.columns()}, found {present}")
        return columns + [name for name in self.optional if name in names]

    def to_read(self, names: Iterable[str]) -> list[str]:
        """As `pick`, with all others after them if the layout reads others."""
        names = list(names)
        columns = self.pick(names)
        return [*columns, *(name for name in names if name not in columns)] if self.reads_others else columns


def format_by_extension(name: str) -> FileFormat | None:
    """The format that the extension of a file's name stands for; None for any other extension."""
    return EXTENSIONS.get(PurePath(name).suffix.lower())


@contextmanager
def opened_file(source: Path | bytes, name: str) -> Iterator[BinaryIO]:
    """The file as a stream. A Rejected inside the block becomes InvalidInput.

    Raises UsageError when the file cannot be opened; `name` is for messages.
    """
    try:
        stream = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from None
    try:
        with stream:
            yield stream
    except Rejected as rejected:
        raise InvalidInput(name, [rejected.at(rejected.line)]) from None


@contextmanager
def opened_records(
    source: Path | bytes,
    name: str,
    layout: Layout,
    *,
    format: FileFormat | None = None,
    max_records: int | None = None,
) -> Iterator[tuple[FileFormat, Iterator[Record]]]:
    """The format and the records of a file, to be read inside the block; raises as `opened_file`.

    `format` overrides what the content says. InvalidInput also when the whole file is unusable: of unknown format,
    without a required column, with more than `max_records` records, or, unless the layout is lenient, with none.
    """
    with opened_file(source, name) as stream:
        head = stream.read(_HEAD_BYTES)
        stream.seek(0)
        if not head and not layout.is_lenient:
            raise Rejected("empty_file", f"the file has no {layout.content}")
        format = format or _format_by_content(head, layout)
        if format is FileFormat.PARQUET:
            records = _parquet_records(stream, layout)
        else:
            records = _text_records(stream, head, format, layout)
        yield format, _counted(records, layout, max_records)


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


def parse_json(text: str) -> Any:
    """Any JSON. Raises Rejected, with the line in `text`."""
    if undecodable := _UNDECODABLE.search(text):
        before = text[: undecodable.start()].split("\n")
        message = f"byte {len(before[-1].encode()) + 1} of the line is not UTF-8"
        raise Rejected("invalid_encoding", message, len(before))
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        message = f"the line is not valid JSON ({error.msg}, column {error.colno})"
        raise Rejected("invalid_json_line", message, error.lineno) from None
    except (ValueError, RecursionError):  # a number of thousands of digits; thousands of open brackets
        raise Rejected("invalid_json_line", "the line has a number too long or brackets nested too deep") from None


def json_records(lines: Iterable[str], example: str) -> Iterator[Record]:
    """The objects of JSON lines; blank lines are skipped."""
    for line, raw in enumerate(lines, start=1):
        if not raw.strip(string.whitespace):
            continue
        try:
            if len(raw) > MAX_LINE_CHARACTERS:
                raise Rejected("line_too_long", f"the line has more than {MAX_LINE_CHARACTERS:,} characters")
            value = parse_json(raw)
        except Rejected as rejected:
            yield Record(line, {}, problem=rejected)
        else:
            yield _json_record(value, example, line)


def _json_record(value: Any, example: str, line: int, name: str = "") -> Record:
    if isinstance(value, dict):
        return Record(line, value, name)
    subject = "the line" if line else "it"
    return Record(line, {}, name, Rejected("invalid_json_line", f"{subject} is not an object like {example}"))


def _format_by_content(head: bytes, layout: Layout) -> FileFormat:
    if head.startswith(b"PAR1"):
        return FileFormat.PARQUET
    text = head.decode(_encoding(head, layout), "replace")
    if text.lstrip().startswith("{"):
        return FileFormat.JSONL
    try:
        _csv_header(text, layout)
    except Rejected:
        message = f"the file is neither JSON lines, nor Parquet, nor a CSV with {layout.columns()}"
        raise Rejected("unknown_format", message) from None
    return FileFormat.CSV


def _encoding(head: bytes, layout: Layout) -> str:
    is_marked = head.startswith(_UTF16_MARKS)
    if is_marked and layout.is_lenient:
        return "utf-16"
    # Without a byte order mark, UTF-16 of western text has a NUL in every second byte.
    if is_marked or head.count(0) * 4 > len(head):
        raise Rejected("invalid_encoding", "the file looks like UTF-16; save it as UTF-8 and submit it again")
    return "utf-8-sig"


def _counted(records: Iterable[Record], layout: Layout, max_records: int | None) -> Iterator[Record]:
    count = 0
    for count, record in enumerate(records, start=1):
        if max_records is not None and count > max_records:
            raise Rejected("too_many_lines", f"the file has more than {max_records:,} lines; split it")
        yield record
    if not count and not layout.is_lenient:
        raise Rejected("empty_file", f"the file has no {layout.content}")


def _text_records(stream: BinaryIO, head: bytes, format: FileFormat, layout: Layout) -> Iterator[Record]:
    encoding = _encoding(head, layout)
    beginning = head.decode(encoding, "replace")
    newline = "" if format is FileFormat.CSV else "\n"
    try:
        with io.TextIOWrapper(stream, encoding, errors="surrogateescape", newline=newline) as text:
            if format is FileFormat.CSV:
                yield from _csv_records(text, beginning, layout)
            elif layout.is_lenient and beginning.lstrip().startswith("["):
                for number, entry in enumerate(parse_json(text.read()), start=1):
                    yield _json_record(entry, layout.example, 0, f"entry {number}")
            else:
                yield from json_records(_lines(text), layout.example)
    except UnicodeDecodeError:  # of UTF-16
        raise Rejected("invalid_encoding", "the file is not valid UTF-16; save it as UTF-8") from None


def _lines(text: TextIO) -> Iterator[str]:
    """A line above the limit is cut, to a beginning that is still above it."""
    while line := text.readline(MAX_LINE_CHARACTERS + 1):
        yield line
        while len(line) > MAX_LINE_CHARACTERS and not line.endswith("\n"):
            line = text.readline(MAX_LINE_CHARACTERS + 1)


# CSV


def _csv_records(text: TextIO, beginning: str, layout: Layout) -> Iterator[Record]:
    delimiter, names = _csv_header(beginning, layout)
    columns = layout.to_read(names)
    checked = layout.pick(names)
    header_is_next = True
    for line, row in _csv_rows(text, delimiter):
        if isinstance(row, str):
            yield Record(line, {}, problem=Rejected("invalid_csv_line", row))
        elif _is_blank(row) or (layout.skips_empty_rows and not any(map(str.strip, row))):
            continue
        elif not header_is_next:
            cells = dict(zip(names, row, strict=False))
            value = {name: cells[name] for name in columns if name in cells}
            yield Record(line, value, problem=_csv_problem(row, value, checked, len(names), layout))
        header_is_next = False


def _csv_problem(
    row: list[str], value: dict[str, str], checked: list[str], width: int, layout: Layout
) -> Rejected | None:
    if any(_UNDECODABLE.search(value[name]) for name in checked if name in value):
        value.clear()
        return Rejected("invalid_encoding", "the record has bytes that are not UTF-8")
    if not layout.is_lenient and any(map(str.strip, row[width:])):
        message = f"the record has {len(row)} cells under {width} columns; put texts in double quotes"
        return Rejected("invalid_csv_line", message)
    return None


def _csv_header(beginning: str, layout: Layout) -> tuple[str, list[str]]:
    """The delimiter with which the header has the required columns, and all column names in lower case."""
    problem: Rejected | None = None
    for delimiter in _DELIMITERS:
        names = _header_names(beginning, delimiter)
        try:
            layout.pick(names)
        except Rejected as rejected:
            problem = problem or rejected
        else:
            return delimiter, names
    raise Rejected("missing_column", f"the first line must be a header: {problem}")


def _header_names(beginning: str, delimiter: str) -> list[str]:
    rows = csv.reader(io.StringIO(beginning, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next((row for row in rows if not _is_blank(row)), [])
    except csv.Error:  # a quote is not closed, which the record of the header reports; the names are in its first line
        first = next(line for line in beginning.splitlines() if line.strip())
        header = next(csv.reader([first], delimiter=delimiter))
    return [cell.strip().lower() for cell in header]


def _is_blank(row: list[str]) -> bool:
    return not row or (len(row) == 1 and row[0].isspace())


def _csv_rows(text: TextIO, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """Every row with the number of its first line; a broken row is replaced by a sentence with the reason.

    Quoted cells may span lines. An unclosed quote pulls later lines into its row: there is a sentence for each of
    these lines that is not blank.
    """
    consumed: list[str] = []  # the lines of the current row

    def lines_consumed() -> Iterator[str]:
        for line in _lines(text):
            if len(line) > MAX_LINE_CHARACTERS:
                message = f"a line has more than {MAX_LINE_CHARACTERS:,} characters; is this a CSV?"
                raise Rejected("line_too_long", message)
            consumed.append(line)
            yield line

    # Strict, so that an unclosed quote is an error and not one cell of a hundred lines.
    reader = csv.reader(lines_consumed(), delimiter=delimiter, strict=True)
    while True:
        consumed.clear()
        first = reader.line_num + 1
        try:
            yield first, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield first, f"the record is not valid CSV ({error}); is each quote in it closed?"
            for line, raw in enumerate(consumed[1:], start=first + 1):
                if raw.strip():
                    yield line, f"a quote in the record of line {first} is not closed before this line"


# Parquet


def _parquet_records(stream: BinaryIO, layout: Layout) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    row_no = 0
    try:
        file = parquet.ParquetFile(stream)
        columns = _parquet_columns(file.schema_arrow, layout)
        for batch in file.iter_batches(batch_size=4096, columns=list(columns.values())):
            for row in batch.to_pylist():
                row_no += 1
                yield Record(row_no, {column: row[stored] for column, stored in columns.items()})
    except UnicodeDecodeError:
        raise Rejected("invalid_encoding", f"a text after row {row_no} is not UTF-8") from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Rejected("invalid_parquet", f"the file is not readable as Parquet: {reason}") from None


def _parquet_columns(schema: Any, layout: Layout) -> dict[str, str]:
    """The columns to read, with their names in the file."""
    from pyarrow import types

    stored = {name.strip().lower() if layout.is_lenient else name: name for name in schema.names}
    required = layout.pick(stored)
    readable = [
        name for name in layout.to_read(stored) if name in required or _holds_no_bytes(schema.field(stored[name]).type)
    ]
    columns = {name: stored[name] for name in readable}
    for name in () if layout.is_lenient else columns:
        kind = schema.field(name).type
        text = kind.value_type if types.is_dictionary(kind) else kind
        is_text = types.is_string(text) or types.is_large_string(text) or types.is_string_view(text)
        if not is_text and not (name in layout.optional and types.is_integer(kind)):
            raise Rejected("missing_column", f"the column `{name}` has the type {kind}, not text")
    return columns


def _holds_no_bytes(kind: Any) -> bool:
    """Whether neither the type nor a part of it is binary; pictures are often stored so beside their captions."""
    from pyarrow import types

    parts = [kind.field(number).type for number in range(kind.num_fields)]
    is_binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    return not is_binary and all(map(_holds_no_bytes, parts))
