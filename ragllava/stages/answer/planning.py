"""How a large shard is cut into shards of about the same estimated time whose questions share candidates.

A picture that is a candidate of many questions is read once for all of them, if they are in one shard
(docs/method.md 2). So the candidates are retrieved first, and questions that share many pictures go together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Sums depend on the order in rounding: without this tolerance, a shard as large as the input could lose one question.
_ROUNDING = 1 + 1e-9


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
