"""Which images of an archive have no current embedding, and why."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from ragllava.records import GapReason, ReindexStatus
from ragllava.stores.archives import reindex_items, vectors
from ragllava.stores.archives.reindex_items import GapRow


@dataclass(frozen=True, slots=True)
class Gap:
    """An image that no search finds. `explanation` is a sentence for the user."""

    image_id: int
    source: str
    reason: GapReason
    explanation: str


def find_gaps(connection: Connection, archive_id: int) -> list[Gap]:
    """Every image of the archive without a vector in its active index, by source; retired images need none."""
    active = vectors.active_index(connection, archive_id)
    gaps = []
    for row in reindex_items.gaps(connection, archive_id, active.index_id if active else None):
        reason = _why(row) if active else GapReason.NO_INDEX
        explanation = _EXPLANATIONS[reason].format(job=row.job_id, reason=row.reason)
        gaps.append(Gap(row.image.image_id, row.image.source, reason, explanation))
    return gaps


def _why(row: GapRow) -> GapReason:
    if row.job_id is None:
        return GapReason.NEVER_TRIED
    if row.status is None:
        return GapReason.WAITING if row.job_is_open else GapReason.NEVER_TRIED
    return _REASONS.get(row.status, GapReason.LOST)


_REASONS = {
    ReindexStatus.UNREADABLE: GapReason.UNREADABLE,
    ReindexStatus.FAILED: GapReason.FAILED,
    ReindexStatus.DEAD: GapReason.FAILED,
    ReindexStatus.CANCELLED: GapReason.CANCELLED,
}
_EXPLANATIONS = {
    GapReason.NO_INDEX: "the archive has no index yet; its first ingest creates one",
    GapReason.WAITING: "job {job} will embed it",
    GapReason.UNREADABLE: "job {job} could not read its picture: {reason}",
    GapReason.FAILED: "job {job} could not embed it: {reason}",
    GapReason.CANCELLED: "job {job} was cancelled before it was embedded",
    GapReason.NEVER_TRIED: "no job has tried to embed it; run `ragllava reindex --only missing`",
    GapReason.LOST: "job {job} embedded it, but its vector is missing; run `ragllava reindex --only missing`",
}
