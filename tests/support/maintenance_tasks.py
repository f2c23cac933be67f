"""Maintenance tasks for tests: running one to its report, and trainings that it may meet."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, text, update

from ragllava.jobs import views
from ragllava.jobs.views import JobView
from ragllava.records import Role, TaskName, TaskStatus
from ragllava.stages.maintenance.stage import submit_task
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction
from ragllava.stores.learning import trainings
from ragllava.stores.schema import jobs
from ragllava.training.request import TrainingRequest, create_job
from tests.support.archive_rows import ARCHIVE
from tests.support.workshop import Workshop


def do(workshop: Workshop, action: str, archive_name: str | None = None, **options: Any) -> JobView:
    """Run a maintenance task to its result."""
    job_id = in_transaction(workshop.engine, submit_task, workshop.settings, TaskName(action), archive_name, options)
    workshop.run()
    publish_missing_results(workshop.engine, workshop.resources.objects)
    return workshop.job(job_id)


def report(job: JobView) -> dict[str, Any]:
    assert job.task is not None and job.task.status is TaskStatus.DONE, job
    assert job.task.report is not None
    return job.task.report


def execute(workshop: Workshop, statement: str) -> None:
    with workshop.engine.begin() as connection:
        connection.execute(text(statement))


def a_training(workshop: Workshop, status: str | None, state: str = "completed") -> str:
    """A train job, open where it has neither a status nor another state than usual; returns its folder in the store."""
    with workshop.engine.begin() as connection:
        archive.ensure_archive(connection, ARCHIVE)
        job_id, _ = create_job(connection, TrainingRequest(Role.RERANKER, (ARCHIVE,), "mini"))
        if status is not None:
            statement = text("UPDATE trainings SET status = :status WHERE job_id = :job_id")
            connection.execute(statement, {"status": status, "job_id": job_id})
        if status is not None or state != "completed":
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(state=state, finished_at=func.now()))
        created_at = views.view(connection, job_id).created_at
    return trainings.folder_of(job_id, created_at)
