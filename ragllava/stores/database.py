"""Engines, transactions (docs/reliability.md D10), records as parameters of statements, and rows as records."""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import islice
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import psycopg
from psycopg import OperationalError as DriverError
from psycopg import sql
from psycopg.errors import IdleInTransactionSessionTimeout, QueryCanceled
from sqlalchemy import (
    ARRAY,
    Column,
    ColumnElement,
    Connection,
    Engine,
    FromClause,
    Interval,
    Row,
    Table,
    TableValuedAlias,
    and_,
    any_,
    create_engine,
    event,
    func,
    literal,
    select,
    text,
)
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from ragllava.errors import ServiceUnavailable
from ragllava.json_records import from_json
from ragllava.stores import sessions

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

_ATTEMPTS = 6
_FIRST_DELAY_S = 0.2
_ROWS_PER_COPY = 5_000  # each COPY is a statement, and must end before the statement timeout
_IDLE_S = 1.0  # a pooled connection that was used more recently is considered alive
# The server keeps the plans of statements that a session repeats. One for an empty table reads it from its beginning to
# its end, and stays in use when the table has a million rows, until the next VACUUM or ANALYZE.
_PLANS_KEPT_S = 60.0


TRANSACTIONS_ONLY = "ragllava_transactions_only"  # an option of engines: each statement has to be in a transaction


def make_engine(
    url: str, *, pool_size: int = 3, statement_timeout_s: float = 30.0, name: str = "ragllava", owner: str = ""
) -> Engine:
    """One engine for this process; create it after fork or spawn, never before.

    `owner` is stored with the jobs that are made through it.

    Every connection has a statement timeout, a limit on idle transactions, a lock timeout and TCP keepalives on both
    sides, so that neither a lost peer nor an abandoned transaction blocks the others for long; and one that stays
    silent for longer than a statement may take is broken.
    """
    engine = create_engine(
        url, pool_size=pool_size, max_overflow=2, connect_args=sessions.options(name, statement_timeout_s, owner)
    )
    sessions.limit_silence(engine, statement_timeout_s)
    _refresh_connections(engine)
    return engine


