"""Upkeep as jobs: each chore is one function that returns a report; `ragllava jobs show` prints it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine

from ragllava.errors import JobRefused, UsageError
from ragllava.jobs import control
from ragllava.jobs.control import NewJob
from ragllava.jobs.runner import ShardContext
from ragllava.records import ChoreAction, JobKind, ScheduleAction
from ragllava.settings import Settings
from ragllava.stages.maintenance.find_noisy import mine
from ragllava.stages.maintenance.gc import sweep
from ragllava.stages.maintenance.retention import keep_within_limits
from ragllava.stages.maintenance.scan import report_gaps, scan_buckets
from ragllava.stages.maintenance.schedules import Options, Starter
from ragllava.stages.maintenance.task_report import ChoreRequest, Report
from ragllava.stages.maintenance.vacuum import vacuum
from ragllava.stages.resources import Resources
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction
from ragllava.stores.jobs import outcomes
from ragllava.stores.maintenance import tasks
from ragllava.stores.maintenance.schedules import ScheduleView

CHORE_PRIORITY = -10  # below pictures that wait to be embedded


@dataclass(frozen=True, slots=True)
class Chore:
    """One kind of upkeep: what does it, whether it can be limited to one archive, and the options it takes."""

    do: Callable[[ShardContext[Resources], ChoreRequest], Report]
    of_one_archive: bool = False
    options: Mapping[str, type] = field(default_factory=dict)


CHORES: dict[ChoreAction, Chore] = {
    ChoreAction.SCAN: Chore(scan_buckets, of_one_archive=True),
    ChoreAction.GAPS: Chore(report_gaps, of_one_archive=True),
    ChoreAction.MINE: Chore(mine, of_one_archive=True),
    ChoreAction.SWEEP: Chore(sweep, options={"delete": bool}),
    ChoreAction.RETENTION: Chore(keep_within_limits),
    ChoreAction.VACUUM: Chore(vacuum),
}


def chore_stage(context: ShardContext[Resources]) -> None:
    """Do the chore of one chore job and write its report behind the fence; done again, it begins anew.

    Every chore may be interrupted at any point and repeated: what it removed stays removed.
    """
    lease = context.lease
    if not context.read(outcomes.open_inputs, JobKind.CHORE, lease.job_id, lease.run_no, lease.lo, lease.hi):
        return
    action = ChoreAction(lease.spec["action"])
    try:
        report = CHORES[action].do(context, ChoreRequest(lease.archive_id or None, lease.spec["options"]))
    except UsageError as error:
        raise JobRefused(str(error)) from error
    context.commit(tasks.finish, lease.job_id, report.summary, report.figures, failed=report.failed)


def submit_chore(engine: Engine, action: ChoreAction, archive_name: str | None, options: Options) -> int:
    """Make a chore job; returns its id. Raises UsageError for an archive or options that it does not take."""
    check_chore(action, archive_name, options)
    return in_transaction(engine, create_chore, action, archive_name, options)


def create_chore(connection: Connection, action: ChoreAction, archive_name: str | None, options: Options) -> int:
    """The job with its one input. Raises UsageError for an unknown archive."""
    spec = {"action": action.value, "options": dict(options)}
    job_id, _ = control.create(
        connection,
        NewJob(
            kind=JobKind.CHORE,
            archive_id=archive.get_archive(connection, archive_name).archive_id if archive_name else None,
            spec=spec,
            total=1,
            per_shard=1,
            priority=CHORE_PRIORITY,
            content_digest=json.dumps(spec, sort_keys=True),
        ),
    )
    tasks.insert_chore(connection, job_id, action)
    return job_id


def check_chore(action: ChoreAction, archive_name: str | None, options: Options) -> None:
    """Raises UsageError for an archive or options that this chore does not take."""
    chore = CHORES[action]
    if archive_name is not None and not chore.of_one_archive:
        raise UsageError(f"{action} concerns the whole system and takes no archive")
    check_options(action.value, chore.options, options)


def check_options(action: str, known: Mapping[str, type], given: Options) -> None:
    """Raises UsageError for an option that the action does not take, or a value of another type."""
    for name, value in given.items():
        if name not in known:
            takes = ", ".join(known) if known else "none"
            raise UsageError(f"{action} does not take the option {name}; it takes {takes}")
        if type(value) is not known[name]:
            raise UsageError(f"the option {name} of {action} must be of type {known[name].__name__}, not {value!r}")


def chore_starter(action: ChoreAction) -> Starter:
    """How a schedule begins this chore."""

    def begin(connection: Connection, settings: Settings, schedule: ScheduleView) -> int:
        return create_chore(connection, action, schedule.archive, schedule.options)

    return Starter(begin, lambda archive_name, options: check_chore(action, archive_name, options))


CHORE_STARTERS: dict[ScheduleAction, Starter] = {
    ScheduleAction(action.value): chore_starter(action) for action in CHORES
}
