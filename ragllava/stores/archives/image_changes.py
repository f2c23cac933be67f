"""Changes to images whose files changed after the ingest: retired, named by another file, other captions or metadata.

Every function works in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, case, func, literal, select, update
from sqlalchemy.dialects.postgresql import JSONB

from ragllava.metadata import Metadata
from ragllava.stores.archives import archive, indexes, vectors, word_index
from ragllava.stores.archives.archive import ArchiveImage, find_images
from ragllava.stores.database import equals_any, given
from ragllava.stores.schema import images


@dataclass(frozen=True, slots=True)
class CaptionChange:
    """The caption and the metadata that are given beside the file `uri` to an image; None: none are given."""

    image_id: int
    uri: str
    caption: str | None
    metadata: Metadata | None = None


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
    word_index.write_words(connection, archive_id, [name.image_id for name in names])


def retire_at(connection: Connection, archive_id: int, uris: Sequence[str]) -> None:
    """Retire the images that these files name, and remove their embeddings."""
    if uris:
        indexes.lock_archive(connection, archive_id, shared=True)  # the switch to a new index counts the images
        archive.retire_images(connection, archive_id, uris)


def retire(connection: Connection, archive_id: int, image_ids: Sequence[int]) -> None:
    """Retire images by id, and remove their embeddings and words."""
    indexes.lock_archive(connection, archive_id, shared=True)
    living_ones = (images.c.archive_id == archive_id, equals_any(images.c.id, image_ids), ~images.c.retired)
    connection.execute(update(images).where(*living_ones).values(retired=True, updated_at=func.now()))
    vectors.remove_embeddings(connection, archive_id, list(image_ids))
    word_index.write_words(connection, archive_id, image_ids)


def change_captions(
    connection: Connection, archive_id: int, changes: Sequence[CaptionChange], *, may_remove: bool = True
) -> list[str]:
    """Change captions and metadata of images, without embedding anything again; returns the uris of those that changed.

    As in an ingest, the file that names an image decides; another file gives a caption or metadata only where there are
    none but those inside the picture. What is not given is removed, down to what is inside the picture, or, without
    `may_remove`, left as it is.
    """
    rows = ((change.image_id, change.uri, change.caption, change.metadata) for change in changes)
    new = given(rows, images.c.id, images.c.uri, images.c.caption, images.c.metadata).c
    inside = func.coalesce(images.c.embedded, _EMPTY)
    inside_caption, inside_metadata = inside["caption"].astext, inside.op("-")("caption")
    names = images.c.uri == new.uri
    caption = case(
        (~names & images.c.caption.is_distinct_from(inside_caption), images.c.caption),
        else_=func.coalesce(new.caption, inside_caption if may_remove else images.c.caption),
    )
    metadata = case(
        (~names & images.c.metadata.is_distinct_from(func.nullif(inside_metadata, _EMPTY)), images.c.metadata),
        (new.metadata.is_(None) & literal(not may_remove), images.c.metadata),
        else_=func.nullif(inside_metadata.op("||")(func.coalesce(new.metadata, _EMPTY)), _EMPTY),
    )
    statement = update(images).where(
        images.c.archive_id == archive_id,
        images.c.id == new.id,
        images.c.caption.is_distinct_from(caption) | images.c.metadata.is_distinct_from(metadata),
    )
    values = {"caption": caption, "metadata": metadata, "updated_at": func.now()}
    changed = connection.execute(statement.values(values).returning(images.c.id, new.uri)).all()
    word_index.write_words(connection, archive_id, [image_id for image_id, _ in changed])
    return [uri for _, uri in changed]


_EMPTY = literal({}, JSONB)
