"""The queue of noisy cases: one reviewer after another, a lease on each case, undo, progress and agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from sqlalchemy import Connection

from ragllava.client.connections import Namespace, this_user
from ragllava.errors import UsageError
from ragllava.evaluation.agreement import Agreement, agreement
from ragllava.stages.feedback.reviewing import (
    Opinion,
    SavedReview,
    next_cases,
    open_case,
    save_review,
    undo_review,
)
from ragllava.stores.access.tenancy import acting_owner
from ragllava.stores.jobs.answered import QuestionKey
from ragllava.stores.learning import review_counts, reviewing
from ragllava.stores.learning.noisy import NoisyView
from ragllava.stores.learning.review_counts import QueueCounts, ReviewTotals
from ragllava.stores.learning.reviewing import QueueFilter, Reviewer, SaidOpinion

MOST_CASES = 50  # that one tab leases with one call
_COMPARED_REVIEWS = 2_000  # the newest ones, in whose cases second opinions are counted and agreement is computed


@dataclass(frozen=True, slots=True)
class ReviewProgress:
    """How far the reviews of an archive are, and how far reviewers agree about answers and about pictures.

    Second opinions and agreement are those of the newest 2,000 reviews. `disagreed` are cases on which two reviewers
    disagree, at most 20, the newest first.
    """

    counts: QueueCounts
    answers: Agreement
    pictures: Agreement
    disagreed: tuple[QuestionKey, ...]


class Reviewing(Namespace):
    """The queue of an archive's noisy cases. `tab` names what the reviewer works in, such as a tab of a browser.

    The reviewer is the caller of the HTTP API or of the console, else the user of the operating system.
    """

    def next(
        self,
        archive: str,
        tab: str,
        which: QueueFilter | None = None,
        *,
        limit: int = 1,
        after: QuestionKey | None = None,
    ) -> list[NoisyView]:
        """Lease the next cases, for RAGLLAVA_REVIEW_LEASE_S; nobody else gets one of them meanwhile.

        `after` is the last case that the caller has, by job and number; without it, from the beginning of the queue.
        Raises UsageError for an unknown archive and for more than 50 cases at once.
        """
        if not 1 <= limit <= MOST_CASES:
            raise UsageError(f"from 1 to {MOST_CASES} cases can be taken at once, not {limit}")
        which = which or QueueFilter()
        reviewer, lease_s = self._reviewer(tab), self._lease_s
        return self._of_archive(archive, next_cases, which, reviewer, lease_s=lease_s, limit=limit, after=after)

    def open(self, key: QuestionKey, tab: str) -> NoisyView:
        """One case; it is leased, also from another tab of the same reviewer, unless another reviewer holds it.

        `locked_by` then says who. Raises NotFound.
        """
        return self._do(open_case, key, self._reviewer(tab), self._lease_s)

    def opinions(self, key: QuestionKey) -> list[SaidOpinion]:
        """What each person has said of a case, where several have; else nothing, so that none sways the second."""
        said = self._do(reviewing.opinions_on, key)
        return said if len(said) > 1 else []

    def renew(self, keys: Sequence[QuestionKey], tab: str) -> list[QuestionKey]:
        """Prolong the leases of these cases; returns those that are still held."""
        return self._do(reviewing.renew, keys, self._reviewer(tab), self._lease_s)

    def release(self, tab: str, keys: Sequence[QuestionKey] | None = None) -> int:
        """End the leases of these cases, or all of this tab; returns how many."""
        return self._do(reviewing.release, self._reviewer(tab), keys)

    def save(self, opinion: Opinion, tab: str) -> SavedReview:
        """Store an opinion; a repetition changes nothing.

        Raises NotFound for a question that is not a noisy case; Conflict where it has changed since it was shown, where
        another reviewer holds it, and where the save id belongs to another case; InvalidInput where the label
        contradicts itself.
        """
        return self._do(save_review, opinion, self._reviewer(tab))

    def undo(self, archive: str, tab: str, save_id: str | None = None) -> NoisyView:
        """Undo the reviewer's last review in this archive, or that of this `save_id`, if nobody has changed it since.

        Returns its case as it was, leased. Raises Conflict.
        """
        return self._of_archive(archive, undo_review, self._reviewer(tab), self._lease_s, save_id)

    def progress(self, archive: str, tab: str = "") -> ReviewProgress:
        """How far the reviews of an archive are, and how far reviewers agree. Raises UsageError."""
        return self._of_archive(archive, _progress, self._reviewer(tab))

    def totals(self, archive: str) -> ReviewTotals:
        """How many cases have ended and reviews are the caller's, in the whole history. Raises UsageError."""
        return self._of_archive(archive, review_counts.count_all, self._reviewer(""))

    def count_open(self) -> dict[str, int]:
        """How many open cases each archive has, by its name; archives without any are left out."""
        return self._do(reviewing.count_open)

    @property
    def name(self) -> str:
        """Who reviews."""
        return acting_owner() or this_user()

    @property
    def _lease_s(self) -> float:
        return self._connections.settings.review_lease_s

    def _reviewer(self, tab: str) -> Reviewer:
        return Reviewer(self.name, tab)


def _progress(connection: Connection, archive_id: int, reviewer: Reviewer) -> ReviewProgress:
    recent = review_counts.recent_reviews(connection, archive_id, reviewer, _COMPARED_REVIEWS)
    answers, pictures = (agreement(*astuple(pairs)) for pairs in (recent.answers, recent.pictures))
    return ReviewProgress(recent.counts, answers, pictures, recent.disagreed)
