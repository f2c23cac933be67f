"""A program that takes its time over each result."""

from __future__ import annotations

from contextlib import closing

import pytest
from sqlalchemy import Engine, text

from ragllava.client import Client
from ragllava.settings import Settings
from ragllava.stages.results import finalize
from ragllava.stores.jobs import answers
from tests.support.job_rows import Desk, without_ticks

# The server ends transactions that are idle for too long. This ends them at once.
END_IDLE_TRANSACTIONS = text("""
    SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity
    WHERE datname = current_database() AND state LIKE 'idle in transaction%'
""")


def test_a_reader_may_pause_longer_than_a_transaction(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (answers, finalize):
        monkeypatch.setattr(module, "_PAGE", 1)
    desk = Desk(engine, without_ticks(settings))
    desk.live_worker()
    job_id = desk.questions_job(3, per_shard=3)
    desk.drain()
    with closing(Client(settings)) as client:
        rows = client.questions.results(job_id)
        first = next(rows)
        with engine.begin() as connection:
            connection.execute(END_IDLE_TRANSACTIONS)
        assert [row.custom_id for row in (first, *rows)] == ["q0", "q1", "q2"]
