"""The application's role in the database: it can work, and it can neither own, change nor leave the tables."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.pool import NullPool

import migrations
from ragllava.settings import Settings
from ragllava.stores.database import make_engine
from ragllava.stores.schema import metadata


@pytest.fixture
def application(settings: Settings) -> Iterator[Engine]:
    engine = make_engine(settings.require_database(), pool_size=1, name="application")
    yield engine
    engine.dispose()


@pytest.fixture(autouse=True)
def two_roles(settings: Settings) -> None:
    if settings.require_database() == settings.require_database_owner():
        pytest.skip("RAGLLAVA_DATABASE_URL names one role for everything")


def test_the_application_is_a_plain_role(application: Engine) -> None:
    rights = ("rolsuper", "rolcreatedb", "rolcreaterole", "rolreplication", "rolbypassrls")
    with application.connect() as connection:
        row = connection.execute(text(f"SELECT {', '.join(rights)} FROM pg_roles WHERE rolname = current_user")).one()
        owned = connection.scalars(
            text(
                "SELECT relname FROM pg_class WHERE pg_get_userbyid(relowner) = current_user AND relkind IN ('r', 'p')"
            )
        )
        assert list(row) == [False] * 4 + [True]  # row-level security is for the role of the HTTP API
        assert list(owned) == ["embeddings"]


@pytest.mark.parametrize(
    "statement",
    [
        "COPY jobs TO PROGRAM 'true'",
        "COPY jobs FROM '/etc/passwd'",
        "SELECT pg_read_file('postgresql.conf')",
        "SELECT pg_ls_dir('.')",
        "SELECT lo_import('/etc/passwd')",
        "CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'libc', 'getpid'",
        "ALTER SYSTEM SET fsync = off",
        "SELECT pg_reload_conf()",
        "CREATE ROLE another SUPERUSER",
        "ALTER ROLE CURRENT_USER SUPERUSER",
        "SET SESSION AUTHORIZATION ragllava",
        "CREATE DATABASE another",
        "SELECT rolpassword FROM pg_authid",
        "DROP TABLE jobs",
        "TRUNCATE answers",
        "ALTER TABLE images ADD COLUMN more text",
        "CREATE TRIGGER t BEFORE INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "UPDATE alembic_version SET version_num = '0001'",
    ],
)
def test_what_the_application_cannot_do(application: Engine, statement: str) -> None:
    alone = application.execution_options(isolation_level="AUTOCOMMIT")  # some cannot run in a transaction
    with alone.connect() as connection, pytest.raises(ProgrammingError, match=r"InsufficientPrivilege"):
        connection.execute(text(statement))


def test_the_application_can_use_every_table(application: Engine) -> None:
    with application.connect() as connection:
        for table in metadata.tables:
            for right in ("SELECT", "INSERT", "UPDATE", "DELETE", "MAINTAIN"):
                query = text("SELECT has_table_privilege(:table, :right)")
                assert connection.scalar(query, {"table": table, "right": right}), f"{right} on {table}"


def test_a_database_of_an_earlier_version_is_handed_over(services: Settings, settings: Settings) -> None:
    """Where everything belongs to one role, with partitions of indexes; a second migration changes nothing."""
    owner = create_engine(settings.require_database_owner(), poolclass=NullPool)
    application = make_url(settings.require_database())
    with owner.begin() as connection:
        connection.execute(text(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {application.username}"))
        connection.execute(text("ALTER TABLE embeddings OWNER TO CURRENT_USER"))
        connection.execute(text("CREATE TABLE embeddings_7 PARTITION OF embeddings FOR VALUES IN (7)"))
    for _ in range(2):
        migrations.upgrade(settings.require_database_owner(), application_url=settings.require_database())
        with create_engine(application, poolclass=NullPool).begin() as connection:
            assert connection.scalar(text("SELECT count(*) FROM jobs")) == 0
            assert connection.scalar(text("SELECT tableowner FROM pg_tables WHERE tablename = 'embeddings_7'")) == (
                application.username
            )


def test_an_owner_that_is_no_superuser_can_migrate(services: Settings) -> None:
    """As in a managed Postgres: the owner may make roles and databases, and no more."""
    server = create_engine(services.require_database_owner(), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    url = make_url(services.require_database_owner())
    owner = url.set(username="managed_owner", password="a:b@c", database="managed")
    application = owner.set(username="managed_app", password="d/e%f")
    scale = owner.set(username="managed_scale", password="s")
    drops = ["DROP DATABASE IF EXISTS managed"]
    drops += [f"DROP ROLE IF EXISTS managed_{role}" for role in ("app", "scale", "owner")]
    with server.connect() as connection:
        for statement in (*drops, "CREATE ROLE managed_owner LOGIN CREATEROLE CREATEDB PASSWORD 'a:b@c'"):
            connection.execute(text(statement.replace(":", r"\:")))
        connection.execute(text("CREATE DATABASE managed OWNER managed_owner TEMPLATE template0"))
        try:
            with create_engine(url.set(database="managed"), poolclass=NullPool).begin() as admin:
                admin.execute(text("CREATE EXTENSION vector"))
            addresses = [address.render_as_string(hide_password=False) for address in (owner, application, scale)]
            for _ in range(2):
                migrations.upgrade(addresses[0], application_url=addresses[1], scale_url=addresses[2])
            with create_engine(addresses[2], poolclass=NullPool).begin() as scaler:
                assert scaler.scalar(text("SELECT ragllava_scale('query')")) == 0
            with create_engine(addresses[1], poolclass=NullPool).begin() as plain:
                assert plain.scalar(text("SELECT count(*) FROM images")) == 0
            migrations.downgrade(addresses[0], "base")
        finally:
            for statement in drops:
                connection.execute(text(statement))
