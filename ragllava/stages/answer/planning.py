"""How the questions of a job are cut into shards: such with the same candidates together, as much as some seconds take.

A picture that is a candidate of many questions is read once for all of them, if they are in one shard
(docs/method.md 2). So a large shard is planned first: the candidates of its questions are found, and it is split into
shards whose questions share as many pictures as possible, each of about the same estimated time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# The same costs summed in another order: without this, a shard that is as large as the whole could lose one question.
_ROUNDED_UP = 1 + 1e-9


@dataclass(frozen=True, slots=True)
class Cost:
    """What answering costs, in the unit of one pair behind a prefix that is there already.

    `image`: the prefix of one image more. `question`: an answer, and what else is done for each question.
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
    """How long a shard should take: `most` seconds, less when the whole would not keep all `slots` workers busy.

    Never less than a third of `most`: short shards share too little.
    """
    return min(most, max(most / 3, total / max(1, slots)))


def cut(candidates: Sequence[Sequence[int]], cost: Cost, most: float) -> list[list[int]]:
    """Places in `candidates`, shard by shard, every one in exactly one.

    A shard begins with the first question that is left, and takes the one that shares most candidates with it, until
    its cost would be more than `most`. With the same input the plan is the same.
    """
    asking: dict[int, list[int]] = defaultdict(list)  # places by image
    for place, images in enumerate(candidates):
        for image in dict.fromkeys(images):
            asking[image].append(place)
    left = dict.fromkeys(range(len(candidates)))
    plan: list[list[int]] = []
    while left:
        plan.append(_grow(candidates, asking, left, cost, most))
    return plan


def _grow(
    candidates: Sequence[Sequence[int]], asking: dict[int, list[int]], left: dict[int, None], cost: Cost, most: float
) -> list[int]:
    """One shard; what it takes is no longer `left`."""
    shard: list[int] = []
    seen: set[int] = set()
    shared: dict[int, int] = {}  # of those left that share images with the shard: how many
    spent = 0.0
    while left:
        place = max(shared, key=lambda place: (shared[place], -place)) if shared else next(iter(left))
        fresh = set(candidates[place]) - seen
        added = cost.image * len(fresh) + cost.pair * len(candidates[place]) + cost.question
        if shard and spent + added > most * _ROUNDED_UP:
            break
        shard.append(place)
        spent += added
        del left[place]
        shared.pop(place, None)
        seen |= fresh
        for image in fresh:
            for other in asking[image]:
                if other in left:
                    shared[other] = shared.get(other, 0) + 1
    return shard
