"""Feedback files in: every input line becomes either a FeedbackLine or a LineError.

Two formats, recognised by the file's extension, else by its content:

- JSONL: `{"job": 7, "custom_id": "q1", "verdict": "wrong", "answer": "two", "relevant": ["boats.png"]}`
- CSV or Excel: a header with the same names; comma, semicolon, tab or bar between cells, `;` between images within a
  cell.

`verdict` is `right` or `wrong`. `answer` is the right answer. `relevant` and `irrelevant` name images as the archive
does (`source` in result files); in JSON a number is an `image_id`. Only `custom_id` and `verdict` are required, and
`job` unless one is given for the whole file. The names are compared without regard to case and punctuation. Blank
records are skipped; other keys and columns are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ragllava.errors import LineError
from ragllava.feedback import Verdict
from ragllava.records import FileFormat
from ragllava.stages.record_files.layouts import UNSTORABLE, CheckedFile, Layout, Record, Rejected
from ragllava.stages.record_files.opening import MAX_LINES, format_by_extension, opened_records

MAX_ANSWER_CHARACTERS = 2_000

_MAX_ID = 2**63 - 1  # of the database's bigint
_LAYOUT = Layout(
    content="feedback",
    example='{"custom_id": …, "verdict": …}',
    required=(("custom_id",), ("verdict",)),
    optional=(("job",), ("answer",), ("relevant",), ("irrelevant",), ("question",)),
)

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


@dataclass(frozen=True)
class FeedbackFile(CheckedFile[FeedbackLine]):
    """The lines, and the dismissals."""

    dismissed: tuple[Dismissal, ...] = ()


def read_feedback(source: Path | bytes, *, name: str, job_id: int | None = None) -> FeedbackFile:
    """Read a feedback file; `name` is for messages and the extension, `job_id` is for lines that name no job.

    Raises InvalidInput when the whole file is unusable, UsageError when it cannot be opened. An invalid line never
    raises: it is a LineError.
    """
    format, notes = format_by_extension(name), list[str]()
    with opened_records(source, name, _LAYOUT, format=format, max_records=MAX_LINES, notes=notes) as (format, records):
        if format is FileFormat.PARQUET:
            raise Rejected("unknown_format", "feedback must be JSON lines, CSV or Excel, not Parquet")
        convert = dict if format is FileFormat.JSONL else _json_value
        lines = [as_line(replace(record, value=convert(_LAYOUT.split(record.value)[0])), job_id) for record in records]
    return FeedbackFile(name, lines, notes=tuple(notes))


def feedback_of(records: Iterable[Mapping[str, Any]], *, job_id: int | None = None) -> FeedbackFile:
    """The same from records with the keys of a JSONL line; their `line` is their number, from 1."""
    numbered = (Record(number, record) for number, record in enumerate(records, start=1))
    return FeedbackFile("feedback", [as_line(record, job_id) for record in numbered])


def as_line(record: Record, job_id: int | None) -> FeedbackLine | LineError:
    """Check one record of any format."""
    value = record.value
    try:
        if record.problem:
            raise record.problem
        return FeedbackLine(
            line=record.line,
            job_id=_job_id(value.get("job"), job_id),
            custom_id=_custom_id(value.get("custom_id")),
            verdict=_verdict(value.get("verdict")),
            answer=_answer(value.get("answer")),
            relevant=_images(value, "relevant"),
            irrelevant=_images(value, "irrelevant") or (),
            asked=_asked(value),
        )
    except Rejected as rejected:
        return rejected.at(record.line, value.get("custom_id"))


def as_dismissal(record: Record) -> Dismissal | LineError:
    """The same for a record that only names its question."""
    value = record.value
    try:
        return Dismissal(
            record.line, _job_id(value.get("job"), None), _custom_id(value.get("custom_id")), _asked(value)
        )
    except Rejected as rejected:
        return rejected.at(record.line, value.get("custom_id"))


def _json_value(cells: Mapping[str, Any]) -> dict[str, Any]:
    """The record that JSON would give: an empty cell says nothing, a cell of images is a list."""
    record = {name: cell for name, cell in cells.items() if not isinstance(cell, str) or cell.strip()}
    for name in ("relevant", "irrelevant"):
        if name in record:
            record[name] = [part.strip() for part in str(record[name]).split(";") if part.strip()]
    job = str(record.get("job", "")).strip()
    if job.isdecimal():
        record["job"] = int(job[:20])
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
