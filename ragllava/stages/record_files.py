"""Read the records of a file: JSON lines, a JSON list, CSV, Excel or Parquet, each of them also packed with gzip.

Each record has its line; one that is broken has the reason in its place and hides no other record. The fields are
checked by the callers, which raise Rejected too. Names of columns are compared as `clean_key` spells them: `Custom ID`
is `custom_id`.

Text is UTF-8, or UTF-16 with a byte order mark. A CSV that is not UTF-8 anywhere is read as Windows-1252, which
spreadsheets write in western countries, unless its bytes do not look like it.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import string
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Generic, Literal, TextIO, TypeVar, cast

from ragllava.errors import InvalidInput, LineError, UsageError
from ragllava.metadata import clean_key
from ragllava.records import FileFormat
from ragllava.stages.spreadsheets import SpreadsheetError, read_sheets

MAX_LINE_CHARACTERS = 16 * 2**20
MAX_LINES = 1_000_000  # of a question or feedback file
MAX_DOCUMENT_CHARACTERS = 512 * 2**20  # of a JSON file that is one value
MAX_UNPACKED_BYTES = 2 * 2**30  # of a file packed with gzip
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # characters that Postgres does not store

EXTENSIONS = {
    ".jsonl": FileFormat.JSONL,
    ".ndjson": FileFormat.JSONL,
    ".json": FileFormat.JSONL,
    ".csv": FileFormat.CSV,
    ".tsv": FileFormat.CSV,
    ".parquet": FileFormat.PARQUET,
    ".pq": FileFormat.PARQUET,
    ".xlsx": FileFormat.XLSX,
    ".xlsm": FileFormat.XLSX,
}

_HEAD_BYTES = 2**16  # enough to recognise a format and to hold a CSV header
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# An undecodable byte becomes a lone surrogate, which valid UTF-8 cannot contain: only its record is rejected.
_UNDECODABLE = re.compile("[\ud800-\udfff]")
_DELIMITERS = ",;\t|"
_SEPARATOR_LINE = re.compile(r"sep=(.)[\r\n]*", re.IGNORECASE)  # with which Excel announces the delimiter
_FORMULA_TEXT = re.compile(r'="((?:[^"]|"")*)"')  # a text that Excel shall not take for a number: ="001"
_BLANKS = string.whitespace + "\x1a"  # with the end-of-file character of DOS
_UTF_8_CHARACTER = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
# What western text has never: bytes without a character, control codes, and many accented letters in a row.
_NOT_WINDOWS_1252 = re.compile(rb"[\x81\x8d\x8f\x90\x9d]|[\x80-\xff]{4}")
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


def format_by_extension(name: str) -> FileFormat | None:
    """The format that the extension of a file's name stands for, before `.gz`; None for any other extension."""
    return EXTENSIONS.get(PurePath(name.lower().removesuffix(".gz")).suffix)


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
    notes: list[str] | None = None,
) -> Iterator[tuple[FileFormat, Iterator[Record]]]:
    """The format and the records of a file, to be read inside the block; raises as `opened_file`.

    `format` is what the name says; a content that is certainly of another format overrides it. InvalidInput also when
    the whole file is unusable: of unknown format, without a required column, with more than `max_records` records, or,
    unless the layout allows it, with none. `notes` gets a remark on what was changed to read the file.
    """
    with opened_file(source, name) as packed, _unpacked(packed) as stream:
        head = stream.read(_HEAD_BYTES)
        stream.seek(0)
        if not head and not layout.may_be_empty:
            raise Rejected("empty_file", f"the file has no {layout.content}")
        format = _format_by_signature(head) or format or _format_by_content(head, layout)
        if format is FileFormat.PARQUET:
            records = _parquet_records(stream, layout)
        elif format is FileFormat.XLSX:
            records = _xlsx_records(stream, layout)
        elif format is FileFormat.CSV:
            records = _csv_records(stream, head, layout, notes if notes is not None else [])
        else:
            is_json = PurePath(name.lower().removesuffix(".gz")).suffix == ".json"
            records = _json_file_records(stream, head, layout, is_json)
        yield format, _counted(records, layout, max_records)


