"""Transactions, reads without one, and connections that break."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Connection, Engine, text

from ragllava.stores import database
from ragllava.stores.database import in_transaction, outside_transaction, read_at_once

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
