"""Work that begins by the clock: cron lines in a time zone, kept in the database, fired by the tick
(docs/reliability.md D9).

Any number of ticks may look at once. A due time fires in one transaction: the schedule is locked, its run written
down, its job made and its next due time set. Times that passed while nobody looked fire once together, and the next
one is the first after the database's now.
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

from ragllava.errors import RagllavaError, UsageError
from ragllava.records import ScheduleAction
from ragllava.settings import Settings
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction
from ragllava.stores.maintenance import schedules
from ragllava.stores.maintenance.schedules import NewSchedule, ScheduleView

log = logging.getLogger(__name__)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_OF_ONE_MACHINE = ("localtime", "posixrules")  # names that mean another zone on the next worker

Options = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Starter:
    """How one action is begun.

    `begin` makes its job in the caller's transaction and returns its id; it raises UsageError when there is nothing
    to begin, which is written down as the run's note. `check` raises UsageError for an archive or options that this
    action does not take.
    """

    begin: Callable[[Connection, Settings, ScheduleView], int]
    check: Callable[[str | None, Options], None]


Starters = Mapping[ScheduleAction, Starter]


@dataclass(frozen=True, slots=True)
class ScheduleRequest:
    """A schedule as a person asks for it. Without a name it is called after its action and archive."""

    action: ScheduleAction
    cron: str
    archive: str | None = None  # None: all archives
    timezone: str = "UTC"
    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fired:
    """What a schedule came to: a job, or a note that says why there is none."""

    name: str
    due_at: datetime
    job_id: int | None
    note: str | None


def add_schedule(engine: Engine, request: ScheduleRequest, starters: Starters) -> ScheduleView:
    """Keep a schedule; it fires for the first time at its first due time from now.

    Raises UsageError with one sentence for a wrong cron line, zone, name, archive or option, and for a taken name.
    """
    starters[request.action].check(request.archive, request.options)
    name = request.name or "-".join(filter(None, (request.action.value, request.archive)))
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a schedule: use 1 to 63 of the characters a-z, 0-9, `.`, `_` and `-`, "
            "and begin with a letter or a digit; name it with --name"
        )

    def work(connection: Connection) -> ScheduleView:
        new = NewSchedule(
            name=name,
            action=request.action,
            archive_id=archive.get_archive(connection, request.archive).archive_id if request.archive else None,
            options=request.options,
            cron=request.cron,
            timezone=request.timezone,
            next_due=first_due_after(request.cron, request.timezone, schedules.database_now(connection)),
        )
        if not schedules.insert_schedule(connection, new):
            raise UsageError(
                f"there is a schedule {name} already: choose another name with --name, or first say "
                f"`ragllava schedule remove {name}`"
            )
        return schedules.lock_schedule(connection, name)

    return in_transaction(engine, work)


def fire_due(engine: Engine, settings: Settings, starters: Starters) -> list[Fired]:
    """Fire every schedule that is due, each in a transaction of its own; returns what came of them.

    A schedule whose job cannot be made now for want of a service holds up no other, and is due again at the next
    tick.
    """
    fired: list[Fired] = []
    failed: list[int] = []

    def fire_next(connection: Connection) -> Fired | None:
        due = schedules.lock_next_due(connection, passed_over=failed)
        if due is None:
            return None
        looked_at.append(due.schedule_id)
        next_due = first_due_after(due.cron, due.timezone, schedules.database_now(connection))
        schedules.set_next_due(connection, due.schedule_id, next_due)
        return _fire(connection, settings, due, due.next_due, starters)

    while True:
        looked_at: list[int] = []
        try:
            one = in_transaction(engine, fire_next)
        except RagllavaError as error:
            if not looked_at:
                raise
            failed.append(looked_at[-1])
            log.warning(str(error), extra={"action": "schedule_not_fired", "schedule": looked_at[-1]})
            continue
        if one is None:
            return fired
        fired.append(one)


def run_now(engine: Engine, settings: Settings, name: str, starters: Starters) -> Fired:
    """Begin what a schedule does, now, also if it is paused; its next due time stays. Raises UsageError."""

    def work(connection: Connection) -> Fired:
        schedule = schedules.lock_schedule(connection, name)
        return _fire(connection, settings, schedule, schedules.database_now(connection), starters)

    return in_transaction(engine, work)


def pause(engine: Engine, name: str) -> None:
    """Let due times pass by. Raises UsageError for an unknown name."""

    def work(connection: Connection) -> None:
        schedules.set_paused(connection, schedules.lock_schedule(connection, name).schedule_id, True)

    in_transaction(engine, work)


def resume(engine: Engine, name: str) -> ScheduleView:
    """Let a paused schedule fire again, from its next due time on: what passed meanwhile is not made up for."""

    def work(connection: Connection) -> ScheduleView:
        schedule = schedules.lock_schedule(connection, name)
        if schedule.paused:
            next_due = first_due_after(schedule.cron, schedule.timezone, schedules.database_now(connection))
            schedules.set_next_due(connection, schedule.schedule_id, next_due)
            schedules.set_paused(connection, schedule.schedule_id, False)
        return schedules.lock_schedule(connection, name)

    return in_transaction(engine, work)


def remove(engine: Engine, name: str) -> None:
    """Forget a schedule; jobs that it began go on. Raises UsageError for an unknown name."""

    def work(connection: Connection) -> None:
        schedules.delete_schedule(connection, schedules.lock_schedule(connection, name).schedule_id)

    in_transaction(engine, work)


def first_due_after(cron: str, timezone: str, moment: datetime) -> datetime:
    """The first time after `moment` that a cron line names in its zone, in UTC. Raises UsageError.

    A time that the clocks skip in spring comes when they have moved; one that they repeat in autumn comes once.
    """
    zone = find_zone(timezone)
    if len(cron.split()) != 5:
        raise UsageError(f"{cron!r} is no cron line: it has five fields, minute hour day month weekday, as `0 3 * * *`")
    try:
        for due in CronSim(cron, moment.astimezone(zone)):
            # Between the two passes of a repeated hour the first one is named again.
            if due.astimezone(UTC) > moment:
                return due.astimezone(UTC)
    except CronSimError as error:
        raise UsageError(
            f"{cron!r} is no cron line: {str(error)[:1].lower()}{str(error)[1:]}; write it as `0 3 * * *`"
        ) from None
    raise UsageError(f"{cron!r} names a day that never comes")


def find_zone(name: str) -> zoneinfo.ZoneInfo:
    """An IANA time zone by its name. Raises UsageError that names the nearest one."""
    try:
        if name not in _OF_ONE_MACHINE:
            return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):  # a folder of zones is an OSError
        pass
    by_letters = {zone.lower(): zone for zone in zoneinfo.available_timezones() if zone not in _OF_ONE_MACHINE}
    close = difflib.get_close_matches(name.lower(), by_letters, n=1)
    guess = f"did you mean {by_letters[close[0]]}?" if close else "write one as Europe/Berlin, or UTC"
    raise UsageError(f"{name!r} is no time zone; {guess}")


def _fire(
    connection: Connection, settings: Settings, schedule: ScheduleView, due_at: datetime, starters: Starters
) -> Fired:
    job_id, note = _begin(connection, settings, schedule, starters)
    schedules.insert_run(connection, schedule.schedule_id, due_at, job_id, note)
    log.info(
        note or "schedule fired",
        extra={"action": "schedule_fired", "schedule": schedule.name, "due_at": due_at.isoformat(), "job": job_id},
    )
    return Fired(schedule.name, due_at, job_id, note)


def _begin(
    connection: Connection, settings: Settings, schedule: ScheduleView, starters: Starters
) -> tuple[int | None, str | None]:
    """The job and no note, or a note and no job; what a refused beginning has written is taken back."""
    before = schedules.open_job(connection, schedule.schedule_id)
    if before is not None:
        return None, f"job {before}, which it began before, has not ended yet"
    starter = starters.get(schedule.action)
    if starter is None:
        return None, f"this version of the program cannot begin {schedule.action}"
    try:
        with connection.begin_nested():
            return starter.begin(connection, settings, schedule), None
    except UsageError as error:
        return None, str(error)
