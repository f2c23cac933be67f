"""Engines and transactions (docs/reliability.md D10)."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Concatenate, ParamSpec, TypeVar

from psycopg import OperationalError as DriverError
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from ragllava.errors import ServiceUnavailable

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

_ATTEMPTS = 6
_FIRST_DELAY_S = 0.2
_REST_S = 1.0  # a pooled connection that was used since is taken for alive


def make_engine(url: str, *, pool_size: int = 3, statement_timeout_s: float = 30.0, name: str = "ragllava") -> Engine:
    """One engine for this process; make it after fork or spawn, never before.

    Every connection has a statement timeout, a limit on idle transactions, a lock timeout and TCP keepalives, so
    that neither a lost peer nor a forgotten transaction blocks the others for long.
    """
    options = (
        f"-c statement_timeout={int(statement_timeout_s * 1000)} "
        "-c idle_in_transaction_session_timeout=60000 -c lock_timeout=5000 -c timezone=UTC "
        "-c jit=off"  # our statements are short; compiling an exact search takes longer than running it
    )
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=2,
        connect_args={
            "connect_timeout": 5,
            "application_name": name,
            "options": options,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "target_session_attrs": "read-write",
        },
    )
    _ping_after_rest(engine)
    return engine


def _ping_after_rest(engine: Engine) -> None:
    """Try a pooled connection before its use when it has rested: SQLAlchemy's own ping costs an exchange each time.

    One that breaks right after its last use is noticed by `in_transaction`, like one that breaks during its use.
    """

    def note(_connection: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
        record.info["rests_since"] = time.monotonic()

    def ping(connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: PoolProxiedConnection) -> None:
        if time.monotonic() - record.info.get("rests_since", math.inf) < _REST_S:
            return
        try:
            engine.dialect.do_ping(connection)
        except DriverError as error:
            raise InvalidatePoolError from error

    event.listen(engine, "checkin", note)
    event.listen(engine, "checkout", ping)


def in_transaction(
    engine: Engine, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run `work(connection, *args, **kwargs)` in one transaction, again from its start if the connection broke before
    the commit.

    `work` must be a pure function of the database: it may run several times, and it is committed once, except
    when the connection breaks during the commit itself; so writes must be keyed or fenced. Raises
    ServiceUnavailable when the database stays away for about twelve seconds.
    """
    return _persistently(engine.begin, work, *args, **kwargs)


def read_at_once(engine: Engine, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `in_transaction`, for work that only reads: without BEGIN and COMMIT, which cost as much as a statement each.

    Every statement of `work` sees what was committed when it began, and `SET LOCAL` has no effect.
    """
    return _persistently(engine.execution_options(isolation_level="AUTOCOMMIT").connect, work, *args, **kwargs)


def _persistently(
    connect: Callable[[], AbstractContextManager[Connection]],
    work: Callable[Concatenate[Connection, P], T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    delay_s = _FIRST_DELAY_S
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with connect() as connection:
                return work(connection, *args, **kwargs)
        except (OperationalError, InterfaceError, DriverError) as error:  # a COPY raises the driver's own
            if not _is_connection_trouble(error) or attempt == _ATTEMPTS:
                raise ServiceUnavailable(f"database: {_first_line(error)}") from error
            log.info("database away, trying again", extra={"action": "db_retry", "attempt": attempt})
            time.sleep(delay_s * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, no secret
            delay_s *= 2
    raise AssertionError("unreachable")


def _is_connection_trouble(error: DBAPIError | DriverError) -> bool:
    # OperationalError covers a lost connection, a restart, a deadlock and a lock timeout: all pass with time.
    return isinstance(error, OperationalError | DriverError) or error.connection_invalidated


def _first_line(error: DBAPIError | DriverError) -> str:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return str(cause).strip().split("\n")[0]


@contextmanager
def outside_transaction(engine: Engine) -> Iterator[Connection]:
    """A connection of its own for statements that no transaction may hold (VACUUM), without timeouts.

    It is closed afterwards, not given back, so that what was set on it ends with it.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.detach()
        for setting in ("statement_timeout", "lock_timeout"):
            connection.execute(text(f"SET {setting} = 0"))
        yield connection
