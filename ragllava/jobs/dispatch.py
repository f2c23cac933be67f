"""Sweep and dispatch: what makes lost, late and repeated messages harmless (docs/reliability.md D3).

Both are called after a submit, after each finished shard and by a tick every few seconds; any number may run at
once. The shard's row is the outbox: commit first, publish after; a message that never arrived is found by its
age in state `queued` and sent again.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, and_, case, exists, func, select, text, update

from ragllava.jobs.queue import Limits, close_job_if_ended, end_open_shards, lock_shards, seconds, settle
from ragllava.jobs.states import OPEN_SHARD_STATES, JobState, ShardState
from ragllava.records import JobKind
from ragllava.settings import Settings
from ragllava.stores.database import in_transaction
from ragllava.stores.schema import jobs, shards

log = logging.getLogger(__name__)

QUEUE_OF_KIND = {
    JobKind.INGEST: "ingest",
    JobKind.ANSWER: "query",
    JobKind.TRAIN: "train",
    JobKind.REINDEX: "ingest",
    JobKind.MAINTENANCE: "ingest",
}

MESSAGES_PER_SLOT = 2  # enough that a slot never waits for the next message, few enough that order stays ours


@dataclass(frozen=True, slots=True)
class ShardMessage:
    """What travels through the broker. `urgent` messages overtake the others there as well."""

    shard_id: int
    queue: str
    urgent: bool


Publish = Callable[[list[ShardMessage]], None]


def limits(settings: Settings) -> Limits:
    """The queue's limits as the settings have them."""
    return Limits(settings.max_attempts, settings.max_transient_attempts, settings.retry_backoff_s)


def reap_and_dispatch(engine: Engine, settings: Settings, publish: Publish) -> int:
    """One tick: rescue, choose, commit, publish. Returns how many messages were published."""
    in_transaction(engine, reap, settings)
    messages = in_transaction(engine, choose, settings)
    if messages:
        publish(messages)
    return len(messages)


def reap(connection: Connection, settings: Settings) -> int:
    """Rescue what its worker or the broker lost, and close what has ended. Returns the number of shards touched."""
    expired = lock_shards(connection, shards.c.state == ShardState.RUNNING, shards.c.lease_until < func.now())
    for row in expired:
        log.warning(
            "lease expired",
            extra={"action": "shard_reaped", "shard": row.id, "job": row.job_id, "worker": row.worker},
        )
        settle(connection, row, f"worker {row.worker} stopped answering", limits(settings))
    lost = connection.execute(
        update(shards)
        .where(
            shards.c.state == ShardState.QUEUED,
            shards.c.queued_at < func.now() - seconds(settings.queued_timeout_s),
            shards.c.job_id.in_(select(jobs.c.id).where(jobs.c.finished_at.is_(None))),
        )
        .values(state=ShardState.PENDING, queued_at=None)
    ).rowcount
    for job_id in connection.scalars(
        select(jobs.c.id).where(jobs.c.finished_at.is_(None), jobs.c.state == JobState.CANCELLING)
    ).all():
        end_open_shards(connection, job_id, "cancelled", "cancelled by the user")
        close_job_if_ended(connection, job_id)
    return len(expired) + lost


def choose(connection: Connection, settings: Settings) -> list[ShardMessage]:
    """Mark the next shards `queued`, at most two messages for each live slot, and return their messages.

    Higher priority first; jobs of equal priority take turns. Messages of lower priority do not use up the room of
    higher ones, so a single question never waits behind a bulk job's messages.
    """
    room = _room(connection, settings)
    chosen: list[ShardMessage] = []
    ids: list[int] = []
    for row in _pending(connection):
        queue = row.queue or QUEUE_OF_KIND[JobKind(row.kind)]
        if room.take(queue, row.priority):
            ids.append(row.id)
            chosen.append(ShardMessage(row.id, queue, urgent=row.priority > 0))
    if not ids:
        return []
    locked = set(
        connection.scalars(
            select(shards.c.id)
            .where(shards.c.id.in_(ids), shards.c.state == ShardState.PENDING)
            .with_for_update(skip_locked=True)
        )
    )
    connection.execute(
        update(shards).where(shards.c.id.in_(locked)).values(state=ShardState.QUEUED, queued_at=func.now())
    )
    return [message for message in chosen if message.shard_id in locked]


