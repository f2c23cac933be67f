"""Schedules: the list, one with its runs, add, change, run now, pause, resume, delete."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from ragllava.api.route import Body, NoBody, NoQuery
from ragllava.api.routes.native.schedules import NewSchedule, create_schedule
from ragllava.api.routes.native.shared import Line, text_in_path
from ragllava.client import AccessRole, Role, ScheduleAction, ScheduleView, Selection, local_time
from ragllava.console.page import ROOT, Context, Done, Pages, Visit
from ragllava.errors import UsageError

pages = Pages("Schedules")

SCHEDULES = f"{ROOT}/schedules"


class ScheduleForm(Body):
    """A new schedule. The last fields are options of some actions; those that are empty are not sent on."""

    action: ScheduleAction
    cron: Line
    archive: Line | None = None
    timezone: Line = "UTC"
    name: Line | None = None
    delete: bool = False
    role: Role | None = None
    labels: int | None = Field(default=None, ge=1)
    only: Selection | None = None

    @property
    def as_new(self) -> NewSchedule:
        """As the API takes it."""
        options = self.model_dump(mode="json", include={"delete", "role", "labels", "only"})
        given = {name: value for name, value in options.items() if value not in (None, False)}
        return NewSchedule(
            action=self.action,
            cron=self.cron,
            archive=self.archive,
            timezone=self.timezone,
            name=self.name,
            options=given,
        )


class TimesForm(Body):
    """Other times of a schedule."""

    cron: Line
    timezone: Line = "UTC"


@pages.get(SCHEDULES, needs=AccessRole.READ, template="schedules.html", title="Schedules", menu="Schedules")
def list_schedules(visit: Visit[NoQuery, NoBody]) -> Context:
    """The schedules that the caller may see, and a form for another one."""
    listed = visit.client.schedules.list()
    return {
        "schedules": listed,
        "next": {schedule.name: _next(schedule) for schedule in listed},
        "archives": visit.client.archives.names(),
        "actions": list(ScheduleAction),
        "roles": list(Role),
        "selections": list(Selection),
        "may_change": visit.may(AccessRole.ADMIN),
        "sees_all": visit.principal.archives is None,
    }


@pages.post(SCHEDULES, needs=AccessRole.ADMIN, body=ScheduleForm, archive_in="body:archive")
def add(visit: Visit[NoQuery, ScheduleForm]) -> Done:
    """Start an action at every time that a cron line names."""
    new = create_schedule(visit.with_body(visit.body.as_new)).schedule
    return Done(f"Schedule {new['name']} is added.", SCHEDULES)


@pages.get(
    f"{SCHEDULES}/{{name}}", needs=AccessRole.READ, template="schedule.html", title="Schedule", archive_in="path:name"
)
def show_schedule(visit: Visit[NoQuery, NoBody]) -> Context:
    """One schedule with its last runs."""
    schedule, runs = visit.client.schedules.runs(text_in_path(visit, "name"))
    return {
        "schedule": schedule,
        "next": _next(schedule),
        "runs": runs,
        "title": f"Schedule {schedule.name}",
        "may_change": visit.may(AccessRole.ADMIN),
    }


@pages.post(f"{SCHEDULES}/{{name}}", needs=AccessRole.ADMIN, body=TimesForm, archive_in="path:name")
def change(visit: Visit[NoQuery, TimesForm]) -> Done:
    """Let a schedule fire at other times."""
    changed = visit.client.schedules.change(text_in_path(visit, "name"), visit.body.cron, visit.body.timezone)
    return _done(changed, f"Schedule {changed.name} fires at {changed.cron} ({changed.timezone}).")


@pages.post(f"{SCHEDULES}/{{name}}/run", needs=AccessRole.ADMIN, archive_in="path:name")
def run_now(visit: Visit[NoQuery, NoBody]) -> Done:
    """Start the job of a schedule now; its next time stays."""
    with visit.client.access.admitted(visit.principal):
        fired = visit.client.schedules.run(text_in_path(visit, "name"))
    if fired.job_id is None:
        return Done(f"Nothing started: {fired.note}", f"{SCHEDULES}/{fired.name}", is_problem=True)
    return Done(f"Schedule {fired.name} has started job {fired.job_id}.", f"{ROOT}/jobs/{fired.job_id}")


@pages.post(f"{SCHEDULES}/{{name}}/pause", needs=AccessRole.ADMIN, archive_in="path:name")
def pause_schedule(visit: Visit[NoQuery, NoBody]) -> Done:
    """Stop starting a schedule."""
    schedule = visit.client.schedules.pause(text_in_path(visit, "name"))
    return _done(schedule, f"Schedule {schedule.name} is paused.")


@pages.post(f"{SCHEDULES}/{{name}}/resume", needs=AccessRole.ADMIN, archive_in="path:name")
def resume_schedule(visit: Visit[NoQuery, NoBody]) -> Done:
    """Resume a paused schedule; times during the pause are not made up for."""
    schedule = visit.client.schedules.resume(text_in_path(visit, "name"))
    return _done(schedule, f"Schedule {schedule.name} is resumed.")


@pages.post(f"{SCHEDULES}/{{name}}/delete", needs=AccessRole.ADMIN, archive_in="path:name")
def delete_schedule(visit: Visit[NoQuery, NoBody]) -> Done:
    """Delete a schedule; jobs that it started keep running."""
    name = text_in_path(visit, "name")
    visit.client.schedules.remove(name)
    return Done(f"Schedule {name} is deleted; jobs that it started keep running.", SCHEDULES)


def _next(schedule: ScheduleView) -> datetime | None:
    """In its own zone; None while it is paused."""
    if schedule.paused:
        return None
    try:
        return local_time(schedule.next_due, schedule)
    except UsageError:  # this machine does not know the zone
        return schedule.next_due


def _done(schedule: Any, message: str) -> Done:
    return Done(message, f"{SCHEDULES}/{schedule.name}")
