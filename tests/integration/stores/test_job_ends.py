"""Who waits for a job is told of its end, whatever happens to the session that listens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, text

from ragllava.stores.jobs import job_ends
from ragllava.stores.jobs.job_ends import JobEnds

# Of the test alone: the first one of a process waits for the services, too.
pytestmark = pytest.mark.timeout(120, func_only=True)

LONG_S = 600.0  # the test would run into its limit


@pytest.fixture
def ends(engine: Engine) -> Iterator[JobEnds]:
    made = JobEnds(engine)
    yield made
    made.close()


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """`work` in a thread that begins a little later."""

    def later() -> None:
        time.sleep(0.2)
        work()

    thread = threading.Thread(target=later)
    thread.start()
    yield
    thread.join()


def notifying(engine: Engine, *job_ids: int) -> Callable[[], None]:
    def notify() -> None:
        for job_id in job_ids:
            with engine.begin() as connection:
                job_ends.notify(connection, job_id)

    return notify


def listeners(engine: Engine) -> list[int]:
    """Process ids of the sessions of this database whose last statement was about listening."""
    query = text("""
        SELECT pid FROM pg_stat_activity
        WHERE datname = current_database() AND query LIKE '%LISTEN%' AND pid <> pg_backend_pid()
    """)
    with engine.begin() as connection:
        return list(connection.scalars(query))


def test_a_sleep_ends_when_the_job_does_and_not_with_another(engine: Engine, ends: JobEnds) -> None:
    for _ in range(2):  # the session is used again
        with ends.listening(7) as sleep, meanwhile(notifying(engine, 7)):
            assert sleep is not None
            sleep(LONG_S)
    with ends.listening(7) as sleep, meanwhile(notifying(engine, 8, 77)):
        assert sleep is not None
        started = time.monotonic()
        sleep(1.0)
        assert time.monotonic() - started >= 1.0
    assert len(listeners(engine)) == 1


def test_a_notification_between_two_calls_is_not_kept(engine: Engine, ends: JobEnds) -> None:
    with ends.listening(7):
        pass
    notifying(engine, 7)()
    with ends.listening(7) as sleep:
        assert sleep is not None
        started = time.monotonic()
        sleep(0.3)
        assert time.monotonic() - started >= 0.3


def test_what_is_not_committed_notifies_nobody(engine: Engine, ends: JobEnds) -> None:
    with ends.listening(7) as sleep, engine.begin() as connection:
        assert sleep is not None
        job_ends.notify(connection, 7)
        started = time.monotonic()
        sleep(0.3)
        assert time.monotonic() - started >= 0.3


def test_one_thread_listens_and_others_get_none(engine: Engine, ends: JobEnds) -> None:
    refused: list[bool] = []

    def listen_too() -> None:
        with ends.listening(7) as sleep:
            refused.append(sleep is None)

    with ends.listening(7) as sleep:
        assert sleep is not None
        thread = threading.Thread(target=listen_too)
        thread.start()
        thread.join()
    listen_too()
    assert refused == [True, False]


def test_a_broken_session_keeps_sleeping_and_the_next_is_new(engine: Engine, ends: JobEnds) -> None:
    def break_session() -> None:
        (pid,) = listeners(engine)
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

    with ends.listening(7) as sleep:
        assert sleep is not None
        with meanwhile(break_session):
            sleep(LONG_S)  # ends early, for the caller to look
        sleep(0.01)
    with ends.listening(7) as sleep, meanwhile(notifying(engine, 7)):
        assert sleep is not None
        sleep(LONG_S)


def test_the_session_is_beside_the_pool(engine: Engine, ends: JobEnds) -> None:
    with ends.listening(7):
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
