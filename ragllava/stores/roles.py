"""The roles of the application. The plain role works with the data, and owns none of it but the vectors of indexes.

The owner, another role, makes the tables and changes them (`ragllava migrate`). The application can neither read files
of the server, run programs there, nor drop or change a table. Of the vectors, each index has a partition that the
application makes and drops while it runs, so it owns `embeddings`.

The role of the HTTP API owns nothing, and row-level security shows it the archives that a transaction states
(stores/access/policies.py). The plain role sees everything. The role for scaling calls one function and reads nothing.
"""

from __future__ import annotations

from typing import Any, cast

import psycopg
from psycopg import sql
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL

from ragllava.stores.access.policies import secure_tables

# MAINTAIN: VACUUM and ANALYZE. REFERENCES: a new partition of `embeddings` gets the foreign keys of its parent.
_RIGHTS = "SELECT, INSERT, UPDATE, DELETE, REFERENCES, MAINTAIN"


_SCALE_TIMEOUT_S = 5


def ensure_role(connection: Connection, url: URL) -> None:
    """Make the role that `url` names, with its password, unless it exists; `connection` belongs to the owner.

    An existing role keeps its password. Raises ProgrammingError when the role is missing and the owner may not make it.
    """
    role = str(url.username)
    if not _make_role(connection, url):
        return
    driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    if connection.scalar(text("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")):
        # The application sees which transactions keep VACUUM from its work, also those of other roles.
        grant = sql.SQL("GRANT pg_read_all_stats TO {}").format(sql.Identifier(role))
    else:
        # An owner that is no superuser gives tables only to roles of which it is a member.
        grant = sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(role))
    connection.exec_driver_sql(grant.as_string(driver))


def ensure_api_role(connection: Connection, url: URL) -> None:
    """As `ensure_role`, for the role of the HTTP API."""
    _make_role(connection, url)


def ensure_scale_role(connection: Connection, url: URL) -> None:
    """As `ensure_role`, for what starts and stops workers: it may call `ragllava_scale`, and reads no table itself.

    Call it after every migration.
    """
    role = connection.dialect.identifier_preparer.quote(str(url.username))
    if _make_role(connection, url):
        connection.execute(text(f"ALTER ROLE {role} SET default_transaction_read_only = on"))
        connection.execute(text(f"ALTER ROLE {role} SET statement_timeout = '{_SCALE_TIMEOUT_S}s'"))
    connection.execute(text(f"GRANT USAGE ON SCHEMA public TO {role}"))
    connection.execute(text(f"GRANT EXECUTE ON FUNCTION ragllava_scale TO {role}"))


def _make_role(connection: Connection, url: URL) -> bool:
    """Whether the role was missing."""
    role, password = str(url.username), str(url.password or "")
    if connection.scalar(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role}):
        return False
    driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    # The server's log may hold the statement, so it gets the hash.
    secret = driver.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), sql.Literal(secret))
    connection.exec_driver_sql(create.as_string(driver))
    return True


def admit(connection: Connection, role: str, api_role: str | None = None) -> None:
    """Give the application's role its rights on all tables of this database; `connection` belongs to their owner.

    The role of the HTTP API gets its own, if there is one. Call it after every migration. When the owner and the
    application are one role, nothing happens to that role.
    """
    if connection.scalar(text("SELECT current_user")) != role:
        _admit_plain(connection, role)
    secure_tables(connection, role, api_role)


def _admit_plain(connection: Connection, role: str) -> None:
    quote = connection.dialect.identifier_preparer.quote
    if connection.scalar(text("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")):
        # Row-level security shows it everything; without having to ask, COPY stays possible.
        connection.execute(text(f"ALTER ROLE {quote(role)} BYPASSRLS"))
    for statement in (
        f"GRANT USAGE, CREATE ON SCHEMA public TO {quote(role)}",
        f"GRANT {_RIGHTS} ON ALL TABLES IN SCHEMA public TO {quote(role)}",
        f"GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA public TO {quote(role)}",
        f"REVOKE INSERT, UPDATE, DELETE, MAINTAIN ON alembic_version FROM {quote(role)}",
    ):
        connection.execute(text(statement))
    tables = """
        SELECT relid::regclass::text FROM pg_partition_tree('embeddings') JOIN pg_class ON oid = relid
        WHERE pg_get_userbyid(relowner) <> :role
    """
    for table in connection.scalars(text(tables), {"role": role}).all():
        connection.execute(text(f"ALTER TABLE {table} OWNER TO {quote(role)}"))
