"""Everything that a schedule may begin: the chores, and a training, of which the stages know nothing."""

from __future__ import annotations

from sqlalchemy import Connection

from ragllava.errors import UsageError
from ragllava.records import Role, ScheduleAction
from ragllava.settings import Settings
from ragllava.stages.chores import CHORE_STARTERS, check_options
from ragllava.stages.schedules import Options, Starter, Starters
from ragllava.stores.schedules import ScheduleView
from ragllava.training.request import begin_due

DEFAULT_LABELS = 50  # newly labelled questions without which a scheduled training does not begin


def _begin_training(connection: Connection, settings: Settings, schedule: ScheduleView) -> int:
    role, labelled = Role(schedule.options["role"]), schedule.options.get("labels", DEFAULT_LABELS)
    job_id = begin_due(connection, role, settings.profile, labelled, schedule.archive)
    if job_id is None:
        where = f"{schedule.archive} has not" if schedule.archive else "no archive has"
        raise UsageError(f"{where} {labelled} newly labelled questions for the {role}, or it is being trained already")
    return job_id


def _check_training(archive_name: str | None, options: Options) -> None:
    check_options("retrain", {"role": str, "labels": int}, options)
    if options.get("role") not in list(Role):
        raise UsageError(f"retrain needs a role: {' or '.join(Role)}")
    if options.get("labels", DEFAULT_LABELS) < 1:
        raise UsageError(f"retrain needs at least one newly labelled question, not {options['labels']}")


STARTERS: Starters = CHORE_STARTERS | {ScheduleAction.RETRAIN: Starter(_begin_training, _check_training)}
