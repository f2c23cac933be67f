"""Schedules and their due times: each fires once, however many ticks run (docs/reliability.md D9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select, update
from sqlalchemy.dialects.postgresql import distinct_on, insert

from ragllava.errors import NotFound
from ragllava.records import ScheduleAction
from ragllava.stores.database import equals_any, record
from ragllava.stores.schema import archives, jobs, schedule_runs, schedules


@dataclass(frozen=True, slots=True)
class RunView:
    """The last run of a schedule. Without a job, `note` says why there is none."""

    due_at: datetime
    fired_at: datetime
    job_id: int | None
    job_state: str | None
    note: str | None


@dataclass(frozen=True, slots=True)
class ScheduleView:
    """A schedule as people see it. `archive` None: all archives."""

    schedule_id: int
    name: str
    action: ScheduleAction
    archive: str | None
    options: dict[str, Any]
    cron: str
    timezone: str
    paused: bool
    next_due: datetime
    last_run: RunView | None


def insert_schedule(connection: Connection, **values: object) -> bool:
    """Insert a schedule with these columns, which the caller has checked; False when its name is taken."""
    made = insert(schedules).values(values).on_conflict_do_nothing().returning(schedules.c.id)
    return connection.scalar(made) is not None


def list_schedules(connection: Connection) -> list[ScheduleView]:
    """All schedules by name, each with its last run."""
    return _views(connection, connection.execute(_select().order_by(schedules.c.name)).all())


def lock_schedule(connection: Connection, name: str) -> ScheduleView:
    """The schedule of this name, locked until the caller's commit.

    Raises UsageError that lists the names of all schedules.
    """
    return _named(connection, name, _select().with_for_update(of=schedules))


def find_schedule(connection: Connection, name: str) -> ScheduleView:
    """The schedule of this name. Raises as `lock_schedule`."""
    return _named(connection, name, _select())


def _named(connection: Connection, name: str, query: Select[Any]) -> ScheduleView:
    row = connection.execute(query.where(schedules.c.name == name)).one_or_none()
    if row is not None:
        return _views(connection, [row])[0]
    names = connection.scalars(select(schedules.c.name).order_by(schedules.c.name)).all()
    if not names:
        raise NotFound(f"there is no schedule {name!r}, nor any other yet; `ragllava schedule add` adds one")
    raise NotFound(f"there is no schedule {name!r}; there are: {', '.join(names)}")


def due_schedules(connection: Connection) -> dict[int, str]:
    """The names of the schedules that are due, by id, the oldest due time first."""
    due = select(schedules.c.id, schedules.c.name).where(~schedules.c.paused, schedules.c.next_due <= func.now())
    return dict(connection.execute(due.order_by(schedules.c.next_due, schedules.c.id)).all())


def lock_due(connection: Connection, schedule_id: int) -> ScheduleView | None:
    """A schedule, locked until the caller's commit; None when it is not due any more, or another caller has it."""
    due = (
        _select()
        .where(schedules.c.id == schedule_id, ~schedules.c.paused, schedules.c.next_due <= func.now())
        .with_for_update(of=schedules, skip_locked=True)
    )
    row = connection.execute(due).one_or_none()
    return _views(connection, [row])[0] if row is not None else None


def insert_run(
    connection: Connection, schedule_id: int, due_at: datetime, job_id: int | None, note: str | None
) -> None:
    """Insert the run of a due time. A second row for the same due time is an IntegrityError."""
    values = {"schedule_id": schedule_id, "due_at": due_at, "job_id": job_id, "note": note}
    connection.execute(schedule_runs.insert().values(values))


def open_job(connection: Connection, schedule_id: int) -> int | None:
    """A job of this schedule that has not ended; None when there is none."""
    query = (
        select(jobs.c.id)
        .join(schedule_runs, schedule_runs.c.job_id == jobs.c.id)
        .where(schedule_runs.c.schedule_id == schedule_id, jobs.c.finished_at.is_(None))
    )
    return connection.scalar(query.order_by(jobs.c.id).limit(1))


def set_next_due(connection: Connection, schedule_id: int, next_due: datetime) -> None:
    """Set when the schedule fires next."""
    connection.execute(update(schedules).where(schedules.c.id == schedule_id).values(next_due=next_due))


def set_cron(connection: Connection, schedule_id: int, cron: str, timezone: str, next_due: datetime) -> None:
    """Set when the schedule fires, and when next."""
    values = {"cron": cron, "timezone": timezone, "next_due": next_due}
    connection.execute(update(schedules).where(schedules.c.id == schedule_id).values(values))


def list_runs(connection: Connection, schedule_id: int, limit: int) -> list[RunView]:
    """The last runs of a schedule, the newest first."""
    runs = schedule_runs.c
    rows = connection.execute(
        select(schedule_runs, jobs.c.state.label("job_state"))
        .outerjoin(jobs)
        .where(runs.schedule_id == schedule_id)
        .order_by(runs.fired_at.desc(), runs.due_at.desc())
        .limit(limit)
    )
    return [record(RunView, row) for row in rows]


def set_paused(connection: Connection, schedule_id: int, paused: bool) -> None:
    """Set whether the schedule is paused."""
    connection.execute(update(schedules).where(schedules.c.id == schedule_id).values(paused=paused))


def delete_schedule(connection: Connection, schedule_id: int) -> None:
    """Delete a schedule and its runs; its jobs stay."""
    connection.execute(schedules.delete().where(schedules.c.id == schedule_id))


def database_now(connection: Connection) -> datetime:
    """The database's clock, which alone decides what is due (docs/reliability.md D4)."""
    now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return now


def _select() -> Select[Any]:
    columns = (schedules.c.id.label("schedule_id"), schedules, archives.c.name.label("archive"))
    return select(*columns).outerjoin(archives)


def _views(connection: Connection, rows: Sequence[Row[Any]]) -> list[ScheduleView]:
    last_runs = _last_runs(connection, [row.id for row in rows])
    return [record(ScheduleView, row, last_run=last_runs.get(row.id)) for row in rows]


def _last_runs(connection: Connection, schedule_ids: Sequence[int]) -> dict[int, RunView]:
    runs = schedule_runs.c
    rows = connection.execute(
        select(schedule_runs, jobs.c.state.label("job_state"))
        .ext(distinct_on(runs.schedule_id))
        .outerjoin(jobs)
        .where(equals_any(runs.schedule_id, schedule_ids))
        .order_by(runs.schedule_id, runs.fired_at.desc(), runs.due_at.desc())
    )
    return {row.schedule_id: record(RunView, row) for row in rows}
