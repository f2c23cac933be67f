"""Runs a shard: lease, stage, commit. Catches any error, as jobs/isolation.py (docs/reliability.md D2, D4, D5)."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Concatenate, Generic, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine

from ragllava import tracing
from ragllava.errors import DeviceLost, JobRefused, LeaseLost, RagllavaError, ShardInterrupted
from ragllava.jobs import control, deadlines, dispatch, ending, queue
from ragllava.jobs.kinds import kind_of
from ragllava.jobs.locking import lock_job
from ragllava.jobs.queue import Lease
from ragllava.jobs.retry import Limits
from ragllava.settings import Settings
from ragllava.stores.database import in_transaction, read_at_once

log = logging.getLogger(__name__)
# Between two looks at the job and the worker, so that cancel, pause and stop are noticed soon.
_WATCH_S = 2.0
_URGENT_WATCH_S = 0.25  # somebody waits for an urgent shard
_SHORTEST_LOOK_S = 0.05  # between two looks at the limits of a job
_ENDING_S = 5.0  # for a job that was stopped at its limit; the tick does the rest

R = TypeVar("R")  # what a stage needs: stores and models
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class ShardContext(Generic[R]):
    """What a stage gets: its lease, its resources, and its only ways to the database.

    `stop` returns the error to stop with, None while the stage may continue. `run_urgent` runs the urgent shards that
    wait.
    """

    lease: Lease
    settings: Settings
    engine: Engine
    resources: R
    stop: Callable[[], Exception | None]
    run_urgent: Callable[[], float] = field(default=lambda: 0.0, kw_only=True)

    def check(self) -> None:
        """Call between sub-batches: raises LeaseLost or ShardInterrupted when the stage has to stop."""
        error = self.stop()
        if error is not None:
            raise error

    def give_way(self) -> float:
        """Run the shards of urgent jobs that wait, in this process, then return; returns the seconds that took.

        For stages whose kind gives way. Call it as often as possible, where the stage holds nothing that another shard
        of its kind would change. The other shards apply the models of their own.
        """
        return self.run_urgent()

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
            lock_job(connection, self.lease.job_id)
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
    _run_lease(lease, settings, engine, resources)
    return True


def _run_lease(lease: Lease, settings: Settings, engine: Engine, resources: object) -> None:
    facts = {"shard": lease.shard_id, "job": lease.job_id, "kind": lease.kind, "epoch": lease.epoch}
    started = time.monotonic()
    with _heartbeat(engine, lease, settings) as pulse:
        run_urgent = _UrgentShards(lease, settings, engine, resources, pulse)
        try:
            context = ShardContext(lease, settings, engine, resources, pulse.stop, run_urgent=run_urgent)
            with tracing.continued(lease.trace, f"{lease.kind} shard", job=lease.job_id, shard=lease.shard_id):
                kind_of(lease.kind).load_stage()(context)
            with pulse.busy.report() as busy_s:
                is_stopping = in_transaction(engine, queue.finish, lease, busy_s)
        except Exception as error:
            with pulse.busy.report() as busy_s:
                in_transaction(engine, queue.note_busy, lease, busy_s)
            _record_failure(engine, settings, lease, error, facts)
            if isinstance(error, DeviceLost):
                raise
        else:
            if lease.has_budget and is_stopping:  # perhaps with the seconds of this shard
                ending.end_job(engine, lease.job_id, _ENDING_S)
            took_s = round(time.monotonic() - started, 2)
            log.info("shard done", extra={"action": "shard_done", "duration_s": took_s, **facts})


def _record_failure(
    engine: Engine, settings: Settings, lease: Lease, error: Exception, facts: Mapping[str, object]
) -> None:
    message = str(error) or type(error).__name__
    if isinstance(error, LeaseLost):
        log.warning(message, extra={"action": "shard_fenced", **facts})
    elif isinstance(error, ShardInterrupted):
        in_transaction(engine, queue.hand_back, lease)
        if lease.is_limited:
            ending.end_job(engine, lease.job_id, _ENDING_S)
        log.info(message, extra={"action": "shard_handed_back", **facts})
    elif isinstance(error, JobRefused):
        if in_transaction(engine, control.refuse, lease, message, settings):
            ending.end_refused(engine, lease.job_id, lease.kind, message)
        log.error(message, extra={"action": "job_refused", "worker": lease.worker, **facts})
    elif isinstance(error, RagllavaError) and error.retryable:
        in_transaction(engine, queue.fail, lease, message, Limits.of(settings), is_transient=True)
        log.info(message, extra={"action": "shard_retry", **facts})
    else:
        text = f"{type(error).__name__}: {message}"
        in_transaction(engine, queue.fail, lease, text, Limits.of(settings))
        log.error(text, exc_info=error, extra={"action": "shard_failed", **facts})


class _BusyClock:
    """How long this process has been busy with a shard, by a clock that only counts forward. While urgent shards run in
    between, it stands still. Two threads report what was not reported yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: float | None = time.monotonic()
        self._busy_s = 0.0

    def stop(self) -> None:
        with self._lock:
            self._count()
            self._since = None

    def go_on(self) -> None:
        with self._lock:
            self._since = time.monotonic()

    @contextmanager
    def report(self) -> Iterator[float]:
        """The seconds that were not reported yet; they are reported when the block ends without an error."""
        with self._lock:
            self._count()
            yield self._busy_s
            self._busy_s = 0.0

    def _count(self) -> None:
        if self._since is not None:
            now = time.monotonic()
            self._busy_s, self._since = self._busy_s + now - self._since, now


