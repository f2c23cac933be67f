"""JSON lines, a JSON list, or one JSON value."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from ragllava.stages.record_files.encodings import (
    BLANKS,
    MAX_LINE_CHARACTERS,
    UNDECODABLE,
    lines_of,
    marked_encoding,
    opened_text,
)
from ragllava.stages.record_files.layouts import Layout, Record, Rejected

MAX_DOCUMENT_CHARACTERS = 512 * 2**20  # of a JSON file that is one value


def parse_json(text: str) -> Any:
    """Any JSON. Raises Rejected, with the line in `text`."""
    if undecodable := UNDECODABLE.search(text):
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
        content = raw.strip(BLANKS)
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


def json_file_records(stream: BinaryIO, head: bytes, layout: Layout, is_json: bool) -> Iterator[Record]:
    """The records of JSON lines, a list or one value; `head` is the beginning, `is_json`: the name ends in `.json`."""
    encoding = marked_encoding(head)
    with opened_text(stream, encoding, "\n") as text:
        if not _is_one_value(head.decode(encoding, "replace").lstrip(BLANKS + "\ufeff"), is_json):
            yield from json_records(lines_of(text), layout.example)
            return
        content = text.read(MAX_DOCUMENT_CHARACTERS + 1)
        if len(content) > MAX_DOCUMENT_CHARACTERS:
            message = f"a JSON file that is not JSON lines may have {MAX_DOCUMENT_CHARACTERS // 2**20} MiB"
            raise Rejected("file_too_large", message)
        try:
            value = parse_json(content)
        except Rejected:
            if is_json and content.lstrip(BLANKS + "\ufeff").startswith("["):
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
