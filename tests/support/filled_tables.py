"""Rows for the tables and columns that a database of an earlier version did not have, whatever they are."""

from __future__ import annotations

from datetime import UTC, date, datetime

from sqlalchemy import Column, Connection, Table, func, insert, literal_column, select, text, update

from ragllava.stores.schema import metadata

Columns = set[tuple[str, str]]


def columns(connection: Connection) -> Columns:
    """Every column of every table, by both names."""
    rows = connection.execute(
        text("SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'")
    )
    return {(table, column) for table, column in rows}


def fill(connection: Connection, before: Columns) -> set[str]:
    """One row in each table that is empty, and a value in each column that is new and empty; returns their names.

    The values mean nothing; they have the right types, and refer to rows that are there.
    """
    filled = set()
    for table in metadata.sorted_tables:
        if connection.scalar(select(func.count()).select_from(table)) == 0:
            needed = [column for column in table.columns if _is_needed(column)]
            values = {column.name: _value(connection, column) for column in needed}
            connection.execute(insert(table).values(values))
            filled.add(table.name)
            continue
        for column in table.columns:
            if (table.name, column.name) not in before and _is_empty(connection, table, column):
                first = select(text("ctid")).select_from(table).limit(1).scalar_subquery()
                value = {column.name: _value(connection, column)}
                connection.execute(update(table).where(literal_column("ctid") == first).values(value))
                filled.add(f"{table.name}.{column.name}")
    return filled


def _is_needed(column: Column[object]) -> bool:
    return column.identity is None and column.computed is None


def _is_empty(connection: Connection, table: Table, column: Column[object]) -> bool:
    return connection.scalar(select(func.count(column)).select_from(table)) == 0


def _value(connection: Connection, column: Column[object]) -> object:
    for key in column.foreign_keys:
        # Of the first row, so that the parts of a key belong together.
        found = connection.scalar(select(key.column).order_by(*key.column.table.primary_key.columns).limit(1))
        assert found is not None, f"{column}: {key.column.table.name} is empty"
        return found
    kind = connection.dialect.type_compiler_instance.process(column.type)
    samples: dict[str, object] = {
        "BIGINT": 7, "INTEGER": 7, "SMALLINT": 7, "FLOAT": 0.5, "REAL": 0.5, "BOOLEAN": True, "JSONB": {"seven": 7},
        "DATE": date(2026, 11, 30), "TIMESTAMP WITH TIME ZONE": datetime(2026, 11, 30, tzinfo=UTC), "BYTEA": b"7",
    }  # fmt: skip
    return samples.get(kind, [] if kind.endswith("[]") else "seven")
