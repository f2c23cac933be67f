"""Previews what a refresh would ask again. Retrieves in the calling process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Engine

from ragllava.jobs import control
from ragllava.records import Role
from ragllava.settings import Settings
from ragllava.stages.answer.changes import changes_since
from ragllava.stages.answer.pipeline import retrieve
from ragllava.stages.answer.submit import answered_lines, require_answered
from ragllava.stages.answer.tools import prepare, stamp_of
from ragllava.stages.resources import Resources
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction
from ragllava.stores.jobs import refreshes

_PAGE = 256  # questions that are embedded and searched together

OnProgress = Callable[[int, int], None]  # questions compared, of how many


@dataclass(frozen=True, slots=True)
class RefreshPlan:
    """What a refresh now would do. Lines without an answer keep their outcome. `because` counts reasons; a question
    may have several."""

    job: int
    unchanged: int
    asked_again: int
    without_answer: int
    because: dict[str, int]


def plan_refresh(
    engine: Engine, settings: Settings, resources: Resources, job_id: int, on_progress: OnProgress | None = None
) -> RefreshPlan:
    """Preview a refresh of an ended job. Loads the retriever, and no other model.

    Raises UsageError when there is nothing to refresh, JobRefused when this machine's profile is not the archive's.
    """
    job = require_answered(in_transaction(engine, control.view, job_id))
    archive_id = in_transaction(engine, archive.get_archive, job.archive).archive_id
    tools = prepare(engine, settings, resources, archive_id, job.spec["options"], only_retrieve=True)
    reranker, generator = (
        tools.champions[role].name if role in tools.champions else resources.models.base_version
        for role in (Role.RERANKER, Role.GENERATOR)
    )
    now = stamp_of(tools, reranker, generator)
    answered = answered_lines(job)
    because: Counter[str] = Counter()
    after, asked_again, done = -1, 0, 0
    while page := in_transaction(engine, refreshes.answered_page, job_id, after, _PAGE):
        questions = [question for question, _ in page]
        for (_, earlier), candidates in zip(page, retrieve(questions, tools), strict=True):
            changes = changes_since(earlier, now, candidates)
            because.update(change.value for change in changes)
            asked_again += bool(changes)
        after, done = questions[-1].question_no, done + len(questions)
        if on_progress is not None:
            on_progress(done, answered)
    without = job.progress.total - answered
    return RefreshPlan(job_id, done - asked_again, asked_again, without, dict(sorted(because.items())))
