"""Schedules: cron lines in a time zone, stored in the database and fired by the tick (docs/reliability.md D9).

Any number of ticks may run at once. A due time fires in one transaction: the schedule is locked, its run and job are
inserted, and its next due time is set. Times missed while no tick ran fire once together, and the next due time is the
first after the database's now.
"""

from __future__ import annotations

import difflib
import logging
import re
import zoneinfo
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cronsim import CronSim, CronSimError
from sqlalchemy import Connection, Engine

from ragllava.errors import UsageError
from ragllava.jobs.isolation import Isolation, LeftToAnother
from ragllava.records import ScheduleAction
from ragllava.settings import Settings
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction
from ragllava.stores.maintenance import schedules
from ragllava.stores.maintenance.schedules import RunView, ScheduleView

log = logging.getLogger(__name__)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_LOCAL_ZONES = ("localtime", "posixrules")  # they mean another zone on another machine

Options = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Starter:
    """How an action is started.

    `begin` creates its job in the caller's transaction and returns its id; it raises UsageError when there is nothing
    to do, which becomes the run's note. `check` raises UsageError for an archive or options that this action does not
    take.
    """

    begin: Callable[[Connection, Settings, ScheduleView], int]
    check: Callable[[str | None, Options], None]


Starters = Mapping[ScheduleAction, Starter]


@dataclass(frozen=True, slots=True)
class ScheduleRequest:
    """A schedule to add. The default name is made of its action and archive."""

    action: ScheduleAction
    cron: str
    archive: str | None = None  # None: all archives
    timezone: str = "UTC"
    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fired:
    """The result of a firing: a job, or a note that says why there is none."""

    name: str
    due_at: datetime
    job_id: int | None
    note: str | None


def add_schedule(connection: Connection, request: ScheduleRequest, starters: Starters) -> ScheduleView:
    """Store a schedule; it first fires at its next due time.

    Raises UsageError for an invalid cron line, zone, name, archive or option, and for a taken name.
    """
    starters[request.action].check(request.archive, request.options)
    name = request.name or "-".join(filter(None, (request.action.value, request.archive)))
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a schedule: use 1 to 63 of the characters a-z, 0-9, `.`, `_` and `-`, "
            "and begin with a letter or a digit; set it with --name"
        )
    inserted = schedules.insert_schedule(
        connection,
        name=name,
        action=request.action,
        archive_id=archive.get_archive(connection, request.archive).archive_id if request.archive else None,
        options=request.options,
        cron=request.cron,
        timezone=request.timezone,
        next_due=first_due_after(request.cron, request.timezone, schedules.database_now(connection)),
    )
    if not inserted:
        raise UsageError(
            f"there is already a schedule {name}: choose another name with --name, or first run "
            f"`ragllava schedule remove {name}`"
        )
    return schedules.lock_schedule(connection, name)


def fire_due(engine: Engine, settings: Settings, starters: Starters) -> list[Fired]:
    """Fire every schedule that is due, each in its own transaction; returns the results.

    A schedule that cannot be fired delays no other; it is postponed with its reason, and stays due.
    """
    due = in_transaction(engine, schedules.due_schedules)
    isolation = Isolation(engine, "schedules", due.values())
    fired = [
        isolation.run(name, in_transaction, engine, _fire_one, settings, schedule_id, starters)
        for schedule_id, name in due.items()
        if not isolation.is_postponed(name)
    ]
    return [result for result in fired if result is not None]


def _fire_one(connection: Connection, settings: Settings, schedule_id: int, starters: Starters) -> Fired:
    due = schedules.lock_due(connection, schedule_id)
    if due is None:  # if another process has fired it, the next tick removes its fault
        raise LeftToAnother
    next_due = first_due_after(due.cron, due.timezone, schedules.database_now(connection))
    schedules.set_next_due(connection, due.schedule_id, next_due)
    return _fire(connection, settings, due, due.next_due, starters)


def run_now(connection: Connection, settings: Settings, name: str, starters: Starters) -> Fired:
    """Start the action of a schedule now, also if it is paused; its next due time stays. Raises UsageError."""
    schedule = schedules.lock_schedule(connection, name)
    return _fire(connection, settings, schedule, schedules.database_now(connection), starters)


