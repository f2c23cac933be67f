"""Notifies waiting clients of the end of a job at once, by LISTEN and NOTIFY of Postgres.

Polling is slow or expensive: polls every 8 ms took a tenth of the computing time of two cores for one question, and
polls every 50 ms came 25 ms late. A notification may get lost (a pooler that shares sessions between
transactions delivers none), so a client that listens still has to poll from time to time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import LiteralString, cast

import psycopg
from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import DBAPIError

log = logging.getLogger(__name__)

_CHANNEL = "ragllava_job_ended"
_BOARD_S = 1.0  # within which a board sees that it was closed

Sleep = Callable[[float], None]


def notify(connection: Connection, job_id: int) -> None:
    """Notify all who listen that this job has ended, with the commit.

    Such commits wait for each other, on the whole server; so there is one for each job, not for each shard.
    """
    connection.execute(select(func.pg_notify(_CHANNEL, str(job_id))))


class JobEnds:
    """A session that listens, opened when first needed and kept, outside the engine's pool. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        """Connects when first used."""
        self._engine = engine
        self._in_use = threading.Lock()
        self._session: psycopg.Connection | None = None

    @contextmanager
    def listening(self, job_id: int) -> Iterator[Sleep | None]:
        """Yields a function that sleeps for at most the given seconds, or until the job ends.

        None when another thread is listening or no session can be opened. When the session breaks, it only sleeps.
        """
        if not self._in_use.acquire(blocking=False):
            yield None
            return
        try:
            yield partial(self._sleep, str(job_id)) if self._execute(f"LISTEN {_CHANNEL}") else None
        finally:
            # Notifications between two calls would not be read.
            self._execute(f"UNLISTEN {_CHANNEL}", connect=False)
            self._in_use.release()

    def close(self) -> None:
        """End the session, if there is one."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _sleep(self, payload: str, seconds: float) -> None:
        if self._session is None:
            time.sleep(seconds)
            return
        try:
            for notice in self._session.notifies(timeout=seconds):
                if notice.payload == payload:
                    return
        except psycopg.OperationalError as error:
            self._give_up(error)

    def _execute(self, statement: LiteralString, *, connect: bool = True) -> bool:
        """Whether the statement was executed."""
        try:
            if self._session is None:
                if not connect:
                    return False
                self._session = _beside_pool(self._engine)
            self._session.execute(statement)
        except (psycopg.OperationalError, DBAPIError) as error:
            self._give_up(error)
            return False
        return True

    def _give_up(self, error: Exception) -> None:
        log.info("no session to listen: %s", error, extra={"action": "not_listening"})
        self.close()


class JobBoard:
    """The ends of many jobs, for a server: one session listens, and sets the event of each thread that waits."""

    def __init__(self, engine: Engine) -> None:
        """Connects when first used."""
        self._engine = engine
        self._lock = threading.Lock()
        self._awaited: dict[str, list[threading.Event]] = defaultdict(list)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def awaited(self, job_id: int) -> Iterator[threading.Event]:
        """An event that is set when the job ends. It may have ended before, and a notification may get lost: look at
        the job after entering, and from time to time."""
        event = threading.Event()
        with self._lock:
            self._awaited[str(job_id)].append(event)
            if self._thread is None:
                self._thread = threading.Thread(target=self._listen, name="job ends", daemon=True)
                self._thread.start()
        try:
            yield event
        finally:
            with self._lock:
                waiting = self._awaited[str(job_id)]
                waiting.remove(event)
                if not waiting:
                    del self._awaited[str(job_id)]

    def close(self) -> None:
        """End the session."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(5 * _BOARD_S)

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                with _beside_pool(self._engine) as session:
                    session.execute(f"LISTEN {_CHANNEL}")
                    while not self._closed.is_set():
                        for notice in session.notifies(timeout=_BOARD_S):
                            self._announce(notice.payload)
            except (psycopg.OperationalError, DBAPIError) as error:
                log.info("no session to listen: %s", error, extra={"action": "not_listening"})
                self._closed.wait(_BOARD_S)

    def _announce(self, payload: str) -> None:
        with self._lock:
            for event in self._awaited.get(payload, ()):
                event.set()


def _beside_pool(engine: Engine) -> psycopg.Connection:
    """A connection like those of the pool, which stay free for others."""
    pooled = engine.raw_connection()
    driver = cast("psycopg.Connection", pooled.dbapi_connection)
    pooled.detach()
    driver.rollback()
    driver.autocommit = True
    return driver
