"""COPY through the transaction of an SQLAlchemy connection: the fast way in for many rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from psycopg import Connection as RawConnection
from psycopg import sql
from sqlalchemy import Connection


def copy_rows(connection: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    """COPY rows into a table, within the caller's transaction; returns how many there were."""
    raw = connection.connection.driver_connection
    if not isinstance(raw, RawConnection):
        raise TypeError(f"COPY needs a psycopg connection, not {type(raw).__name__}")
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    count = 0
    with raw.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(row)
            count += 1
    return count
