"""Reap and dispatch: what makes lost, late and repeated messages harmless (docs/reliability.md D3).

Both are called after a submit, after each finished shard and by a tick every few seconds; any number may run at
once. The shard's row is the outbox: commit first, publish after. A message that never arrived is recognised by its
age in state `queued` and sent again.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Float,
    Row,
    Subquery,
    Text,
    and_,
    case,
    cast,
    exists,
    func,
    select,
    text,
    update,
)

from ragllava.jobs.kinds import is_known_kind, kind_of, kinds_beside
from ragllava.jobs.locking import lock_shard
from ragllava.jobs.queue import is_urgent, is_waiting, settle, unqueue
from ragllava.jobs.retry import Limits
from ragllava.jobs.states import OPEN_SHARD_STATES, JobState, ShardState
from ragllava.settings import Settings
from ragllava.stores.database import equals_any, in_transaction, seconds
from ragllava.stores.schema import jobs, shards, workers

log = logging.getLogger(__name__)

IS_READY = and_(
    shards.c.state == ShardState.PENDING, (shards.c.not_before.is_(None)) | (shards.c.not_before <= func.now())
)
QUEUED = {"state": ShardState.QUEUED, "queued_at": func.now()}
_IS_EXPIRED = (shards.c.state == ShardState.RUNNING, shards.c.lease_until < func.now())
_REAPED_AT_ONCE = 100
_REAPING_S = 1.0  # then the other shards wait for the next call
_REAPING_TIMEOUT_MS = 2_000  # of a statement
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
    reaped, until = 0, time.monotonic() + _REAPING_S
    for shard_id, job_id in in_transaction(engine, _expired_shards):
        if time.monotonic() > until:
            break
        try:
            with engine.begin() as connection:
                reaped += _reap_shard(connection, shard_id, job_id, settings)
        except Exception as error:
            log.exception("shard not reaped", extra={"action": "shard_not_reaped", "shard": shard_id, "job": job_id})
            in_transaction(engine, _postpone_reaping, shard_id, f"{type(error).__name__}: {error}", settings)
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


def _open_jobs() -> tuple[ColumnElement[bool], ...]:
    return jobs.c.finished_at.is_(None), is_known_kind()


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

    A message that waits for a busy worker is not lost, however old it is.
    """
    old = (shards.c.state == ShardState.QUEUED, shards.c.queued_at < func.now() - seconds(settings.queued_timeout_s))
    query = (
        select(shards.c.id, shards.c.queue, jobs.c.kind)
        .join(jobs)
        .where(jobs.c.finished_at.is_(None), is_known_kind(), *old)
    )
    rows = connection.execute(query).all()
    busy = _busy_queues(connection, settings) if rows else set()
    lost = [row.id for row in rows if (row.queue or kind_of(row.kind).queue) not in busy]
    return unqueue(connection, equals_any(shards.c.id, lost), *old) if lost else 0


def _busy_queues(connection: Connection, settings: Settings) -> set[str]:
    """The queues that live workers serve, all of which have a running shard for each of their slots."""
    rows = connection.execute(
        text("""
            SELECT queue FROM (
                SELECT queues, slots, (
                    SELECT count(*) FROM shards s JOIN jobs j ON j.id = s.job_id
                    WHERE s.worker = w.name AND s.state = 'running' AND s.lease_until > now() AND j.finished_at IS NULL
                ) AS running
                FROM workers w WHERE state = 'live' AND versions <> '{}'
                AND seen_at > now() - make_interval(secs => :age)
            ) live, unnest(queues) AS queue
            GROUP BY queue HAVING bool_and(running >= slots)
        """),
        {"age": 3 * settings.tick_s},
    )
    return {row.queue for row in rows}


def choose(connection: Connection, settings: Settings) -> list[ShardMessage]:
    """Mark the next shards `queued`, so that each live slot has one that runs and one that waits; returns their
    messages.

    Higher priority first; owners of jobs of equal priority take turns, and so do the jobs of an owner, those with a
    deadline before the others (`job_turns`). Shards of lower priority
    do not use up the room of higher ones, so a single question never waits behind a bulk job's messages.
    """
    space = _QueueSpace(live_slots(connection, settings), _queued_messages(connection) + _running(connection, settings))
    chosen: list[ShardMessage] = []
    for row in _pending(connection):
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
        ahead = sum(n for (name, urgency), n in self.taken.items() if name == queue and urgency >= priority)
        if ahead >= MESSAGES_PER_SLOT * self.slots.get(queue, 0):
            return False
        self.taken[queue, priority] += 1
        return True


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


