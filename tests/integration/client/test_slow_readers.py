"""A program that takes its time over each result."""

from __future__ import annotations

import time
from contextlib import closing

import pytest
from sqlalchemy import Engine

from ragllava.client import Client
from ragllava.settings import Settings
from ragllava.stages.results import finalize
from ragllava.stores import sessions
from tests.support.job_rows import Desk


def test_a_reader_may_pause_longer_than_a_transaction(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_IDLE_TRANSACTION_S", 1)
    monkeypatch.setattr(finalize, "_PAGE", 1)
    desk = Desk(engine, settings)
    desk.live_worker()
    job_id = desk.questions_job(3, per_shard=3)
    desk.drain()
    with closing(Client(settings)) as client:
        rows = client.questions.results(job_id)
        first = next(rows)
        time.sleep(1.5)  # the server would have ended an idle transaction
        assert [row.custom_id for row in (first, *rows)] == ["q0", "q1", "q2"]
