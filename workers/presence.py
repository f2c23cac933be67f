"""A worker's row in Postgres: its slots, and whether it is live or stopping (docs/reliability.md D7, D17).

The parent process of a worker updates the row from a thread. The child that runs shards reads `draining` with its
heartbeat, because a Celery task cannot notice a shutdown (celery#10276).
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, ParamSpec

from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import signals
from sqlalchemy import Engine

from ragllava import __version__
from ragllava.jobs import queue
from ragllava.settings import Settings, load_settings
from ragllava.stores.database import in_transaction, make_engine
from ragllava.stores.jobs import workers
from ragllava.stores.schema_revision import find_problem, require_schema
from ragllava.vital_signs import VitalSigns
from workers import figures

log = logging.getLogger(__name__)
P = ParamSpec("P")

FAILURE_SIGNAL = signal.SIGUSR2  # from a child to its parent
TABLES_CHECKED_S = 30.0
_SHOWN_S = 10.0


class Presence:
    """Updates the row of one worker until the worker stops."""

    def __init__(self, settings: Settings, engine: Engine, name: str, queues: list[str], slots: int) -> None:
        """Register the worker; its children report when their models are loaded.

        Raises ServiceUnavailable, and SchemaMismatch if `engine` compares the revision.
        """
        self._period_s = settings.tick_s
        self._signs = VitalSigns(settings.home, name)
        self.engine = engine
        self.name = name
        self.queues = queues
        self.slots = slots
        self.is_solo = self.has_failed = False
        self._checks_tables = True
        self._state = "live"
        self._versions: dict[str, str] = {}  # as the children have reported them
        self._stop = threading.Event()
        self._changing = threading.Lock()
        self._signs.remove()
        in_transaction(engine, workers.register, name, queues, slots)
        threading.Thread(target=self._run, name="presence", daemon=True).start()
        threading.Thread(target=self._show, name="vital signs", daemon=True).start()

    def drain(self) -> None:
        """Ask the children to hand back unfinished work."""
        self._state = "draining"
        self.beat()

    def leave(self) -> None:
        """Remove the row: this worker has stopped."""
        self._stop.set()
        self._signs.remove()
        with self._changing:
            in_transaction(self.engine, workers.remove, self.name)

    def beat(self) -> None:
        """Record that the worker is alive. A row that was removed meanwhile is made again, as it was."""
        with self._changing:
            if self._stop.is_set():
                return
            versions = in_transaction(self.engine, workers.beat, self.name, self._state)
            if versions is not None:
                self._versions = versions
                self._signs.set_ready(bool(versions) and self._state == "live")
                return
            log.warning("the row of this worker is gone", extra={"action": "worker_registered", "worker": self.name})
            in_transaction(self.engine, workers.register, self.name, self.queues, self.slots)
            in_transaction(self.engine, workers.report_ready, self.name, self._versions)
            in_transaction(self.engine, workers.beat, self.name, self._state)

    def _show(self) -> None:
        """Apart from the beats, which wait for the database."""
        is_written = True
        while not self._stop.wait(min(self._period_s, _SHOWN_S)):
            try:
                self._signs.write()
                is_written = True
            except OSError as error:  # only `ragllava-probe` reads them: one line is enough
                if is_written:
                    log.warning(f"vital signs: {error}", extra={"action": "signs_not_written", "worker": self.name})
                is_written = False

    def _run(self) -> None:
        checked_at = time.monotonic()
        while not self._stop.wait(self._period_s):
            try:
                self.beat()
                if self._checks_tables and time.monotonic() - checked_at >= TABLES_CHECKED_S:
                    checked_at = time.monotonic()
                    self._check_tables()
            except Exception as error:  # noqa: BLE001 - a worker without a beat is alive and gets no work
                log.warning(str(error), extra={"action": "presence_missed", "worker": self.name})

    def _check_tables(self) -> None:
        """End the worker if a migration has made tables that it cannot use."""
        problem = in_transaction(self.engine, find_problem)
        if problem is not None:
            log.critical(problem, extra={"action": "worker_unusable", "worker": self.name})
            os.kill(os.getpid(), FAILURE_SIGNAL)
            self._checks_tables = False


_presence: Presence | None = None  # of this process; Celery's signals carry no state of ours


def ends_on_failure(step: Callable[P, None]) -> Callable[P, None]:
    """A signal handler whose failure ends the worker with exit code 1, and its reason as the last line.

    Celery ignores errors of a handler: the worker would look alive and get no work.
    """

    @functools.wraps(step)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            step(*args, **kwargs)
        except Exception as error:
            log.critical(str(error), extra={"action": "worker_unusable"})
            raise SystemExit(1) from error

    return run


@signals.celeryd_after_setup.connect
@ends_on_failure
def _register(sender: str, instance: Any, **_facts: Any) -> None:
    global _presence  # noqa: PLW0603
    settings = load_settings()
    settings.require_redis()
    engine = make_engine(settings.require_database(), pool_size=1, name=f"presence {sender}")
    require_schema(engine)
    names = sorted(instance.app.amqp.queues.consume_from)
    _presence = Presence(settings, engine, sender, names, instance.concurrency)
    signal.signal(FAILURE_SIGNAL, _fail)
    _presence.is_solo = instance.pool_cls.__module__ == "celery.concurrency.solo"


def _fail(*_: object) -> None:
    """A child can never serve: stop as after SIGTERM, and with exit code 1."""
    if _presence is not None:
        _presence.has_failed = True
    os.kill(os.getpid(), signal.SIGTERM)


@signals.worker_ready.connect
@ends_on_failure
def _ready(**_facts: Any) -> None:
    """The maintenance worker has no models and is ready now; children report for the others (workers/runtime.py).

    A worker of the pool `solo` has no child, and loads its models here.
    """
    if _presence is None:
        return
    if _presence.is_solo and _presence.queues != ["maint"]:
        from workers import runtime

        runtime.get_ready(_presence.name)
    if _presence.queues == ["maint"]:
        in_transaction(_presence.engine, workers.report_ready, _presence.name, {"ragllava": __version__})
        figures.serve(_presence.name, _presence.slots, load_settings())
    if "maint" in _presence.queues:
        from workers import schedule  # of this worker alone: it loads what the tick does

        schedule.start_ticking()


@signals.worker_shutting_down.connect
def _drain(**_facts: Any) -> None:
    if _presence is not None:
        # The thread of the signal handler must not wait for the database.
        threading.Thread(target=_presence.drain, name="drain", daemon=True).start()


@signals.worker_shutdown.connect
def _leave(sender: Any, **_facts: Any) -> None:
    if _presence is not None:
        if _presence.has_failed:
            sender.exitcode = 1  # Celery's would be 0
        _presence.leave()


@signals.task_failure.connect
def _child_lost(exception: BaseException | None = None, args: Any = (), **_facts: Any) -> None:
    """The parent saw its child die or exceed its time limit: end the lease now instead of waiting for its deadline."""
    lost = isinstance(exception, (WorkerLostError, TimeLimitExceeded))
    if _presence is not None and lost and args and isinstance(args[0], int):
        # With one slot, all shards of this worker were the child's: beside that of its message an urgent one.
        shard_id = None if _presence.slots == 1 else args[0]
        in_transaction(_presence.engine, queue.expire, _presence.name, shard_id)