def job_turns() -> Subquery:
    """For each open job: `in_flight`, its shards that are queued or run, and `waiting_since`, when its last shard was
    queued, or the job created; `of_owner`, the shards in flight of all jobs of its kind and `owner`.

    The next turn is that of the owner with the fewest shards in flight; of that owner's jobs, of the one with the
    earliest `deadline`, then of the one with the fewest, and of these of the one that waits longest. So each owner gets
    an equal share of the slots, however many jobs it has, each job its share from its first shard on, and a stream of
    new jobs holds up no old one. A job without an owner is its own.
    """
    in_flight = func.count().filter(shards.c.state.in_([ShardState.QUEUED, ShardState.RUNNING]))
    owner = func.coalesce(jobs.c.owner, cast(jobs.c.id, Text))
    return (
        select(
            jobs.c.id.label("job_id"),
            owner.label("owner"),
            in_flight.label("in_flight"),
            func.sum(in_flight).over(partition_by=(owner, jobs.c.kind)).label("of_owner"),
            func.coalesce(func.max(shards.c.queued_at), jobs.c.created_at).label("waiting_since"),
            func.coalesce(cast(func.extract("epoch", jobs.c.deadline_at), Float), math.inf).label("deadline"),
        )
        .join(shards, shards.c.job_id == jobs.c.id)
        .where(jobs.c.finished_at.is_(None), jobs.c.state == JobState.RUNNING, is_known_kind())
        .group_by(jobs.c.id)
        .subquery("turns")
    )


def _pending(connection: Connection) -> Sequence[Row[Any]]:
    turns = job_turns()
    nth = func.row_number().over(partition_by=shards.c.job_id, order_by=shards.c.lo)
    sibling = shards.alias("sibling")
    open_siblings = exists().where(
        sibling.c.job_id == shards.c.job_id, sibling.c.id != shards.c.id, sibling.c.state.in_(OPEN_SHARD_STATES)
    )
    ready = (
        select(
            shards.c.id,
            jobs.c.kind,
            shards.c.queue,
            _PRIORITY,
            jobs.c.id.label("job_id"),
            (turns.c.in_flight + nth).label("turn"),
            turns.c.waiting_since,
            turns.c.deadline,
            turns.c.owner,
            turns.c.of_owner,
        )
        .join(jobs, jobs.c.id == shards.c.job_id)
        .join(turns, turns.c.job_id == jobs.c.id)
        .where(IS_READY, ~shards.c.is_last | ~open_siblings)
        .subquery()
    )
    queue = func.coalesce(ready.c.queue, ready.c.kind)
    of_job = (ready.c.deadline, ready.c.turn, ready.c.waiting_since, ready.c.job_id)
    nth_of_owner = func.row_number().over(partition_by=(ready.c.owner, queue, ready.c.priority), order_by=of_job)
    owned = select(ready, queue.label("of_queue"), (ready.c.of_owner + nth_of_owner).label("owner_turn")).subquery()
    # One queue may be full while another is empty, so look at shards of each kind.
    rank = func.row_number().over(
        partition_by=owned.c.of_queue,
        order_by=(
            owned.c.priority.desc(),
            owned.c.owner_turn,
            owned.c.deadline,
            owned.c.turn,
            owned.c.waiting_since,
            owned.c.job_id,
        ),
    )
    ranked = select(owned.c.id, owned.c.kind, owned.c.queue, owned.c.priority, rank.label("rank")).subquery()
    # Kinds may share a queue, so priority decides between them, too.
    first = (ranked.c.priority.desc(), ranked.c.rank)
    return connection.execute(select(ranked).where(ranked.c.rank <= _LOOK_AHEAD).order_by(*first)).all()


_LOOK_AHEAD = 1000
# The last shard of a job of low priority takes turns with other jobs: behind a stream of questions it would never run.
_PRIORITY = case((shards.c.is_last, func.greatest(jobs.c.priority, 0)), else_=jobs.c.priority).label("priority")
