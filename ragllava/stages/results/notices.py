"""What the end of a job is worth telling. A notice has numbers, states and the names of archives; never a caption, a
question, an answer or the name of a picture."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, select

from ragllava.jobs.views import JobView
from ragllava.records import JobKind, TaskName, TrainingStatus
from ragllava.stores.maintenance import notices
from ragllava.stores.maintenance.notices import NewNotice, NoticeEvent
from ragllava.stores.schema import archives, jobs


def announce_end(connection: Connection, job: JobView) -> None:
    """Store the notices of a job that has ended, in the transaction that stores its result; repeating it stores none
    twice."""
    if job.kind == JobKind.REQUEST or job.finished_at is None or job.result is not None:  # it was told of before
        return
    archive_id = connection.scalar(select(jobs.c.archive_id).where(jobs.c.id == job.job_id))
    subject = f"job {job.job_id} {job.finished_at.isoformat()}"  # after a retry it ends again
    for event, facts in _events(job):
        notices.announce(connection, NewNotice(event, subject, facts, archive_id, job.job_id))
    for name, reasons in _gaps(job):  # one for each archive: rules name archives, and the job may concern all
        archive_id = connection.scalar(select(archives.c.id).where(archives.c.name == name))
        facts = {"gaps": {name: reasons}}
        gap = NewNotice(NoticeEvent.GAP_FOUND, f"{subject} {name}", facts, archive_id, job.job_id)
        notices.announce(connection, gap)


def _events(job: JobView) -> Iterator[tuple[NoticeEvent, dict[str, object]]]:
    counts = {"total": job.progress.total, "counts": job.progress.by_status}
    yield NoticeEvent.JOB_ENDED, {"kind": job.kind, "state": job.state.value, **counts}
    training = job.training
    if training is not None and training.status is TrainingStatus.REFUSED:
        yield NoticeEvent.TRAINING_REFUSED, {"role": training.role.value, "version": training.version}


def _gaps(job: JobView) -> Iterator[tuple[str, dict[str, int]]]:
    """The archives in which the job has found gaps, with their numbers by reason."""
    if job.task is not None and job.task.action is TaskName.GAPS:
        for archive in (job.task.report or {}).get("archives", ()):
            yield archive["archive"], archive["reasons"]
