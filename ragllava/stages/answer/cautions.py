"""What people must know before they trust answers from an archive: its pictures are strange to the models, or not all
of them are there yet."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select

from ragllava.models.familiarity import look_at
from ragllava.records import JobKind
from ragllava.stores.archives import vectors
from ragllava.stores.archives.archive import Archive
from ragllava.stores.schema import jobs

SAMPLED = 200  # pictures of an archive


def strange_pictures(connection: Connection, archive: Archive) -> str | None:
    """One sentence if the mini models made the archive's index, and most of its pictures are no drawn postcards.

    Reads up to SAMPLED vectors. None too for an archive without an index.
    """
    index = vectors.active_index(connection, archive.archive_id)
    if index is None:
        return None
    familiarity = look_at(index.retriever, lambda: vectors.sample(connection, index, SAMPLED))
    if familiarity is None or not familiarity.is_strange:
        return None
    return (
        f"the mini models know only drawn postcards, but {familiarity.unlike} of {familiarity.looked_at} sampled "
        f"pictures of {archive.name} are something else: scores and answers mean little; use the profile base, paper "
        "or your own"
    )


def open_ingests(connection: Connection, archive_id: int) -> list[int]:
    """The jobs that still add pictures to an archive, oldest first."""
    is_open = (jobs.c.finished_at.is_(None), jobs.c.archive_id == archive_id, jobs.c.kind == JobKind.INGEST)
    return list(connection.scalars(select(jobs.c.id).where(*is_open).order_by(jobs.c.id)))


def unfinished_ingest(job_ids: Sequence[int]) -> str:
    """The note of an answer that was given meanwhile."""
    listed = f"job {job_ids[0]}" if len(job_ids) == 1 else f"jobs {', '.join(map(str, job_ids))}"
    verb = "was" if len(job_ids) == 1 else "were"
    return f"{listed} {verb} still adding pictures to the archive"
