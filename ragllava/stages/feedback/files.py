"""Feedback files in: every input line becomes either a FeedbackLine or a LineError.

Two formats, recognised by the file's extension, else by its content:

- JSONL: `{"job": 7, "custom_id": "q1", "verdict": "wrong", "answer": "two", "relevant": ["boats.png"]}`
- CSV: a header with the same names; comma, semicolon or tab between cells, `;` between images within a cell.

`verdict` is `right` or `wrong`. `answer` is the right answer. `relevant` and `irrelevant` name images as the archive
does (`source` in result files); in JSON a number is an `image_id`. Only `custom_id` and `verdict` are required, and
`job` unless one is given for the whole file. Blank lines are skipped; other keys and columns are ignored.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragllava.errors import InvalidInput, LineError, UsageError
from ragllava.records import FileFormat, Verdict
from ragllava.stages.answer.question_files import UNSTORABLE, Rejected, format_by_extension
from ragllava.stages.csv_records import csv_records

MAX_BYTES = 64 * 2**20
MAX_ANSWER_CHARACTERS = 2_000

_MAX_ID = 2**63 - 1  # of the database's bigint
_REQUIRED = ("custom_id", "verdict")
_DELIMITERS = ",;\t"

ImageName = str | int  # a source, or the id of an image


@dataclass(frozen=True, slots=True)
class FeedbackLine:
    """What one line says about an answer; `answer` and `relevant` are None where it says nothing about them.

    `asked` is the question's text where the file repeats it, to detect a file of another installation.
    """

    line: int
    job_id: int
    custom_id: str
    verdict: Verdict
    answer: str | None = None
    relevant: tuple[ImageName, ...] | None = None
    irrelevant: tuple[ImageName, ...] = ()
    asked: str | None = None


@dataclass(frozen=True, slots=True)
class Dismissal:
    """A question that a reviewer skipped; `asked` as in a FeedbackLine."""

    line: int
    job_id: int
    custom_id: str
    asked: str | None = None


@dataclass(frozen=True, slots=True)
class FeedbackFile:
    """All input lines in order, and the dismissals."""

    name: str
    lines: list[FeedbackLine | LineError]
    dismissed: tuple[Dismissal, ...] = ()

    @property
    def valid(self) -> list[FeedbackLine]:
        """The valid lines."""
        return [line for line in self.lines if isinstance(line, FeedbackLine)]

    @property
    def errors(self) -> list[LineError]:
        """The invalid lines."""
        return [line for line in self.lines if isinstance(line, LineError)]


def read_feedback(source: Path | bytes, *, name: str, job_id: int | None = None) -> FeedbackFile:
    """Read a feedback file; `name` is for messages and the extension, `job_id` is for lines that name no job.

    Raises InvalidInput when the whole file is unusable, UsageError when it cannot be opened. An invalid line never
    raises: it is a LineError.
    """
    try:
        text = read_text(source, name)
        given = format_by_extension(name)
        if given is FileFormat.PARQUET:
            raise Rejected("unknown_format", "feedback must be JSON lines or CSV, not Parquet")
        is_csv = given is FileFormat.CSV or (given is None and not text.lstrip().startswith("{"))
        lines = list((_csv_lines if is_csv else _json_lines)(text, job_id))
        if not lines:
            raise Rejected("empty_file", "the file has no feedback")
    except Rejected as rejected:
        raise InvalidInput(name, [LineError(rejected.code, 0, rejected.message)]) from None
    return FeedbackFile(name, lines)


def feedback_of(records: Iterable[Mapping[str, Any]], *, job_id: int | None = None) -> FeedbackFile:
    """The same from records with the keys of a JSONL line; their `line` is their number, from 1."""
    return FeedbackFile("feedback", [as_line(number, record, job_id) for number, record in enumerate(records, start=1)])


def read_text(source: Path | bytes, name: str) -> str:
    """The text of a file. Raises Rejected for one too large or not UTF-8, UsageError if it cannot be opened."""
    try:
        data = source if isinstance(source, bytes) else _head(source)
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise Rejected("file_too_large", f"the file has more than {MAX_BYTES // 2**20} MiB; split it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Rejected("invalid_encoding", f"byte {error.start + 1} of the file is not UTF-8") from None


def as_line(line: int, value: Mapping[str, Any], job_id: int | None) -> FeedbackLine | LineError:
    """Check one record of any format."""
    custom_id = value.get("custom_id")
    try:
        return FeedbackLine(
            line=line,
            job_id=_job_id(value.get("job"), job_id),
            custom_id=_custom_id(custom_id),
            verdict=_verdict(value.get("verdict")),
            answer=_answer(value.get("answer")),
            relevant=_images(value, "relevant"),
            irrelevant=_images(value, "irrelevant") or (),
            asked=_asked(value),
        )
    except Rejected as rejected:
        return _line_error(line, rejected, custom_id)


def as_dismissal(line: int, value: Mapping[str, Any]) -> Dismissal | LineError:
    """The same for a record that only names its question."""
    custom_id = value.get("custom_id")
    try:
        return Dismissal(line, _job_id(value.get("job"), None), _custom_id(custom_id), _asked(value))
    except Rejected as rejected:
        return _line_error(line, rejected, custom_id)


def parse_json(text: str) -> Any:
    """Any JSON. Raises Rejected."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        message = f"this is not valid JSON ({error.msg}, line {error.lineno}, column {error.colno})"
        raise Rejected("invalid_json", message) from None
    except (ValueError, RecursionError):  # a number of thousands of digits; thousands of open brackets
        raise Rejected("invalid_json", "a number is too long or brackets are nested too deep") from None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _json_lines(text: str, job_id: int | None) -> Iterator[FeedbackLine | LineError]:
    for number, raw in enumerate(text.split("\n"), start=1):
        if not raw.strip():
            continue
        try:
            value = parse_json(raw)
            if not isinstance(value, dict):
                raise Rejected("invalid_json", 'the line is not an object like {"custom_id": …, "verdict": …}')
        except Rejected as rejected:
            yield LineError(rejected.code, number, rejected.message)
        else:
            yield as_line(number, value, job_id)