@dataclass(slots=True)
class _Pulse:
    """What the thread of a lease has noticed: the error to stop with, and that an urgent shard waits."""

    busy: _BusyClock
    error: Exception | None = None
    urgent_waits: bool = False

    def stop(self) -> Exception | None:
        return self.error


@dataclass(slots=True)
class _UrgentShards:
    """Runs urgent shards while the shard of `lease` stands still; its lease is extended meanwhile.

    Nothing of the shard that stands still is lost or done twice. If an urgent shard kills the process, the other one is
    not blamed: its attempt does not count meanwhile.
    """

    lease: Lease
    settings: Settings
    engine: Engine
    resources: object
    pulse: _Pulse
    spent_s: float = 0.0

    def __call__(self) -> float:
        if not self.pulse.urgent_waits:
            return 0.0
        started = time.monotonic()
        self.pulse.busy.stop()
        # The process is killed when its message takes too long, the urgent shards included.
        left_s = self.settings.shard_time_limit_s / 2 - self.spent_s
        while self.pulse.urgent_waits and time.monotonic() - started < left_s and self.pulse.error is None:
            self.pulse.urgent_waits = self._run_next()
        took_s = time.monotonic() - started
        self.spent_s += took_s
        self.pulse.busy.go_on()
        return took_s

    def _run_next(self) -> bool:
        """Run the first urgent shard; returns whether there was one."""
        shard_id = in_transaction(self.engine, dispatch.take_urgent, self.lease.kind)
        if shard_id is None:
            return False
        lease = in_transaction(self.engine, queue.claim, shard_id, self.lease.worker, self.settings.lease_s)
        if lease is None:  # another worker was faster, or this one cannot do the job; a later look tells
            return False
        in_transaction(self.engine, queue.count_attempt, self.lease, -1)
        log.info("gives way", extra={"action": "gave_way", "shard": self.lease.shard_id, "to": shard_id})
        _run_lease(lease, self.settings, self.engine, self.resources)
        in_transaction(self.engine, queue.count_attempt, self.lease, 1)
        return True


@contextmanager
def _heartbeat(engine: Engine, lease: Lease, settings: Settings) -> Iterator[_Pulse]:
    """Extends the lease from a thread of its own, which also looks whether to stop or to give way."""
    done = threading.Event()
    pulse = _Pulse(_BusyClock())
    watch_s = min(settings.heartbeat_s, _URGENT_WATCH_S if kind_of(lease.kind).gives_way else _WATCH_S)

    def look() -> None:
        watched = read_at_once(engine, queue.watch, lease)
        pulse.error = watched.error or pulse.error
        pulse.urgent_waits = watched.urgent_waits

    def beat() -> None:
        with pulse.busy.report() as busy_s:
            pulse.error = in_transaction(engine, queue.heartbeat, lease, settings.lease_s, busy_s) or pulse.error

    def look_at_limits() -> float:
        """Stop the job if it has reached a limit; returns after how many seconds it may reach one."""
        remaining = read_at_once(engine, deadlines.remaining_of, lease.job_id)
        if remaining.is_over and in_transaction(engine, deadlines.expire_if_due, lease.job_id):
            look()
        return max(_SHORTEST_LOOK_S, remaining.next_look_s)

    def run() -> None:
        next_beat = time.monotonic() + settings.heartbeat_s
        next_limit = time.monotonic() if lease.is_limited else math.inf
        while not done.wait(max(0.0, min(watch_s, next_limit - time.monotonic()))):
            try:
                look()
                if time.monotonic() >= min(next_beat, next_limit):
                    next_beat = time.monotonic() + settings.heartbeat_s
                    beat()
                if time.monotonic() >= next_limit:
                    next_limit = time.monotonic() + look_at_limits()
                if pulse.error is not None:  # the stage stops at its next check, whatever is left of the limits
                    next_limit = math.inf
            except RagllavaError as missed:
                log.warning(str(missed), extra={"action": "heartbeat_missed", "shard": lease.shard_id})
                next_limit = max(next_limit, time.monotonic() + _WATCH_S)
            if isinstance(pulse.error, LeaseLost):
                return

    thread = threading.Thread(target=run, name=f"heartbeat-{lease.shard_id}", daemon=True)
    thread.start()
    try:
        yield pulse
    finally:
        done.set()
        thread.join()
