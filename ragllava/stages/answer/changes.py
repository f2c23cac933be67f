"""What has changed since an answer was made: whether a refresh asks its question again or takes the answer over.

The makers are compared by name, the pictures by retrieving again: the same images with the same captions, judged by the
same reranker, come out the same. So a new index alone changes nothing, unless it finds other images. An image whose
picture could not be read was not judged, so its questions are asked again.
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

Retrieve = Callable[[Sequence[Question]], list[list[Candidate]]]  # the candidates of each question, as they are now


def changes_since(earlier: EarlierAnswer | None, now: ModelStamp, found: Sequence[Candidate]) -> tuple[Change, ...]:
    """Why the question of an earlier answer has to be asked again; empty: it does not.

    `now` are the makers of an answer given now, `found` the candidates that are retrieved now.
    """
    if earlier is None or earlier.models is None or earlier.digest is None:
        return (Change.UNKNOWN,)
    before, after = earlier.models, asdict(now)
    makers = [Change.RERANKER, Change.PROMPT, Change.THRESHOLD]
    if earlier.has_evidence:  # else nobody generated anything
        makers.append(Change.GENERATOR)
    changes = [change for change in makers if before.get(change.value) != after[change.value]]
    if earlier.image_ids != {candidate.image.image_id for candidate in found}:
        changes.append(Change.PICTURES)
    elif earlier.digest != candidates_digest(found):
        changes.append(Change.CAPTIONS)
    return tuple(changes)


def take_over_unchanged(
    context: ShardContext[Resources], questions: Sequence[Question], retrieve: Retrieve, now: ModelStamp
) -> dict[int, tuple[Change, ...]]:
    """Commit the earlier answers of those questions of a refresh's shard that would get the same again.

    Returns the others by number, with what has changed for each.
    """
    lease = context.lease
    numbers = [question.question_no for question in questions]
    earlier = context.read(refreshes.earlier_answers, lease.job_id, numbers)
    changes = {
        question.question_no: changes_since(earlier.get(question.question_no), now, found)
        for question, found in zip(questions, retrieve(questions), strict=True)
    }
    same = [number for number, reasons in changes.items() if not reasons]
    taken: set[int] = set()
    if same:
        taken = context.commit(refreshes.take_over, lease.job_id, lease.run_no, lease.shard_id, lease.epoch, same)
    return {number: reasons or (Change.UNKNOWN,) for number, reasons in changes.items() if number not in taken}
