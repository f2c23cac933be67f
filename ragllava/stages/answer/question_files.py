"""Question files in: every input line becomes either a Question or a LineError.

Three formats, recognised by the file's extension, else by its content:

- JSONL: `{"custom_id": …, "question": …}`, or a line for OpenAI's Batch API, of which the text of the last user
  message is the question (other messages and the model's name are not used).
- CSV: a header with a column `question` and, optionally, `custom_id` and `where`; comma, semicolon, tab or bar between
  cells.
- Parquet: the same columns.

`where` is the question's own filter (ragllava/filters.py): an object in JSONL, and in every format text, which is JSON
or one condition. Blank lines are skipped. Other keys and columns are ignored. A `custom_id` that is missing or null
becomes `line-<line>`; one that is given must be unique in the file and have 1 to 64 characters. White space around a
question is removed, and a NUL or half of a surrogate pair (Postgres stores neither) becomes U+FFFD.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ragllava.errors import LineError, UsageError
from ragllava.filters import Filter, parse_where
from ragllava.records import FileFormat, Question
from ragllava.stages.record_files import (
    MAX_LINES,
    UNSTORABLE,
    CheckedFile,
    Layout,
    Record,
    Rejected,
    format_by_extension,
    opened_records,
)

MAX_QUESTION_CHARACTERS = 8_000
MAX_CUSTOM_ID_CHARACTERS = 64

_CHAT_URL = "/v1/chat/completions"
_RESPONSES_URL = "/v1/responses"
_LAYOUT = Layout(
    content="question",
    example='{"custom_id": …, "question": …}',
    required=(("question",),),
    optional=("custom_id", "where"),
)


class QuestionFile(CheckedFile[Question]):
    """The index in `lines` is the `question_no`, also of invalid lines."""


def read_questions(source: Path | bytes, *, name: str, format: FileFormat | None = None) -> QuestionFile:
    """Read a question file; `name` is for messages and the extension, `format` overrides what name and content say.

    Raises InvalidInput when the whole file is unusable (empty, of unknown format, without a column `question`, too
    long), UsageError when it cannot be opened. An invalid line never raises: it is a LineError.
    """
    format = format or format_by_extension(name)
    with opened_records(source, name, _LAYOUT, format=format, max_records=MAX_LINES) as (_, records):
        return QuestionFile(name, list(_checked_lines(records)))


def _checked_lines(records: Iterable[Record]) -> Iterator[Question | LineError]:
    first_lines: dict[str, int] = {}
    for question_no, record in enumerate(records):
        own_id = None  # stays None for a duplicate: the first line keeps the custom_id
        try:
            given = _custom_id(record.value.get("custom_id"))
            unique_id = given or f"line-{record.line}"
            if (first := first_lines.setdefault(unique_id, record.line)) != record.line:
                raise Rejected("duplicate_custom_id", f'the custom_id "{unique_id}" is taken by line {first}')
            own_id = given
            if record.problem:
                raise record.problem
            question = _question_text(record.value)
            yield Question(question_no, record.line, unique_id, question, _filter(record.value.get("where")))
        except Rejected as rejected:
            yield rejected.at(record.line, own_id)


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


def _filter(where: object) -> Filter | None:
    if where is None or (isinstance(where, str) and not where.strip()):
        return None
    if not isinstance(where, dict | str):
        raise Rejected("invalid_filter", "the key where is neither an object nor text")
    try:
        return parse_where(where)
    except UsageError as error:
        raise Rejected("invalid_filter", str(error)) from None


def _question_text(value: dict[str, Any]) -> str:
    is_batch_line = "question" not in value and ("body" in value or "url" in value)
    question = _batch_question(value) if is_batch_line else value.get("question")
    if question is None:
        raise Rejected("missing_question", "the line has no question")
    if not isinstance(question, str):
        raise Rejected("missing_question", "the question is not a string")
    text = UNSTORABLE.sub("\ufffd", question).strip()
    if not text:
        raise Rejected("empty_question", "the question is empty")
    if len(text) > MAX_QUESTION_CHARACTERS:
        raise Rejected("question_too_long", f"the question has more than {MAX_QUESTION_CHARACTERS:,} characters")
    return text


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
