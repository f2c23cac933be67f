"""How a shard of a job with a limit is answered: in parts, each as large and as deep as the time that is left allows.

Before each part, a worker forecasts when the job will end at its own pace. If that is too late, fewer candidates are
reranked for each question of the part, the strongest ones, and never fewer than the job's top_n. What does not fit even
then is answered in order until the limit is reached. A part does not take all of the time that is left, so that little
is lost when the forecast was too good.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from ragllava.jobs.deadlines import Room
from ragllava.records import AnswerOptions
from ragllava.stages.answer.sharing import distinct_images, pool_size
from ragllava.stages.answer.splitting import Cost

_KEPT = 512  # questions by which it is known how many candidates are reranked
_DECAY = 0.5  # the weight of earlier parts in the moving averages
_SHARE = 0.6  # of what is left, that a part takes at most: larger parts share more pictures, smaller ones risk less
_RESERVE = 0.97  # of the time that is left: the rest is for what the forecast does not know


@dataclass(slots=True)
class DepthPace:
    """What questions with the same options have cost in this process. `seconds_per_cost` counts what was reranked."""

    seconds_per_cost: float | None = None
    log_pool: float = 0.0  # of the images that the questions share (sharing.py)
    pairs: deque[int] = field(default_factory=lambda: deque(maxlen=_KEPT))  # that each question needs

    def learn(self, seconds: float, reranked: Sequence[Sequence[int]], cost: Cost, cut: Iterable[bool]) -> None:
        """Add a part that took so many seconds; `reranked` has the images of each question, `cut` whether a limit left
        no more of them."""
        spent = cost.of(reranked)
        if spent <= 0 or seconds <= 0:
            return
        distinct = {image for row in reranked for image in row}
        log_pool, measured = math.log(pool_size(len(distinct), sum(map(len, reranked)))), seconds / spent
        before = self.seconds_per_cost
        self.log_pool = log_pool if before is None else _DECAY * self.log_pool + (1 - _DECAY) * log_pool
        self.seconds_per_cost = measured if before is None else _DECAY * before + (1 - _DECAY) * measured
        self.pairs += [
            self._needed(len(row)) if is_cut else len(row) for row, is_cut in zip(reranked, cut, strict=True)
        ]

    def _needed(self, number: int) -> int:
        """How many candidates a question would have needed that was cut to this number: as the others beyond it."""
        beyond = [pairs for pairs in self.pairs if pairs > number]
        return round(sum(beyond) / len(beyond)) if beyond else number + 1

    def seconds(self, cost: Cost, questions: int, most: int | None = None) -> float | None:
        """Seconds of so many questions together, of which at most so many candidates are reranked each; None while that
        is not known."""
        if self.seconds_per_cost is None or not self.pairs:
            return None
        each = sum(number if most is None else min(number, most) for number in self.pairs) / len(self.pairs)
        images = distinct_images(math.exp(self.log_pool), each * questions)
        return self.seconds_per_cost * (cost.image * images + (cost.pair * each + cost.question) * questions)


def depth_key(options: AnswerOptions) -> Hashable:
    """The options by which the cost of a question differs."""
    return options.retrieval, options.depth, options.top_k, options.top_n, options.captions_in_answer


@dataclass(frozen=True, slots=True)
class Part:
    """How many questions are answered together next, and how many of their candidates are reranked at most."""

    questions: int
    most: int | None


def next_part(room: Room, pace: DepthPace, cost: Cost, top_n: int, own: int, slots: int) -> Part:
    """The next part of the `own` open questions of a shard.

    `slots` are those of all workers; a job has its owner's share of them. While the pace is not known, a few questions
    are answered by which it is learned.
    """
    full_s = pace.seconds(cost, own)
    if full_s is None:
        return Part(0, None)
    mine = max(1, room.running, slots // room.owners)
    left = [left for left in (_times(room.left_s, mine), room.gpu_left_s) if left is not None]
    open_inputs = max(1.0, own + room.waiting + room.beside / 2)  # half of what others run is done, on average
    own_s = max(0.0, min(left, default=math.inf) * _RESERVE * own / open_inputs)
    most = None if full_s <= own_s else _deepest(pace, cost, top_n, own, own_s)
    ends = [end for end in (room.left_s, _over(room.gpu_left_s, mine)) if end is not None]
    part_s = _SHARE * min(ends, default=math.inf)
    return Part(_largest(1, own, lambda number: (pace.seconds(cost, number, most) or 0.0) <= part_s), most)


def _times(value: float | None, factor: int) -> float | None:
    return None if value is None else value * factor


def _over(value: float | None, divisor: int) -> float | None:
    return None if value is None else value / divisor


def _deepest(pace: DepthPace, cost: Cost, top_n: int, questions: int, at_most_s: float) -> int:
    """The largest number of candidates for each question that takes at most so many seconds, and at least `top_n`."""
    high = max(top_n, *pace.pairs)
    return _largest(top_n, high, lambda most: (pace.seconds(cost, questions, most) or 0.0) <= at_most_s)


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number from `low` to `high` that fits, where a smaller one fits as well; `low` if none does."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
