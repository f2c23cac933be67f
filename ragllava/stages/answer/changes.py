"""What has changed since an answer was made: whether a refresh asks its question again or takes the answer over.

Models and prompt are compared by name, the pictures by retrieving again: the same reranker gives the same relevance to
the same images with the same captions. So a new index alone is no change, unless it finds other images. An image whose
picture could not be read was not reranked, so its questions are asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from ragllava.jobs.runner import ShardContext
from ragllava.records import Candidate, Change, ModelStamp, Question
from ragllava.stages.resources import Resources
from ragllava.stores.jobs import refreshes
from ragllava.stores.jobs.answers import candidates_digest
from ragllava.stores.jobs.refreshes import EarlierAnswer

Retrieve = Callable[[Sequence[Question]], list[list[Candidate]]]  # the present candidates of each question


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
    if earlier.image_ids != {candidate.image.image_id for candidate in candidates}:
        changes.append(Change.PICTURES)
    elif earlier.digest != candidates_digest(candidates):
        changes.append(Change.CAPTIONS)
    return tuple(changes)


def take_over_unchanged(
    context: ShardContext[Resources], questions: Sequence[Question], retrieve: Retrieve, now: ModelStamp
) -> dict[int, tuple[Change, ...]]:
    """Commit the earlier answers of those questions of a refresh's shard for which nothing has changed.

    Returns the other questions by number, with what has changed for each.
    """
    lease = context.lease
    numbers = [question.question_no for question in questions]
    earlier = context.read(refreshes.earlier_answers, lease.job_id, numbers)
    changes = {
        question.question_no: changes_since(earlier.get(question.question_no), now, candidates)
        for question, candidates in zip(questions, retrieve(questions), strict=True)
    }
    unchanged = [number for number, reasons in changes.items() if not reasons]
    taken: set[int] = set()
    if unchanged:
        taken = context.commit(refreshes.take_over, lease.job_id, lease.run_no, lease.shard_id, lease.epoch, unchanged)
    return {number: reasons or (Change.UNKNOWN,) for number, reasons in changes.items() if number not in taken}
