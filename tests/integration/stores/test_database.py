"""Transactions, reads without one, connections that break, rows as records, and values as rows."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, make_url, select, text

from ragllava.errors import ServiceUnavailable
from ragllava.local.postgres import PostgresService
from ragllava.settings import Settings
from ragllava.source_files import FileStatus
from ragllava.stores import database, sessions
from ragllava.stores.database import (
    given,
    in_transaction,
    make_engine,
    outside_transaction,
    read_at_once,
    record,
    records,
)
from ragllava.stores.schema import files
from ragllava.stores.sessions import allow_statements
from tests.chaos.proxy import Proxy
from tests.support import cut_commits
from tests.support.waiting import wait_for

Run = Callable[[Engine, Callable[[Connection], object]], object]


def two_moments(connection: Connection) -> tuple[object, object]:
    """When the transactions of two statements began."""
    return connection.scalar(text("SELECT now()")), connection.scalar(text("SELECT now()"))


def test_reads_have_no_transaction_and_the_next_work_has_one_again(engine: Engine) -> None:
    for _ in range(2):
        first, second = read_at_once(engine, two_moments)
        assert first != second
        first, second = in_transaction(engine, two_moments)
        assert first == second


@pytest.mark.parametrize("run", [in_transaction, read_at_once])
def test_work_is_repeated_when_its_connection_breaks(engine: Engine, run: Run) -> None:
    servers: list[int] = []

    def work(connection: Connection) -> int:
        servers.append(int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one()))
        if len(servers) == 1:
            connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return len(servers)

    assert run(engine, work) == 2
    assert servers[0] != servers[1]


@pytest.mark.parametrize("way", [cut_commits.after, cut_commits.before, cut_commits.silently])
def test_work_is_committed_once_when_its_connection_breaks_at_the_commit(
    engine: Engine, way: Callable[..., None]
) -> None:
    def work(connection: Connection) -> str:
        connection.execute(text("INSERT INTO change_event_totals (name, number) VALUES (gen_random_uuid()::text, 1)"))
        return "done"

    with cut_commits.cut(engine, way) as cuts:
        assert in_transaction(engine, work) == "done"
    assert cuts
    with engine.begin() as connection:
        assert connection.scalar(text("SELECT count(*) FROM change_event_totals")) == 1


def is_gone(engine: Engine, server: int) -> bool:
    """Whether the server process of a connection has ended."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        return connection.scalar(text("SELECT 1 FROM pg_stat_activity WHERE pid = :pid"), {"pid": server}) is None


def test_work_is_repeated_when_its_transaction_was_idle_for_too_long(engine: Engine) -> None:
    servers: list[int] = []

    def work(connection: Connection) -> int:
        servers.append(int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one()))
        if len(servers) == 1:  # as a process that was frozen
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 100"))
            wait_for("the server to end the session", lambda: is_gone(engine, servers[0]), 60)
        return int(connection.execute(text("SELECT 7")).scalar_one())

    assert in_transaction(engine, work) == 7
    assert len(set(servers)) == 2


def test_a_client_that_is_gone_ends_its_statement(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_CLIENT_CHECK_S", 0.2)
    killed = make_engine(settings.require_database(), statement_timeout_s=300)
    with killed.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        server = int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
        driver.pgconn.send_query(b"SELECT pg_sleep(300)")
        driver.pgconn.flush()
        os.dup2(os.open(os.devnull, os.O_RDWR), driver.fileno())  # as the death of the process closes it
        wait_for("the server to end the session", lambda: is_gone(engine, server), 60)
        connection.invalidate()
    killed.dispose()


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder with a path that is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="ragllava-tests-") as name:
        yield Path(name)


@pytest.mark.parametrize("run", [in_transaction, read_at_once])
def test_a_connection_on_which_nothing_arrives_is_replaced(settings: Settings, run: Run, sockets: Path) -> None:
    url = make_url(settings.require_database())
    server = Path(str(url.query["host"])) / PostgresService.socket_name
    with closing(Proxy(sockets / server.name, server)) as proxy:
        engine = make_engine(url.update_query_dict({"host": str(sockets)}).render_as_string(hide_password=False))
        limits: list[float | None] = []
        results: list[object] = []

        def work(connection: Connection) -> int:
            session = sessions.session_of(connection)
            limits.append(session.most_silent_s)
            if len(limits) == 1:
                # Of this session alone: on a slow machine the next one may need the usual time.
                session.most_silent_s = 1.0
                proxy.silence()
                proxy.heal(half_open=True)
            return int(connection.execute(text("SELECT 7")).scalar_one())

        threading.Thread(target=lambda: results.append(run(engine, work)), daemon=True).start()
        wait_for("the result", lambda: bool(results))
        engine.dispose()
    assert results == [7] and limits == [40.0, 40.0], "the timeout of statements, and ten seconds"


