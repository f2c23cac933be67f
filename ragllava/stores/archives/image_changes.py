"""Changes to images whose files changed after the ingest: retired, known by another file, another caption.

Every function works in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select, text

from ragllava.stores.archives import indexes, vectors
from ragllava.stores.schema import images


@dataclass(frozen=True, slots=True)
class FiledImage:
    """A living image and the file that it is known by."""

    image_id: int
    sha256: str
    source: str
    uri: str
    caption: str | None


@dataclass(frozen=True, slots=True)
class CaptionChange:
    """The caption that the file `uri` gives to an image; None takes it away."""

    image_id: int
    uri: str
    caption: str | None


@dataclass(frozen=True, slots=True)
class NewName:
    """Another file with the same bytes, that an image is known by from now on."""

    image_id: int
    source: str
    uri: str


def images_at(connection: Connection, archive_id: int, uris: Sequence[str]) -> dict[str, FiledImage]:
    """The living images that are known by these files, by uri."""
    rows = connection.execute(
        select(images).where(images.c.archive_id == archive_id, images.c.uri == text("ANY(:uris)"), ~images.c.retired),
        {"uris": list(uris)},
    )
    return {row.uri: FiledImage(row.id, row.sha256, row.source, row.uri, row.caption) for row in rows}


def images_below(connection: Connection, archive_id: int, uri_prefix: str) -> dict[str, FiledImage]:
    """The living images that are known by files whose uri begins so, by uri."""
    rows = connection.execute(
        select(images).where(
            images.c.archive_id == archive_id, images.c.uri.startswith(uri_prefix, autoescape=True), ~images.c.retired
        )
    )
    return {row.uri: FiledImage(row.id, row.sha256, row.source, row.uri, row.caption) for row in rows}


def living(connection: Connection, image_ids: Sequence[int]) -> set[int]:
    """Those of the images that are not retired."""
    query = select(images.c.id).where(images.c.id == text("ANY(:ids)"), ~images.c.retired)
    return set(connection.scalars(query, {"ids": list(image_ids)}))


def rename_images(connection: Connection, archive_id: int, names: Sequence[NewName]) -> None:
    """Let images be known by other files than before."""
    if names:
        connection.execute(
            text("""
                UPDATE images SET source = new.source, uri = new.uri, updated_at = now()
                FROM unnest(CAST(:ids AS bigint[]), CAST(:sources AS text[]), CAST(:uris AS text[]))
                     AS new (id, source, uri)
                WHERE images.id = new.id AND archive_id = :archive_id
            """),
            {
                "archive_id": archive_id,
                "ids": [name.image_id for name in names],
                "sources": [name.source for name in names],
                "uris": [name.uri for name in names],
            },
        )


def retire_at(connection: Connection, archive_id: int, uris: Sequence[str]) -> int:
    """Retire the images that are known by these files, and remove their embeddings; returns how many there were."""
    if not uris:
        return 0
    indexes.lock_archive(connection, archive_id, shared=True)  # an index that is filled counts the images
    retired = connection.scalars(
        text("""
            UPDATE images SET retired = true, updated_at = now()
            WHERE archive_id = :archive_id AND NOT retired AND uri = ANY(:uris) RETURNING id
        """),
        {"archive_id": archive_id, "uris": list(uris)},
    ).all()
    if retired:
        vectors.remove_embeddings(connection, archive_id, retired)
    return len(retired)


def change_captions(connection: Connection, archive_id: int, changes: Sequence[CaptionChange]) -> list[str]:
    """Give images other captions, without embedding anything anew; returns the uris of those that changed.

    As at an ingest, the file that an image is known by decides; another one gives a caption only where there is none.
    """
    if not changes:
        return []
    rows = connection.scalars(
        text("""
            UPDATE images SET caption = new.caption, updated_at = now()
            FROM unnest(CAST(:ids AS bigint[]), CAST(:uris AS text[]), CAST(:captions AS text[]))
                 AS new (id, uri, caption)
            WHERE images.id = new.id AND archive_id = :archive_id
              AND (images.uri = new.uri OR images.caption IS NULL) AND images.caption IS DISTINCT FROM new.caption
            RETURNING new.uri
        """),
        {
            "archive_id": archive_id,
            "ids": [change.image_id for change in changes],
            "uris": [change.uri for change in changes],
            "captions": [change.caption for change in changes],
        },
    )
    return list(rows)
