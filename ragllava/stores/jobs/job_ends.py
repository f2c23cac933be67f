"""Who waits for a job hears of its end at once: Postgres tells those who listen.

Looking again and again is slow or dear: looks every 8 ms took a tenth of what two cores computed for one question
meanwhile, and looks every 50 ms came 25 ms late. What is told may get lost (a pooler that shares sessions between
transactions delivers nothing), so whoever listens still has to look from time to time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import LiteralString, cast

import psycopg
from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import DBAPIError

log = logging.getLogger(__name__)

_CHANNEL = "ragllava_job_ended"

Sleep = Callable[[float], None]


def notify(connection: Connection, job_id: int) -> None:
    """With the commit, all who listen hear that this job has ended.

    Such commits wait for each other, on the whole server; so it is told once a job, not once a shard.
    """
    connection.execute(select(func.pg_notify(_CHANNEL, str(job_id))))


class JobEnds:
    """A session that listens, made when first needed and kept, beside the engine's pool. Safe for several threads."""

    def __init__(self, engine: Engine) -> None:
        """Connects later."""
        self._engine = engine
        self._in_use = threading.Lock()
        self._session: psycopg.Connection | None = None

    @contextmanager
    def listening(self, job_id: int) -> Iterator[Sleep | None]:
        """Gives a sleep of at most so many seconds that ends when the job does.

        None when another thread listens just now, or when no session is to be had. One that breaks sleeps on.
        """
        if not self._in_use.acquire(blocking=False):
            yield None
            return
        try:
            yield partial(self._sleep, str(job_id)) if self._do(f"LISTEN {_CHANNEL}") else None
        finally:
            # Nobody would read what is told between two calls.
            self._do(f"UNLISTEN {_CHANNEL}", connect=False)
            self._in_use.release()

    def close(self) -> None:
        """End the session, if there is one."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _sleep(self, told: str, seconds: float) -> None:
        if self._session is None:
            time.sleep(seconds)
            return
        try:
            for notice in self._session.notifies(timeout=seconds):
                if notice.payload == told:
                    return
        except psycopg.OperationalError as error:
            self._give_up(error)

    def _do(self, statement: LiteralString, *, connect: bool = True) -> bool:
        """Whether it could be said."""
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


def _beside_pool(engine: Engine) -> psycopg.Connection:
    """A connection like those of the pool, which others need."""
    pooled = engine.raw_connection()
    driver = cast("psycopg.Connection", pooled.dbapi_connection)
    pooled.detach()
    driver.rollback()
    driver.autocommit = True
    return driver
