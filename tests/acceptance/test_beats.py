"""Schedules and maintenance tasks with real workers: two maintenance workers that both fire schedules."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import pytest
from sqlalchemy import Table, func, select, text, update

from ragllava.records import JobKind, ScheduleAction
from ragllava.stages.maintenance.schedules import ScheduleRequest, add_schedule
from ragllava.stores.database import in_transaction
from ragllava.stores.schema import schedule_runs, schedules
from ragllava.training.scheduled import STARTERS
from tests.acceptance.conftest import FRAGILE, Cluster
from tests.support.waiting import wait_for

pytestmark = pytest.mark.acceptance

NEVER = f"0 {(datetime.now(UTC).hour + 12) % 24} * * *"  # no such time comes while a test runs


def count(cluster: Cluster, table: Table) -> int:
    with cluster.client.engine.begin() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


def have_run(cluster: Cluster, number: int) -> bool:
    return count(cluster, schedule_runs) >= number


def all_jobs_have_results(cluster: Cluster) -> bool:
    return all(job.is_final and job.result is not None for job in cluster.client.jobs.list(limit=100))


def test_with_two_schedulers_each_schedule_fires_once_and_its_task_is_done(cluster: Cluster) -> None:
    """Both tick twice a second. All schedules become due at once, as after a clock that jumps past their times."""
    actions = [ScheduleAction.GC, ScheduleAction.RETENTION, ScheduleAction.VACUUM, ScheduleAction.FIND_NOISY]
    for number in range(8):
        request = ScheduleRequest(actions[number % 4], NEVER, name=f"nightly-{number}")
        in_transaction(cluster.client.engine, add_schedule, request, STARTERS)
    for name in ("maint1", "maint2"):
        cluster.start(name, "maint", FRAGILE, ticks=True)
    cluster.start("ingest", "ingest", FRAGILE)
    cluster.wait_ready("maint1", "maint2", "ingest")
    for day in (1, 2):
        with cluster.client.engine.begin() as connection:
            connection.execute(update(schedules).values(next_due=text("now() - interval '40 days'")))
        wait_for("all schedules to fire", partial(have_run, cluster, 8 * day))
        wait_for("the maintenance tasks to be done", partial(all_jobs_have_results, cluster))
    assert count(cluster, schedule_runs) == 16
    jobs = cluster.client.jobs.list(limit=100)
    assert len(jobs) == 16
    for job in jobs:
        assert (job.kind, job.state.value) == (JobKind.MAINTENANCE, "completed")
        assert job.result is not None and job.result["reconciled"]["adds_up"]
    with cluster.client.engine.begin() as connection:
        assert connection.scalar(select(func.count(func.distinct(schedule_runs.c.job_id)))) == 16
        assert connection.scalar(select(func.min(schedules.c.next_due) > func.now()))
