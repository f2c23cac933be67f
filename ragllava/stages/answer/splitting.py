"""Splits a large shard into shards of about the same estimated time whose questions share candidates.

A picture that is a candidate of many questions is read once for all of them, if they are in one shard
(docs/method.md 2). So the candidates are retrieved first, and questions that share many pictures go together.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from sqlalchemy import Connection

from ragllava.jobs import queue
from ragllava.jobs.dispatch import live_slots
from ragllava.jobs.kinds import kind_of
from ragllava.jobs.queue import Lease
from ragllava.jobs.runner import ShardContext
from ragllava.records import Question
from ragllava.stages.resources import Resources
from ragllava.stores.jobs import answers

log = logging.getLogger(__name__)

# Sums depend on the order in rounding: without this tolerance, a shard as large as the input could lose one question.
_ROUNDING = 1 + 1e-9
_QUESTIONS_PER_SEARCH = 64

MOST_BY_CAPTION = 10  # images, beside the nearest pictures, that captions make sure of for each thing of a question

FindCandidates = Callable[[Sequence[Question]], list[list[int]]]  # ids of images, for each question


@dataclass(frozen=True, slots=True)
class Cost:
    """What answering costs; the unit is one pair behind a prefix that is computed already.

    `image`: the prefix of one more image. `question`: an answer, and all other work for each question.
    """

    image: float
    pair: float
    question: float

    def of(self, candidates: Iterable[Sequence[int]]) -> float:
        """The cost of questions with these candidates, in one shard."""
        rows = list(candidates)
        distinct = {image for row in rows for image in row}
        return self.image * len(distinct) + self.pair * sum(map(len, rows)) + self.question * len(rows)


def shard_seconds(total: float, most: float, slots: int) -> float:
    """How long a shard should take: `most` seconds, less when `total` seconds would not keep all `slots` busy.

    Never less than a third of `most`: short shards share too few pictures.
    """
    return min(most, max(most / 3, total / max(1, slots)))


def cut(candidates: Sequence[Sequence[int]], cost: Cost, most: float) -> list[list[int]]:
    """Divide questions into shards; returns the indexes into `candidates`, each in exactly one shard.

    A shard begins with the first question that is left, and takes the question that shares most candidates with it,
    until its cost would exceed `most`. The plan is deterministic.
    """
    asked_by: dict[int, list[int]] = defaultdict(list)  # questions by image
    for question, images in enumerate(candidates):
        for image in dict.fromkeys(images):
            asked_by[image].append(question)
    left = dict.fromkeys(range(len(candidates)))
    plan: list[list[int]] = []
    while left:
        plan.append(_grow(candidates, asked_by, left, cost, most))
    return plan


def _grow(
    candidates: Sequence[Sequence[int]], asked_by: dict[int, list[int]], left: dict[int, None], cost: Cost, most: float
) -> list[int]:
    """One shard; removes its questions from `left`."""
    shard: list[int] = []
    seen: set[int] = set()
    shared: dict[int, int] = {}  # of the questions left that share images with the shard: how many
    spent = 0.0
    while left:
        question = max(shared, key=lambda question: (shared[question], -question)) if shared else next(iter(left))
        fresh = set(candidates[question]) - seen
        added = cost.image * len(fresh) + cost.pair * len(candidates[question]) + cost.question
        if shard and spent + added > most * _ROUNDING:
            break
        shard.append(question)
        spent += added
        del left[question]
        shared.pop(question, None)
        seen |= fresh
        for image in fresh:
            for neighbour in asked_by[image]:
                if neighbour in left:
                    shared[neighbour] = shared.get(neighbour, 0) + 1
    return shard


def split_if_large(
    context: ShardContext[Resources],
    questions: Sequence[Question],
    find_candidates: FindCandidates,
    cost: Cost,
    pause: Callable[[], None],
    left_s: float | None = None,
) -> bool:
    """Split the leased shard if its open questions would take too long together; returns whether it was split.

    Does nothing while the pace of this process is unknown. Little work is divided among all live slots, and a shard is
    planned to take at most a quarter of the `left_s` seconds that its job has left. `pause` is called between two
    searches; what it raises is passed on.
    """
    settings, pace = context.settings, context.resources.pace.seconds_per_cost
    most_s = settings.shard_seconds if left_s is None else min(settings.shard_seconds, max(0.0, left_s) / 4)
    if pace is None or not questions:
        return False
    most_candidates = context.lease.spec["options"]["top_k"] + MOST_BY_CAPTION
    at_most = pace * len(questions) * ((cost.image + cost.pair) * most_candidates + cost.question)
    if at_most <= most_s / 3:
        return False
    candidates: list[list[int]] = []
    for start in range(0, len(questions), _QUESTIONS_PER_SEARCH):
        pause()
        candidates += find_candidates(questions[start : start + _QUESTIONS_PER_SEARCH])
    slots = context.read(live_slots, settings).get(kind_of(context.lease.kind).queue, 1)
    seconds = shard_seconds(pace * cost.of(candidates), most_s, slots)
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
