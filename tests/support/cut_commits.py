"""Connections to the database that break around a COMMIT, before or after it takes effect."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import Engine

_LOST = "server closed the connection unexpectedly"


@contextmanager
def cut(engine: Engine, way: Callable[[Any, Callable[[Any], None]], None]) -> Iterator[list[bool]]:
    """Cut the first commit of a transaction that has written; yields a list that holds True as soon as it was cut."""
    dialect = engine.dialect
    commit, cuts = dialect.do_commit, list[bool]()

    def do_commit(connection: Any) -> None:
        row = connection.execute("SELECT pg_current_xact_id_if_assigned() IS NOT NULL").fetchone()
        if cuts or row is None or not row[0]:
            commit(connection)
            return
        cuts.append(True)
        way(connection.driver_connection if hasattr(connection, "driver_connection") else connection, commit)
        raise psycopg.OperationalError(_LOST)

    dialect.do_commit = do_commit  # type: ignore[method-assign, assignment]
    try:
        yield cuts
    finally:
        dialect.do_commit = commit  # type: ignore[method-assign]


def after(connection: Any, commit: Callable[[Any], None]) -> None:
    """The commit takes effect, and its acknowledgement is lost."""
    commit(connection)
    connection.close()


def before(connection: Any, _commit: Callable[[Any], None]) -> None:
    """The commit never arrives; the server notices that its client is gone."""
    connection.close()


def silently(connection: Any, _commit: Callable[[Any], None]) -> None:
    """The commit never arrives, and the server does not notice: the transaction stays open."""
    os.dup(connection.fileno())  # the server's peer stays open as long as this process lives
    os.dup2(os.open(os.devnull, os.O_RDWR), connection.fileno())
    connection.close()
