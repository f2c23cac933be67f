"""The text of a file: UTF-8, or UTF-16 with a byte order mark.

A CSV that is not UTF-8 anywhere is read as Windows-1252, which spreadsheets write in western countries, unless its
bytes do not look like it.
"""

from __future__ import annotations

import codecs
import io
import re
import string
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, TextIO

from ragllava.stages.record_files.layouts import Rejected

MAX_LINE_CHARACTERS = 16 * 2**20
# An undecodable byte becomes a lone surrogate, which valid UTF-8 cannot contain: only its record is rejected.
UNDECODABLE = re.compile("[\ud800-\udfff]")
BLANKS = string.whitespace + "\x1a"  # with the end-of-file character of DOS

_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF_8_CHARACTER = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
# What western text has never: bytes without a character, control codes, and many accented letters in a row.
_NOT_WINDOWS_1252 = re.compile(rb"[\x81\x8d\x8f\x90\x9d]|[\x80-\xff]{4}")


def marked_encoding(head: bytes) -> str:
    """The encoding by the byte order mark; UTF-8 without one. Raises Rejected for UTF-16 that has none."""
    if head.startswith(_UTF16_MARKS):
        return "utf-16"
    # Without a byte order mark, UTF-16 of western text has a NUL in every second byte.
    if head.count(0) * 4 > len(head):
        raise Rejected("invalid_encoding", "the file looks like UTF-16; save it as UTF-8 and submit it again")
    return "utf-8-sig"


def csv_encoding(stream: BinaryIO, head: bytes, notes: list[str]) -> str:
    """The encoding of a CSV; `stream` is read and returns to its beginning.

    A file with characters of UTF-8 and a few other bytes is a damaged UTF-8 file, whose records are rejected.
    """
    encoding = marked_encoding(head)
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


@contextmanager
def opened_text(stream: BinaryIO, encoding: str, newline: str) -> Iterator[TextIO]:
    """The text of a file, with UNDECODABLE characters in place of wrong bytes. Raises Rejected for wrong UTF-16."""
    errors = "strict" if encoding == "utf-16" else "surrogateescape"
    try:
        with io.TextIOWrapper(stream, encoding, errors, newline=newline) as text:
            yield text
    except UnicodeDecodeError:
        raise Rejected("invalid_encoding", "the file is not valid UTF-16; save it as UTF-8") from None


def lines_of(text: TextIO) -> Iterator[str]:
    """A line above the limit is cut, to a beginning that is still above it."""
    while line := text.readline(MAX_LINE_CHARACTERS + 1):
        yield line
        while len(line) > MAX_LINE_CHARACTERS and not line.endswith("\n"):
            line = text.readline(MAX_LINE_CHARACTERS + 1)
