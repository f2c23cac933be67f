"""What waits and runs in each queue."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from sqlalchemy import Connection, and_, func, select

from ragllava.jobs.kinds import KINDS, queues_by_kind
from ragllava.jobs.states import OPEN_SHARD_STATES, JobState, ShardState
from ragllava.stores.schema import jobs, shards


@dataclass(frozen=True, slots=True)
class QueueView:
    """The shards of one queue. `overdue` are those running ones whose lease has run out: their worker may be gone.

    `paused` wait for a person to resume their job.
    """

    name: str
    waiting: int = 0
    running: int = 0
    overdue: int = 0
    paused: int = 0


def list_queues(connection: Connection) -> list[QueueView]:
    """Every queue, also one in which nothing is, of the jobs that the transaction may see."""
    is_running = shards.c.state == ShardState.RUNNING
    is_overdue = and_(is_running, shards.c.lease_until < func.now())
    is_paused = and_(~is_running, jobs.c.state == JobState.PAUSED)
    rows = connection.execute(
        select(
            jobs.c.kind,
            shards.c.queue,
            func.count().filter(~is_running, jobs.c.state != JobState.PAUSED).label("waiting"),
            func.count().filter(is_running).label("running"),
            func.count().filter(is_overdue).label("overdue"),
            func.count().filter(is_paused).label("paused"),
        )
        .join(jobs, jobs.c.id == shards.c.job_id)
        .where(jobs.c.finished_at.is_(None), shards.c.state.in_(OPEN_SHARD_STATES))
        .group_by(jobs.c.kind, shards.c.queue)
    )
    of_kind = queues_by_kind()
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for row in rows:
        name = row.queue or of_kind.get(row.kind)
        if name is not None:
            sums[name] = [a + b for a, b in zip(sums[name], row[2:], strict=True)]
    names = dict.fromkeys([*(kind.queue for kind in KINDS.values()), *sums])
    return [QueueView(name, *sums[name]) for name in names]
