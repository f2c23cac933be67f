"""The database's history: `upgrade` brings any database of ours to the newest tables, `downgrade` goes back.

Alembic is configured here, in code, so that no file outside this folder is needed and the database's password
is never written down.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import URL, Connection, create_engine, make_url, text
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.pool import NullPool

from ragllava.errors import SchemaMismatch, ServiceUnavailable, UsageError
from ragllava.stores import roles
from ragllava.stores.archives import word_index
from ragllava.stores.database import in_transaction
from ragllava.stores.schema import REVISION, metadata
from ragllava.stores.schema_revision import NO_RIGHTS, Standing, read_standing

# Older versions have a memory overflow in parallel builds and damage HNSW graphs (docs/reliability.md D11).
PGVECTOR_FLOOR = (0, 8, 4)
POSTGRES_FLOOR = 17  # the first with the collation pg_c_utf8, by which filters compare texts

RELEASES = {"0.1.0": "0004", "0.2.0": "0005"}  # the revision of each released version

# Any number will do, as long as nobody else in the database takes it for an advisory lock.
_LOCK_KEY = 0x5261674C4C61  # "RagLLa"


def upgrade(
    database_url: str,
    revision: str = "head",
    *,
    words: bool = False,
    application_url: str | None = None,
    api_url: str | None = None,
    scale_url: str | None = None,
) -> None:
    """Bring the database to `revision`; does nothing when it is there already.

    With an `application_url`, its role is made unless it exists, and gets its rights on the tables of the newest
    revision. The role of `database_url` owns them. `api_url` names the role of the HTTP API in the same way, and
    `scale_url` that of what starts and stops workers.

    At the newest revision, the words of archives are written that an older version wrote by other rules or not at all,
    in transactions of their own; with `words`, those of all archives.

    Any number of processes may call this at once: one works, the others wait for it and then find nothing to
    do. Raises UsageError when the server's pgvector is missing or too old, SchemaMismatch when a newer version has
    migrated the database, ServiceUnavailable when it does not answer. Each revision is one transaction, so a failed one
    leaves nothing behind.
    """

    def work(connection: Connection) -> None:
        _require_server(connection)
        _require_pgvector(connection)
        _require_known_revision(connection)
        command.upgrade(_config(connection), revision)
        if revision == "head":
            if words:
                in_transaction(connection.engine, word_index.mark_outdated)
            if application_url is not None:
                urls = [None if url is None else make_url(url) for url in (api_url, scale_url)]
                in_transaction(connection.engine, _admit, make_url(application_url), *urls)
            word_index.rebuild_outdated(connection.engine)

    _alone(database_url, work)


def downgrade(database_url: str, revision: str) -> None:
    """Take the database back to `revision` ("base": no tables), with the data of what is dropped.

    Raises SchemaMismatch when a newer version has migrated the database. Each revision is one transaction.
    """

    def work(connection: Connection) -> None:
        _require_known_revision(connection)
        command.downgrade(_config(connection), revision)

    _alone(database_url, work)


def back_to(database_url: str, version: str) -> None:
    """Take the database back to the tables of a released version (`0.2.0`) or of a revision (`0005`).

    Raises UsageError for one that is not known, is newer than the database, or has no tables; nothing happened then.
    """
    revision = RELEASES.get(version, version)
    known = [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()]
    if revision not in known:
        raise UsageError(
            f"there is no version or revision {version}; versions are {', '.join(RELEASES)}, revisions {known[-1]} to "
            f"{known[0]}"
        )
    at = current(database_url)
    if at is None or at < revision:
        raise UsageError(f"the database is {f'at revision {at}' if at else 'without tables'}, so there is no way back")
    downgrade(database_url, revision)


def current(database_url: str) -> str | None:
    """The revision that the database is at, None for one that was never migrated.

    Raises SchemaMismatch for a role that has no rights on the tables, or not yet.
    """
    return standing(database_url).revision


def standing(database_url: str) -> Standing:
    """The same, with the programs that can use the database."""
    with _connect(database_url) as connection:
        try:
            revision = MigrationContext.configure(connection).get_current_revision()
        except ProgrammingError as error:
            if isinstance(error.orig, InsufficientPrivilege):
                raise SchemaMismatch(NO_RIGHTS) from error
            raise
        return Standing(None) if revision is None else read_standing(connection)


class Check(IntEnum):
    """What `ragllava migrate --check` finds, as its exit code."""

    USABLE = 0
    BEHIND = 4
    TOO_NEW = 5


def check(database_url: str) -> tuple[Check, str]:
    """Whether this version can use the database as it is, and a sentence that says how they stand to each other.

    Changes nothing. Raises as `current`.
    """
    found = standing(database_url)
    if found.revision == REVISION:
        return Check.USABLE, f"the database is up to date, at revision {REVISION}"
    if found.revision is not None and found.revision > REVISION:
        if found.problem is not None:
            return Check.TOO_NEW, found.problem
        return Check.USABLE, (
            f"the database is at revision {found.revision}, newer than this version of RagLLaVA ({REVISION}), which "
            "can use it all the same"
        )
    script = ScriptDirectory.from_config(_config())
    missing = len(list(script.iterate_revisions(REVISION, found.revision or "base")))
    return Check.BEHIND, (
        f"the database is {f'at revision {found.revision}' if found.revision else 'without tables'}, {missing} "
        f"{'migration' if missing == 1 else 'migrations'} behind this version of RagLLaVA ({REVISION}); "
        "run `ragllava migrate`"
    )


def differences(database_url: str) -> list[Any]:
    """What Alembic finds different between the database and the declared tables; [] when they agree.

    The partitions of `embeddings` belong to the data and are not compared.
    """
    with _connect(database_url) as connection:
        context = MigrationContext.configure(
            connection,
            opts={"compare_type": True, "compare_server_default": True, "include_name": _is_declared},
        )
        return list(compare_metadata(context, metadata))


def _is_declared(name: str | None, kind: str, _parents: Any) -> bool:
    return not (kind == "table" and name is not None and re.fullmatch(r"embeddings_\d+", name))


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    folder = str(Path(__file__).parent)
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _admit(connection: Connection, application: URL, api: URL | None, scale: URL | None) -> None:
    roles.ensure_role(connection, application)
    if api is not None:
        roles.ensure_api_role(connection, api)
    roles.admit(connection, str(application.username), str(api.username) if api is not None else None)
    if scale is not None:
        roles.ensure_scale_role(connection, scale)


def _alone(database_url: str, work: Callable[[Connection], None]) -> None:
    with _connect(database_url) as connection:
        # Held by the session, over all transactions of the migration; the end of the session frees it.
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK_KEY})
        connection.commit()
        work(connection)


@contextmanager
def _connect(database_url: str) -> Iterator[Connection]:
    """A connection of its own, without the timeouts of a worker: a migration may take long."""
    engine = create_engine(database_url, poolclass=NullPool, connect_args={"connect_timeout": 5})
    try:
        with engine.connect() as connection:
            yield connection
    except OperationalError as error:
        raise ServiceUnavailable(f"database: {str(error.orig).strip().splitlines()[0]}") from error


def _require_server(connection: Connection) -> None:
    major = int(connection.scalar(text("SELECT current_setting('server_version_num')::int / 10000")))
    connection.commit()
    if major < POSTGRES_FLOOR:
        raise UsageError(
            f"the database server is PostgreSQL {major}, but {POSTGRES_FLOOR} or newer is needed; update it"
        )


def _require_pgvector(connection: Connection) -> None:
    row = connection.execute(
        text("SELECT default_version, installed_version FROM pg_available_extensions WHERE name = 'vector'")
    ).one_or_none()
    connection.commit()
    floor = ".".join(map(str, PGVECTOR_FLOOR))
    if row is None:
        raise UsageError(f"the database server has no pgvector; install its extension `vector`, {floor} or newer")
    if row.installed_version is not None and _version(row.installed_version) < PGVECTOR_FLOOR:
        raise UsageError(
            f"this database has pgvector {row.installed_version}, but {floor} or newer is needed; "
            "install it on the server and run `ALTER EXTENSION vector UPDATE`"
        )
    if _version(row.default_version) < PGVECTOR_FLOOR:
        raise UsageError(
            f"the database server offers pgvector {row.default_version}, but {floor} or newer is needed; update it"
        )


def _require_known_revision(connection: Connection) -> None:
    revision = MigrationContext.configure(connection).get_current_revision()
    connection.commit()
    if revision is not None and revision > REVISION:
        raise SchemaMismatch(Standing(revision).problem)


def _version(text_form: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text_form))
