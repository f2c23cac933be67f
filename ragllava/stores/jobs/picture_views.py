"""One image with all that an archive knows about it: for people."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select, text

from ragllava.errors import NotFound, UsageError
from ragllava.stores.archives import vectors
from ragllava.stores.archives.archive import get_archive
from ragllava.stores.database import record, records
from ragllava.stores.jobs.outcomes import LATEST_ANSWER
from ragllava.stores.schema import blobs, images

_SHOWN_QUESTIONS = 20


@dataclass(frozen=True, slots=True)
class RestingQuestion:
    """A question whose latest answer rests on an image."""

    job_id: int
    custom_id: str
    question: str
    answer: str | None
    relevance: float | None


@dataclass(frozen=True, slots=True)
class PictureView:
    """An image of an archive. `width` and `height` in pixels; `indexes` are those that have its vector, with their
    states; `questions` are the newest ones that rest on it, at most 20."""

    image_id: int
    archive: str
    source: str
    uri: str
    sha256: str
    caption: str | None
    metadata: dict[str, Any] | None
    width: int
    height: int
    media_type: str
    size_bytes: int
    retired: bool
    created_at: datetime
    updated_at: datetime
    indexes: tuple[tuple[int, str], ...]
    questions: tuple[RestingQuestion, ...]


def view_picture(connection: Connection, archive_name: str, picture: str) -> PictureView:
    """The image with this id or source. Raises UsageError when there is none, or several of that source."""
    archive = get_archive(connection, archive_name)
    columns = (images, blobs.c.size_bytes, images.c.id.label("image_id"))
    named = images.c.source == picture
    if picture.isascii() and picture.isdigit() and int(picture) < 2**63:
        named |= images.c.id == int(picture)
    query = select(*columns).join(blobs, blobs.c.sha256 == images.c.sha256)
    rows = connection.execute(query.where(images.c.archive_id == archive.archive_id, named).order_by(images.c.id)).all()
    living = [row for row in rows if not row.retired] or rows
    if not living:
        raise NotFound(
            f"the archive {archive_name} has no picture {picture!r}; give the id or the source that "
            f"`ragllava archive search {archive_name}` shows"
        )
    if len(living) > 1:
        ids = ", ".join(str(row.image_id) for row in living[:10])
        raise UsageError(f"{len(living)} pictures of {archive_name} are called {picture!r}; give one of the ids {ids}")
    row = living[0]
    resting = connection.execute(_QUESTIONS, {"image_id": row.image_id, "limit": _SHOWN_QUESTIONS})
    return record(
        PictureView,
        row,
        archive=archive_name,
        indexes=tuple(
            (index.index_id, index.state)
            for index in vectors.list_indexes(connection, archive.archive_id)
            if not vectors.missing_embeddings(connection, index.index_id, [row.image_id])
        ),
        questions=tuple(records(RestingQuestion, resting)),
    )


_QUESTIONS = text(f"""
    SELECT q.job_id, q.custom_id, q.text AS question, a.text AS answer, c.relevance
    FROM candidates c
    JOIN questions q ON q.job_id = c.job_id AND q.question_no = c.question_no
    {LATEST_ANSWER}
    WHERE c.image_id = :image_id AND c.evidence_no IS NOT NULL AND c.run_no = a.run_no
    ORDER BY q.job_id DESC, q.question_no DESC LIMIT :limit
""")  # noqa: S608 - no foreign text
