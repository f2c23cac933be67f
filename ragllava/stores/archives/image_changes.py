"""Changes to images whose files changed after the ingest: retired, named by another file, other captions or metadata.

Every function works in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, func, select, update

from ragllava.errors import Conflict
from ragllava.metadata import Metadata, all_metadata
from ragllava.stores.archives import archive, descriptions, indexes, vectors, word_index
from ragllava.stores.archives.archive import find_images, pages_of
from ragllava.stores.archives.descriptions import ArchiveImage
from ragllava.stores.database import equals_any
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
    """The images that these files name, by uri; retired ones left out. The pages of a document are among them."""
    listed = list(uris)
    # Two statements, because each has an index: with one condition or the other, all images may be read.
    conditions = (equals_any(images.c.uri, listed), pages_of(listed))
    return {image.uri: image for condition in conditions for image in find_images(connection, archive_id, condition)}


def images_below(connection: Connection, archive_id: int, uri_prefix: str) -> dict[str, ArchiveImage]:
    """The images that are named by files whose uri begins with `uri_prefix`, by uri; retired ones left out."""
    condition = images.c.uri.startswith(uri_prefix, autoescape=True)
    return {image.uri: image for image in find_images(connection, archive_id, condition)}


def living(connection: Connection, image_ids: Iterable[int]) -> set[int]:
    """Those of the images that are not retired."""
    return set(connection.scalars(select(images.c.id).where(equals_any(images.c.id, image_ids), ~images.c.retired)))


def rename_images(connection: Connection, archive_id: int, names: Sequence[NewName]) -> None:
    """Let other files name the images from now on."""
    images_by_id = _locked(connection, archive_id, [name.image_id for name in names])
    changed = [
        descriptions.renamed(images_by_id[n.image_id], n.source, n.uri) for n in names if n.image_id in images_by_id
    ]
    archive.update_images(connection, changed)
    word_index.write_words(connection, archive_id, [image.image_id for image in changed])


def retire_at(connection: Connection, archive_id: int, uris: Sequence[str]) -> None:
    """Retire the images that these files name, pages of documents too, and remove their embeddings."""
    if uris:
        indexes.lock_archive(connection, archive_id, shared=True)  # the switch to a new index counts the images
        archive.retire_images(connection, archive_id, [*images_at(connection, archive_id, uris)])


def retire(connection: Connection, archive_id: int, image_ids: Sequence[int]) -> None:
    """Retire images by id, and remove their embeddings and words."""
    indexes.lock_archive(connection, archive_id, shared=True)
    _locked(connection, archive_id, image_ids)
    living_ones = (images.c.archive_id == archive_id, equals_any(images.c.id, image_ids), ~images.c.retired)
    connection.execute(update(images).where(*living_ones).values(retired=True, updated_at=func.now()))
    vectors.remove_embeddings(connection, archive_id, list(image_ids))
    word_index.write_words(connection, archive_id, image_ids)


def change_captions(
    connection: Connection, archive_id: int, changes: Sequence[CaptionChange], *, may_remove: bool = True
) -> list[str]:
    """Change captions and metadata of images, without embedding anything again; returns the uris of those that changed.

    As in an ingest, the captions of several files of the same bytes are joined, and metadata of a file that does not
    name the image are used only where there are none but those inside the picture. What is not given is removed, down
    to what is inside the picture, or, without `may_remove`, left as it is. An empty caption is removed in any case.
    """
    before = _locked(connection, archive_id, [change.image_id for change in changes])
    after, changed = dict(before), []
    for change in changes:
        image = after.get(change.image_id)
        if image is None:
            continue
        after[change.image_id] = described = _described(image, change, may_remove)
        if (described.caption, described.metadata) != (image.caption, image.metadata):
            changed.append(change.uri)
    archive.update_images(connection, [image for number, image in after.items() if image != before[number]])
    redescribed = [number for number, image in after.items() if image != before[number]]
    word_index.write_words(connection, archive_id, redescribed)
    return changed


def set_caption(
    connection: Connection, archive_id: int, image_id: int, caption: str, expected: str | None
) -> ArchiveImage | None:
    """Give an image this caption in place of all that its files gave; None when no image in use has this id.

    Without any (""), it has the caption inside the picture. `expected` is the caption that is being replaced. Raises
    Conflict when the image has another one now.
    """
    image = _locked(connection, archive_id, [image_id]).get(image_id)
    if image is None:
        return None
    if image.caption != expected:
        raise Conflict(
            f"the caption of {image.source} was changed meanwhile; look at the present one, then change that one"
        )
    own = {descriptions.caption_giver(image): caption} if caption else {}
    after = descriptions.with_captions(image, own)
    if after != image:
        archive.update_images(connection, [after])
        word_index.write_words(connection, archive_id, [image_id])
    return after


def _locked(connection: Connection, archive_id: int, image_ids: Sequence[int]) -> dict[int, ArchiveImage]:
    """The images by id, retired ones left out."""
    images_found = find_images(connection, archive_id, equals_any(images.c.id, sorted(set(image_ids))), lock=True)
    return {image.image_id: image for image in images_found}


def _described(image: ArchiveImage, change: CaptionChange, may_remove: bool) -> ArchiveImage:
    captions = descriptions.given_captions(image)
    if change.caption:
        captions[change.uri] = change.caption
    elif may_remove or change.caption is not None:
        captions.pop(change.uri, None)
    inside = all_metadata(image.embedded, None)
    is_free = image.uri == change.uri or image.metadata == inside
    metadata = image.metadata
    if is_free and (may_remove or change.metadata is not None):
        metadata = all_metadata(image.embedded, change.metadata)
    return replace(descriptions.with_captions(image, captions), metadata=metadata)
