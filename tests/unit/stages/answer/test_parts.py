"""How large and how deep the next part of a job with a limit is, and what an estimate makes of measurements."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ragllava.errors import UsageError
from ragllava.jobs.deadlines import JobLimits, Room, parse_limits
from ragllava.records import Candidate, Depth, StoredImage
from ragllava.stages.answer import waves
from ragllava.stages.answer.estimating import TimedSample
from ragllava.stages.answer.parts import DepthPace, Part, next_part
from ragllava.stages.answer.splitting import Cost

COST = Cost(image=0.0, pair=1.0, question=5.0)


def pace(pairs: int = 20) -> DepthPace:
    """A second for a question with 5 pairs, 2.5 for one with 20."""
    made = DepthPace()
    made.learn(25.0, [list(range(pairs))] * 10, COST, [False] * 10)
    return made


def test_more_questions_together_share_more_pictures() -> None:
    made, images = DepthPace(), Cost(image=1.0, pair=0.0, question=0.0)
    made.learn(
        8.0, [[(7 * question + place) % 100 for place in range(10)] for question in range(16)], images, [False] * 16
    )
    together, alone = made.seconds(images, 1_000), made.seconds(images, 1)
    assert together is not None and alone is not None and together < 30 * alone


def test_what_a_cut_question_needed_is_known_from_the_others() -> None:
    made = pace()
    made.learn(1.0, [[1, 2]] * 3, COST, [True] * 3)
    assert list(made.pairs)[-3:] == [20, 20, 20]


def room(left_s: float | None = None, gpu_left_s: float | None = None, **others: int) -> Room:
    return Room(left_s, gpu_left_s, **{"waiting": 0, "beside": 0, "running": 1, "owners": 1} | others)


def test_without_a_pace_nothing_is_planned() -> None:
    assert next_part(room(60.0), DepthPace(), COST, 2, 100, 1) == Part(0, None)


def test_depth_is_cut_only_if_the_time_is_too_short_and_never_below_top_n() -> None:
    enough, half, hopeless = (next_part(room(left), pace(), COST, 2, 100, 1) for left in (300.0, 125.0, 1.0))
    assert enough == Part(72, None)
    assert half.most == 7, "(7 + 5) / 10 s each is the most that fits into 97 % of 1.25 s"
    assert hopeless == Part(1, 2)


def test_a_part_takes_less_than_what_is_left() -> None:
    assert next_part(room(12.0), pace(), COST, 2, 4, 1) == Part(2, None)
    assert next_part(room(40_000.0), pace(), COST, 2, 100, 1) == Part(100, None)


def test_other_workers_and_other_owners_count() -> None:
    beside = next_part(room(125.0, waiting=80, beside=20), pace(), COST, 2, 10, 2)
    assert beside.most == next_part(room(250.0), pace(), COST, 2, 100, 1).most
    shared = next_part(room(250.0, owners=2), pace(), COST, 2, 100, 2)
    assert shared == next_part(room(250.0), pace(), COST, 2, 100, 1)


def test_a_budget_is_not_multiplied_by_the_workers() -> None:
    assert next_part(room(gpu_left_s=125.0), pace(), COST, 2, 100, 4).most == 7


def candidates(number: int, **fields: object) -> list[Candidate]:
    image = StoredImage(1, "", "", "caption")
    return [Candidate(image, rank, 0.0, None, **fields) for rank in range(number)]  # type: ignore[arg-type]


def test_the_strongest_candidates_are_kept() -> None:
    planned = waves.waves_of(candidates(12), Depth.NEED)
    kept, beyond, is_part = waves.cut(planned, 6)
    assert [[c.retrieval_rank for c in wave] for wave in kept] == [[0, 1, 2, 3], [4, 5]]
    assert [c.retrieval_rank for c in beyond] == list(range(6, 12))
    assert is_part and waves.cut(planned, 100) == (planned, [], False)


def test_a_sample_of_few_questions_tells_how_many_pictures_more_of_them_share() -> None:
    """Each question has 10 of 100 pictures; the pictures are all that costs."""
    sample = TimedSample(16, 8.0, 160, 80, Cost(image=1.0, pair=0.0, question=0.0))
    assert sample.busy_s(16) == pytest.approx(8.0, rel=0.01)
    assert sample.busy_s(10_000) == pytest.approx(10.0, rel=0.05)


def test_times_as_people_write_them() -> None:
    now = datetime.now(UTC)
    at = parse_limits(f"{now + timedelta(hours=3):%H:%M}", 5.0)
    assert at.at is not None and at.max_gpu_s == 5.0 and timedelta(hours=2) < at.at - now < timedelta(hours=4)
    tomorrow = now + timedelta(days=1)
    assert parse_limits(tomorrow.isoformat(), None) == JobLimits(at=tomorrow)
    naive = tomorrow.replace(tzinfo=None).isoformat()
    assert parse_limits(naive, None).at == tomorrow
    assert parse_limits(None, None) == parse_limits("  ", None) == JobLimits()


@pytest.mark.parametrize("wrong", ["soon", "0s", "400d", "25:61", "2001-01-01", "5 years", "-1h"])
def test_other_deadlines_are_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match="deadline"):
        parse_limits(wrong, None)
    with pytest.raises(UsageError, match="max_gpu_seconds"):
        parse_limits(None, 0.0)
