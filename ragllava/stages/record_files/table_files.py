"""Excel and Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from ragllava.stages.record_files.layouts import Layout, Record, Rejected
from ragllava.stages.spreadsheets import SpreadsheetError, read_sheets


def xlsx_records(stream: BinaryIO, layout: Layout) -> Iterator[Record]:
    """The records of the first sheet that has the required columns."""
    problem: Rejected | None = None
    try:
        for rows in read_sheets(stream):
            header = next(rows, None)
            if header is None:
                continue
            names = ["" if cell is None else str(cell).strip() for cell in header[1]]
            try:
                layout.pick(names)
            except Rejected as rejected:
                problem = problem or rejected
                continue
            for line, row in rows:
                value: dict[str, Any] = {}
                for name, cell in zip(names, row, strict=False):
                    if name and cell is not None:
                        value.setdefault(name, cell)
                yield Record(line, value)
            return
    except SpreadsheetError as error:
        raise Rejected("invalid_xlsx", str(error)) from None
    if problem is not None:
        raise Rejected("missing_column", f"the first row must be a header: {problem}")
    if not layout.may_be_empty:
        raise Rejected("empty_file", f"the file has no {layout.content}")


def parquet_records(stream: BinaryIO, layout: Layout) -> Iterator[Record]:
    """The rows, without columns of bytes that nobody named."""
    import pyarrow
    from pyarrow import parquet

    row_no = 0
    try:
        file = parquet.ParquetFile(stream)
        columns = _parquet_columns(file.schema_arrow, layout)
        for batch in file.iter_batches(batch_size=4096, columns=columns):
            for row in batch.to_pylist():
                row_no += 1
                yield Record(row_no, row)
    except UnicodeDecodeError:
        raise Rejected("invalid_encoding", f"a text after row {row_no} is not UTF-8") from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Rejected("invalid_parquet", f"the file is not readable as Parquet: {reason}") from None


def _parquet_columns(schema: Any, layout: Layout) -> list[str]:
    """The columns to read: the named ones, and the others unless they hold bytes."""
    taken = set(layout.pick(schema.names).values())
    return [name for name in schema.names if name in taken or _holds_no_bytes(schema.field(name).type)]


def _holds_no_bytes(kind: Any) -> bool:
    """Whether neither the type nor a part of it is binary; pictures are often stored so beside their captions."""
    from pyarrow import types

    parts = [kind.field(number).type for number in range(kind.num_fields)]
    is_binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    return not is_binary and all(map(_holds_no_bytes, parts))
