"""Deletes what is older than the settings keep, except what labels, noisy cases or trainings still need."""

from __future__ import annotations

from sqlalchemy import Connection

from ragllava.jobs.isolation import Failures
from ragllava.jobs.runner import ShardContext
from ragllava.stages.erasing.steps import Eraser
from ragllava.stages.maintenance.task_report import Report, counted, shortened, with_failures
from ragllava.stages.resources import Resources
from ragllava.stores.maintenance import erasing_images, erasing_jobs, erasures, notices, retention
from ragllava.stores.maintenance.erasures import ErasureKind

_DAY_S = 86_400.0
RUNS_KEPT_S = 90 * _DAY_S
NOTICES_KEPT_S = 30 * _DAY_S
_PAGE = 1_000  # images that are erased together


def keep_within_limits(context: ShardContext[Resources]) -> Report:
    """Delete replaced indexes, old jobs with their result files, pictures that were retired long ago, old runs of
    schedules, old records of calls to the HTTP API, and old notices.

    In short transactions, so the task may be interrupted; the tick finishes the job or the pictures that it was at.
    """
    failures = Failures()
    indexes = failures.run("indexes", _drop_indexes, context) or []
    jobs, needed = _delete_jobs(context, failures)
    pictures = failures.run("retired pictures", _erase_retired, context) or 0
    runs = context.commit(retention.delete_runs, RUNS_KEPT_S)
    calls = failures.run("audit", _delete_audit, context) or 0
    told = failures.run("notices", _delete_notices, context) or 0
    summary = (
        f"dropped {counted(len(indexes), 'replaced index', 'replaced indexes')}, {counted(len(jobs), 'job')}, "
        f"{counted(pictures, 'retired picture')}, {counted(runs, 'old run')} of schedules, "
        f"{counted(calls, 'record')} of calls and {counted(told, 'old notice')}"
    )
    figures = {
        "indexes": indexes,
        "jobs": {"dropped": len(jobs), "kept_for_labels_and_noisy_cases": needed, "examples": shortened(jobs)},
        "retired_pictures": pictures,
        "schedule_runs": runs,
        "audit": calls,
        "notices": told,
    }
    return with_failures(Report(summary, figures), failures)


def _drop_indexes(context: ShardContext[Resources]) -> list[int]:
    older_than_s = context.settings.keep_indexes_hours * 3600.0
    dropped: list[int] = []
    while True:
        context.check()
        index_id = context.commit(retention.drop_retired_index, older_than_s)
        if index_id is None:
            return dropped
        dropped.append(index_id)


def _delete_jobs(context: ShardContext[Resources], failures: Failures) -> tuple[list[int], int]:
    """The deleted jobs, and how many jobs of the same age were kept."""
    if not context.settings.keep_jobs_days:
        return [], 0
    ages = context.settings.keep_jobs_days * _DAY_S, context.settings.keep_noisy_days * _DAY_S
    deleted = []
    for job_id in context.read(retention.deletable_jobs, *ages):
        context.check()
        if failures.run(f"job {job_id}", _delete_job, context, job_id, ages):
            deleted.append(job_id)
    return deleted, context.read(retention.count_needed_jobs, *ages)


def _delete_job(context: ShardContext[Resources], job_id: int, ages: tuple[float, float]) -> bool:
    erasure_id = context.commit(_begin_job, job_id, ages, _account(context))
    if erasure_id is None:
        return False
    _eraser(context).continue_erasure(erasure_id)
    return True


def _begin_job(connection: Connection, job_id: int, ages: tuple[float, float], account: str) -> int | None:
    if not retention.lock_deletable(connection, job_id, *ages):
        return None
    erasing_jobs.begin_job(connection, job_id)
    return erasures.begin(connection, ErasureKind.JOB, account, archive_id=None, target_id=job_id)


def _erase_retired(context: ShardContext[Resources]) -> int:
    """Erase the images that were retired long ago; returns how many."""
    if not context.settings.keep_retired_days:
        return 0
    older_than_s = context.settings.keep_retired_days * _DAY_S
    erased = 0
    while pages := context.read(erasing_images.retired_images, older_than_s, _PAGE):
        before = erased
        for archive_id, image_ids in pages.items():
            context.check()
            erasure_id = context.commit(_begin_images, archive_id, image_ids, _account(context))
            _eraser(context).continue_erasure(erasure_id)
            erased += context.read(erasures.view, erasure_id).counts.get("images", 0)
        if erased == before:  # all were ingested again meanwhile
            break
    return erased


def _delete_audit(context: ShardContext[Resources]) -> int:
    """Delete the records of calls that are older than the settings keep; returns how many."""
    if not context.settings.keep_audit_days:
        return 0
    deleted = 0
    while part := context.commit(retention.delete_audit, context.settings.keep_audit_days * _DAY_S):
        context.check()
        deleted += part
    return deleted


def _delete_notices(context: ShardContext[Resources]) -> int:
    """Delete the notices that are older, with their mailings; returns how many."""
    deleted = 0
    while part := context.commit(notices.delete_old, NOTICES_KEPT_S):
        context.check()
        deleted += part
    return deleted


def _begin_images(connection: Connection, archive_id: int, image_ids: list[int], account: str) -> int:
    pending = erasing_images.pending_of(connection, archive_id, image_ids)
    return erasures.begin(connection, ErasureKind.RETIRED, account, archive_id=archive_id, pending=pending)


def _eraser(context: ShardContext[Resources]) -> Eraser:
    return Eraser(context.engine, context.resources.objects, lambda _step: context.check())


def _account(context: ShardContext[Resources]) -> str:
    return f"job {context.lease.job_id}"
