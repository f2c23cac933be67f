"""Schedules and chores with real workers: two beats, and what they begin."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select, text, update

from ragllava.records import JobKind, ScheduleAction
from ragllava.stages.maintenance.schedules import ScheduleRequest, add_schedule
from ragllava.stores.schema import schedule_runs, schedules
from ragllava.training.scheduled import STARTERS
from tests.acceptance.conftest import Cluster, wait_for

pytestmark = pytest.mark.acceptance

FRAGILE = "tests.support.fragile_worker"  # no models are needed here


def count(cluster: Cluster, what: object) -> int:
    with cluster.client.engine.begin() as connection:
        return connection.scalar(select(func.count()).select_from(what)) or 0  # type: ignore[arg-type]


def test_with_two_beats_each_schedule_fires_once_and_its_chore_is_done(cluster: Cluster) -> None:
    """Both tick twice a second. Every schedule is let fall due at once, as a clock does that jumps over their times."""
    actions = [ScheduleAction.GC, ScheduleAction.RETENTION, ScheduleAction.VACUUM, ScheduleAction.FIND_NOISY]
    for number in range(8):
        request = ScheduleRequest(actions[number % 4], "0 3 * * *", name=f"nightly-{number}")
        add_schedule(cluster.client.engine, request, STARTERS)
    for beat in ("maint1", "maint2"):
        cluster.start(beat, "maint", FRAGILE, beat=True)
    cluster.start("ingest", "ingest", FRAGILE)
    cluster.wait_ready("maint1", "maint2", "ingest")
    for day in (1, 2):
        with cluster.client.engine.begin() as connection:
            connection.execute(update(schedules).values(next_due=text("now() - interval '40 days'")))
        wait_for("all to fire", lambda day=day: count(cluster, schedule_runs) >= 8 * day, 60)  # type: ignore[misc]
        wait_for(
            "the chores to be done",
            lambda: not any(not job.is_final or job.result is None for job in cluster.client.jobs.list(limit=100)),
            60,
        )
    assert count(cluster, schedule_runs) == 16
    done = cluster.client.jobs.list(limit=100)
    assert len(done) == 16
    for job in done:
        assert (job.kind, job.state.value) == (JobKind.MAINTENANCE, "completed")
        assert job.result is not None and job.result["reconciled"]["adds_up"]
    with cluster.client.engine.begin() as connection:
        assert connection.scalar(select(func.count(func.distinct(schedule_runs.c.job_id)))) == 16
        assert connection.scalar(select(func.min(schedules.c.next_due) > func.now()))
    for beat in ("maint1", "maint2"):
        assert list(cluster.logs.glob(f"beat-{beat}*")), "only one beat was at work"