@contextmanager
def _unpacked(packed: BinaryIO) -> Iterator[BinaryIO]:
    """The stream itself, or what gzip packed into it."""
    signature = packed.read(2)
    packed.seek(0)
    if signature != b"\x1f\x8b":
        yield packed
        return
    try:
        with (
            gzip.GzipFile(fileobj=packed) as unpacked,
            io.BufferedReader(_Capped(cast("BinaryIO", unpacked))) as stream,
        ):
            yield cast("BinaryIO", stream)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise Rejected("invalid_gzip", "the file is damaged: it cannot be unpacked with gzip") from None


class _Capped(io.RawIOBase):
    """A stream of which at most MAX_UNPACKED_BYTES can be read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = 0) -> int:
        return self._stream.seek(position, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        if self._stream.tell() > MAX_UNPACKED_BYTES:
            message = f"the file unpacks to more than {MAX_UNPACKED_BYTES // 2**30} GiB"
            raise Rejected("file_too_large", message)
        buffer[: len(data)] = data
        return len(data)


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
    """The objects of JSON lines; blank lines are skipped, and a comma after an object, as in a list, is too."""
    for line, raw in enumerate(lines, start=1):
        content = raw.strip(_BLANKS)
        if not content:
            continue
        try:
            if len(raw) > MAX_LINE_CHARACTERS:
                raise Rejected("line_too_long", f"the line has more than {MAX_LINE_CHARACTERS:,} characters")
            value = parse_json(content.removesuffix(","))
        except Rejected as rejected:
            yield Record(line, {}, problem=rejected)
        else:
            yield _json_record(value, example, line)


def _json_record(value: Any, example: str, line: int) -> Record:
    if isinstance(value, dict):
        return Record(line, value)
    return Record(line, {}, "", Rejected("invalid_json_line", f"the line is not an object like {example}"))


def _format_by_signature(head: bytes) -> FileFormat | None:
    """The format of files that begin with a signature. Raises Rejected for spreadsheets that cannot be read."""
    if head.startswith(b"PAR1"):
        return FileFormat.PARQUET
    if head.startswith(b"PK\x03\x04"):
        return FileFormat.XLSX
    if head.startswith(b"\xd0\xcf\x11\xe0"):
        message = "the file is an old Excel file (.xls) or has a password; save it as .xlsx or as CSV"
        raise Rejected("unknown_format", message)
    return None


def _format_by_content(head: bytes, layout: Layout) -> FileFormat:
    text = head.decode(_marked_encoding(head), "replace")
    if text.lstrip().startswith(("{", "[")):
        return FileFormat.JSONL
    try:
        _csv_header(text, layout)
    except Rejected as rejected:
        message = f"the file is neither JSON, nor Parquet, nor Excel, nor a CSV: {rejected.message}"
        raise Rejected("unknown_format", message) from None
    return FileFormat.CSV


def _marked_encoding(head: bytes) -> str:
    if head.startswith(_UTF16_MARKS):
        return "utf-16"
    # Without a byte order mark, UTF-16 of western text has a NUL in every second byte.
    if head.count(0) * 4 > len(head):
        raise Rejected("invalid_encoding", "the file looks like UTF-16; save it as UTF-8 and submit it again")
    return "utf-8-sig"


def _csv_encoding(stream: BinaryIO, head: bytes, notes: list[str]) -> str:
    """The encoding of a CSV; `stream` is read and returns to its beginning.

    A file with characters of UTF-8 and a few other bytes is a damaged UTF-8 file, whose records are rejected.
    """
    encoding = _marked_encoding(head)
    if encoding == "utf-16":
        return encoding
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_utf_8, is_windows = True, True
    while block := stream.read(2**20):
        if is_utf_8:
            try:
                decoder.decode(block)
            except UnicodeDecodeError:
                is_utf_8 = False
        if _UTF_8_CHARACTER.search(block) or _NOT_WINDOWS_1252.search(block):
            is_windows = False
    stream.seek(0)
    if is_utf_8 or not is_windows:
        return encoding
    notes.append("the file is not UTF-8; it was read as Windows-1252")
    return "cp1252"


def _counted(records: Iterable[Record], layout: Layout, max_records: int | None) -> Iterator[Record]:
    count = 0
    for count, record in enumerate(records, start=1):
        if max_records is not None and count > max_records:
            raise Rejected("too_many_lines", f"the file has more than {max_records:,} lines; split it")
        yield record
    if not count and not layout.may_be_empty:
        raise Rejected("empty_file", f"the file has no {layout.content}")


@contextmanager
def _text(stream: BinaryIO, encoding: str, newline: str) -> Iterator[TextIO]:
    errors = "strict" if encoding == "utf-16" else "surrogateescape"
    try:
        with io.TextIOWrapper(stream, encoding, errors, newline=newline) as text:
            yield text
    except UnicodeDecodeError:
        raise Rejected("invalid_encoding", "the file is not valid UTF-16; save it as UTF-8") from None


def _lines(text: TextIO) -> Iterator[str]:
    """A line above the limit is cut, to a beginning that is still above it."""
    while line := text.readline(MAX_LINE_CHARACTERS + 1):
        yield line
        while len(line) > MAX_LINE_CHARACTERS and not line.endswith("\n"):
            line = text.readline(MAX_LINE_CHARACTERS + 1)


# JSON


def _json_file_records(stream: BinaryIO, head: bytes, layout: Layout, is_json: bool) -> Iterator[Record]:
    encoding = _marked_encoding(head)
    with _text(stream, encoding, "\n") as text:
        if not _is_one_value(head.decode(encoding, "replace").lstrip(_BLANKS + "\ufeff"), is_json):
            yield from json_records(_lines(text), layout.example)
            return
        content = text.read(MAX_DOCUMENT_CHARACTERS + 1)
        if len(content) > MAX_DOCUMENT_CHARACTERS:
            message = f"a JSON file that is not JSON lines may have {MAX_DOCUMENT_CHARACTERS // 2**20} MiB"
            raise Rejected("file_too_large", message)
        try:
            value = parse_json(content)
        except Rejected:
            if is_json and content.lstrip(_BLANKS + "\ufeff").startswith("["):
                raise
            yield from json_records(io.StringIO(content, newline="\n"), layout.example)
            return
        entries = layout.unfold(value) if layout.unfold else value if isinstance(value, list) else [value]
        for number, entry in enumerate(entries, start=1):
            yield _json_record(entry, layout.example, number)


def _is_one_value(beginning: str, is_json: bool) -> bool:
    """Whether a JSON file is a list or an object, and not JSON lines, by its beginning; `is_json`: it ends in `.json`.

    JSON lines have a complete value in their first line, and others after it.
    """
    first, _, others = beginning.partition("\n")
    if not beginning.startswith("["):
        return is_json or first.strip() == "{"
    if not others.strip():
        return True
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return True
    return False


# CSV


def _csv_records(stream: BinaryIO, head: bytes, layout: Layout, notes: list[str]) -> Iterator[Record]:
    encoding = _csv_encoding(stream, head, notes)
    delimiter, names, has_header = _csv_header(head.decode(encoding, "replace"), layout)
    columns = set(layout.pick(names).values())
    with _text(stream, encoding, "") as text:
        header_is_next = has_header
        for line, row in _csv_rows(text, delimiter, has_quotes=has_header):
            if isinstance(row, str):
                yield Record(line, {}, problem=Rejected("invalid_csv_line", row))
            elif _is_empty(row):
                continue
            elif header_is_next:
                header_is_next = _SEPARATOR_LINE.fullmatch(delimiter.join(row)) is not None
                continue
            else:
                value = _cells(names, row)
                yield Record(line, value, problem=_csv_problem(row, value, columns, len(names)))
                continue
            header_is_next = False


def _cells(names: Iterable[str], row: Iterable[str]) -> dict[str, Any]:
    """The cells by their columns, of which the first of a name counts."""
    cells: dict[str, Any] = {}
    for name, cell in zip(names, row, strict=False):
        if name and name not in cells:
            text = _FORMULA_TEXT.fullmatch(cell)
            cells[name] = text[1].replace('""', '"') if text else cell
    return cells


def _csv_problem(row: list[str], value: dict[str, Any], columns: set[str], width: int) -> Rejected | None:
    if any(_UNDECODABLE.search(value[name]) for name in columns if name in value):
        value.clear()
        return Rejected("invalid_encoding", "the record has bytes that are not UTF-8")
    if any(map(str.strip, row[width:])):
        message = f"the record has {len(row)} cells under {width} columns; put texts with commas in double quotes"
        return Rejected("invalid_csv_line", message)
    return None


def _csv_header(beginning: str, layout: Layout) -> tuple[str, list[str], bool]:
    """The delimiter with which the header has the required columns, all names, and whether there is a header."""
    first, _, others = beginning.lstrip("\ufeff\r\n").partition("\n")
    separator = _SEPARATOR_LINE.fullmatch(first)
    if separator:
        beginning = others
    elif layout.headerless and (names := layout.headerless(first.rstrip("\r").split("\t"))):
        return "\t", names, False
    problem: Rejected | None = None
    for delimiter in dict.fromkeys(chain(separator[1] if separator else "", _DELIMITERS)):
        names = _header_names(beginning, delimiter)
        try:
            layout.pick(names)
        except Rejected as rejected:
            if problem is None or len(names) > 1:
                problem = rejected
        else:
            return delimiter, names, True
    raise Rejected("missing_column", f"the first line must be a header: {problem}")


def _header_names(beginning: str, delimiter: str) -> list[str]:
    rows = csv.reader(io.StringIO(beginning, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next((row for row in rows if not _is_empty(row)), [])
    except csv.Error:  # a quote is not closed, which the record of the header reports; the names are in its first line
        first = next(line for line in beginning.splitlines() if line.strip())
        header = next(csv.reader([first], delimiter=delimiter))
    return [cell.strip() for cell in header]


def _is_empty(row: list[str]) -> bool:
    return not any(cell.strip(_BLANKS) for cell in row)


def _csv_rows(text: TextIO, delimiter: str, *, has_quotes: bool) -> Iterator[tuple[int, list[str] | str]]:
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
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if has_quotes else csv.QUOTE_NONE
    reader = csv.reader(lines_consumed(), delimiter=delimiter, strict=True, quoting=quoting)
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


# Excel


def _xlsx_records(stream: BinaryIO, layout: Layout) -> Iterator[Record]:
    """The records of the first sheet that has the required columns."""
    problem: Rejected | None = None
    try:
        for rows in read_sheets(stream):
            header = next(rows, None)
            if header is None:
                continue
            names = ["" if cell is None else str(cell).strip() for cell in header[1]]
            try:
                layout.pick(names)
            except Rejected as rejected:
                problem = problem or rejected
                continue
            for line, row in rows:
                value: dict[str, Any] = {}
                for name, cell in zip(names, row, strict=False):
                    if name and cell is not None:
                        value.setdefault(name, cell)
                yield Record(line, value)
            return
    except SpreadsheetError as error:
        raise Rejected("invalid_xlsx", str(error)) from None
    if problem is not None:
        raise Rejected("missing_column", f"the first row must be a header: {problem}")
    if not layout.may_be_empty:
        raise Rejected("empty_file", f"the file has no {layout.content}")


# Parquet


def _parquet_records(stream: BinaryIO, layout: Layout) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    row_no = 0
    try:
        file = parquet.ParquetFile(stream)
        columns = _parquet_columns(file.schema_arrow, layout)
        for batch in file.iter_batches(batch_size=4096, columns=columns):
            for row in batch.to_pylist():
                row_no += 1
                yield Record(row_no, row)
    except UnicodeDecodeError:
        raise Rejected("invalid_encoding", f"a text after row {row_no} is not UTF-8") from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Rejected("invalid_parquet", f"the file is not readable as Parquet: {reason}") from None


def _parquet_columns(schema: Any, layout: Layout) -> list[str]:
    """The columns to read: the named ones, and the others unless they hold bytes."""
    taken = set(layout.pick(schema.names).values())
    return [name for name in schema.names if name in taken or _holds_no_bytes(schema.field(name).type)]


def _holds_no_bytes(kind: Any) -> bool:
    """Whether neither the type nor a part of it is binary; pictures are often stored so beside their captions."""
    from pyarrow import types

    parts = [kind.field(number).type for number in range(kind.num_fields)]
    is_binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    return not is_binary and all(map(_holds_no_bytes, parts))
