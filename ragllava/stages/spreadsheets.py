"""Read Excel files (.xlsx) row by row."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

MAX_UNPACKED_BYTES = 2**30  # of all parts of a file

Rows = Iterator[tuple[int, tuple[Any, ...]]]


class SpreadsheetError(Exception):
    """The file cannot be read; the message is the reason for a person."""


def read_sheets(stream: BinaryIO) -> Iterator[Rows]:
    """The rows of each sheet that are not empty, each with its number from 1; of a formula, its last result.

    A cell is None, text, a number, a boolean, or a date or time. The rows of a sheet must be read before the next sheet
    is. Raises SpreadsheetError.
    """
    import openpyxl

    with _readable():
        _check_size(stream)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of openpyxl, about styles that it does not keep
            book = openpyxl.load_workbook(stream, read_only=True, data_only=True, keep_links=False)
    for sheet in book.worksheets:
        yield _filled_rows(sheet)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except SpreadsheetError:
        raise
    except Exception as error:  # noqa: BLE001 - openpyxl and the file's parts raise errors of any kind
        raise SpreadsheetError(f"the file is not readable as .xlsx: {error}") from None


def _check_size(stream: BinaryIO) -> None:
    with zipfile.ZipFile(stream) as package:
        if sum(part.file_size for part in package.infolist()) > MAX_UNPACKED_BYTES:
            raise SpreadsheetError(f"the file unpacks to more than {MAX_UNPACKED_BYTES // 2**30} GiB")
    stream.seek(0)


def _filled_rows(sheet: Any) -> Rows:
    with _readable():
        sheet.reset_dimensions()  # a file may state any size
        rows = enumerate(sheet.iter_rows(values_only=True), start=1)
    while True:
        with _readable():
            number, row = next(rows, (0, ()))
        if not number:
            return
        cells = tuple(None if isinstance(cell, str) and not cell.strip() else cell for cell in row)
        if any(cell is not None for cell in cells):
            yield number, cells
