"""The migrated database equals the declared tables, and goes down as well as up."""

from __future__ import annotations

import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

import migrations
from ragllava.errors import ServiceUnavailable, UsageError
from ragllava.settings import Settings
from ragllava.stores.archives import archive, indexes
from ragllava.stores.schema import REVISION, metadata
from ragllava.stores.schema_revision import Standing
from tests.support.catalogue import catalogue
from tests.support.pages import ROOT


@pytest.fixture
def empty_database(services: Settings) -> Iterator[str]:
    """The URL of a database that nobody has migrated."""
    name = f"empty_{uuid.uuid4().hex}"
    server = create_engine(services.require_database_owner(), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE template0"))
    yield make_url(services.require_database_owner()).set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def empty_engine(empty_database: str) -> Engine:
    return create_engine(empty_database, poolclass=NullPool)


def test_up_down_to_nothing_and_up_again(empty_database: str, empty_engine: Engine) -> None:
    assert migrations.current(empty_database) is None
    migrations.upgrade(empty_database)
    assert migrations.current(empty_database) == REVISION
    with empty_engine.begin() as connection:
        one = archive.ensure_archive(connection, "cards")
        indexes.create_index(connection, one.archive_id, "clip@1", 8)

    migrations.downgrade(empty_database, "base")
    assert migrations.current(empty_database) is None
    with empty_engine.connect() as connection:
        left = set(connection.scalars(text(_OWN_RELATIONS)))
    assert left == {"alembic_version", "alembic_version_pkc"}

    migrations.upgrade(empty_database)
    migrations.upgrade(empty_database)
    assert migrations.current(empty_database) == REVISION
    assert migrations.differences(empty_database) == []


def test_each_step_states_which_programs_can_use_its_tables(empty_database: str) -> None:
    """Those of its own revision, and those from before it if it only expands."""
    [expanding] = (ROOT / "migrations" / "versions").glob("*_scale.py")
    revision = expanding.name[:4]
    migrations.upgrade(empty_database, "0016")
    assert migrations.standing(empty_database) == Standing("0016", "0016")
    migrations.upgrade(empty_database, f"{revision}-1")
    before = migrations.standing(empty_database)
    migrations.upgrade(empty_database, revision)
    assert migrations.standing(empty_database) == Standing(revision, before.floor)
    migrations.downgrade(empty_database, "0016")
    assert migrations.standing(empty_database) == Standing("0016", "0016")


_OWN_RELATIONS = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"


def test_equals_the_declared_tables(empty_database: str, empty_engine: Engine) -> None:
    migrations.upgrade(empty_database)
    with empty_engine.begin() as connection:
        migrated = catalogue(connection, "public")
        connection.execute(text("CREATE SCHEMA declared"))
        connection.execute(text("SET LOCAL search_path TO declared, public"))
        metadata.create_all(connection, checkfirst=False)
        declared = catalogue(connection, "declared")
    migrated = {line for line in migrated if "alembic_version" not in line}
    assert (sorted(migrated - declared), sorted(declared - migrated)) == ([], [])
    # The comparison sees what Alembic's own does not: these must be in it.
    assert any("fillfactor=70" in line for line in migrated)
    assert any("WHERE (state = 'champion'" in line for line in migrated)
    assert any("LIST (index_id)" in line for line in migrated)


def test_differences_names_what_differs_but_no_partition(empty_database: str, empty_engine: Engine) -> None:
    migrations.upgrade(empty_database)
    with empty_engine.begin() as connection:
        one = archive.ensure_archive(connection, "cards")
        indexes.create_index(connection, one.archive_id, "clip@1", 8)
    assert migrations.differences(empty_database) == []
    with empty_engine.begin() as connection:
        connection.execute(text("ALTER TABLE images DROP COLUMN caption"))
    found = migrations.differences(empty_database)
    assert [(kind, column.name) for kind, _, _, column in found] == [("add_column", "caption")]


def test_vectors_stay_in_the_row(empty_database: str, empty_engine: Engine) -> None:
    migrations.upgrade(empty_database)
    with empty_engine.begin() as connection:
        one = archive.ensure_archive(connection, "cards")
        index_id = indexes.create_index(connection, one.archive_id, "clip@1", 512)
        storage = connection.scalars(
            text("SELECT attstorage FROM pg_attribute WHERE attname = 'vector' AND attrelid = ANY(:tables)"),
            {"tables": [_oid(connection, "embeddings"), _oid(connection, f"embeddings_{index_id}")]},
        ).all()
    assert storage == ["p", "p"]


def test_several_migrations_at_once_are_harmless(empty_database: str) -> None:
    program = "import sys, migrations; migrations.upgrade(sys.stdin.read())"
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(empty_database)
        process.stdin.close()
        process.stdin = None
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert migrations.differences(empty_database) == []


def test_an_old_pgvector_is_refused_in_one_sentence(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "PGVECTOR_FLOOR", (99, 1))
    with pytest.raises(UsageError, match=r"offers pgvector 0\.\d+\.\d+, but 99\.1 or newer is needed") as offered:
        migrations.upgrade(empty_database)
    assert "\n" not in str(offered.value)
    assert migrations.current(empty_database) is None

    monkeypatch.undo()
    migrations.upgrade(empty_database)
    monkeypatch.setattr(migrations, "PGVECTOR_FLOOR", (99, 1))
    with pytest.raises(UsageError, match="ALTER EXTENSION vector UPDATE"):
        migrations.upgrade(empty_database)


def test_an_old_server_is_refused_in_one_sentence(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "POSTGRES_FLOOR", 99)
    with pytest.raises(
        UsageError, match=r"^the database server is PostgreSQL \d+, but 99 or newer is needed"
    ) as refused:
        migrations.upgrade(empty_database)
    assert "\n" not in str(refused.value)
    assert migrations.current(empty_database) is None


def test_a_database_that_is_away_is_said_so() -> None:
    with socket.socket() as reserved:  # bound, but nobody listens
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        with pytest.raises(ServiceUnavailable, match="database:"):
            migrations.upgrade(f"postgresql+psycopg://nobody:none@127.0.0.1:{port}/none")


def _oid(connection: Connection, table: str) -> int:
    return int(connection.execute(text("SELECT CAST(:name AS regclass)::oid"), {"name": table}).scalar_one())