def _refresh_connections(engine: Engine) -> None:
    """Before a pooled connection is used: discard old plans, and ping it if it was idle. SQLAlchemy's own ping costs a
    round trip each time.

    A connection that breaks right after its last use is handled by `in_transaction`, as one that breaks during its use.
    """

    def on_checkin(_connection: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
        record.info["idle_since"] = time.monotonic()

    def on_checkout(connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: PoolProxiedConnection) -> None:
        now = time.monotonic()
        try:
            with sessions.answering_at_once(connection):
                if now - record.info.setdefault("planned_since", now) > _PLANS_KEPT_S:
                    _discard_plans(connection)
                    record.info["planned_since"] = now
                elif now - record.info.get("idle_since", math.inf) >= _IDLE_S:
                    engine.dialect.do_ping(connection)
        except DriverError as error:
            raise InvalidatePoolError from error

    event.listen(engine, "checkin", on_checkin)
    event.listen(engine, "checkout", on_checkout)


def _discard_plans(connection: DBAPIConnection) -> None:
    driver = cast("psycopg.Connection[Any]", connection)
    autocommit, driver.autocommit = driver.autocommit, True
    driver.execute("DISCARD PLANS")
    driver.autocommit = autocommit


def in_transaction(
    engine: Engine, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run `work(connection, *args, **kwargs)` in one transaction; repeat it if the connection broke before the commit.

    `work` must depend on the database only: it may run several times. It is committed exactly once, also when the
    connection breaks during the commit: the server then says whether it took effect. Raises ServiceUnavailable when the
    database stays unavailable for about twelve seconds, and when a statement takes too long.
    """

    def attempt() -> T:
        with engine.connect() as connection:
            result = work(connection, *args, **kwargs)
            transaction = connection.scalar(_ASSIGNED)
            try:
                connection.commit()
            except _OF_SERVICE:
                if transaction is None or not _with_retries(lambda: _is_committed(engine, transaction)):
                    raise
            return result

    return _with_retries(attempt)


# OperationalError covers a lost connection, a restart, a deadlock and a lock timeout: all are transient.
_LOST = (DriverError, IdleInTransactionSessionTimeout)  # a COPY raises the driver's own
_OF_SERVICE = (OperationalError, InterfaceError, *_LOST)
_ASSIGNED = text("SELECT CAST(pg_current_xact_id_if_assigned() AS text)")
_STATUS = text("SELECT pg_xact_status(CAST(:id AS xid8))")
# The server has not noticed yet that the client of the transaction is gone.
_END_SESSION = text("""
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE backend_xid = CAST(CAST(:id AS xid8) AS xid)
""")


def _is_committed(engine: Engine, transaction: str) -> bool:
    """Whether a transaction whose connection broke was committed; if it is still open, it is ended first."""
    values = {"id": transaction}
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if connection.scalar(_STATUS, values) == "in progress":
            connection.execute(_END_SESSION, values)
        status = connection.scalar(_STATUS, values)
    if status == "in progress":
        raise ServiceUnavailable("database: the connection broke during a commit, of which the end is unknown")
    return bool(status == "committed")


def read_at_once(engine: Engine, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `in_transaction`, for work that only reads: without BEGIN and COMMIT, which cost a round trip each.

    Every statement of `work` sees what was committed when it began, and `SET LOCAL` has no effect. An engine of the
    HTTP API has no such connections, because its transactions state what they may see.
    """
    if engine.get_execution_options().get(TRANSACTIONS_ONLY):
        return in_transaction(engine, work, *args, **kwargs)

    def attempt() -> T:
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            return work(connection, *args, **kwargs)

    return _with_retries(attempt)


def read_quickly(engine: Engine, statement_timeout_s: float, work: Callable[[Connection], T]) -> T:
    """Run `work`, which only reads, once in one transaction whose statements may take so long.

    For a look that is repeated anyway: raises ServiceUnavailable at the first error of the database.
    """
    try:
        with engine.connect() as connection:
            sessions.allow_statements(connection, statement_timeout_s)
            return work(connection)
    except (SQLAlchemyError, *_LOST) as error:
        raise _unavailable(error) from error


def _with_retries(run: Callable[[], T]) -> T:
    delay_s = _FIRST_DELAY_S
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return run()
        except (DBAPIError, *_LOST) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            is_lost = isinstance(error, DBAPIError) and error.connection_invalidated
            is_transient = is_lost or isinstance(error, OperationalError) or isinstance(cause, _LOST)
            if not is_transient and not isinstance(error, InterfaceError):
                raise
            # A statement that took too long would take as long again.
            if not is_transient or isinstance(cause, QueryCanceled) or attempt == _ATTEMPTS:
                raise _unavailable(error) from error
            log.info("database unavailable, retrying", extra={"action": "db_retry", "attempt": attempt})
            time.sleep(delay_s * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, not a secret
            delay_s *= 2
    raise AssertionError("unreachable")


def _unavailable(error: Exception) -> ServiceUnavailable:
    cause = error.orig if isinstance(error, DBAPIError) else error
    first_line = str(cause).strip().split("\n")[0]
    return ServiceUnavailable(f"database: {first_line}")


@contextmanager
def outside_transaction(engine: Engine) -> Iterator[Connection]:
    """A separate connection for statements that cannot run in a transaction (VACUUM), without timeouts.

    It is closed afterwards and not returned to the pool, so its settings, temporary tables and advisory locks end with
    it. Raises ServiceUnavailable when the connection breaks.
    """
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.detach()
            sessions.session_of(connection).most_silent_s = None
            for setting in ("statement_timeout", "lock_timeout"):
                connection.execute(text(f"SET {setting} = 0"))
            try:
                yield connection
            finally:
                # Postgres ends a session some moments after it was closed: too late for whoever wants a lock of it next
                # and does not wait. Where the session is broken, its locks are gone.
                with suppress(SQLAlchemyError):
                    connection.execute(text("SELECT pg_advisory_unlock_all()"))
    except _OF_SERVICE as error:
        raise _unavailable(error) from error


@contextmanager
def locked_outside(engine: Engine, kind: str, name: object, *, wait: bool) -> Iterator[bool]:
    """Keep the lock of this kind and name during the block, which has transactions of its own; whether it is held.

    Without `wait` it is not held if another process has it. Raises ServiceUnavailable.
    """
    with outside_transaction(engine) as session:
        keys = func.hashtext(kind), func.hashtext(str(name))
        is_held = wait or session.scalar(select(func.pg_try_advisory_lock(*keys)))
        if wait:
            session.execute(select(func.pg_advisory_lock(*keys)))
        yield bool(is_held)


def equals_any(column: ColumnElement[Any], values: Iterable[object]) -> ColumnElement[bool]:
    """The condition `column = ANY(values)`: one parameter, so one statement text, for any number of values."""
    return column == any_(literal(list(values), ARRAY(column.type)))


def seconds(value: float) -> ColumnElement[timedelta]:
    """An SQL interval of so many seconds."""
    return func.make_interval(0, 0, 0, 0, 0, 0, value, type_=Interval)


def given(rows: Iterable[Sequence[Any]], *columns: Column[Any]) -> TableValuedAlias:
    """Rows of values as a table with the names and types of these columns: one statement text for any number of rows.

    `columns` may belong to several tables, as long as their names differ.
    """
    values = list(zip(*rows, strict=True)) or [()] * len(columns)
    arrays = [literal(list(array), ARRAY(column.type)) for array, column in zip(values, columns, strict=True)]
    listed = func.unnest(*arrays).table_valued(*(Column(column.name, column.type) for column in columns))
    return listed.render_derived(name="given")


def same(left: FromClause, right: FromClause, *names: str) -> ColumnElement[bool]:
    """The condition that two tables agree in the columns with these names."""
    return and_(*(left.c[name] == right.c[name] for name in names))


def record(form: type[T], row: Row[Any], **fields: Any) -> T:
    """The row as a record of the dataclass `form`: the columns are its fields by name, except those in `fields`.

    Enums are made of their values, and tuples of arrays. Columns that `form` does not have are left out. Raises
    ValueError when a field is missing or does not fit.
    """
    return from_json(form, {**row._mapping, **fields})


def records(form: type[T], rows: Iterable[Row[Any]]) -> list[T]:
    """Each row as a record, in the same order."""
    return [record(form, row) for row in rows]


def lock_name(connection: Connection, kind: str, name: object) -> None:
    """Wait for the lock of this kind and name, and keep it until the end of the transaction; no row has to exist."""
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(kind), func.hashtext(str(name)))))


