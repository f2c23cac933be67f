"""Question files in: every input line becomes either a Question or a LineError.

Three formats, recognised by the file's extension, else by its content:

- JSONL: `{"custom_id": …, "question": …}`, or a line for OpenAI's Batch API, of which the text of the last user
  message is the question (other messages and the model's name are not used).
- CSV: a header with a column `question` and, optionally, `custom_id`; comma, semicolon, tab or bar between cells.
- Parquet: the same two columns.

Blank lines are skipped. Other keys and columns are ignored. A `custom_id` that is missing or null becomes
`line-<line>`; one that is given must be unique in the file and have 1 to 64 characters. White space around a question
is removed, and a NUL or half of a surrogate pair (Postgres stores neither) becomes U+FFFD.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from ragllava.errors import InvalidInput, LineError, UsageError
from ragllava.records import FileFormat, Question
from ragllava.stages.csv_records import csv_records

MAX_LINES = 1_000_000
MAX_LINE_BYTES = 16 * 2**20
MAX_QUESTION_CHARACTERS = 8_000
MAX_CUSTOM_ID_CHARACTERS = 64

_HEAD_BYTES = 2**16  # enough to recognise a format and to hold a CSV header
_UTF8_MARK = b"\xef\xbb\xbf"
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # characters that Postgres does not store
_SURROGATE = re.compile("[\ud800-\udfff]")
_DELIMITERS = ",;\t|"
_CHAT_URL = "/v1/chat/completions"
_RESPONSES_URL = "/v1/responses"
_EXTENSIONS = {
    ".jsonl": FileFormat.JSONL,
    ".ndjson": FileFormat.JSONL,
    ".csv": FileFormat.CSV,
    ".tsv": FileFormat.CSV,
    ".parquet": FileFormat.PARQUET,
}

QuestionLine = Question | LineError


@dataclass(frozen=True, slots=True)
class QuestionFile:
    """All input lines of a file in order; the index in `lines` is the `question_no`, also of invalid lines."""

    name: str
    lines: list[QuestionLine]

    @property
    def questions(self) -> list[Question]:
        """The valid lines."""
        return [line for line in self.lines if isinstance(line, Question)]

    @property
    def errors(self) -> list[LineError]:
        """The invalid lines."""
        return [line for line in self.lines if isinstance(line, LineError)]

    def require_valid(self) -> None:
        """Raise InvalidInput with every invalid line, if there is one."""
        if errors := self.errors:
            raise InvalidInput(self.name, errors)


class Rejected(Exception):
    """Why a line, or the whole file, is not accepted."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class _Record:
    """A line as its format's reader returns it. `question` is a Rejected where the reader rejects the line."""

    line: int
    custom_id: object
    question: object


def format_by_extension(name: str) -> FileFormat | None:
    """The format that the extension of a file's name stands for; None for any other extension."""
    return _EXTENSIONS.get(PurePosixPath(name).suffix.lower())


def read_questions(source: Path | bytes, *, name: str, format: FileFormat | None = None) -> QuestionFile:
    """Read a question file; `name` is for messages and the extension, `format` overrides what name and content say.

    Raises InvalidInput when the whole file is unusable (empty, of unknown format, without a column `question`, too
    long), UsageError when it cannot be opened. An invalid line never raises: it is a LineError.
    """
    try:
        with _open(source, name) as stream:
            head = stream.read(_HEAD_BYTES)
            stream.seek(0)
            lines = list(_checked_lines(_records(stream, head, format or format_by_extension(name))))
        if not lines:
            raise Rejected("empty_file", "the file has no question")
    except Rejected as rejected:
        raise InvalidInput(name, [LineError(rejected.code, 0, rejected.message)]) from None
    return QuestionFile(name, lines)


def _open(source: Path | bytes, name: str) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        return source.open("rb")
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from None


def _records(stream: BinaryIO, head: bytes, format: FileFormat | None) -> Iterator[_Record]:
    if not head:
        raise Rejected("empty_file", "the file is empty")
    format = format or _format_by_content(head)
    if format is FileFormat.PARQUET:
        return _parquet_records(stream)
    _refuse_utf16(head)
    if format is FileFormat.CSV:
        return _csv_records(stream, head)
    return _jsonl_records(stream)


