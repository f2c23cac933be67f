"""Reviews of noisy cases, one at a time: save with a check of the version, dismiss, undo."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from ragllava.errors import Conflict, InvalidInput, NotFound
from ragllava.feedback import NoisyState, Verdict
from ragllava.stages.feedback.files import FeedbackFile, FeedbackLine
from ragllava.stages.feedback.labels import store_feedback
from ragllava.stores.jobs.answered import AnsweredQuestion, QuestionKey, load_questions
from ragllava.stores.learning import noisy, reviewing
from ragllava.stores.learning.noisy import NoisyView
from ragllava.stores.learning.reviewing import LockedCase, Review, Reviewer


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a reviewer says about a case that he saw in its `version`.

    `verdict` None dismisses the case. `answer` is the right one. `relevant` and `irrelevant` are ids of pictures; a
    `right` answer makes the kept pictures relevant that it does not call irrelevant. `save_id` is the caller's name for
    this save: a repeated request changes nothing.
    """

    job_id: int
    question_no: int
    version: int
    save_id: str
    verdict: Verdict | None
    answer: str | None = None
    relevant: tuple[int, ...] = ()
    irrelevant: tuple[int, ...] = ()

    @property
    def key(self) -> QuestionKey:
        """The case."""
        return self.job_id, self.question_no


@dataclass(frozen=True, slots=True)
class SavedReview:
    """What became of a case. `state` stays `open` where the answer was called wrong and nothing is said to be right."""

    state: NoisyState
    version: int


def next_cases(
    connection: Connection,
    archive_id: int,
    which: reviewing.QueueFilter,
    reviewer: Reviewer,
    *,
    lease_s: float,
    limit: int,
    after: QuestionKey | None = None,
) -> list[NoisyView]:
    """Lease the next cases of an archive's queue, and look them up."""
    start = after or reviewing.FIRST
    keys = reviewing.claim(connection, archive_id, which, reviewer, lease_s=lease_s, limit=limit, after=start)
    return noisy.load_cases(connection, keys)


def open_case(connection: Connection, key: QuestionKey, reviewer: Reviewer, lease_s: float) -> NoisyView:
    """Lease one case, if nobody else has it open, and look it up. Raises NotFound where the question is not a case."""
    reviewing.take(connection, key, reviewer, lease_s)
    views = noisy.load_cases(connection, [key])
    if not views:
        raise _no_case(key)
    return views[0]


def save_review(connection: Connection, opinion: Opinion, reviewer: Reviewer) -> SavedReview:
    """Store an opinion and end the lease of its case; a repetition of the same `save_id` changes nothing.

    Raises NotFound for a question that is not a noisy case; Conflict where it has changed since it was shown, where
    another reviewer holds it, and where the `save_id` belongs to another case; InvalidInput where the label contradicts
    itself.
    """
    case = reviewing.lock_case(connection, opinion.key)
    if case is None:
        raise _no_case(opinion.key)
    earlier = reviewing.find_review(connection, case.archive_id, reviewer.name, opinion.save_id)
    if earlier is not None:
        if earlier.key != opinion.key:
            raise Conflict(f"nothing was saved: the save id {opinion.save_id!r} belongs to another case; use a new one")
        return SavedReview(case.state, earlier.version)
    _require_unchanged(connection, case, opinion, reviewer)
    label_id = _apply(connection, opinion)
    version, state = reviewing.next_version(connection, opinion.key)
    review = Review(
        job_id=opinion.job_id,
        question_no=opinion.question_no,
        reviewer=reviewer.name,
        save_id=opinion.save_id,
        verdict=opinion.verdict,
        relevant=opinion.relevant,
        irrelevant=opinion.irrelevant,
        label_id=label_id,
        undo=case.before(),
        version=version,
    )
    reviewing.insert_review(connection, case.archive_id, review)
    reviewing.release(connection, reviewer, [opinion.key])
    return SavedReview(state, version)


def undo_review(
    connection: Connection, archive_id: int, reviewer: Reviewer, lease_s: float, save_id: str | None = None
) -> NoisyView:
    """Undo the last review of this person in an archive, or that of this `save_id`: label and case are as before.

    Returns the case, leased. Raises Conflict where there is nothing to undo, and where the case has changed since.
    """
    if save_id is None:
        review = reviewing.last_review(connection, archive_id, reviewer.name)
    else:
        review = reviewing.find_review(connection, archive_id, reviewer.name, save_id)
    if review is None:
        raise Conflict("there is nothing to undo: you have no such review in this archive")
    case = reviewing.lock_case(connection, review.key)
    if case is None or review.undo is None:
        raise Conflict("your last review cannot be undone any more: something that it names was erased")
    if case.version != review.version:
        who = reviewing.last_reviewer(connection, review.key)
        by = f" by {who}" if who and who != reviewer.name else ""
        raise Conflict(f"your last review cannot be undone: its case was changed{by} since; review the case again")
    reviewing.restore(connection, review, case.version)
    return open_case(connection, review.key, reviewer, lease_s)


def _no_case(key: QuestionKey) -> NotFound:
    return NotFound(f"question {key[1]} of job {key[0]} is not a noisy case")


def _require_unchanged(connection: Connection, case: LockedCase, opinion: Opinion, reviewer: Reviewer) -> None:
    if case.version != opinion.version:
        who = reviewing.last_reviewer(connection, opinion.key)
        by = "you, in another tab or window," if who == reviewer.name else who or "somebody"
        raise Conflict(
            f"nothing was saved: {by} changed this case after you opened it; look at it again and say what is right"
        )
    if case.holder is not None and (case.holder, case.tab) != (reviewer.name, reviewer.tab):
        who = "another tab or window of yours" if case.holder == reviewer.name else case.holder
        raise Conflict(
            f"nothing was saved: {who} has this case open until {case.held_until:%H:%M:%S} UTC; take the next one"
        )


def _apply(connection: Connection, opinion: Opinion) -> int | None:
    """Change the case as the opinion says; returns the id of the label that it made, if it made one."""
    if opinion.verdict is None:
        noisy.set_state(connection, [opinion.key], NoisyState.DISMISSED)
        return None
    question = load_questions(connection, [opinion.key])[opinion.key]
    newest = reviewing.newest_label_id(connection, opinion.key)
    line = FeedbackLine(
        line=0,
        job_id=opinion.job_id,
        custom_id=question.custom_id,
        verdict=opinion.verdict,
        answer=opinion.answer,
        relevant=_relevant(question, opinion),
        irrelevant=opinion.irrelevant,
    )
    try:
        store_feedback(connection, FeedbackFile("the review", [line]))
    except InvalidInput as error:
        raise InvalidInput("the review", error.errors) from None
    made = reviewing.newest_label_id(connection, opinion.key)
    return None if made == newest else made


def _relevant(question: AnsweredQuestion, opinion: Opinion) -> tuple[int, ...] | None:
    """The pictures called relevant, and where the answer is right, also the kept ones that nobody called irrelevant.

    None where nothing is said: the rules of feedback then apply.
    """
    if not opinion.relevant:
        return None
    if opinion.verdict is Verdict.WRONG:
        return opinion.relevant
    kept = [candidate.image.image_id for candidate in question.evidence]
    both = dict.fromkeys([*opinion.relevant, *kept])
    return tuple(image_id for image_id in both if image_id not in opinion.irrelevant)
