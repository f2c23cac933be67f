"""Maintenance as jobs: each maintenance task is a function that returns a report; `ragllava jobs show` prints it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection

from ragllava.errors import JobRefused, UsageError
from ragllava.jobs import control
from ragllava.jobs.control import NewJob
from ragllava.jobs.runner import ShardContext
from ragllava.records import JobKind, ScheduleAction, TaskName
from ragllava.settings import Settings
from ragllava.stages.maintenance.back_up import back_up
from ragllava.stages.maintenance.find_noisy import find_noisy_cases
from ragllava.stages.maintenance.gc import collect_garbage
from ragllava.stages.maintenance.retention import keep_within_limits
from ragllava.stages.maintenance.scan import report_gaps, scan_buckets
from ragllava.stages.maintenance.schedules import Options, Starter
from ragllava.stages.maintenance.task_report import Report
from ragllava.stages.maintenance.vacuum import vacuum
from ragllava.stages.resources import Resources
from ragllava.stores.archives import archive
from ragllava.stores.maintenance import tasks
from ragllava.stores.maintenance.schedules import ScheduleView

MAINTENANCE_PRIORITY = -10  # below pictures that wait to be embedded


@dataclass(frozen=True, slots=True)
class TaskDefinition:
    """A maintenance task: its function of a ShardContext and the options, whether it can be limited to the archive of
    the lease, and its options by type."""

    run: Callable[..., Report]
    of_one_archive: bool = False
    options: Mapping[str, type] = field(default_factory=dict)


TASK_DEFINITIONS: dict[TaskName, TaskDefinition] = {
    TaskName.SCAN: TaskDefinition(scan_buckets, of_one_archive=True),
    TaskName.GAPS: TaskDefinition(report_gaps, of_one_archive=True),
    TaskName.FIND_NOISY: TaskDefinition(find_noisy_cases, of_one_archive=True),
    TaskName.GC: TaskDefinition(collect_garbage, options={"delete": bool}),
    TaskName.RETENTION: TaskDefinition(keep_within_limits),
    TaskName.VACUUM: TaskDefinition(vacuum),
    TaskName.BACKUP: TaskDefinition(back_up),
}


def maintenance_stage(context: ShardContext[Resources]) -> None:
    """Run the task of a maintenance job and store its report behind the fence.

    Every maintenance task may be interrupted at any point and run again from its start: what it removed stays removed.
    """
    lease = context.lease
    if not context.open_inputs():
        return
    action = TaskName(lease.spec["action"])
    try:
        report = TASK_DEFINITIONS[action].run(context, **lease.spec["options"])
    except UsageError as error:
        raise JobRefused(str(error)) from error
    context.commit(tasks.finish, lease.job_id, report.summary, report.figures, failed=report.failed)


def submit_task(
    connection: Connection,
    _settings: Settings,
    action: TaskName,
    archive_name: str | None,
    options: Options,
    *,
    name: str | None = None,
) -> int:
    """Create a maintenance job with its one input, under a name for people; returns its id.

    Raises UsageError as `check_task` and for an unknown archive.
    """
    check_task(action, archive_name, options)
    spec = {"action": action.value, "options": dict(options)}
    job_id, _ = control.create(
        connection,
        NewJob(
            kind=JobKind.MAINTENANCE,
            archive_id=archive.get_archive(connection, archive_name).archive_id if archive_name else None,
            spec=spec,
            total=1,
            per_shard=1,
            priority=MAINTENANCE_PRIORITY,
            content_digest=json.dumps(spec, sort_keys=True),
            name=name,
        ),
    )
    tasks.insert_task(connection, job_id, action)
    return job_id


def check_task(action: TaskName, archive_name: str | None, options: Options) -> None:
    """Raises UsageError for an archive or options that this task does not take."""
    task = TASK_DEFINITIONS[action]
    if archive_name is not None and not task.of_one_archive:
        raise UsageError(f"{action} concerns the whole system and takes no archive")
    check_options(action.value, task.options, options)


def check_options(action: str, types: Mapping[str, type], given: Options) -> None:
    """Raises UsageError for an option that the action does not take, or a value of another type."""
    for name, value in given.items():
        if name not in types:
            takes = ", ".join(types) or "none"
            raise UsageError(f"{action} does not take the option {name}; it takes {takes}")
        if type(value) is not types[name]:
            raise UsageError(f"the option {name} of {action} must be of type {types[name].__name__}, not {value!r}")


def task_starter(action: TaskName) -> Starter:
    """How a schedule starts this maintenance task."""

    def begin(connection: Connection, settings: Settings, schedule: ScheduleView) -> int:
        return submit_task(connection, settings, action, schedule.archive, schedule.options)

    return Starter(begin, lambda archive_name, options: check_task(action, archive_name, options))


MAINTENANCE_STARTERS: dict[ScheduleAction, Starter] = {
    ScheduleAction(action.value): task_starter(action) for action in TASK_DEFINITIONS
}
