"""Reap and dispatch: what makes lost, late and repeated messages harmless (docs/reliability.md D3).

Both are called after a submit, after each finished shard and by a tick every few seconds; any number may run at
once. The shard's row is the outbox: commit first, publish after. A message that never arrived is recognised by its
age in state `queued` and sent again.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import (
    Connection,
    Engine,
    func,
    select,
    text,
    update,
)

from ragllava.jobs.kinds import is_known_kind, kind_of, kinds_beside
from ragllava.jobs.locking import lock_shard
from ragllava.jobs.queue import is_urgent, is_waiting, settle, unqueue
from ragllava.jobs.retry import Limits
from ragllava.jobs.states import JobState, ShardState
from ragllava.jobs.turns import LOOK_AHEAD, open_jobs, pending_shards, priority_of
from ragllava.settings import Settings
from ragllava.stores.database import equals_any, in_transaction, seconds
from ragllava.stores.schema import jobs, shards, workers

log = logging.getLogger(__name__)

QUEUED = {"state": ShardState.QUEUED, "queued_at": func.now()}
_IS_EXPIRED = (shards.c.state == ShardState.RUNNING, shards.c.lease_until < func.now())
_REAPED_AT_ONCE = 100
_REAPING_S = 1.0  # then the other shards wait for the next call
_REAPING_TIMEOUT_MS = 2_000  # of a statement
_FEW_FREE = 0.05  # of the slots of a queue
_VERY_OLD = 10  # times the age at which a message is old
MESSAGES_PER_SLOT = 2  # a shard that runs and one that waits: a slot never waits, and the order stays ours


@dataclass(frozen=True, slots=True)
class ShardMessage:
    """What travels through the broker. Messages of higher priority overtake the others there as well."""

    shard_id: int
    queue: str
    priority: int


Publish = Callable[[list[ShardMessage]], None]


def reap_and_dispatch(engine: Engine, settings: Settings, publish: Publish) -> int:
    """One tick: reap, choose, commit, publish. Returns how many messages were published.

    What cannot be reaped holds up nothing else.
    """
    reap(engine, settings)
    messages = in_transaction(engine, choose, settings)
    if messages:
        publish(messages)
    return len(messages)


def reap(engine: Engine, settings: Settings) -> int:
    """Take back shards that their worker or the broker lost; returns how many.

    Each is taken back in a transaction of its own, within limits of time, because dispatch waits for it. One that
    cannot be taken back gets the error as its `error`, and is tried again after another lease. Raises only
    ServiceUnavailable, when the database is away.
    """
    expired = in_transaction(engine, _expired_shards)
    reaped, until = 0, time.monotonic() + _REAPING_S
    for shard_id, job_id in expired:
        try:
            with engine.begin() as connection:
                reaped += _reap_shard(connection, shard_id, job_id, settings)
        except Exception as error:
            log.exception("shard not reaped", extra={"action": "shard_not_reaped", "shard": shard_id, "job": job_id})
            in_transaction(engine, _postpone_reaping, shard_id, f"{type(error).__name__}: {error}", settings)
        if time.monotonic() > until:  # after one at least: a slow database must not stop it
            break
    return reaped + in_transaction(engine, _unqueue_lost, settings)


def _expired_shards(connection: Connection) -> list[tuple[int, int]]:
    """Running shards whose lease has ended, each with its job; those that ended first, a bounded number."""
    query = (
        select(shards.c.id, shards.c.job_id)
        .join(jobs)
        .where(jobs.c.finished_at.is_(None), is_known_kind(), *_IS_EXPIRED)
    )
    rows = connection.execute(query.order_by(shards.c.lease_until).limit(_REAPED_AT_ONCE))
    return [(shard_id, job_id) for shard_id, job_id in rows]


def _reap_shard(connection: Connection, shard_id: int, job_id: int, settings: Settings) -> bool:
    connection.execute(text(f"SET LOCAL statement_timeout = {_REAPING_TIMEOUT_MS}"))
    row = lock_shard(connection, job_id, shards.c.id == shard_id, *_IS_EXPIRED, skip_locked=True)
    if row is None:  # another process is at it, or was faster
        return False
    facts = {"action": "shard_reaped", "shard": shard_id, "job": job_id, "worker": row.worker}
    log.warning("lease expired", extra=facts)
    settle(connection, row, f"worker {row.worker} stopped answering", Limits.of(settings), is_lost=True)
    return True


def _postpone_reaping(connection: Connection, shard_id: int, error: str, settings: Settings) -> None:
    later = {"lease_until": func.now() + seconds(settings.lease_s), "error": f"not taken back: {error}"}
    connection.execute(update(shards).where(shards.c.id == shard_id, *_IS_EXPIRED).values(later))


def _unqueue_lost(connection: Connection, settings: Settings) -> int:
    """Set queued shards back to pending whose message was lost; returns how many.

    A message that waits for a busy worker is not lost, however old it is. Of many workers one is free at almost any
    moment, between two shards, so a few free slots only mean something for a message that is much older.
    """
    old = (shards.c.state == ShardState.QUEUED, shards.c.queued_at < func.now() - seconds(settings.queued_timeout_s))
    is_very_old = shards.c.queued_at < func.now() - seconds(_VERY_OLD * settings.queued_timeout_s)
    query = (
        select(shards.c.id, shards.c.queue, jobs.c.kind, is_very_old.label("is_very_old"))
        .join(jobs)
        .where(jobs.c.finished_at.is_(None), is_known_kind(), *old)
    )
    rows = connection.execute(query).all()
    free = _free_shares(connection, settings) if rows else {}
    lost = [
        row.id
        for row in rows
        if free.get(row.queue or kind_of(row.kind).queue, 1.0) > (0.0 if row.is_very_old else _FEW_FREE)
    ]
    return unqueue(connection, equals_any(shards.c.id, lost), *old) if lost else 0


def _free_shares(connection: Connection, settings: Settings) -> dict[str, float]:
    """The share of the slots of each queue's live workers, from 0 to 1, that run no shard.

    Joined here: without fresh statistics, the planner compares each worker with each running shard.
    """
    running = (
        select(shards.c.worker, func.count().label("number"))
        .where(shards.c.state == ShardState.RUNNING, shards.c.lease_until > func.now())
        .group_by(shards.c.worker)
    )
    running_of = {row.worker: row.number for row in connection.execute(running)}
    free, slots = Counter[str](), Counter[str]()
    for worker in connection.execute(
        text(
            "SELECT name, queues, slots FROM workers WHERE state = 'live' AND versions <> '{}' "
            "AND seen_at > now() - make_interval(secs => :age)"
        ),
        {"age": 3 * settings.tick_s},
    ):
        for queue in worker.queues:
            free[queue] += max(0, worker.slots - running_of.get(worker.name, 0))
            slots[queue] += worker.slots
    return {queue: free[queue] / number for queue, number in slots.items() if number}


def choose(connection: Connection, settings: Settings) -> list[ShardMessage]:
    """Mark the next shards `queued`, so that each live slot has one that runs and one that waits; returns their
    messages.

    Higher priority first; owners of jobs of equal priority take turns, and so do the jobs of an owner, those with a
    deadline before the others (`job_turns`). Shards of lower priority do not use up the room of higher ones, so a
    single question never waits behind a bulk job's messages.
    """
    space = _QueueSpace(live_slots(connection, settings), _queued_messages(connection) + _running(connection, settings))
    most = min(LOOK_AHEAD, max(map(space.room, _priorities(connection)), default=0))
    chosen: list[ShardMessage] = []
    for row in pending_shards(connection, most) if most else ():
        queue = row.queue or kind_of(row.kind).queue
        if space.take(queue, row.priority):
            chosen.append(ShardMessage(row.id, queue, row.priority))
    if not chosen:
        return []
    ids = [message.shard_id for message in chosen]
    is_pending = shards.c.state == ShardState.PENDING
    free = select(shards.c.id).where(shards.c.id.in_(ids), is_pending).with_for_update(skip_locked=True)
    locked = set(connection.scalars(free))
    connection.execute(update(shards).where(shards.c.id.in_(locked)).values(QUEUED))
    return [message for message in chosen if message.shard_id in locked]


def take_urgent(connection: Connection, kind: str) -> int | None:
    """The first shard of an urgent job that waits, to which a shard of this kind gives way; None without one.

    It is marked `queued`, so that the caller can claim it as if its message had arrived. Others may be faster.
    """
    row = connection.execute(
        select(shards.c.id, shards.c.state)
        .join(jobs, jobs.c.id == shards.c.job_id)
        .where(is_urgent(jobs, kinds_beside(kind)), is_waiting(shards))
        .order_by(jobs.c.priority.desc(), jobs.c.id, shards.c.lo)
        .limit(1)
        .with_for_update(of=shards, skip_locked=True)
    ).one_or_none()
    if row is None:
        return None
    if row.state == ShardState.PENDING:
        connection.execute(update(shards).where(shards.c.id == row.id).values(QUEUED))
    return int(row.id)


def unpublish(connection: Connection, shard_ids: list[int]) -> None:
    """Set shards whose messages the broker did not take back to pending at once, not after the timeout."""
    unqueue(connection, shards.c.id.in_(shard_ids))


@dataclass(frozen=True)
class _QueueSpace:
    """How many more messages each queue takes. `taken` counts the shards in flight by queue and priority."""

    slots: dict[str, int]
    taken: Counter[tuple[str, int]]

    def take(self, queue: str, priority: int) -> bool:
        """Count one more message, if the queue has space for one of this priority."""
        if self._room_of(queue, priority) <= 0:
            return False
        self.taken[queue, priority] += 1
        return True

    def room(self, priority: int) -> int:
        """How many messages of this priority the queue with most space takes."""
        return max((self._room_of(queue, priority) for queue in self.slots), default=0)

    def _room_of(self, queue: str, priority: int) -> int:
        ahead = sum(n for (name, urgency), n in self.taken.items() if name == queue and urgency >= priority)
        return max(0, MESSAGES_PER_SLOT * self.slots.get(queue, 0) - ahead)


def live_slots(connection: Connection, settings: Settings) -> dict[str, int]:
    """How many shards the live workers can run at once, by queue."""
    rows = connection.execute(
        text(
            "SELECT queue, sum(slots) AS slots FROM workers, unnest(queues) AS queue "
            "WHERE state = 'live' AND versions <> '{}' AND seen_at > now() - make_interval(secs => :age) GROUP BY queue"
        ),
        {"age": 3 * settings.tick_s},
    )
    return {row.queue: int(row.slots) for row in rows}


def _queued_messages(connection: Connection) -> Counter[tuple[str, int]]:
    rows = connection.execute(
        select(jobs.c.kind, shards.c.queue, _PRIORITY, func.count().label("number"))
        .join(shards, shards.c.job_id == jobs.c.id)
        .where(jobs.c.finished_at.is_(None), is_known_kind(), shards.c.state == ShardState.QUEUED)
        .group_by(jobs.c.kind, shards.c.queue, _PRIORITY)
    )
    queued: Counter[tuple[str, int]] = Counter()
    for row in rows:
        queued[row.queue or kind_of(row.kind).queue, row.priority] += row.number
    return queued


def _running(connection: Connection, settings: Settings) -> Counter[tuple[str, int]]:
    """The shards that live workers run, by queue and priority; of each worker and priority no more than its slots.

    A worker that was killed leaves shards that run on paper until they are reaped.
    """
    rows = connection.execute(
        select(jobs.c.kind, shards.c.queue, _PRIORITY, func.least(func.count(), workers.c.slots).label("number"))
        .join(shards, shards.c.job_id == jobs.c.id)
        .join(workers, workers.c.name == shards.c.worker)
        .where(
            jobs.c.finished_at.is_(None),
            is_known_kind(),
            shards.c.state == ShardState.RUNNING,
            workers.c.seen_at > func.now() - seconds(3 * settings.tick_s),
        )
        .group_by(jobs.c.kind, shards.c.queue, _PRIORITY, workers.c.name, workers.c.slots)
    )
    running: Counter[tuple[str, int]] = Counter()
    for row in rows:
        running[row.queue or kind_of(row.kind).queue, row.priority] += row.number
    return running


def _priorities(connection: Connection) -> set[int]:
    """Those of the jobs that run, and of their last shards."""
    running = select(jobs.c.priority).where(*open_jobs(), jobs.c.state == JobState.RUNNING).distinct()
    priorities = set(connection.scalars(running))
    return priorities | {max(priority, 0) for priority in priorities}


_PRIORITY = priority_of(shards.c.is_last)