def _format_by_content(head: bytes) -> FileFormat:
    if head.startswith(b"PAR1"):
        return FileFormat.PARQUET
    _refuse_utf16(head)
    if head.removeprefix(_UTF8_MARK).lstrip().startswith(b"{"):
        return FileFormat.JSONL
    try:
        _csv_layout(head)
    except Rejected:
        message = "the file is neither JSON lines, nor a CSV with a column `question`, nor Parquet"
        raise Rejected("unknown_format", message) from None
    return FileFormat.CSV


def _refuse_utf16(head: bytes) -> None:
    # Without a byte order mark, UTF-16 of western text has a NUL in every second byte.
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or head.count(0) * 4 > len(head):
        raise Rejected("invalid_encoding", "the file looks like UTF-16; save it as UTF-8 and submit it again")


# JSON lines


def _jsonl_records(stream: BinaryIO) -> Iterator[_Record]:
    for line, raw in _physical_lines(stream):
        if raw.strip():
            try:
                yield _json_record(line, _json_object(raw))
            except Rejected as rejected:
                yield _Record(line, None, rejected)


def _physical_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers from 1. A line above the limit is cut, to a beginning that is still above it."""
    line = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        line += 1
        yield line, raw.removeprefix(_UTF8_MARK) if line == 1 else raw
        while len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            raw = stream.readline(MAX_LINE_BYTES + 1)


def _json_object(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_LINE_BYTES:
        raise Rejected("line_too_long", f"the line has more than {MAX_LINE_BYTES // 2**20} MiB")
    try:
        value = json.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise Rejected("invalid_encoding", f"byte {error.start + 1} of the line is not UTF-8") from None
    except json.JSONDecodeError as error:
        message = f"the line is not valid JSON ({error.msg}, column {error.colno})"
        raise Rejected("invalid_json_line", message) from None
    except (ValueError, RecursionError):  # a number of thousands of digits; thousands of open brackets
        raise Rejected("invalid_json_line", "the line has a number too long or brackets nested too deep") from None
    if not isinstance(value, dict):
        raise Rejected("invalid_json_line", 'the line is not an object like {"custom_id": …, "question": …}')
    return value


def _json_record(line: int, value: dict[str, Any]) -> _Record:
    question = value.get("question")
    if "question" not in value and ("body" in value or "url" in value):
        try:
            question = _batch_question(value)
        except Rejected as rejected:
            question = rejected
    return _Record(line, value.get("custom_id"), question)


def _batch_question(value: dict[str, Any]) -> object:
    """The question of an OpenAI Batch line: the last message of the user."""
    method, url, body = value.get("method", "POST"), value.get("url"), value.get("body")
    if method != "POST" or url not in (_CHAT_URL, _RESPONSES_URL):
        raise Rejected("url_mismatch", f"a batch line must be a POST to {_CHAT_URL} or {_RESPONSES_URL}")
    if not isinstance(body, dict):
        raise Rejected("missing_question", "the batch line has no body")
    turns = body.get("messages" if url == _CHAT_URL else "input")
    if url == _RESPONSES_URL and isinstance(turns, str):
        return turns
    if not isinstance(turns, list):
        raise Rejected("missing_question", "the body has no list of messages")
    contents = [turn.get("content") for turn in turns if isinstance(turn, dict) and turn.get("role") == "user"]
    if not contents:
        raise Rejected("missing_question", "the body has no message of the role user")
    return "\n".join(map(_part_text, contents[-1])) if isinstance(contents[-1], list) else contents[-1]


def _part_text(part: object) -> str:
    if isinstance(part, dict) and part.get("type") in ("text", "input_text") and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else None
    part_name = f"a part of the type {str(kind)[:40]!r}" if kind else "a part without a type"
    raise Rejected("unsupported_content", f"the message has {part_name}; a question must be text")


# CSV


def _csv_records(stream: BinaryIO, head: bytes) -> Iterator[_Record]:
    delimiter, names = _csv_layout(head)
    # An undecodable byte becomes a lone surrogate, which valid UTF-8 cannot contain: its record is rejected later.
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    try:
        rows = csv_records(_bounded_lines(text), delimiter)
        filled = ((line, row) for line, row in rows if isinstance(row, str) or not _is_blank(row))
        next(filled)  # the header
        for line, row in filled:
            yield _csv_record(line, row, names)
    finally:
        text.detach()  # the stream belongs to the caller


def _bounded_lines(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise Rejected("line_too_long", f"a line has more than {MAX_LINE_BYTES // 2**20} MiB; is this a CSV?")
        yield line


def _csv_layout(head: bytes) -> tuple[str, list[str]]:
    """The delimiter with which the header has a column `question`, and all column names in lower case."""
    text = head.decode("utf-8-sig", errors="surrogateescape")
    for delimiter in _DELIMITERS:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            header = next((row for row in rows if not _is_blank(row)), [])
        except csv.Error:
            continue
        names = [cell.strip().lower() for cell in header]
        if "question" in names:
            return delimiter, names
    raise Rejected("missing_column", "the first line is not a header with a column `question`")


def _is_blank(row: list[str]) -> bool:
    return not row or (len(row) == 1 and row[0].isspace())


def _csv_record(line: int, row: list[str] | str, names: list[str]) -> _Record:
    if isinstance(row, str):
        return _Record(line, None, Rejected("invalid_csv_line", row))
    cells = dict(zip(names, row, strict=False))
    custom_id, question = cells.get("custom_id"), cells.get("question")
    if any(_SURROGATE.search(cell) for cell in (custom_id, question) if cell):
        return _Record(line, None, Rejected("invalid_encoding", "the record has bytes that are not UTF-8"))
    if any(cell.strip() for cell in row[len(names) :]):
        message = f"the record has {len(row)} cells under {len(names)} columns; put the question in double quotes"
        return _Record(line, custom_id, Rejected("invalid_csv_line", message))
    return _Record(line, custom_id, question)


# Parquet


def _parquet_records(stream: BinaryIO) -> Iterator[_Record]:
    import pyarrow
    from pyarrow import parquet

    row_no = 0
    try:
        file = parquet.ParquetFile(stream)
        for batch in file.iter_batches(batch_size=4096, columns=_parquet_columns(file.schema_arrow)):
            for row in batch.to_pylist():
                row_no += 1
                yield _Record(row_no, row.get("custom_id"), row["question"])
    except UnicodeDecodeError:
        raise Rejected("invalid_encoding", f"a text after row {row_no} is not UTF-8") from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Rejected("invalid_parquet", f"the file is not readable as Parquet: {reason}") from None


def _parquet_columns(schema: Any) -> list[str]:
    from pyarrow import types

    def is_text(kind: Any) -> bool:
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))

    if "question" not in schema.names:
        raise Rejected("missing_column", "the table has no column `question`")
    columns = [name for name in ("custom_id", "question") if name in schema.names]
    for name in columns:
        kind = schema.field(name).type
        if not is_text(kind) and not (name == "custom_id" and types.is_integer(kind)):
            raise Rejected("missing_column", f"the column `{name}` has the type {kind}, not text")
    return columns


# Checks for every format


def _checked_lines(records: Iterator[_Record]) -> Iterator[QuestionLine]:
    first_lines: dict[str, int] = {}
    for question_no, record in enumerate(records):
        if question_no == MAX_LINES:
            raise Rejected("too_many_lines", f"the file has more than {MAX_LINES:,} lines; split it")
        own_id = None  # stays None for a duplicate: the first line keeps the custom_id
        try:
            given = _custom_id(record.custom_id)
            unique_id = given or f"line-{record.line}"
            if (first := first_lines.setdefault(unique_id, record.line)) != record.line:
                raise Rejected("duplicate_custom_id", f'the custom_id "{unique_id}" is taken by line {first}')
            own_id = given
            yield Question(question_no, record.line, unique_id, _question_text(record.question))
        except Rejected as rejected:
            yield LineError(rejected.code, record.line, rejected.message, own_id)


def _custom_id(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise Rejected("invalid_custom_id", "the custom_id is neither a string nor an integer")
    if not value.strip():
        raise Rejected("invalid_custom_id", "the custom_id is empty; leave it out, or give each line its own")
    if len(value) > MAX_CUSTOM_ID_CHARACTERS:
        raise Rejected("invalid_custom_id", f"the custom_id has more than {MAX_CUSTOM_ID_CHARACTERS} characters")
    if UNSTORABLE.search(value):
        raise Rejected("invalid_custom_id", "the custom_id has a character that cannot be stored")
    return value


def _question_text(value: object) -> str:
    if isinstance(value, Rejected):
        raise value
    if value is None:
        raise Rejected("missing_question", "the line has no question")
    if not isinstance(value, str):
        raise Rejected("missing_question", "the question is not a string")
    text = UNSTORABLE.sub("\ufffd", value).strip()
    if not text:
        raise Rejected("empty_question", "the question is empty")
    if len(text) > MAX_QUESTION_CHARACTERS:
        raise Rejected("question_too_long", f"the question has more than {MAX_QUESTION_CHARACTERS:,} characters")
    return text
