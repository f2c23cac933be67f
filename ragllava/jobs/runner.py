"""Runs one shard: lease, stage, commit. The one place with a broad `except` (docs/reliability.md D2, D4, D5)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Concatenate, Generic, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine

from ragllava.errors import DeviceLost, JobRefused, LeaseLost, RagllavaError, ShardInterrupted
from ragllava.jobs import control, queue
from ragllava.jobs.dispatch import limits
from ragllava.jobs.queue import Lease
from ragllava.records import JobKind
from ragllava.settings import Settings
from ragllava.stores.database import in_transaction

log = logging.getLogger(__name__)
R = TypeVar("R")  # what a stage needs: stores and models
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class ShardContext(Generic[R]):
    """What a stage gets: its lease, its resources, and the two calls that keep it honest."""

    lease: Lease
    settings: Settings
    engine: Engine
    resources: R
    stop: Callable[[], Exception | None]

    def check(self) -> None:
        """Call between sub-batches: raises LeaseLost or ShardInterrupted when the stage has to stop."""
        error = self.stop()
        if error is not None:
            raise error

    def read(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work(connection, *args, **kwargs)` in a transaction of its own."""
        return in_transaction(self.engine, work, *args, **kwargs)

    def commit(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work(connection, *args, **kwargs)` in one transaction behind the fence: only while the lease is ours."""

        def fenced(connection: Connection) -> T:
            queue.fence(connection, self.lease, self.settings.lease_s)
            return work(connection, *args, **kwargs)

        return in_transaction(self.engine, fenced)


Stage = Callable[[ShardContext[R]], None]


def run_shard(
    shard_id: int,
    worker: str,
    settings: Settings,
    engine: Engine,
    resources: R,
    stages: Mapping[JobKind, Stage[R]],
) -> bool:
    """Lease the shard, run its kind's stage, record how it ended. Returns False when the lease was not to be had.

    Raises only what concerns the process: DeviceLost (recorded, but this process cannot go on), and
    ServiceUnavailable when the database itself is away; then the lease runs out and the sweep takes over.
    """
    lease = in_transaction(engine, queue.claim, shard_id, worker, settings.lease_s)
    if lease is None:
        log.info("shard not to be had", extra={"action": "shard_dropped", "shard": shard_id})
        return False
    facts = {"shard": lease.shard_id, "job": lease.job_id, "kind": lease.kind.value, "epoch": lease.epoch}
    started = time.monotonic()
    with Heartbeat(engine, lease, settings) as heart:
        try:
            stages[lease.kind](ShardContext(lease, settings, engine, resources, heart.problem))
            in_transaction(engine, queue.finish, lease)
        except Exception as error:
            _record_failure(engine, settings, lease, error, facts)
            if isinstance(error, DeviceLost):
                raise
        else:
            took_s = round(time.monotonic() - started, 2)
            log.info("shard done", extra={"action": "shard_done", "duration_s": took_s, **facts})
    return True


def _record_failure(
    engine: Engine, settings: Settings, lease: Lease, error: Exception, facts: Mapping[str, object]
) -> None:
    message = str(error) or type(error).__name__
    if isinstance(error, LeaseLost):
        log.warning(message, extra={"action": "shard_fenced", **facts})
    elif isinstance(error, ShardInterrupted):
        in_transaction(engine, queue.hand_back, lease)
        log.info(message, extra={"action": "shard_handed_back", **facts})
    elif isinstance(error, JobRefused):
        in_transaction(engine, control.refuse, lease, message)
        log.error(message, extra={"action": "job_refused", **facts})
    elif isinstance(error, RagllavaError) and error.retryable:
        in_transaction(engine, queue.fail_transient, lease, message, limits(settings))
        log.info(message, extra={"action": "shard_retry", **facts})
    else:
        text = f"{type(error).__name__}: {message}"
        in_transaction(engine, queue.fail, lease, text, limits(settings))
        log.error(text, exc_info=error, extra={"action": "shard_failed", **facts})


class Heartbeat:
    """Extends a lease from a thread of its own, and remembers why the stage should stop, if it should."""

    def __init__(self, engine: Engine, lease: Lease, settings: Settings) -> None:
        """Nothing happens before the `with`."""
        self._engine = engine
        self._lease = lease
        self._settings = settings
        self._done = threading.Event()
        self._problem: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"heartbeat-{lease.shard_id}", daemon=True)

    def problem(self) -> Exception | None:
        """None, or the error that the stage should stop with."""
        return self._problem

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        # A beat that finds a stop looks more often than the lease asks, so that cancel and shutdown are quick.
        pause_s = min(self._settings.heartbeat_s, 2.0)
        while not self._done.wait(pause_s):
            try:
                beat = in_transaction(self._engine, queue.heartbeat, self._lease, self._settings.lease_s)
            except RagllavaError as error:
                log.warning(str(error), extra={"action": "heartbeat_missed", "shard": self._lease.shard_id})
                continue
            if not beat.alive:
                self._problem = LeaseLost(f"shard {self._lease.shard_id}: the lease is gone")
                return
            if beat.stop:
                self._problem = ShardInterrupted(f"shard {self._lease.shard_id}: the rest is handed back")
