"""Sessions of the database: the limits that both sides set to them, so that no lost peer holds anything for long
(docs/reliability.md D10)."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import psycopg
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
from sqlalchemy.pool import ConnectionPoolEntry

T = TypeVar("T")

OWNER = "ragllava.owner"  # a setting of the session: who queues the jobs that are made in it
OPEN_JOBS = "ragllava.open_jobs"  # how many of these may be open; empty or 0: any number

# A transaction that does nothing for so long belongs to a process that is frozen or gone, and may hold the row of a
# shard. No transaction of ours waits for anything but the database.
_IDLE_TRANSACTION_S = 20
_LOST_PEER_S = 20  # for a peer that acknowledges nothing
_CLIENT_CHECK_S = 5.0  # how often the server looks, during a statement, whether its client is still there
# The server ends a statement at the statement timeout. If nothing has arrived so long after that, the server is frozen,
# or a network acknowledges everything and delivers nothing.
_REPLY_MARGIN_S = 10.0
_PING_S = 5.0  # a server that answers at all answers a ping within this time
_WAIT_INTERVAL_S = 0.1


def options(name: str, statement_timeout_s: float, owner: str) -> dict[str, Any]:
    """The parameters of a connection, with settings of the server for its session; `owner` is stored with the jobs
    that are made in it."""
    server = {
        "statement_timeout": int(statement_timeout_s * 1000),
        "idle_in_transaction_session_timeout": _IDLE_TRANSACTION_S * 1000,
        "lock_timeout": 5000,
        "tcp_keepalives_idle": _LOST_PEER_S // 2,
        "tcp_keepalives_interval": _LOST_PEER_S // 4,
        "tcp_keepalives_count": 2,
        "tcp_user_timeout": _LOST_PEER_S * 1000,
        "client_connection_check_interval": int(_CLIENT_CHECK_S * 1000),
        "timezone": "UTC",
        "jit": "off",  # statements are short; compiling an exact search takes longer than running it
        OWNER: _escaped(owner),
    }
    return {
        "connect_timeout": 5,
        "application_name": name,
        "options": " ".join(f"-c {setting}={value}" for setting, value in server.items()),
        "keepalives_idle": _LOST_PEER_S // 2,
        "keepalives_interval": _LOST_PEER_S // 4,
        "keepalives_count": 2,
        "tcp_user_timeout": _LOST_PEER_S * 1000,
        "target_session_attrs": "read-write",
    }


def _escaped(value: str) -> str:
    """A value within libpq's `options`, where white space ends one and a backslash escapes."""
    return re.sub(r"([\\\s])", r"\\\1", value)


class Session(psycopg.Connection[Any]):
    """A connection that breaks when the server is silent for longer than `most_silent_s`; None: never.

    A server that is frozen keeps its connections open, and its system acknowledges what is sent: no keepalive notices.
    """

    most_silent_s: float | None = None

    def wait(  # type: ignore[override]  # `timeout` is not in every psycopg 3.3
        self, gen: Any, interval: float = _WAIT_INTERVAL_S, **limits: Any
    ) -> Any:
        """As psycopg's, which knows no limit, or (`limits`) only one of the whole operation."""
        if self.most_silent_s is not None and not limits:
            gen = self._within(gen, self.most_silent_s)
        return super().wait(gen, interval, **limits)

    def _within(self, gen: Generator[Any, Any, T], most_silent_s: float) -> Generator[Any, Any, T]:
        """The steps of `gen`, which gets 0 after each interval without data."""
        heard_at = time.monotonic()
        try:
            step = next(gen)
            while True:
                ready = yield step
                if ready:
                    heard_at = time.monotonic()
                elif time.monotonic() - heard_at > most_silent_s:
                    self.close()
                    raise psycopg.OperationalError(f"the server did not answer for {most_silent_s:g} s")
                step = gen.send(ready)
        except StopIteration as end:
            return cast("T", end.value)


def limit_silence(engine: Engine, statement_timeout_s: float) -> None:
    """Make the engine's connections sessions that give a silent server up; a transaction may raise the limit
    (`allow_statements`)."""
    most_silent_s = statement_timeout_s + _REPLY_MARGIN_S

    def on_connect(_dialect: Dialect, _record: ConnectionPoolEntry, args: list[Any], options: dict[str, Any]) -> Any:
        session = Session.connect(*args, **options)
        session.most_silent_s = most_silent_s
        return session

    def on_checkin(connection: DBAPIConnection | None, _record: ConnectionPoolEntry) -> None:
        if connection is not None:
            cast("Session", connection).most_silent_s = most_silent_s

    event.listen(engine, "do_connect", on_connect)
    event.listen(engine, "checkin", on_checkin)


def allow_statements(connection: Connection, most_s: float) -> None:
    """Let each statement of this transaction take so many seconds."""
    connection.execute(text(f"SET LOCAL statement_timeout = {int(most_s * 1000)}"))
    session_of(connection).most_silent_s = most_s + _REPLY_MARGIN_S


@contextmanager
def answering_at_once(connection: DBAPIConnection) -> Iterator[None]:
    """A block of statements that take no time: a ping, for example."""
    session = cast("Session", connection)
    usual_s, session.most_silent_s = session.most_silent_s, _PING_S
    try:
        yield
    finally:
        session.most_silent_s = usual_s


def session_of(connection: Connection) -> Session:
    """The session of a connection."""
    return cast("Session", connection.connection.dbapi_connection)