@pytest.fixture
def short_engine(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine whose statements may take a second, and whose server may be silent for two."""
    monkeypatch.setattr(sessions, "_REPLY_MARGIN_S", 1.0)
    engine = make_engine(settings.require_database(), statement_timeout_s=1.0)
    yield engine
    engine.dispose()


def test_work_that_may_take_long_is_not_given_up(short_engine: Engine) -> None:
    engine = short_engine

    def sleep(connection: Connection, allowed_s: float | None) -> str:
        if allowed_s is not None:
            allow_statements(connection, allowed_s)
        connection.execute(text("SELECT pg_sleep(2.2)"))
        return "slept"

    assert in_transaction(engine, sleep, 60.0) == "slept"
    with pytest.raises(ServiceUnavailable, match="statement timeout"):
        in_transaction(engine, sleep, None)  # the limits of the next transaction are the usual ones
    with outside_transaction(engine) as connection:
        connection.execute(text("SELECT pg_sleep(2.2)"))
    with engine.connect() as connection:
        session = connection.connection.driver_connection
        assert isinstance(session, sessions.Session) and session.most_silent_s == 2.0


def test_a_statement_that_takes_too_long_is_not_repeated(engine: Engine) -> None:
    attempts: list[int] = []

    def work(connection: Connection) -> None:
        attempts.append(1)
        connection.execute(text("SET LOCAL statement_timeout = 200"))
        connection.execute(text("SELECT pg_sleep(60)"))

    with pytest.raises(ServiceUnavailable, match="statement timeout"):
        in_transaction(engine, work)
    assert len(attempts) == 1


@pytest.mark.parametrize("idle_s", [0.0, 60.0])  # pinged before its use or not
def test_a_connection_that_broke_in_the_pool_is_replaced(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, idle_s: float
) -> None:
    monkeypatch.setattr(database, "_IDLE_S", idle_s)
    with engine.begin() as first, engine.begin() as second:
        servers = [connection.scalar(text("SELECT pg_backend_pid()")) for connection in (first, second)]
    with outside_transaction(engine) as connection:
        condition = "pid = ANY(:pids) AND pid <> pg_backend_pid()"
        end = text(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {condition}")
        assert connection.scalars(end, {"pids": servers}).all() == [True]
    server = in_transaction(engine, lambda connection: connection.scalar(text("SELECT pg_backend_pid()")))
    assert server not in servers


def test_a_plan_for_an_empty_table_is_not_kept(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = make_engine(settings.require_database_owner())
    query = text("SELECT kind FROM jobs WHERE id = :id")

    def rows_read(connection: Connection) -> int:
        read = text("SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'jobs'")
        before = connection.execute(read).scalar_one()  # of transactions that are not counted yet
        connection.execute(query, {"id": 7})
        return int(connection.execute(read).scalar_one() - before)

    with outside_transaction(elsewhere) as connection:
        connection.execute(text("ALTER TABLE jobs SET (autovacuum_enabled = off)"))
        connection.execute(text("VACUUM jobs"))  # known to be empty
    for _ in range(20):
        assert in_transaction(engine, rows_read) == 0
    with elsewhere.begin() as connection:
        connection.execute(
            text("""
                INSERT INTO jobs (kind, state, spec, total, spec_digest)
                SELECT 'answer', 'running', '{}', 1, '' FROM generate_series(1, 1000)
            """)
        )
    assert in_transaction(engine, rows_read) == 1000
    elsewhere.dispose()
    monkeypatch.setattr(database, "_PLANS_KEPT_S", -1.0)
    assert in_transaction(engine, rows_read) == 0


@dataclass(frozen=True, slots=True)
class Outcome:
    file_no: int
    status: FileStatus | None
    image_ids: tuple[int, ...]
    source: str = "?"


def test_rows_become_records_by_the_names_of_their_columns(engine: Engine) -> None:
    query = text("""
        SELECT ARRAY[7, 9] AS image_ids, status, file_no, 1 AS unused
        FROM (VALUES (0, 'stored'), (1, NULL)) AS listed (file_no, status)
    """)
    with engine.begin() as connection:
        rows = connection.execute(query).all()
    assert records(Outcome, rows) == [Outcome(0, FileStatus.STORED, (7, 9)), Outcome(1, None, (7, 9))]
    assert record(Outcome, rows[1], status="dead", source="a.png") == Outcome(1, FileStatus.DEAD, (7, 9), "a.png")


def test_a_row_without_a_field_or_with_an_unknown_status_is_no_record(engine: Engine) -> None:
    with engine.begin() as connection:
        row = connection.execute(text("SELECT 3 AS file_no, 'eaten' AS status")).one()
    with pytest.raises(ValueError, match="not a Outcome: image_ids: Field required"):
        record(Outcome, row, status=None)
    with pytest.raises(ValueError, match="not a Outcome: status"):
        record(Outcome, row, image_ids=[])


@pytest.mark.parametrize("rows", [[], [(1, None)], [(1, FileStatus.DEAD), (2, FileStatus.STORED), (2, None)]])
def test_given_values_are_rows_of_a_table(engine: Engine, rows: list[tuple[int, FileStatus | None]]) -> None:
    listed = given(iter(rows), files.c.file_no, files.c.status)
    with engine.begin() as connection:
        assert connection.execute(select(listed)).all() == rows