def lock_rows(connection: Connection, table: Table, *conditions: ColumnElement[bool], key_share: bool = False) -> None:
    """Lock the rows that meet the conditions in the order of their primary key, until the end of the transaction.

    Call it before a statement that changes several rows which other transactions change too: such a statement locks
    them in an order of its own, and two of them may wait for each other. `key_share`: rows that refer to them may be
    inserted meanwhile.
    """
    key = list(table.primary_key)
    query = select(*key).where(*conditions).order_by(*key)
    connection.execute(query.with_for_update(of=table, key_share=key_share))


def copy_rows(connection: Connection, table: Table, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    """COPY any number of rows into a table, within the caller's transaction; returns how many there were.

    Under row-level security, where Postgres allows no COPY, the rows are inserted.
    """
    if _is_row_security_active(connection, table):
        return _insert_rows(connection, table, columns, rows)
    driver = cast("psycopg.Connection[Any]", connection.connection.dbapi_connection)
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.name), names)
    remaining, count = iter(rows), 0
    while chunk := list(islice(remaining, _ROWS_PER_COPY)):
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            for row in chunk:
                copy.write_row(row)
        count += len(chunk)
    return count


def _is_row_security_active(connection: Connection, table: Table) -> bool:
    """Asked once for each connection and table."""
    known = connection.info.setdefault("row_security", {})
    if table.name not in known:
        active = text("SELECT row_security_active(CAST(:name AS text))")
        known[table.name] = bool(connection.scalar(active, {"name": table.name}))
    return bool(known[table.name])


def _insert_rows(connection: Connection, table: Table, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    """One statement for some thousand rows: their values travel as text, as in a COPY."""
    types = [table.c[name].type.compile(connection.dialect) for name in columns]
    names = ", ".join(map(connection.dialect.identifier_preparer.quote, columns))
    cells = ", ".join(f"CAST(c{number} AS {kind})" for number, kind in enumerate(types))
    arrays = ", ".join(f"CAST(:c{number} AS text[])" for number in range(len(columns)))
    listed = ", ".join(f"c{number}" for number in range(len(columns)))
    insert = f"INSERT INTO {table.name} ({names}) SELECT {cells} FROM unnest({arrays}) AS given ({listed})"  # noqa: S608
    remaining, count = iter(rows), 0
    while chunk := list(islice(remaining, _ROWS_PER_COPY)):
        values = {f"c{number}": [_as_text(row[number]) for row in chunk] for number in range(len(columns))}
        connection.execute(text(insert), values)
        count += len(chunk)
    return count


def _as_text(value: Any) -> str | None:
    if isinstance(value, dict | list):
        return json.dumps(value)
    return None if value is None else str(value)
