"""Reading a whole database at one moment, beside all work (docs/operations.md, Backup).

All reads are in one transaction, which sees what was committed when it began. The rows travel as text (COPY), which any
later version of PostgreSQL reads, so no dump program of the right version is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import psycopg
from psycopg import sql
from sqlalchemy import Connection, Engine, text

from ragllava.stores.database import outside_transaction
from ragllava.stores.learning import trainings
from ragllava.stores.schema import blobs, metadata

# What belongs to processes and browsers of this moment.
LEFT_OUT = frozenset({"workers", "ticks", "sign_ins", "sign_in_links"})
# Columns of which a backup has another value, in SQL: it holds no secret.
WITHHELD = {("webhooks", "secret"): "''"}
_PARTITION = re.compile(r"embeddings_(\d+)")

_SETTINGS = {
    "idle_in_transaction_session_timeout": "0",
    "synchronize_seqscans": "off",  # rows that did not change come in the same order the next time
    "max_parallel_workers_per_gather": "0",
    "DateStyle": "ISO",
    "bytea_output": "hex",
    "extra_float_digits": "1",
}


@dataclass(frozen=True, slots=True)
class TablePart:
    """A table; of the vectors, those of one index. `dim` is how many numbers each of these vectors has."""

    table: str
    columns: tuple[str, ...]
    index_id: int | None = None
    dim: int | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """The backup that the rows of a database were restored from: its name, and the identity of its database."""

    name: str
    identity: str


def origin_of(connection: Connection) -> Origin | None:
    """Where the rows of this database come from; None: they were not restored."""
    noted = connection.scalar(text("SELECT col_description(to_regclass('alembic_version'), 1)"))
    return Origin(*str(noted).split(" ", 1)) if noted else None


@dataclass(frozen=True, slots=True)
class NamedObjects:
    """What rows name in the object store beside content: `keys`, each with the hash of its bytes where a row has it,
    and folders, each with everything below it."""

    keys: Mapping[str, str | None]
    folders: frozenset[str]


@contextmanager
def open_snapshot(engine: Engine) -> Iterator[Snapshot]:
    """The database as it is now, for the length of a block; while it is open, no table and no index is dropped.

    Raises ServiceUnavailable when the connection breaks.
    """
    with outside_transaction(engine) as connection:
        for name, value in _SETTINGS.items():
            connection.execute(text(f"SET {name} = {value}"))
        tables = [row.table for row in connection.execute(_COLUMNS, {"tables": list(metadata.tables)})]
        connection.execute(text("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"))
        try:
            connection.execute(text(f"LOCK TABLE {', '.join(tables)} IN ACCESS SHARE MODE"))
            yield Snapshot(connection)
        finally:
            if not connection.invalidated:
                connection.execute(text("ROLLBACK"))


class Snapshot:
    """One moment of the database. Every method may raise ServiceUnavailable."""

    def __init__(self, connection: Connection) -> None:
        """`connection` is in the transaction."""
        self._connection = connection
        self._driver = cast("psycopg.Connection[Any]", connection.connection.dbapi_connection)

    def parts(self) -> list[TablePart]:
        """All tables, and the vectors of each index."""
        parts = []
        for row in self._connection.execute(_COLUMNS, {"tables": list(metadata.tables)}):
            columns = tuple(row.columns)
            if row.table == "embeddings":
                parts += [TablePart(row.table, columns, *index) for index in self._indexes()]
            elif row.table not in LEFT_OUT:
                parts.append(TablePart(row.table, columns))
        return parts

    def _indexes(self) -> list[tuple[int, int]]:
        """The id and the dimensions of each index that has a table of vectors."""
        names = self._connection.scalars(
            text("""
                SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid
                WHERE inhparent = 'embeddings'::regclass
            """)
        )
        ids = [int(match[1]) for name in names if (match := _PARTITION.fullmatch(name))]
        rows = self._connection.execute(
            text("SELECT id, dim FROM indexes WHERE id = ANY(:ids) ORDER BY id"), {"ids": ids}
        )
        return [(row.id, row.dim) for row in rows]

    def rows(self, part: TablePart) -> Iterator[bytes]:
        """The rows of a part, each as a line of COPY's text format."""
        name = part.table if part.index_id is None else f"{part.table}_{part.index_id}"
        cells = [
            sql.SQL(WITHHELD[part.table, column]) if (part.table, column) in WITHHELD else sql.Identifier(column)
            for column in part.columns
        ]
        query = sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(cells), sql.Identifier(name))
        return self._copied(query)

    def content(self) -> Iterator[tuple[str, int]]:
        """The hash and the size in bytes of all content in the object store, by hash."""
        live = f"SELECT sha256, size_bytes FROM {blobs.name} WHERE state = 'live' ORDER BY sha256"  # noqa: S608
        for line in self._copied(sql.SQL(live)):
            sha256, size = line.decode().split("\t")
            yield sha256, int(size)

    def _copied(self, query: sql.Composable) -> Iterator[bytes]:
        statement = sql.SQL("COPY ({}) TO STDOUT").format(query)
        with self._driver.cursor() as cursor, cursor.copy(statement) as copy:
            for line in copy:
                yield bytes(line)

    def named_objects(self) -> NamedObjects:
        """What rows name in the object store beside content."""
        keys: dict[str, str | None] = {}
        folders: set[str] = set()
        for row in self._connection.execute(_RESULT_FILES):
            keys[row.key] = row.sha256
            folders.add(f"jobs/{row.job_id}/")
        keys |= {row.object_key: row.sha256 for row in self._connection.execute(_UPLOADS)}
        folders |= {f"adapters/{row.adapter}/" for row in self._connection.execute(_ADAPTERS)}
        folders |= {f"{row.folder}/" for row in self._connection.execute(_TRAINING_FOLDERS)}
        rows = self._connection.execute(text("SELECT id, created_at FROM jobs WHERE kind = 'train'"))
        folders |= {f"{trainings.folder_of(row.id, row.created_at)}/" for row in rows}
        return NamedObjects(keys, frozenset(folders))

    def sequences(self) -> dict[str, int]:
        """The number that each sequence of ids was at, by name, but those that gave none yet; it may be later than the
        rows."""
        query = text("SELECT sequencename, last_value FROM pg_sequences WHERE schemaname = 'public' AND last_value > 0")
        return {row.sequencename: row.last_value for row in self._connection.execute(query)}

    def moment(self) -> datetime:
        """When the snapshot was opened, by the clock of the server."""
        return cast("datetime", self._connection.scalar(text("SELECT now()")))

    def origin(self) -> Origin | None:
        """As `origin_of`."""
        return origin_of(self._connection)

    def revision(self) -> str:
        """The revision of the tables."""
        return str(self._connection.scalar(text("SELECT version_num FROM alembic_version")))

    def identity(self) -> str:
        """Of this database: another one has another, also if it was restored from a backup of this one."""
        may_ask = self._connection.scalar(text("SELECT has_function_privilege('pg_control_system()', 'EXECUTE')"))
        server = "(SELECT system_identifier FROM pg_control_system())" if may_ask else "''"
        query = f"""
            SELECT concat_ws('/', {server}, datname, oid, 'images'::regclass::oid) FROM pg_database
            WHERE datname = current_database()
        """  # noqa: S608 - our own text
        return str(self._connection.scalar(text(query)))

    def ids(self, table: str) -> Iterator[bytes]:
        """The ids of all rows of a table, ascending, a line each."""
        return self._copied(sql.SQL("SELECT id FROM {} ORDER BY id").format(sql.Identifier(table)))


# As they are, so that tables of an earlier version can be saved, too.
_COLUMNS = text("""
    SELECT relname AS table, array_agg(CAST(attname AS text) ORDER BY attnum) AS columns
    FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND relname = ANY(:tables)
        AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
    GROUP BY relname ORDER BY relname
""")
_RESULT_FILES = text("""
    SELECT id AS job_id, file.value->>'key' AS key, file.value->>'sha256' AS sha256
    FROM jobs, jsonb_each(result->'files') AS file
    WHERE jsonb_typeof(result->'files') = 'object' AND file.value->>'key' <> ''
""")
_UPLOADS = text("SELECT object_key, sha256 FROM uploads")
_ADAPTERS = text("SELECT DISTINCT adapter_sha256 AS adapter FROM model_versions WHERE adapter_sha256 IS NOT NULL")
_TRAINING_FOLDERS = text("""
    SELECT DISTINCT training->>'objects' AS folder FROM model_versions WHERE training->>'objects' IS NOT NULL
""")
