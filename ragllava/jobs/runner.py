"""Runs a shard: lease, stage, commit. Catches any error, as jobs/isolation.py (docs/reliability.md D2, D4, D5)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Concatenate, Generic, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine

from ragllava.errors import DeviceLost, JobRefused, LeaseLost, RagllavaError, ShardInterrupted
from ragllava.jobs import control, ending, queue
from ragllava.jobs.kinds import kind_of
from ragllava.jobs.queue import Lease
from ragllava.jobs.retry import Limits
from ragllava.settings import Settings
from ragllava.stores.database import in_transaction

log = logging.getLogger(__name__)
R = TypeVar("R")  # what a stage needs: stores and models
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class ShardContext(Generic[R]):
    """What a stage gets: its lease, its resources, and its only ways to the database.

    `stop` returns the error to stop with, None while the stage may continue.
    """

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

    def open_inputs(self) -> list[int]:
        """Numbers of the shard's inputs that have no outcome in this run, ascending."""
        lease = self.lease
        inputs = kind_of(lease.kind).inputs
        return self.read(inputs.open_numbers, lease.job_id, lease.run_no, lease.lo, lease.hi)

    def read(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work(connection, *args, **kwargs)` in a transaction of its own."""
        return in_transaction(self.engine, work, *args, **kwargs)

    def commit(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work(connection, *args, **kwargs)` in one transaction behind the fence: only while the lease is ours."""

        def fenced(connection: Connection) -> T:
            queue.fence(connection, self.lease, self.settings.lease_s)
            return work(connection, *args, **kwargs)

        return in_transaction(self.engine, fenced)

    def commit_job(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `commit`, for work that writes the job's own row, which everybody locks before the shard's."""

        def fenced(connection: Connection) -> T:
            queue.lock_job(connection, self.lease.job_id)
            queue.fence(connection, self.lease, self.settings.lease_s)
            return work(connection, *args, **kwargs)

        return in_transaction(self.engine, fenced)


def run_shard(shard_id: int, worker: str, settings: Settings, engine: Engine, resources: R) -> bool:
    """Lease the shard, run its kind's stage, record how it ended. Returns False if the lease was not available.

    Raises only what concerns the process: DeviceLost (recorded, but this process must end), and ServiceUnavailable
    when the database itself is away; then the lease runs out and the shard is reaped.
    """
    lease = in_transaction(engine, queue.claim, shard_id, worker, settings.lease_s)
    if lease is None:
        log.info("lease not available", extra={"action": "shard_dropped", "shard": shard_id})
        return False
    facts = {"shard": lease.shard_id, "job": lease.job_id, "kind": lease.kind, "epoch": lease.epoch}
    started = time.monotonic()
    with _heartbeat(engine, lease, settings) as stop:
        try:
            kind_of(lease.kind).load_stage()(ShardContext(lease, settings, engine, resources, stop))
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
        if in_transaction(engine, control.refuse, lease, message):
            ending.end_refused(engine, lease, message)
        log.error(message, extra={"action": "job_refused", **facts})
    elif isinstance(error, RagllavaError) and error.retryable:
        in_transaction(engine, queue.fail, lease, message, Limits.of(settings), is_transient=True)
        log.info(message, extra={"action": "shard_retry", **facts})
    else:
        text = f"{type(error).__name__}: {message}"
        in_transaction(engine, queue.fail, lease, text, Limits.of(settings))
        log.error(text, exc_info=error, extra={"action": "shard_failed", **facts})


@contextmanager
def _heartbeat(engine: Engine, lease: Lease, settings: Settings) -> Iterator[Callable[[], Exception | None]]:
    """Extends the lease from a thread of its own; yields a function that returns the error to stop with, if any."""
    done = threading.Event()
    errors: list[Exception] = []

    def run() -> None:
        # More often than the lease needs, so that cancel and shutdown are quick.
        while not done.wait(min(settings.heartbeat_s, 2.0)):
            try:
                error = in_transaction(engine, queue.heartbeat, lease, settings.lease_s)
            except RagllavaError as missed:
                log.warning(str(missed), extra={"action": "heartbeat_missed", "shard": lease.shard_id})
                continue
            if error is not None:
                errors.append(error)
            if isinstance(error, LeaseLost):
                return

    thread = threading.Thread(target=run, name=f"heartbeat-{lease.shard_id}", daemon=True)
    thread.start()
    try:
        yield lambda: errors[-1] if errors else None
    finally:
        done.set()
        thread.join()
