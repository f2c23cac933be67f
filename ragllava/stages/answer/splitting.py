"""Splits a shard of many questions into shards that share candidates and take about the same time (planning.py)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from sqlalchemy import Connection

from ragllava.jobs import queue
from ragllava.jobs.dispatch import live_slots
from ragllava.jobs.kinds import kind_of
from ragllava.jobs.queue import Lease
from ragllava.jobs.runner import ShardContext
from ragllava.records import Question
from ragllava.stages.answer.planning import Cost, cut, shard_seconds
from ragllava.stages.resources import Resources
from ragllava.stores.jobs import answers

log = logging.getLogger(__name__)

_QUESTIONS_PER_SEARCH = 64

FindCandidates = Callable[[Sequence[Question]], list[list[int]]]  # ids of images, for each question


def split_if_large(
    context: ShardContext[Resources], questions: Sequence[Question], find_candidates: FindCandidates, cost: Cost
) -> bool:
    """Split the leased shard if its open questions would take too long together; returns whether it was split.

    Does nothing while the pace of this process is unknown. Little work is divided among all live slots.
    """
    settings, pace = context.settings, context.resources.pace.seconds_per_cost
    if pace is None or not questions:
        return False
    top_k = context.lease.spec["options"]["top_k"]
    at_most = pace * len(questions) * ((cost.image + cost.pair) * top_k + cost.question)
    if at_most <= settings.shard_seconds / 3:
        return False
    candidates: list[list[int]] = []
    for start in range(0, len(questions), _QUESTIONS_PER_SEARCH):
        context.check()
        candidates += find_candidates(questions[start : start + _QUESTIONS_PER_SEARCH])
    slots = context.read(live_slots, settings).get(kind_of(context.lease.kind).queue, 1)
    seconds = shard_seconds(pace * cost.of(candidates), settings.shard_seconds, slots)
    plan = cut(candidates, cost, seconds / pace)
    if len(plan) == 1:
        return False
    numbers = [[questions[index].question_no for index in shard] for shard in plan]
    context.commit(_split, context.lease, numbers)
    facts = {"action": "shard_planned", "shard": context.lease.shard_id, "job": context.lease.job_id}
    log.info(f"{len(questions)} questions in {len(plan)} shards of about {seconds:.0f} s", extra=facts)
    return True


def _split(connection: Connection, lease: Lease, shards: Sequence[Sequence[int]]) -> None:
    """Make shards of the questions with these numbers, one after another in the order of work."""
    positions = answers.reorder(connection, lease.job_id, [number for shard in shards for number in shard])
    ends = accumulate((len(shard) for shard in shards), initial=0)
    queue.split(connection, lease, [(positions[lo], positions[hi - 1] + 1) for lo, hi in pairwise(ends)])
