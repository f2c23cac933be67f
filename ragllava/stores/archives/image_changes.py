"""Changes to images whose files changed after the ingest: retired, named by another file, another caption.

Every function works in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, select, update

from ragllava.stores.archives import archive, indexes, texts
from ragllava.stores.archives.archive import ArchiveImage, find_images
from ragllava.stores.database import equals_any, given
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
    rows = ((name.image_id, name.source, name.uri) for name in names)
    new = given(rows, images.c.id, images.c.source, images.c.uri).c
    renamed = update(images).where(images.c.archive_id == archive_id, images.c.id == new.id)
    connection.execute(renamed.values(source=new.source, uri=new.uri, updated_at=func.now()))
    texts.write_words(connection, archive_id, [name.image_id for name in names])


def retire_at(connection: Connection, archive_id: int, uris: Sequence[str]) -> None:
    """Retire the images that these files name, and remove their embeddings."""
    if uris:
        indexes.lock_archive(connection, archive_id, shared=True)  # the switch to a new index counts the images
        archive.retire_images(connection, archive_id, uris)


def change_captions(connection: Connection, archive_id: int, changes: Sequence[CaptionChange]) -> list[str]:
    """Change captions of images, without embedding anything again; returns the uris of those that changed.

    As in an ingest, the file that names an image decides; another file gives a caption only where there is none.
    """
    rows = ((change.image_id, change.uri, change.caption) for change in changes)
    new = given(rows, images.c.id, images.c.uri, images.c.caption).c
    statement = update(images).where(
        images.c.archive_id == archive_id,
        images.c.id == new.id,
        (images.c.uri == new.uri) | images.c.caption.is_(None),
        images.c.caption.is_distinct_from(new.caption),
    )
    values = {"caption": new.caption, "updated_at": func.now()}
    changed = connection.execute(statement.values(values).returning(images.c.id, new.uri)).all()
    texts.write_words(connection, archive_id, [image_id for image_id, _ in changed])
    return [uri for _, uri in changed]
