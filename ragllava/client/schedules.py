"""Schedules, and maintenance tasks that are started now."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ragllava.client.connections import Namespace, forwarded
from ragllava.records import TaskName
from ragllava.stages.maintenance import schedules
from ragllava.stages.maintenance.schedules import Fired, ScheduleRequest
from ragllava.stages.maintenance.stage import submit_task
from ragllava.stores.maintenance.schedules import ScheduleView, list_schedules
from ragllava.training.scheduled import STARTERS


class Schedules(Namespace):
    """Schedules of maintenance tasks, trainings and reindexings."""

    def add(self, request: ScheduleRequest) -> ScheduleView:
        """Add a schedule; it fires for the first time at its first due time from now.

        Raises UsageError for a wrong cron line, time zone, name, archive or option, and for a name that is taken.
        """
        return self._do(schedules.add_schedule, request, STARTERS)

    pause = forwarded(schedules.pause)
    resume = forwarded(schedules.resume)
    remove = forwarded(schedules.remove)
    change = forwarded(schedules.change)
    runs = forwarded(schedules.runs_of)

    def run(self, name: str) -> Fired:
        """Start the job of a schedule now, also of a paused one; its next due time stays.

        The result has a job, or a note that says why there is none. Raises UsageError for an unknown name.
        """
        return self._queue(schedules.run_now, name, STARTERS)

    def run_task(
        self,
        task: TaskName,
        archive: str | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
    ) -> int:
        """Queue a maintenance task, of one archive or of the whole system; returns the job.

        `name` is what the lists of jobs call it.
        Raises UsageError for an archive or options that the task does not take.
        """
        return self._queue(submit_task, task, archive, options or {}, name=name)

    list = forwarded(list_schedules)


def local_time(moment: datetime, schedule: ScheduleView) -> datetime:
    """A moment in the time zone of a schedule. Raises UsageError when this machine does not know the zone."""
    return moment.astimezone(schedules.find_zone(schedule.timezone))
