"""CSV with any of the usual delimiters: its header, its quotes, and rows that are broken."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, BinaryIO, Literal, TextIO

from ragllava.stages.record_files.encodings import (
    BLANKS,
    MAX_LINE_CHARACTERS,
    UNDECODABLE,
    csv_encoding,
    lines_of,
    opened_text,
)
from ragllava.stages.record_files.layouts import Layout, Record, Rejected

_DELIMITERS = ",;\t|"
_SEPARATOR_LINE = re.compile(r"sep=(.)[\r\n]*", re.IGNORECASE)  # with which Excel announces the delimiter
_FORMULA_TEXT = re.compile(r'="((?:[^"]|"")*)"')  # a text that Excel shall not take for a number: ="001"


def csv_records(stream: BinaryIO, head: bytes, layout: Layout, notes: list[str]) -> Iterator[Record]:
    """The records of a CSV; `head` is its beginning, `notes` gets a remark on what was changed to read it."""
    encoding = csv_encoding(stream, head, notes)
    delimiter, names, has_header = csv_header(head.decode(encoding, "replace"), layout)
    columns = set(layout.pick(names).values())
    with opened_text(stream, encoding, "") as text:
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
    if any(UNDECODABLE.search(value[name]) for name in columns if name in value):
        value.clear()
        return Rejected("invalid_encoding", "the record has bytes that are not UTF-8")
    if any(map(str.strip, row[width:])):
        message = f"the record has {len(row)} cells under {width} columns; put texts with commas in double quotes"
        return Rejected("invalid_csv_line", message)
    return None


def csv_header(beginning: str, layout: Layout) -> tuple[str, list[str], bool]:
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
    return not any(cell.strip(BLANKS) for cell in row)


def _csv_rows(text: TextIO, delimiter: str, *, has_quotes: bool) -> Iterator[tuple[int, list[str] | str]]:
    """Every row with the number of its first line; a broken row is replaced by a sentence with the reason.

    Quoted cells may span lines. An unclosed quote pulls later lines into its row: there is a sentence for each of
    these lines that is not blank.
    """
    consumed: list[str] = []  # the lines of the current row

    def lines_consumed() -> Iterator[str]:
        for line in lines_of(text):
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
