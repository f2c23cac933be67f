"""COPY within the transaction of an SQLAlchemy connection: the fastest way to insert many rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from psycopg import Connection as RawConnection
from psycopg import sql
from sqlalchemy import Connection

ROWS_PER_COPY = 10_000  # each COPY is a statement, and must end before the statement timeout


def copy_rows(connection: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    """COPY any number of rows into a table, within the caller's transaction; returns how many there were."""
    raw = connection.connection.driver_connection
    if not isinstance(raw, RawConnection):
        raise TypeError(f"COPY needs a psycopg connection, not {type(raw).__name__}")
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    remaining, count = iter(rows), 0
    while chunk := list(islice(remaining, ROWS_PER_COPY)):
        with raw.cursor() as cursor, cursor.copy(statement) as copy:
            for row in chunk:
                copy.write_row(row)
        count += len(chunk)
    return count
