"""What a database is made of, and what is in it, as text that two databases can be compared by."""

from __future__ import annotations

from sqlalchemy import Connection, text


def catalogue(connection: Connection, schema: str) -> set[str]:
    """Every column, constraint, index and table option of a schema, one line each, as Postgres itself writes it."""
    lines = connection.scalars(text(_CATALOGUE), {"schema": schema})
    return {line.replace("declared.", "").replace("public.", "") for line in lines}


def contents(connection: Connection) -> dict[str, list[str]]:
    """The rows of each table of the schema `public`, as text and sorted, by the table's name."""
    tables = connection.scalars(text(_TABLES)).all()
    return {table: _rows(connection, table) for table in tables}


def _rows(connection: Connection, table: str) -> list[str]:
    return list(connection.scalars(text(f'SELECT row_of::text FROM "{table}" row_of ORDER BY 1')))


_TABLES = """
    SELECT relname FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') ORDER BY relname
"""

_CATALOGUE = """
    WITH tables AS (
        SELECT pg_class.* FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
        WHERE nspname = :schema AND relkind IN ('r', 'p')
    )
    SELECT concat_ws(' ', 'table', relname, relkind, reloptions::text, pg_get_partkeydef(oid)) FROM tables
    UNION ALL
    SELECT concat_ws(' ', 'column', relname, attname, format_type(atttypid, atttypmod), attnotnull, attidentity,
                     pg_get_expr(adbin, adrelid))
    FROM tables JOIN pg_attribute ON attrelid = tables.oid AND attnum > 0 AND NOT attisdropped
    LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    UNION ALL
    SELECT concat_ws(' ', 'constraint', relname, conname, pg_get_constraintdef(pg_constraint.oid))
    FROM tables JOIN pg_constraint ON conrelid = tables.oid
    UNION ALL
    SELECT concat_ws(' ', 'index', pg_get_indexdef(indexrelid))
    FROM tables JOIN pg_index ON indrelid = tables.oid
"""