def pause(connection: Connection, name: str) -> ScheduleView:
    """Stop firing a schedule. Raises UsageError for an unknown name."""
    schedules.set_paused(connection, schedules.lock_schedule(connection, name).schedule_id, True)
    return schedules.lock_schedule(connection, name)


def resume(connection: Connection, name: str) -> ScheduleView:
    """Let a paused schedule fire again, from its next due time on; missed times are not made up for.

    Raises UsageError for an unknown name.
    """
    schedule = schedules.lock_schedule(connection, name)
    if schedule.paused:
        next_due = first_due_after(schedule.cron, schedule.timezone, schedules.database_now(connection))
        schedules.set_next_due(connection, schedule.schedule_id, next_due)
        schedules.set_paused(connection, schedule.schedule_id, False)
    return schedules.lock_schedule(connection, name)


def change(connection: Connection, name: str, cron: str, timezone: str) -> ScheduleView:
    """Let a schedule fire at other times. Raises UsageError for an unknown name, a wrong cron line or time zone."""
    schedule = schedules.lock_schedule(connection, name)
    next_due = first_due_after(cron, timezone, schedules.database_now(connection))
    schedules.set_cron(connection, schedule.schedule_id, cron, timezone, next_due)
    return schedules.lock_schedule(connection, name)


def runs_of(connection: Connection, name: str, limit: int = 50) -> tuple[ScheduleView, list[RunView]]:
    """A schedule and its last runs, the newest first. Raises UsageError for an unknown name."""
    schedule = schedules.find_schedule(connection, name)
    return schedule, schedules.list_runs(connection, schedule.schedule_id, limit)


def remove(connection: Connection, name: str) -> None:
    """Delete a schedule; jobs that it started continue. Raises UsageError for an unknown name."""
    schedules.delete_schedule(connection, schedules.lock_schedule(connection, name).schedule_id)


def first_due_after(cron: str, timezone: str, moment: datetime) -> datetime:
    """The first time after `moment` that a cron line names in its zone, in UTC. Raises UsageError.

    A time that the change to summer time skips fires right after the change; a repeated time fires once.
    """
    zone = find_zone(timezone)
    if len(cron.split()) != 5:
        raise UsageError(
            f"{cron!r} is not a cron line: it has five fields, minute hour day month weekday, as `0 3 * * *`"
        )
    try:
        for due in CronSim(cron, moment.astimezone(zone)):
            # Between the two passes of a repeated hour CronSim returns the first again.
            if due.astimezone(UTC) > moment:
                return due.astimezone(UTC)
    except CronSimError as error:
        raise UsageError(
            f"{cron!r} is not a cron line: {str(error)[:1].lower()}{str(error)[1:]}; write it as `0 3 * * *`"
        ) from None
    raise UsageError(f"{cron!r} names a day that never comes")


def find_zone(name: str) -> zoneinfo.ZoneInfo:
    """An IANA time zone by its name. Raises UsageError that names the nearest one."""
    try:
        if name not in _LOCAL_ZONES:
            return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):  # a folder of zones is an OSError
        pass
    by_name = {zone.lower(): zone for zone in zoneinfo.available_timezones() if zone not in _LOCAL_ZONES}
    close = difflib.get_close_matches(name.lower(), by_name, n=1)
    guess = f"did you mean {by_name[close[0]]}?" if close else "write one as Europe/Berlin, or UTC"
    raise UsageError(f"{name!r} is not a time zone; {guess}")


def _fire(
    connection: Connection, settings: Settings, schedule: ScheduleView, due_at: datetime, starters: Starters
) -> Fired:
    """Start the action of a schedule; a refused start is rolled back, and its reason is the note."""
    job_id = note = None
    open_job, starter = schedules.open_job(connection, schedule.schedule_id), starters.get(schedule.action)
    if open_job is not None:
        note = f"job {open_job}, which it started before, has not ended yet"
    elif starter is None:
        note = f"this version of the program does not have the action {schedule.action}"
    else:
        try:
            with connection.begin_nested():
                job_id = starter.begin(connection, settings, schedule)
        except UsageError as error:
            note = str(error)
    schedules.insert_run(connection, schedule.schedule_id, due_at, job_id, note)
    log.info(
        note or "schedule fired",
        extra={"action": "schedule_fired", "schedule": schedule.name, "due_at": due_at.isoformat(), "job": job_id},
    )
    return Fired(schedule.name, due_at, job_id, note)
