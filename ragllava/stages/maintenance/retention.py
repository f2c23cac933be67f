"""Deletes what is older than the settings keep, except what labels, noisy cases or trainings still need."""

from __future__ import annotations

from ragllava.jobs.isolation import Failures
from ragllava.jobs.runner import ShardContext
from ragllava.stages.maintenance.task_report import Report, counted, shortened, with_failures
from ragllava.stages.resources import Resources
from ragllava.stores.maintenance import retention

_DAY_S = 86_400.0
RUNS_KEPT_S = 90 * _DAY_S


def keep_within_limits(context: ShardContext[Resources]) -> Report:
    """Delete replaced indexes, old jobs with their result files, and old runs of schedules.

    Each in its own transaction, so the task may be interrupted; a job's rows are deleted before its objects.
    """
    failures = Failures()
    indexes = failures.run("indexes", _drop_indexes, context) or []
    jobs, needed = _delete_jobs(context, failures)
    runs = context.commit(retention.delete_runs, RUNS_KEPT_S)
    summary = (
        f"dropped {counted(len(indexes), 'replaced index', 'replaced indexes')}, {counted(len(jobs), 'job')} and "
        f"{counted(runs, 'old run')} of schedules"
    )
    figures = {
        "indexes": indexes,
        "jobs": {"dropped": len(jobs), "kept_for_labels_and_noisy_cases": needed, "examples": shortened(jobs)},
        "schedule_runs": runs,
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
    older_than_s = context.settings.keep_jobs_days * _DAY_S
    deleted = []
    for job_id in context.read(retention.deletable_jobs, older_than_s):
        context.check()
        if failures.run(f"job {job_id}", _delete_job, context, job_id, older_than_s):
            deleted.append(job_id)
    return deleted, context.read(retention.count_needed_jobs, older_than_s)


def _delete_job(context: ShardContext[Resources], job_id: int, older_than_s: float) -> bool:
    """What an error leaves in the object store, gc finds later."""
    if not context.commit(retention.delete_job, job_id, older_than_s):
        return False
    context.resources.objects.remove_prefix(f"jobs/{job_id}/")
    return True
