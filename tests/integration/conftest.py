"""Fixtures for tests of concurrency on a real database."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text


@pytest.fixture
def wait_for_waiter(engine: Engine) -> Callable[[], None]:
    """A function that returns once another session of the test's database waits for a lock."""
    statement = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )

    def wait() -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with engine.connect() as connection:
                if connection.execute(statement).scalar_one():
                    return
            time.sleep(0.02)
        raise AssertionError("nobody waits for a lock")

    return wait