def unpublish(connection: Connection, shard_ids: list[int]) -> None:
    """The broker took none of these messages: back to pending at once instead of after the timeout."""
    connection.execute(
        update(shards)
        .where(and_(shards.c.id.in_(shard_ids), shards.c.state == ShardState.QUEUED))
        .values(state=ShardState.PENDING, queued_at=None)
    )


class _Room:
    """How many more messages each queue takes, by priority."""

    def __init__(self, slots: dict[str, int], outstanding: dict[tuple[str, int], int]) -> None:
        self._slots = slots
        self._outstanding = defaultdict(int, outstanding)

    def take(self, queue: str, priority: int) -> bool:
        ahead = sum(n for (q, p), n in self._outstanding.items() if q == queue and p >= priority)
        if ahead >= MESSAGES_PER_SLOT * self._slots.get(queue, 0):
            return False
        self._outstanding[queue, priority] += 1
        return True


def live_slots(connection: Connection, settings: Settings) -> dict[str, int]:
    """How many shards the workers that are there can run at once, by queue."""
    rows = connection.execute(
        text(
            "SELECT queue, sum(slots) AS slots FROM workers, unnest(queues) AS queue "
            "WHERE state = 'live' AND versions <> '{}' AND seen_at > now() - make_interval(secs => :age) GROUP BY queue"
        ),
        {"age": 3 * settings.tick_s},
    )
    return {row.queue: int(row.slots) for row in rows}


def _room(connection: Connection, settings: Settings) -> _Room:
    outstanding = connection.execute(
        select(jobs.c.kind, shards.c.queue, _PRIORITY, func.count())
        .join(shards, shards.c.job_id == jobs.c.id)
        .where(jobs.c.finished_at.is_(None), shards.c.state == ShardState.QUEUED)
        .group_by(jobs.c.kind, shards.c.queue, _PRIORITY)
    )
    taken: dict[tuple[str, int], int] = defaultdict(int)
    for kind, queue, priority, number in outstanding:
        taken[queue or QUEUE_OF_KIND[JobKind(kind)], priority] += number
    return _Room(live_slots(connection, settings), taken)


def _pending(connection: Connection) -> list[_PendingShard]:
    turn = func.row_number().over(partition_by=shards.c.job_id, order_by=shards.c.lo)
    other = shards.alias("other")
    others_open = exists().where(
        other.c.job_id == shards.c.job_id, other.c.id != shards.c.id, other.c.state.in_(OPEN_SHARD_STATES)
    )
    ready = (
        select(shards.c.id, jobs.c.kind, shards.c.queue, _PRIORITY, jobs.c.id.label("job_id"), turn.label("turn"))
        .join(jobs, jobs.c.id == shards.c.job_id)
        .where(
            jobs.c.finished_at.is_(None),
            jobs.c.state == JobState.RUNNING,
            shards.c.state == ShardState.PENDING,
            (shards.c.not_before.is_(None)) | (shards.c.not_before <= func.now()),
            ~shards.c.is_last | ~others_open,
        )
        .subquery()
    )
    # One queue may be full while another is empty, so look at some of each kind.
    rank = func.row_number().over(
        partition_by=func.coalesce(ready.c.queue, ready.c.kind),
        order_by=(ready.c.priority.desc(), ready.c.turn, ready.c.job_id),
    )
    ranked = select(ready.c.id, ready.c.kind, ready.c.queue, ready.c.priority, rank.label("rank")).subquery()
    # Kinds may share a queue, so priority decides between them, too.
    first = (ranked.c.priority.desc(), ranked.c.rank)
    rows = connection.execute(select(ranked).where(ranked.c.rank <= _LOOK_AHEAD).order_by(*first))
    return [_PendingShard(row.id, row.kind, row.queue, row.priority) for row in rows]


_LOOK_AHEAD = 1000
# What ends a job of low priority takes turns with the others: behind a stream of questions it would never come.
_PRIORITY = case((shards.c.is_last, func.greatest(jobs.c.priority, 0)), else_=jobs.c.priority).label("priority")


@dataclass(frozen=True, slots=True)
class _PendingShard:
    id: int
    kind: str
    queue: str | None
    priority: int
