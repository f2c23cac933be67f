"""Whose turn it is: the order in which the shards of running jobs go to the workers.

Shards that have ended are not read, and of those that wait only as many as there is room for: an index of the open
shards has both (docs/reliability.md D3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Row,
    ScalarSelect,
    Subquery,
    Text,
    and_,
    case,
    cast,
    exists,
    func,
    literal,
    or_,
    select,
    true,
)

from ragllava.jobs.kinds import is_known_kind
from ragllava.jobs.states import OPEN_SHARD_STATES, JobState, ShardState
from ragllava.stores.schema import jobs, shards

LOOK_AHEAD = 1000  # shards of a queue that are looked at

IS_READY = and_(
    shards.c.state == literal(ShardState.PENDING.value, literal_execute=True),  # as in `_first_of`
    (shards.c.not_before.is_(None)) | (shards.c.not_before <= func.now()),
)


def open_jobs() -> tuple[ColumnElement[bool], ...]:
    """The conditions that a job has not ended, and this version knows its kind."""
    return jobs.c.finished_at.is_(None), is_known_kind()


def has_open_shard(job_id: ColumnElement[int]) -> ColumnElement[bool]:
    """The condition that a shard of a job has not ended. It looks at one shard of each state."""
    return or_(*(_first_of(job_id, state).is_not(None) for state in OPEN_SHARD_STATES))


def has_waiting_shard(job_id: ColumnElement[int]) -> ColumnElement[bool]:
    """The condition that a shard of a job waits for a worker, with or without a message."""
    is_ready = (_FIRST.c.not_before.is_(None)) | (_FIRST.c.not_before <= func.now())
    queued, pending = _first_of(job_id, ShardState.QUEUED), _first_of(job_id, ShardState.PENDING, is_ready)
    return queued.is_not(None) | pending.is_not(None)


_FIRST = shards.alias("first_shard")


def _first_of(job_id: ColumnElement[int], state: ShardState, *conditions: ColumnElement[bool]) -> ScalarSelect[int]:
    """The first shard of a job in a state. In order: without one, Postgres reads all shards where it expects many."""
    # Written into the statement, as an index of some states is of no use for a plan that is made for any state.
    of_state = _FIRST.c.state == literal(state.value, literal_execute=True)
    of_job = (_FIRST.c.job_id == job_id, of_state, *conditions)
    return select(_FIRST.c.id).where(*of_job).order_by(_FIRST.c.lo).limit(1).scalar_subquery()


def _is_in(state: ColumnElement[str], *states: ShardState) -> ColumnElement[bool]:
    """The condition that a state is one of these, which are written into the statement, as in `_first_of`."""
    return state.in_([literal(chosen.value, literal_execute=True) for chosen in states])


def job_turns() -> Subquery:
    """For each open job: `in_flight`, its shards that are queued or run, and `waiting_since`, when its last shard was
    queued, or the job created; `of_owner`, the shards in flight of all jobs of its kind and `owner`.

    The next turn is that of the owner with the fewest shards in flight; of that owner's jobs, of the one with the
    earliest `deadline`, then of the one with the fewest, and of these of the one that waits longest. So each owner gets
    an equal share of the slots, however many jobs it has, each job its share from its first shard on, and a stream of
    new jobs holds up no old one. A job without an owner is its own.

    Shards that have ended are not read, however many there are: what was queued last is in flight, or it comes right
    before the first one that waits.
    """
    flying = shards.alias("flying")
    in_flight = (
        select(func.count().label("number"), func.max(flying.c.queued_at).label("queued_at"))
        .where(flying.c.job_id == jobs.c.id, _is_in(flying.c.state, ShardState.QUEUED, ShardState.RUNNING))
        .lateral("in_flight")
    )
    first = shards.alias("first")
    first_waiting = (
        select(first.c.id, first.c.run_no, first.c.lo)
        .where(first.c.job_id == jobs.c.id, _is_in(first.c.state, ShardState.PENDING))
        .order_by(first.c.lo)
        .limit(1)
        .lateral("first_waiting")
    )
    ended = shards.alias("ended")
    before_it = (
        select(ended.c.queued_at)
        .where(
            ended.c.job_id == jobs.c.id,
            ended.c.run_no == first_waiting.c.run_no,
            ended.c.lo <= first_waiting.c.lo,
            ended.c.id != first_waiting.c.id,
        )
        .order_by(ended.c.lo.desc())
        .limit(1)
        .lateral("before_it")
    )
    owner = func.coalesce(jobs.c.owner, cast(jobs.c.id, Text))
    return (
        select(
            jobs.c.id.label("job_id"),
            owner.label("owner"),
            in_flight.c.number.label("in_flight"),
            func.sum(in_flight.c.number).over(partition_by=(owner, jobs.c.kind)).label("of_owner"),
            func.coalesce(func.greatest(in_flight.c.queued_at, before_it.c.queued_at), jobs.c.created_at).label(
                "waiting_since"
            ),
            func.coalesce(cast(func.extract("epoch", jobs.c.deadline_at), Float), math.inf).label("deadline"),
        )
        .select_from(jobs)
        .join(in_flight, true())
        .outerjoin(first_waiting, true())
        .outerjoin(before_it, true())
        .where(*open_jobs(), jobs.c.state == JobState.RUNNING)
        .subquery("turns")
    )


def pending_shards(connection: Connection, most: int) -> Sequence[Row[Any]]:
    """The next shards in the order of turns, at most `most` of each job."""
    turns = job_turns()
    sibling = shards.alias("sibling")
    open_siblings = exists().where(
        sibling.c.job_id == shards.c.job_id, sibling.c.id != shards.c.id, _is_in(sibling.c.state, *OPEN_SHARD_STATES)
    )
    first = (
        select(shards.c.id, shards.c.queue, shards.c.is_last, shards.c.lo)
        .where(shards.c.job_id == jobs.c.id, IS_READY, ~shards.c.is_last | ~open_siblings)
        .order_by(shards.c.lo)
        .limit(most)
        .lateral("first_shards")
    )
    nth = func.row_number().over(partition_by=jobs.c.id, order_by=first.c.lo)
    ready = (
        select(
            first.c.id,
            jobs.c.kind,
            first.c.queue,
            priority_of(first.c.is_last),
            jobs.c.id.label("job_id"),
            (turns.c.in_flight + nth).label("turn"),
            turns.c.waiting_since,
            turns.c.deadline,
            turns.c.owner,
            turns.c.of_owner,
        )
        .select_from(jobs)
        .join(turns, turns.c.job_id == jobs.c.id)
        .join(first, true())
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
    in_order = (ranked.c.priority.desc(), ranked.c.rank)
    return connection.execute(select(ranked).where(ranked.c.rank <= LOOK_AHEAD).order_by(*in_order)).all()


def priority_of(is_last: ColumnElement[bool]) -> ColumnElement[int]:
    """The last shard of a job of low priority takes turns with other jobs: behind a stream of questions it would never
    run."""
    return case((is_last, func.greatest(jobs.c.priority, 0)), else_=jobs.c.priority).label("priority")
