"""How questions are cut into shards: who shares candidates goes together, none is lost, no shard is too expensive."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from ragllava.stages.answer.splitting import Cost, cut, shard_seconds
from ragllava.stages.resources import AnswerPace

COST = Cost(image=3.0, pair=1.0, question=2.0)
ALONE = COST.of([[1, 2, 3, 4]])


def drawn(seed: int, questions: int = 200, images: int = 60) -> list[list[int]]:
    """Candidates of questions: four neighbours of one image each."""
    rng = random.Random(seed)
    return [[(rng.randrange(images) + step) % images for step in range(4)] for _ in range(questions)]


def test_the_cost_counts_an_image_once_and_every_pair() -> None:
    assert COST.of([[1, 2], [2, 3]]) == 3 * 3 + 4 * 1 + 2 * 2
    assert COST.of([]) == 0


@pytest.mark.parametrize("seed", range(5))
def test_every_question_is_in_one_shard_and_none_is_too_expensive(seed: int) -> None:
    candidates = drawn(seed)
    plan = cut(candidates, COST, most=10 * ALONE)
    assert sorted(index for shard in plan for index in shard) == list(range(len(candidates)))
    assert len(plan) > 1
    assert all(COST.of(candidates[index] for index in shard) <= 10 * ALONE for shard in plan)
    assert plan == cut(candidates, COST, most=10 * ALONE), "the same input gives the same plan"


@pytest.mark.parametrize("seed", range(5))
def test_a_plan_reads_fewer_images_than_the_order_of_the_file(seed: int) -> None:
    candidates = drawn(seed)
    plan = cut(candidates, COST, most=10 * ALONE)
    ends = [sum(map(len, plan[:number])) for number in range(len(plan) + 1)]
    in_order = [candidates[lo:hi] for lo, hi in pairwise(ends)]
    images = sum(len({image for index in shard for image in candidates[index]}) for shard in plan)
    assert images < 0.7 * sum(len({image for row in rows for image in row}) for rows in in_order)


@pytest.mark.parametrize("seed", range(20))
def test_what_fits_into_one_shard_exactly_is_not_cut(seed: int) -> None:
    """Costs are sums of fractions, which come out a little different in another order."""
    candidates, cost = drawn(seed), Cost(image=65 / 44.45, pair=1.0, question=2 * (1 + 65 / 44.45))
    total = cost.of(candidates)
    assert shard_seconds(total, 1.5 * total, slots=1) == total
    assert len(cut(candidates, cost, total)) == 1


def test_questions_that_share_nothing_are_cut_in_their_order() -> None:
    candidates = [[4 * index + step for step in range(4)] for index in range(7)]
    assert cut(candidates, COST, most=3 * ALONE) == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_question_that_costs_more_than_a_shard_is_alone() -> None:
    assert cut([[1, 2, 3], [1, 2, 3]], COST, most=1.0) == [[0], [1]]


def test_questions_without_candidates_have_a_place_too() -> None:
    assert cut([[], [], []], COST, most=4.0) == [[0, 1], [2]]
    assert cut([], COST, most=4.0) == []


def test_a_shard_takes_its_seconds_and_less_when_workers_would_wait() -> None:
    assert shard_seconds(total=1000.0, most=60.0, slots=2) == 60.0
    assert shard_seconds(total=120.0, most=60.0, slots=4) == 30.0
    assert shard_seconds(total=40.0, most=60.0, slots=8) == 20.0
    assert shard_seconds(total=40.0, most=60.0, slots=0) == 40.0


def test_a_pace_is_learned_and_follows_what_is_new() -> None:
    pace = AnswerPace()
    learned = [pace.seconds_per_cost]
    for seconds, cost in ((3.0, 0.0), (10.0, 5.0), (20.0, 5.0)):
        pace.learn(seconds, cost)
        learned.append(pace.seconds_per_cost)
    assert learned == [None, None, 2.0, 3.0]
