"""How many jobs are served before one that waits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, select

from ragllava.jobs.kinds import kind_of
from ragllava.jobs.turns import job_turns
from ragllava.stores.schema import jobs


def jobs_before(connection: Connection) -> dict[int, int]:
    """For each job that has not started: how many jobs of its queue are served before it, in the order of dispatch.

    These are the jobs of higher priority, and of equal priority those that have a shard in flight, and those whose turn
    comes earlier: owners take turns, and the jobs of an owner (jobs/turns.py).
    """
    turns = job_turns()
    columns = (turns, jobs.c.kind, jobs.c.priority, jobs.c.started_at)
    rows = connection.execute(select(*columns).join(turns, turns.c.job_id == jobs.c.id)).all()
    by_queue: dict[str, list[Row[Any]]] = defaultdict(list)
    for row in rows:
        by_queue[kind_of(row.kind).queue].append(row)

    before: dict[int, int] = {}
    for queue in by_queue.values():
        keys = _turns_of(queue)
        order = sorted(queue, key=lambda job: keys[job.job_id])
        before |= {job.job_id: place for place, job in enumerate(order) if job.started_at is None}
    return before


def _turns_of(queue: Sequence[Row[Any]]) -> dict[int, tuple[Any, ...]]:
    """By which the jobs of a queue come first: higher priority, a shard in flight already, the turn of the owner, that
    of its job. Of an owner with n shards in flight, the first waiting job has the turn n + 1, the second n + 2, …"""
    keys: dict[int, tuple[Any, ...]] = {}
    waiting: Counter[tuple[str, int]] = Counter()
    for job in sorted(queue, key=lambda job: (job.deadline, job.in_flight, job.waiting_since, job.job_id)):
        is_served = job.started_at is not None and job.in_flight > 0
        waiting[job.owner, job.priority] += not is_served
        turn = 0 if is_served else job.of_owner + waiting[job.owner, job.priority]
        keys[job.job_id] = (
            -job.priority, not is_served, turn, job.deadline, job.in_flight, job.waiting_since, job.job_id
        )  # fmt: skip
    return keys
