"""Open a file of any format and read its records."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO, cast

from ragllava.errors import InvalidInput, UsageError
from ragllava.records import FileFormat
from ragllava.stages.record_files.csv_files import csv_header, csv_records
from ragllava.stages.record_files.encodings import marked_encoding
from ragllava.stages.record_files.json_files import json_file_records
from ragllava.stages.record_files.layouts import Layout, Record, Rejected
from ragllava.stages.record_files.table_files import parquet_records, xlsx_records

MAX_LINES = 1_000_000  # of a question or feedback file
MAX_UNPACKED_BYTES = 2 * 2**30  # of a file packed with gzip

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
            records = parquet_records(stream, layout)
        elif format is FileFormat.XLSX:
            records = xlsx_records(stream, layout)
        elif format is FileFormat.CSV:
            records = csv_records(stream, head, layout, notes if notes is not None else [])
        else:
            is_json = PurePath(name.lower().removesuffix(".gz")).suffix == ".json"
            records = json_file_records(stream, head, layout, is_json)
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
    text = head.decode(marked_encoding(head), "replace")
    if text.lstrip().startswith(("{", "[")):
        return FileFormat.JSONL
    try:
        csv_header(text, layout)
    except Rejected as rejected:
        message = f"the file is neither JSON, nor Parquet, nor Excel, nor a CSV: {rejected.message}"
        raise Rejected("unknown_format", message) from None
    return FileFormat.CSV


def _counted(records: Iterable[Record], layout: Layout, max_records: int | None) -> Iterator[Record]:
    count = 0
    for count, record in enumerate(records, start=1):
        if max_records is not None and count > max_records:
            raise Rejected("too_many_lines", f"the file has more than {max_records:,} lines; split it")
        yield record
    if not count and not layout.may_be_empty:
        raise Rejected("empty_file", f"the file has no {layout.content}")
