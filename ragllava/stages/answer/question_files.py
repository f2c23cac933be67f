"""Question files in: every input line becomes either a Question or a LineError.

Four formats, recognised by the file's extension, else by its content, and read also when packed with gzip:

- JSON lines, or a JSON list: `{"custom_id": …, "question": …}`, or a line for OpenAI's Batch API, of which the text of
  the last user message is the question. Other messages are not used, which the note of the question says.
- CSV: a header with a column `question` and, optionally, `custom_id` and `where`; comma, semicolon, tab or bar between
  cells.
- Excel and Parquet: the same columns.

The names of columns are compared without regard to case and punctuation. The id may also be called `question_id`, `qid`
or `id`, the question `query` or `prompt`. `where` is the question's own filter (ragllava/filters.py): an object in
JSON, and in every format text, which is JSON or one condition. `picture` is the address of a picture that the question
is asked with (asked_pictures.py), as in a part of a message of OpenAI's formats; such a question may be without text.
Records without any content are skipped. Further columns are repeated in the results. An id that is missing becomes
`line-<line>`; one that is given must be unique in the file and have 1 to 64 characters. White space around
a question is removed, and a NUL or half of a surrogate pair (Postgres stores neither) becomes U+FFFD.
"""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from ragllava.errors import LineError, UsageError
from ragllava.filters import Filter, parse_where
from ragllava.json_records import to_json
from ragllava.records import FileFormat, Question
from ragllava.stages.record_files.layouts import UNSTORABLE, CheckedFile, Layout, Record, Rejected, named
from ragllava.stages.record_files.opening import MAX_LINES, format_by_extension, opened_records

MAX_QUESTION_CHARACTERS = 8_000
MAX_CUSTOM_ID_CHARACTERS = 64
MAX_GIVEN_COLUMNS = 64  # further columns of a file that are repeated in the results
MAX_GIVEN_CHARACTERS = 16_000  # of the further columns of one line, as JSON

_CHAT_URL = "/v1/chat/completions"
_RESPONSES_URL = "/v1/responses"
_BATCH_KEYS = ("method", "url", "body")
_TEXT_PARTS = ("text", "input_text")
_PICTURE_PARTS = ("image_url", "input_image", "image", "file", "input_file")
WITHOUT_TEXT = "What does the picture show?"  # what a picture without a text asks

StorePicture = Callable[[str], str]  # from the address of a picture to the sha256 of its stored bytes; UsageError


def _unfold(document: Any) -> Iterable[Any]:
    """The records of a JSON file that is one value: the list, or that of an object with a list `questions`."""
    if isinstance(document, dict) and isinstance(document.get("questions"), list):
        document = document["questions"]
    return document if isinstance(document, list) else [document]


_LAYOUT = Layout(
    content="question",
    example='{"custom_id": …, "question": …}',
    required=(("question", "query", "prompt"),),
    optional=(("custom_id", "question_id", "qid", "id"), ("where",), ("picture",)),
    unfold=_unfold,
)


@dataclass(frozen=True)
class QuestionFile(CheckedFile[Question]):
    """The index in `lines` is the `question_no`, also of invalid lines."""

    @property
    def columns(self) -> list[str]:
        """The names of the further columns that the questions have, in their order."""
        return list(dict.fromkeys(name for question in self.valid for name in question.given or ()))


