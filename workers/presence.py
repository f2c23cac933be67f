"""A worker's row in Postgres: who is live, with how many slots, and whether it is going down
(docs/reliability.md D7, D17).

The parent process of a worker keeps the row fresh from a thread; the child that runs shards reads `draining`
through its heartbeat, because a Celery task cannot see a shutdown by itself (celery#10276).
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import signals
from sqlalchemy import Engine

from ragllava import __version__
from ragllava.errors import ServiceUnavailable
from ragllava.jobs import queue
from ragllava.settings import Settings, load_settings
from ragllava.stores.database import in_transaction, make_engine
from ragllava.stores.jobs import workers

log = logging.getLogger(__name__)


class Presence:
    """Keeps the row of one worker fresh until it is stopped."""

    def __init__(self, settings: Settings, engine: Engine, name: str, queues: list[str], slots: int) -> None:
        """Registers the worker at once; its children report when their models are loaded."""
        self._settings = settings
        self.engine = engine
        self.name = name
        self.queues = queues
        self._state = "live"
        self._stop = threading.Event()
        in_transaction(engine, workers.register, name, queues, slots)
        threading.Thread(target=self._run, name="presence", daemon=True).start()

    def drain(self) -> None:
        """Ask the children to hand back what they have not finished."""
        self._state = "draining"
        self._beat()

    def leave(self) -> None:
        """Remove the row: this worker is gone in good order."""
        self._stop.set()
        in_transaction(self.engine, workers.remove, self.name)

    def _run(self) -> None:
        while not self._stop.wait(self._settings.tick_s):
            self._beat()

    def _beat(self) -> None:
        try:
            in_transaction(self.engine, workers.beat, self.name, self._state)
        except ServiceUnavailable as error:
            log.warning(str(error), extra={"action": "presence_missed", "worker": self.name})


_here: Presence | None = None  # Celery's signals carry no state of ours; one worker per process


@signals.celeryd_after_setup.connect
def _register(sender: str, instance: Any, **_facts: Any) -> None:
    global _here  # noqa: PLW0603
    settings = load_settings()
    settings.require_redis()
    engine = make_engine(settings.require_database(), pool_size=1, name=f"presence {sender}")
    names = sorted(instance.app.amqp.queues.consume_from)
    _here = Presence(settings, engine, sender, names, instance.concurrency)


@signals.worker_ready.connect
def _ready(**_facts: Any) -> None:
    """A worker without models is ready as soon as it listens; the others' children say so (workers/runtime.py)."""
    here = _here
    if here is not None and here.queues == ["maint"]:
        versions = {"ragllava": __version__}
        in_transaction(here.engine, workers.report_ready, here.name, versions)


@signals.worker_shutting_down.connect
def _drain(**_facts: Any) -> None:
    if _here is not None:
        # The signal handler's own thread must not wait for the database.
        threading.Thread(target=_here.drain, name="drain", daemon=True).start()


@signals.worker_shutdown.connect
def _leave(**_facts: Any) -> None:
    if _here is not None:
        _here.leave()


@signals.task_failure.connect
def _child_lost(exception: BaseException | None = None, args: Any = (), **_facts: Any) -> None:
    """The parent saw its child die or overrun: release the lease now instead of waiting for its end."""
    if _here is None or not isinstance(exception, (WorkerLostError, TimeLimitExceeded)) or not args:
        return
    here, shard_id = _here, args[0]
    if isinstance(shard_id, int):
        in_transaction(here.engine, queue.expire, shard_id, here.name)
