"""Refreshing a job: its questions again, of which the workers ask only those that something has changed for.

The comparison is part of the answer stage (stages/changes.py), because retrieving needs the retriever, which a machine
that only submits may not have. Only `plan_refresh`, which tells in advance, retrieves where it is called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Engine

from ragllava.errors import UsageError
from ragllava.jobs import control
from ragllava.jobs.control import JobView, NewJob
from ragllava.records import AnswerStatus, JobKind, Role
from ragllava.settings import Settings
from ragllava.stages.answer import look_up, retrieve, stamp_of
from ragllava.stages.changes import changes_since
from ragllava.stages.resources import Resources
from ragllava.stages.submit import BULK_PRIORITY
from ragllava.stores import archive, refreshes
from ragllava.stores.database import in_transaction

_PAGE = 256  # questions that are embedded and searched together

OnProgress = Callable[[int, int], None]  # questions compared, of how many


@dataclass(frozen=True, slots=True)
class RefreshPlan:
    """What a refresh now would do. `without_answer` lines stay as they are; `because` counts reasons, of which a
    question may have several."""

    job: int
    unchanged: int
    asked_again: int
    without_answer: int
    because: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def submit_refresh(engine: Engine, settings: Settings, earlier_job_id: int) -> tuple[int, bool]:
    """Create an answer job that refreshes an ended one; returns its id and whether it is new.

    It has the same lines and options. Lines that have no answer end as they did: those are for a retry. While a
    refresh of that job is open, that one is returned. Raises UsageError when there is nothing to refresh.
    """

    def work(connection: Connection) -> tuple[int, bool]:
        open_refresh = refreshes.lock_earlier(connection, earlier_job_id)
        earlier = _require_answers(control.view(connection, earlier_job_id))
        if open_refresh is not None:
            return open_refresh, False
        job_id, is_new = control.create(
            connection,
            NewJob(
                kind=JobKind.ANSWER,
                archive_id=archive.get_archive(connection, earlier.archive).archive_id,
                spec={
                    "options": earlier.spec["options"],
                    "input": earlier.spec.get("input"),
                    "refreshes": earlier_job_id,
                },
                total=earlier.progress.total,
                per_shard=settings.questions_per_shard,
                priority=BULK_PRIORITY,
            ),
        )
        refreshes.copy_lines(connection, job_id, earlier_job_id, earlier.progress.total)
        return job_id, is_new

    return in_transaction(engine, work)


def plan_refresh(
    engine: Engine, settings: Settings, resources: Resources, job_id: int, on_progress: OnProgress | None = None
) -> RefreshPlan:
    """What a refresh of an ended job would ask again, were it done now. Loads the retriever, and no other model.

    Raises UsageError when there is nothing to refresh, JobRefused when this machine's profile is not the archive's.
    """
    job = _require_answers(in_transaction(engine, lambda c: control.view(c, job_id)))
    archive_id = in_transaction(engine, lambda c: archive.get_archive(c, job.archive)).archive_id
    tools, champions = look_up(engine, settings, resources, archive_id, job.spec["options"])
    reranker, generator = (
        champions[role].name if role in champions else resources.models.base_version
        for role in (Role.RERANKER, Role.GENERATOR)
    )
    now = stamp_of(tools, reranker, generator)
    answered = _answered(job)
    because: Counter[str] = Counter()
    asked_again = done = 0
    with engine.connect() as connection:
        for questions, earlier in refreshes.iterate_answered(connection, job_id, _PAGE):
            for question, found in zip(questions, retrieve(questions, tools), strict=True):
                changes = changes_since(earlier[question.question_no], now, found)
                because.update(change.value for change in changes)
                asked_again += bool(changes)
            done += len(questions)
            if on_progress is not None:
                on_progress(done, answered)
    without = job.progress.total - answered
    return RefreshPlan(job_id, done - asked_again, asked_again, without, dict(sorted(because.items())))


def _require_answers(job: JobView) -> JobView:
    if job.kind is not JobKind.ANSWER:
        raise UsageError(f"job {job.job_id} is of the kind {job.kind.value}; only an answer job can be refreshed")
    if not job.is_final:
        raise UsageError(f"job {job.job_id} is {job.state.value}; only an ended job can be refreshed")
    if not _answered(job):
        raise UsageError(
            f"job {job.job_id} has no answer to refresh; `ragllava jobs retry {job.job_id}` tries its questions again"
        )
    return job


def _answered(job: JobView) -> int:
    """How many lines have a good outcome."""
    return sum(job.progress.by_status.get(status, 0) for status in (AnswerStatus.ANSWERED, AnswerStatus.NO_EVIDENCE))
