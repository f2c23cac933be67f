"""What has changed since an answer was made: whether a refresh asks its question again or takes the answer over.

Models and prompt are compared by name, the pictures by retrieving again: the same reranker gives the same relevance to
the same images with the same captions. So a new index alone is no change, unless it finds other images. An image whose
picture could not be read was not reranked, so its questions are asked again. `plan_refresh` previews a refresh.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import Engine

from ragllava.jobs import views
from ragllava.jobs.runner import ShardContext
from ragllava.records import Answer, Candidate, Change, ModelStamp, Question, Role
from ragllava.settings import Settings
from ragllava.stages.answer.pipeline import isolate_failures, retrieve
from ragllava.stages.answer.submit import answered_lines, require_answered
from ragllava.stages.answer.tools import CUT, AnswerTools, prepare, stamp_now, stamp_of
from ragllava.stages.resources import Resources
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction
from ragllava.stores.jobs import refreshes
from ragllava.stores.jobs.answers import candidates_digest
from ragllava.stores.jobs.outcomes import ranges
from ragllava.stores.jobs.refreshes import EarlierAnswer

_PAGE = 256  # questions of a preview that are embedded and searched together

OnProgress = Callable[[int, int], None]  # questions compared, of how many


def changes_since(
    earlier: EarlierAnswer | None, now: ModelStamp, candidates: Sequence[Candidate]
) -> tuple[Change, ...]:
    """Why the question of an earlier answer has to be asked again; empty when it need not be.

    `now` is the stamp that a new answer would get, `candidates` are those that are retrieved now.
    """
    if earlier is None or earlier.models is None or earlier.digest is None:
        return (Change.UNKNOWN,)
    before, after = earlier.models, asdict(now)
    compared = [Change.RERANKER, Change.PROMPT, Change.THRESHOLD]
    if earlier.has_evidence:  # else the generator was not used
        compared.append(Change.GENERATOR)
    changes = [change for change in compared if before.get(change.value) != after[change.value]]
    if CUT in str(before.get(Change.DEPTH.value)):
        changes.append(Change.DEPTH)
    if earlier.image_ids != {candidate.image.image_id for candidate in candidates}:
        changes.append(Change.PICTURES)
    elif earlier.digest != candidates_digest(candidates):
        changes.append(Change.CAPTIONS)
    return tuple(changes)


def _changes(
    earlier: EarlierAnswer | None, now: ModelStamp, candidates: Sequence[Candidate] | Answer
) -> tuple[Change, ...]:
    """A question that failed, because its own picture cannot be read any more, is asked again: then it fails alone."""
    return (Change.UNKNOWN,) if isinstance(candidates, Answer) else changes_since(earlier, now, candidates)


def take_over_unchanged(
    context: ShardContext[Resources],
    questions: Sequence[Question],
    tools: AnswerTools,
    pause: Callable[[], None],
) -> dict[int, tuple[Change, ...]]:
    """Commit the earlier answers of those questions of a refresh's shard for which nothing has changed.

    Returns the other questions by number, with what has changed for each. `pause` is called between two searches; what
    it raises is passed on.
    """
    lease, now = context.lease, stamp_now(tools)
    numbers = [question.question_no for question in questions]
    earlier = context.read(refreshes.earlier_answers, lease.job_id, numbers)
    retrieved = isolate_failures(questions, lambda batch: retrieve(batch, tools, pause=pause))
    changes = {
        question.question_no: _changes(earlier.get(question.question_no), now, candidates)
        for question, candidates in zip(questions, retrieved, strict=True)
    }
    unchanged = [number for number, reasons in changes.items() if not reasons]
    taken: set[int] = set()
    if unchanged:
        taken = context.commit(refreshes.take_over, lease.job_id, lease.run_no, lease.shard_id, lease.epoch, unchanged)
    return {number: reasons or (Change.UNKNOWN,) for number, reasons in changes.items() if number not in taken}


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
    job = require_answered(in_transaction(engine, views.view, job_id))
    archive_id = in_transaction(engine, archive.get_archive, job.archive).archive_id
    tools = prepare(engine, settings, resources, archive_id, job.spec["options"], only_retrieve=True)
    reranker, generator = (
        tools.champions[role].name if role in tools.champions else resources.models.base_version
        for role in (Role.RERANKER, Role.GENERATOR)
    )
    now = stamp_of(tools, reranker, generator)
    answered = answered_lines(job)
    because: Counter[str] = Counter()
    asked_again, done = 0, 0
    for lo, hi in ranges(job.progress.total, _PAGE):
        page = in_transaction(engine, refreshes.answered_part, job_id, lo, hi)
        if not page:
            continue
        questions = [question for question, _ in page]
        retrieved = isolate_failures(questions, lambda batch: retrieve(batch, tools))
        for (_, earlier), candidates in zip(page, retrieved, strict=True):
            changes = _changes(earlier, now, candidates)
            because.update(change.value for change in changes)
            asked_again += bool(changes)
        done += len(questions)
        if on_progress is not None:
            on_progress(done, answered)
    without = job.progress.total - answered
    return RefreshPlan(job_id, done - asked_again, asked_again, without, dict(sorted(because.items())))