@dataclass(frozen=True, slots=True)
class BatchRules:
    """What the lines of a batch must have: this url, and, where their model names an archive, this model."""

    url: str
    model: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What a line or a request asks: the text, what of it is not used, and the address of its picture."""

    text: str
    note: str | None = None
    picture: str | None = None


def read_questions(
    source: Path | bytes,
    *,
    name: str,
    format: FileFormat | None = None,
    rules: BatchRules | None = None,
    store_picture: StorePicture | None = None,
) -> QuestionFile:
    """Read a question file; `name` is for messages and the extension, `format` overrides what name and content say.

    With `rules`, every line must be one of OpenAI's batch lines that keeps them. Pictures of questions go to
    `store_picture`, one after the other; without it, a line with a picture is invalid.

    Raises InvalidInput when the whole file is unusable (empty, of unknown format, without a column `question`, too
    long), UsageError when it cannot be opened. An invalid line never raises: it is a LineError.
    """
    format, notes = format or format_by_extension(name), list[str]()
    with opened_records(source, name, _LAYOUT, format=format, max_records=MAX_LINES, notes=notes) as (format, records):
        lines = _Lines(is_table=format in (FileFormat.CSV, FileFormat.XLSX), rules=rules, store_picture=store_picture)
        checked = list(lines.check_all(records))
        return QuestionFile(name, checked, notes=(*notes, *lines.notes()))


class _Lines:
    """Checks the records of one file, and counts what it leaves out of them.

    In a table, an empty cell is a missing value.
    """

    def __init__(self, *, is_table: bool, rules: BatchRules | None, store_picture: StorePicture | None) -> None:
        self._is_table = is_table
        self._rules = rules
        self._store_picture = store_picture
        self._first_lines: dict[str, int] = {}
        self._columns: dict[str, None] = {}
        self._dropped_columns: dict[str, None] = {}
        self._too_long = 0
        self._with_note = 0

    def notes(self) -> Iterator[str]:
        """Remarks on the file."""
        if self._with_note:
            yield f"{self._with_note:,} lines have system messages or earlier turns, which are not used"
        if self._dropped_columns:
            yield f"the results repeat {MAX_GIVEN_COLUMNS} further columns, and not {named(self._dropped_columns)}"
        if self._too_long:
            yield (
                f"the further columns of {self._too_long:,} lines have more than {MAX_GIVEN_CHARACTERS:,} characters; "
                "the results do not repeat them"
            )

    def check_all(self, records: Iterable[Record]) -> Iterator[Question | LineError]:
        """Each record as a question, or as its error."""
        for question_no, record in enumerate(records):
            own_id = None  # stays None for a duplicate: the first line keeps the custom_id
            value, others = _LAYOUT.split(record.value)
            try:
                given_id = _custom_id(value.get("custom_id"), self._is_table)
                unique_id = given_id or f"line-{record.line}"
                if (first := self._first_lines.setdefault(unique_id, record.line)) != record.line:
                    raise Rejected("duplicate_custom_id", f'the custom_id "{unique_id}" is taken by line {first}')
                own_id = given_id
                if record.problem:
                    raise record.problem
                if self._rules is not None:
                    _require_rules(value, others, self._rules)
                asked = _question(value, others, record.value)
                where = _filter(value.get("where"))
                self._with_note += asked.note is not None
                picture = self._stored(asked.picture)
                given = self._given(others)
                yield Question(question_no, record.line, unique_id, asked.text, where, asked.note, given, picture)
            except Rejected as rejected:
                yield rejected.at(record.line, own_id)

    def _stored(self, address: str | None) -> str | None:
        """The sha256 of the picture at an address."""
        if address is None:
            return None
        if self._store_picture is None:
            raise Rejected("unsupported_picture", "questions with a picture cannot be asked here")
        try:
            return self._store_picture(address)
        except UsageError as error:
            raise Rejected("invalid_picture", str(error)) from None

    def _given(self, others: Mapping[str, Any]) -> dict[str, Any] | None:
        """The further columns of a line as JSON that can be stored."""
        given: dict[str, Any] = {}
        for name, item in others.items():
            if name in _BATCH_KEYS and "body" in others:
                continue
            stored_name = UNSTORABLE.sub("\ufffd", name)
            if stored_name not in self._columns and len(self._columns) == MAX_GIVEN_COLUMNS:
                self._dropped_columns[stored_name] = None
                continue
            self._columns[stored_name] = None
            given[stored_name] = item
        if not given:
            return None
        given = to_json(_storable(given))
        if len(json.dumps(given, ensure_ascii=False)) > MAX_GIVEN_CHARACTERS:
            self._too_long += 1
            return None
        return given


def _storable(value: Any) -> Any:
    """A value without the characters that Postgres does not store."""
    if isinstance(value, str):
        return UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {UNSTORABLE.sub("\ufffd", key): _storable(item) for key, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list) else value


def _custom_id(value: object, is_table: bool) -> str | None:
    if value is None or value != value or (is_table and isinstance(value, str) and not value.strip()):  # noqa: PLR0124
        return None  # NaN, which pandas writes for a missing number, differs from itself
    text = _id_text(value)
    if text is None:
        raise Rejected("invalid_custom_id", "the custom_id is neither text nor a number")
    if not text.strip():
        raise Rejected("invalid_custom_id", "the custom_id is empty; leave it out, or give each line its own")
    if len(text) > MAX_CUSTOM_ID_CHARACTERS:
        raise Rejected("invalid_custom_id", f"the custom_id has more than {MAX_CUSTOM_ID_CHARACTERS} characters")
    if UNSTORABLE.search(text):
        raise Rejected("invalid_custom_id", "the custom_id has a character that cannot be stored")
    return text


def _id_text(value: object) -> str | None:
    """An id as text; 7.0, which spreadsheets and pandas make of a 7, is 7 again."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float | Decimal) and value == value // 1:
        return str(int(value))
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return str(uuid.UUID(bytes=value)) if len(value) == 16 else value.hex()
    return str(value) if isinstance(value, str | int | float | Decimal | uuid.UUID) else None


def _filter(where: object) -> Filter | None:
    if where is None or (isinstance(where, str) and not where.strip()):
        return None
    if not isinstance(where, dict | str):
        raise Rejected("invalid_filter", "the key where is neither an object nor text")
    try:
        return parse_where(where)
    except UsageError as error:
        raise Rejected("invalid_filter", str(error)) from None


def asked_in(body: Mapping[str, Any], url: str) -> Asked:
    """The question in the body of a request to `url`, as in a batch line. Raises UsageError."""
    try:
        return _question({}, {"url": url, "body": body}, ())
    except Rejected as rejected:
        raise UsageError(rejected.at(0, None).message) from None


