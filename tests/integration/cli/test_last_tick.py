"""`ragllava doctor` on a database whose ticks have ended."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from ragllava.cli.doctor import Finding, diagnose
from ragllava.settings import Settings
from ragllava.stores.database import in_transaction
from ragllava.stores.maintenance import ticks
from tests.conftest import environment_of
from tests.support.job_rows import Desk


def last_tick() -> Finding:
    return next(finding for finding in diagnose().findings if finding.name == "last tick")


def test_an_old_tick_is_a_problem(settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAGLLAVA_TICK_S", "300")  # a doctor on a busy machine may take longer than a tick may be late
    assert last_tick() == Finding("services", "last tick", "none yet"), "no worker was ever started"
    Desk(engine, settings).live_worker()
    assert "no tick has ended yet" in (last_tick().problem or "")
    in_transaction(engine, ticks.note_tick)
    assert last_tick().problem is None
    for shift, sentence in (
        ("-1 hour", "the last tick ended 3,60"),
        ("1 hour", "the clock of the database was set back"),
    ):
        with engine.begin() as connection:
            connection.execute(text(f"UPDATE ticks SET ended_at = now() + interval '{shift}'"))
        assert sentence in (last_tick().problem or "")
    in_transaction(engine, ticks.note_tick)
    assert last_tick().problem is None
