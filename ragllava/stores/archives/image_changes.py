"""Changes to images whose files changed after the ingest: retired, named by another file, another caption.

Every function works in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select, text

from ragllava.stores.archives import archive, indexes
from ragllava.stores.archives.archive import ArchiveImage, find_images
from ragllava.stores.database import as_arrays, equals_any
from ragllava.stores.schema import images


@dataclass(frozen=True, slots=True)
class CaptionChange:
    """The caption that the file `uri` gives to an image; None removes it."""

    image_id: int
    uri: str
    caption: str | None


@dataclass(frozen=True, slots=True)
class NewName:
    """Another file with the same bytes, which names the image from now on."""

    image_id: int
    source: str
    uri: str


def images_at(connection: Connection, archive_id: int, uris: Iterable[str]) -> dict[str, ArchiveImage]:
    """The images that these files name, by uri; retired ones left out."""
    return {image.uri: image for image in find_images(connection, archive_id, equals_any(images.c.uri, uris))}


def images_below(connection: Connection, archive_id: int, uri_prefix: str) -> dict[str, ArchiveImage]:
    """The images that are named by files whose uri begins with `uri_prefix`, by uri; retired ones left out."""
    condition = images.c.uri.startswith(uri_prefix, autoescape=True)
    return {image.uri: image for image in find_images(connection, archive_id, condition)}


def living(connection: Connection, image_ids: Iterable[int]) -> set[int]:
    """Those of the images that are not retired."""
    return set(connection.scalars(select(images.c.id).where(equals_any(images.c.id, image_ids), ~images.c.retired)))


def rename_images(connection: Connection, archive_id: int, names: Sequence[NewName]) -> None:
    """Let other files name the images from now on."""
    if names:
        connection.execute(
            text("""
                UPDATE images SET source = new.source, uri = new.uri, updated_at = now()
                FROM unnest(CAST(:image_id AS bigint[]), CAST(:source AS text[]), CAST(:uri AS text[]))
                     AS new (id, source, uri)
                WHERE images.id = new.id AND archive_id = :archive_id
            """),
            {"archive_id": archive_id, **as_arrays(names, "image_id", "source", "uri")},
        )


def retire_at(connection: Connection, archive_id: int, uris: Sequence[str]) -> None:
    """Retire the images that these files name, and remove their embeddings."""
    if uris:
        indexes.lock_archive(connection, archive_id, shared=True)  # the switch to a new index counts the images
        archive.retire_images(connection, archive_id, uris)


def change_captions(connection: Connection, archive_id: int, changes: Sequence[CaptionChange]) -> list[str]:
    """Change captions of images, without embedding anything again; returns the uris of those that changed.

    As in an ingest, the file that names an image decides; another file gives a caption only where there is none.
    """
    if not changes:
        return []
    rows = connection.scalars(
        text("""
            UPDATE images SET caption = new.caption, updated_at = now()
            FROM unnest(CAST(:image_id AS bigint[]), CAST(:uri AS text[]), CAST(:caption AS text[]))
                 AS new (id, uri, caption)
            WHERE images.id = new.id AND archive_id = :archive_id
              AND (images.uri = new.uri OR images.caption IS NULL) AND images.caption IS DISTINCT FROM new.caption
            RETURNING new.uri
        """),
        {"archive_id": archive_id, **as_arrays(changes, "image_id", "uri", "caption")},
    )
    return list(rows)