def _require_rules(value: Mapping[str, Any], others: Mapping[str, Any], rules: BatchRules) -> None:
    if value.get("custom_id") is None:
        raise Rejected("missing_custom_id", "a batch line needs a custom_id")
    if others.get("url") != rules.url:
        raise Rejected("url_mismatch", f"the batch is for {rules.url}, and the line is not")
    body = others.get("body")
    model = body.get("model") if isinstance(body, dict) else None
    prefix = rules.model.partition("/")[0] + "/"
    if isinstance(model, str) and model.startswith(prefix) and model != rules.model:
        raise Rejected("model_mismatch", f"the batch is for {rules.model}, and the line for {model[:80]}")


def _question(value: Mapping[str, Any], others: Mapping[str, Any], names: Iterable[str]) -> Asked:
    """What the line asks; `names` are those of the line, for a message."""
    is_batch_line = "question" not in value and ("body" in others or "url" in others)
    picture = _address(value.get("picture"))
    if is_batch_line:
        question, note, sent = _batch_question(others)
        picture = picture or sent
    else:
        question, note = value.get("question"), None
    if question is None and picture is None:
        keys = "" if is_batch_line or "question" in value else f"; it has {named(names)}"
        raise Rejected("missing_question", f"the line has no question{keys}")
    if not isinstance(question, str | None):
        raise Rejected("missing_question", "the question is not a string")
    text = UNSTORABLE.sub("\ufffd", question or "").strip()
    if not text and picture is None:
        raise Rejected("empty_question", "the question is empty")
    if len(text) > MAX_QUESTION_CHARACTERS:
        raise Rejected("question_too_long", f"the question has more than {MAX_QUESTION_CHARACTERS:,} characters")
    return Asked(text or WITHOUT_TEXT, note, picture)


def _address(picture: object) -> str | None:
    """The address of a line's picture; an empty cell is none."""
    if picture is None or (isinstance(picture, str) and not picture.strip()):
        return None
    if not isinstance(picture, str):
        raise Rejected("invalid_picture", "the key picture is not text: give the address of one picture")
    return picture.strip()


def _batch_question(value: Mapping[str, Any]) -> tuple[object, str | None, str | None]:
    """The question of an OpenAI Batch line, which is the last message of the user; a note on the other messages; the
    address of its picture."""
    method, url, body = value.get("method", "POST"), value.get("url"), value.get("body")
    if method != "POST" or url not in (_CHAT_URL, _RESPONSES_URL):
        raise Rejected("url_mismatch", f"a batch line must be a POST to {_CHAT_URL} or {_RESPONSES_URL}")
    if not isinstance(body, dict):
        raise Rejected("missing_question", "the batch line has no body")
    turns = body.get("messages" if url == _CHAT_URL else "input")
    has_instructions = bool(url == _RESPONSES_URL and body.get("instructions"))
    if url == _RESPONSES_URL and isinstance(turns, str):
        return turns, _unused_note(int(has_instructions), 0), None
    if not isinstance(turns, list):
        raise Rejected("missing_question", "the body has no list of messages")
    messages = [turn for turn in turns if isinstance(turn, dict)]
    asked = [number for number, turn in enumerate(messages) if turn.get("role") == "user"]
    if not asked:
        raise Rejected("missing_question", "the body has no message of the role user")
    content = messages.pop(asked[-1]).get("content")
    system = sum(turn.get("role") in ("system", "developer") for turn in messages)
    note = _unused_note(system + has_instructions, len(messages) - system)
    return _with_parts(content, note)


def _unused_note(system: int, turns: int) -> str | None:
    """What the note of a question says about messages that are not used."""
    parts = [
        f"{number} {name}{'s' if number > 1 else ''}"
        for number, name in ((system, "system message"), (turns, "other turn"))
        if number
    ]
    return f"not used: {' and '.join(parts)} of the batch line" if parts else None


def _with_parts(content: object, note: str | None) -> tuple[object, str | None, str | None]:
    """The content of a message: text, or a list of texts with at most one picture among them."""
    if not isinstance(content, list):
        return content, note, None
    texts: list[str] = []
    pictures: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in _PICTURE_PARTS and (address := _part_address(part)) is not None:
            pictures.append(address)
        else:
            part_name = f"a part of the type {str(kind)[:40]!r}" if kind else "a part without a type"
            raise Rejected("unsupported_content", f"the message has {part_name}; a question is text and one picture")
    if len(pictures) > 1:
        raise Rejected("unsupported_content", f"a question has at most one picture, and this one has {len(pictures)}")
    return "\n".join(texts), note, pictures[0] if pictures else None


def _part_address(part: Mapping[str, Any]) -> str | None:
    """The address in a part of a message: of a picture, or of a file that was uploaded."""
    sent = part.get("image_url") or part.get("file") or part.get("image") or part
    if isinstance(sent, dict):
        sent = sent.get("url") or sent.get("file_id")
    return sent if isinstance(sent, str) and sent else None
