"""Everything that a schedule may start: maintenance tasks, a reindexing, and a training."""

from __future__ import annotations

from sqlalchemy import Connection

from ragllava.errors import UsageError
from ragllava.models.profiles import parse_retriever
from ragllava.records import Role, ScheduleAction, Selection
from ragllava.settings import Settings
from ragllava.stages.maintenance.schedules import Options, Starter, Starters
from ragllava.stages.maintenance.stage import MAINTENANCE_STARTERS, check_options
from ragllava.stages.reindex.stage import ReindexRequest, check_selection, submit_reindex
from ragllava.stores.learning import trainings
from ragllava.stores.maintenance.schedules import ScheduleView
from ragllava.training.request import begin_retraining

# Newly labelled questions without which a scheduled training does not begin. Each try needs more proof than the one
# before, so there are fewer tries, each with more held-out questions.
DEFAULT_LABELS = 100


def _begin_training(connection: Connection, settings: Settings, schedule: ScheduleView) -> int:
    role, labelled = Role(schedule.options["role"]), schedule.options.get("labels", DEFAULT_LABELS)
    job_id = begin_retraining(connection, role, settings, labelled, schedule.archive)
    if job_id is None:
        trainings.require_none_open(connection, role)
        raise UsageError(_too_few(connection, role, labelled, schedule.archive))
    return job_id


def _too_few(connection: Connection, role: Role, needed: int, archive_name: str | None) -> str:
    questions = f"newly labelled questions for the {role}"
    due = trainings.due_archives(connection, role, 1)
    if archive_name is not None:
        labelled = next((source.labelled for source in due if source.archive == archive_name), 0)
        sentence = f"{archive_name} has {labelled} {questions}, and needs {needed}"
    elif due:
        most = max(due, key=lambda source: source.labelled)
        labelled = most.labelled
        sentence = f"{most.archive} has the most {questions}, {labelled}, and needs {needed}"
    else:
        labelled, sentence = 0, f"no archive has {questions}, and one needs {needed}"
    # Given while their training began, labels may count as new once more.
    return sentence if labelled < needed else f"the {questions} have had their training already; label more"


def _check_training(archive_name: str | None, options: Options) -> None:
    check_options("retrain", {"role": str, "labels": int}, options)
    if options.get("role") not in list(Role):
        raise UsageError(f"retrain needs a role: {' or '.join(Role)}")
    if options.get("labels", DEFAULT_LABELS) < 1:
        raise UsageError(f"retrain needs at least one newly labelled question, not {options['labels']}")


def _begin_reindexing(connection: Connection, settings: Settings, schedule: ScheduleView) -> int:
    return submit_reindex(connection, settings, _reindex_request(schedule.archive, schedule.options))


def _check_reindexing(archive_name: str | None, options: Options) -> None:
    check_options("reindex", {"only": str, "retriever": str}, options)
    check_selection(_reindex_request(archive_name, options))


def _reindex_request(archive_name: str | None, options: Options) -> ReindexRequest:
    """By default what is missing is embedded; with a retriever, everything."""
    if archive_name is None:
        raise UsageError("reindex concerns one archive: name it by --archive")
    retriever = options.get("retriever")
    only = options.get("only", Selection.ALL if retriever else Selection.MISSING)
    if only not in list(Selection):
        raise UsageError(f"reindex takes only {', '.join(Selection)}, not {only!r}")
    return ReindexRequest(archive_name, Selection(only), parse_retriever(retriever) if retriever else None)


STARTERS: Starters = MAINTENANCE_STARTERS | {
    ScheduleAction.RETRAIN: Starter(_begin_training, _check_training),
    ScheduleAction.REINDEX: Starter(_begin_reindexing, _check_reindexing),
}