def _csv_lines(text: str, job_id: int | None) -> Iterator[FeedbackLine | LineError]:
    delimiter, names = _csv_layout(text)
    records = csv_records(io.StringIO(text, newline=""), delimiter)
    filled = ((line, cells) for line, cells in records if isinstance(cells, str) or any(map(str.strip, cells)))
    for number, (line, cells) in enumerate(filled):
        if isinstance(cells, str):
            yield LineError("invalid_csv_line", line, cells)
        elif number == 0:
            continue  # the header
        elif len(cells) > len(names):
            message = f"the record has {len(cells)} cells under {len(names)} columns; put texts in double quotes"
            yield LineError("invalid_csv_line", line, message)
        else:
            yield as_line(line, _csv_record(dict(zip(names, cells, strict=False))), job_id)


def _csv_layout(text: str) -> tuple[str, list[str]]:
    """The delimiter with which the header has the required columns, and all column names in lower case."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    for delimiter in _DELIMITERS:
        names = [cell.strip(' "').lower() for cell in header.split(delimiter)]
        if set(_REQUIRED) <= set(names):
            return delimiter, names
    raise Rejected("missing_column", "the first line is not a header with the columns `custom_id` and `verdict`")


def _csv_record(cells: Mapping[str, str]) -> dict[str, Any]:
    """The record that JSON would give: an empty cell says nothing, a cell of images is a list."""
    record: dict[str, Any] = {name: cell for name, cell in cells.items() if cell.strip()}
    for name in ("relevant", "irrelevant"):
        if name in record:
            record[name] = [part.strip() for part in record[name].split(";") if part.strip()]
    job = record.get("job", "")
    if job.strip().isdecimal():
        record["job"] = int(job.strip()[:20])
    return record


def _job_id(value: object, default: int | None) -> int:
    if value is None:
        if default is None:
            raise Rejected("missing_job", "the line names no `job`; add it, or give one for the whole file with --job")
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_ID:
        raise Rejected(
            "unknown_job", f"{str(value)[:40]!r} is not the number of a job; `ragllava jobs list` shows them"
        )
    return value


def _custom_id(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip() or UNSTORABLE.search(value):
        raise Rejected("missing_custom_id", "the line has no `custom_id`, which names the question")
    return value


def _asked(value: Mapping[str, Any]) -> str | None:
    asked = value.get("question")
    return asked if isinstance(asked, str) else None


def _line_error(line: int, rejected: Rejected, custom_id: object) -> LineError:
    return LineError(rejected.code, line, rejected.message, custom_id if isinstance(custom_id, str) else None)


def _verdict(value: object) -> Verdict:
    try:
        return Verdict(str(value).strip().lower())
    except ValueError:
        given = "missing" if value is None else f"{str(value)[:40]!r}"
        raise Rejected("invalid_verdict", f"the verdict is {given}; it must be right or wrong") from None


def _answer(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise Rejected("invalid_answer", "the right answer is not a string")
    if UNSTORABLE.search(value):  # replacing it would teach another answer than the one given
        raise Rejected("invalid_answer", "the right answer has a character that cannot be stored; remove it")
    text = value.strip()
    if len(text) > MAX_ANSWER_CHARACTERS:
        raise Rejected("invalid_answer", f"the right answer has more than {MAX_ANSWER_CHARACTERS:,} characters")
    return text or None


def _images(value: Mapping[str, Any], key: str) -> tuple[ImageName, ...] | None:
    given = value.get(key)
    if given is None:
        return None
    if not isinstance(given, list):
        raise Rejected("invalid_images", f"`{key}` is not a list of images")
    for image in given:
        is_id = isinstance(image, int) and not isinstance(image, bool) and 1 <= image <= _MAX_ID
        is_name = isinstance(image, str) and image.strip() and not UNSTORABLE.search(image)
        if not is_id and not is_name:
            raise Rejected("unknown_image", f"`{key}` has {str(image)[:40]!r}, which is not the name or id of an image")
    return tuple(dict.fromkeys(given))
