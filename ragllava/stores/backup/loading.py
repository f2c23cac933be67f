"""Loading the rows of a backup into the empty tables of the revision that they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import psycopg
from psycopg import sql
from sqlalchemy import Connection, text

from ragllava.stores.archives.indexes import create_partition
from ragllava.stores.backup.snapshot import Origin, TablePart
from ragllava.stores.database import equals_any
from ragllava.stores.schema import metadata, webhooks
from ragllava.stores.sessions import session_of

# A system that was only started has rows in these; each mailing belongs to a notice.
_OF_STARTED = frozenset({"alembic_version", "workers", "ticks", "faults", "sign_ins", "sign_in_links", "mailings"})
# It also registers the models of its profile, and notices a disk that is low.
_OF_USERS = {
    "model_versions": "adapter_sha256 IS NOT NULL",
    "promotions": "replaced_id IS NOT NULL",
    "notices": "event <> 'disk_low'",
}
_TABLES = text("""
    SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
    AND NOT relispartition ORDER BY relname
""")
_FOREIGN_KEYS = text("""
    SELECT conrelid::regclass::text AS table, conname AS name, pg_get_constraintdef(oid) AS definition
    FROM pg_constraint WHERE contype = 'f' AND conparentid = 0 AND connamespace = 'public'::regnamespace ORDER BY oid
""")
_SILENT_S = 60  # a worker that was not seen for longer does not run


def filled_table(connection: Connection) -> str | None:
    """The first table with rows of users; None: this database is empty."""
    for name in connection.scalars(_TABLES).all():
        rows = f"SELECT EXISTS (SELECT FROM {name} WHERE {_OF_USERS.get(name, 'true')})"  # noqa: S608 - our own text
        if name not in _OF_STARTED and connection.scalar(text(rows)):
            return str(name)
    return None


def live_workers(connection: Connection) -> list[str]:
    """The workers that run beside this database, by name."""
    if connection.scalar(text("SELECT to_regclass('workers') IS NULL")):
        return []
    seen = text("SELECT name FROM workers WHERE seen_at > now() - make_interval(secs => :age) ORDER BY name")
    return list(connection.scalars(seen, {"age": _SILENT_S}))


def lock_tables(connection: Connection) -> None:
    """Keep everybody else from all tables until the caller's transaction ends; `connection` belongs to their owner."""
    connection.execute(text(f"LOCK TABLE {', '.join(connection.scalars(_TABLES).all())} IN ACCESS EXCLUSIVE MODE"))


def note_loaded(connection: Connection, origin: Origin | None) -> None:
    """Note in the caller's transaction which backup the rows come from; None: from none."""
    if connection.scalar(text("SELECT to_regclass('alembic_version') IS NULL")):
        return
    driver = cast("psycopg.Connection[Any]", connection.connection.dbapi_connection)
    noted = None if origin is None else f"{origin.name} {origin.identity}"
    # A comment on the table itself states which programs can use the database.
    driver.execute(sql.SQL("COMMENT ON COLUMN alembic_version.version_num IS {}").format(sql.Literal(noted)))


def load(
    connection: Connection,
    parts: Sequence[TablePart],
    rows_of: Callable[[TablePart], Iterable[bytes]],
    sequences: Mapping[str, int],
) -> None:
    """Fill the tables, within the caller's transaction; `connection` belongs to their owner.

    `rows_of` gives lines of COPY's text format, in pieces of any size. Foreign keys are checked once at the end, as
    rows of two tables refer to each other. What ran when the rows were read waits for a worker again.
    """
    driver = cast("psycopg.Connection[Any]", connection.connection.dbapi_connection)
    session_of(connection).most_silent_s = None
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    tables = [name for name in connection.scalars(_TABLES).all() if name != "alembic_version"]
    keys = connection.execute(_FOREIGN_KEYS).all()
    for key in keys:
        connection.execute(text(f'ALTER TABLE {key.table} DROP CONSTRAINT "{key.name}"'))
    # Tables that were emptied in the same transaction need no log of their rows (wal_level minimal).
    connection.execute(text(f"TRUNCATE {', '.join(tables)}"))
    for part in parts:
        if part.index_id is not None and part.dim is not None:
            create_partition(connection, part.index_id, part.dim)
        _copy(driver, part, rows_of(part))
    for name, value in sequences.items():
        set_value = "SELECT setval(to_regclass(:name), :value) WHERE to_regclass(:name) IS NOT NULL"
        connection.execute(text(set_value), {"name": name, "value": value})
    _resume_work(connection)
    for key in keys:
        connection.execute(text(f'ALTER TABLE {key.table} ADD CONSTRAINT "{key.name}" {key.definition}'))


def _copy(driver: psycopg.Connection[Any], part: TablePart, pieces: Iterable[bytes]) -> None:
    names = sql.SQL(", ").join(map(sql.Identifier, part.columns))
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(part.table), names)
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for piece in pieces:
            copy.write(piece)


def _resume_work(connection: Connection) -> None:
    """Nobody has a lease or a message any more, and no attempt failed; graphs are built after the rows are there."""
    connection.execute(
        text("""
            UPDATE shards SET state = 'pending', epoch = epoch + 1, worker = NULL, lease_until = NULL, queued_at = NULL,
                attempts = CASE state WHEN 'running' THEN greatest(attempts - 1, 0) ELSE attempts END
            WHERE state IN ('running', 'queued')
        """)
    )
    connection.execute(text("UPDATE indexes SET has_hnsw = false WHERE has_hnsw"))


def graphless_indexes(connection: Connection) -> list[int]:
    """The indexes without a graph that are not replaced."""
    query = text("SELECT id FROM indexes WHERE NOT has_hnsw AND state <> 'retired' ORDER BY id")
    return list(connection.scalars(query))


def renew_secrets(connection: Connection, make: Callable[[], str]) -> list[str]:
    """Give webhooks without a secret, which no backup has, a new one each; returns their addresses."""
    rows = connection.execute(webhooks.select().where(webhooks.c.secret == "")).all()
    for row in rows:
        connection.execute(webhooks.update().where(webhooks.c.id == row.id).values(secret=make()))
    return [row.url for row in rows]


def present_ids(connection: Connection, table: str, ids: Sequence[int]) -> list[int]:
    """Those of the ids that the table has."""
    column = metadata.tables[table].c.id
    return sorted(connection.scalars(column.table.select().with_only_columns(column).where(equals_any(column, ids))))


def lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Pieces of lines as lines, without their ends."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
    if rest:
        yield rest


def analyze(connection: Connection) -> None:
    """Bring the statistics of all tables up to date; `connection` is outside a transaction."""
    for name in connection.scalars(_TABLES).all():
        if name != "alembic_version":
            connection.execute(text(f"ANALYZE {name}"))
