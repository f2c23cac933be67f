"""Captions that people write in place of those that files gave."""

from __future__ import annotations

from sqlalchemy import Connection, select

from ragllava.errors import Conflict, NotFound, UsageError
from ragllava.metadata import MAX_CAPTION, clean_caption, is_cut
from ragllava.stages.buckets.object_captions import object_uri
from ragllava.stores.archives import image_changes
from ragllava.stores.archives.archive import get_archive
from ragllava.stores.buckets import bindings, bound_objects
from ragllava.stores.schema import images


def edit_caption(
    connection: Connection, archive_name: str, image_id: int, caption: str, expected: str | None
) -> str | None:
    """Give an image this caption, and its search by words with it; returns the caption that it has now.

    An empty one removes what was said beside the picture: the caption inside it counts again, if it has one. No vector
    changes, so no index is built again. A later ingest that says something about the same file replaces the caption.

    Raises NotFound; Conflict when the caption is no longer `expected`, and when a bound bucket gives it; UsageError for
    one that is too long.
    """
    if is_cut(caption):
        raise UsageError(f"a caption has at most {MAX_CAPTION:,} characters, this one has {len(caption):,}")
    archive_id = get_archive(connection, archive_name).archive_id
    _refuse_bound(connection, archive_id, image_id)
    image = image_changes.set_caption(connection, archive_id, image_id, clean_caption(caption) or "", expected)
    if image is None:
        raise NotFound(f"the archive {archive_name} has no picture {image_id}")
    return image.caption


def _refuse_bound(connection: Connection, archive_id: int, image_id: int) -> None:
    address = _bound_address(connection, archive_id, image_id)
    if address is not None:
        raise Conflict(
            f"the caption comes from {address}, and the next change there would bring it back: change it in that "
            "bucket, in a caption file or in a text file beside the picture, or unbind the bucket first"
        )


def _bound_address(connection: Connection, archive_id: int, image_id: int) -> str | None:
    """The address of a bound object with this image; None when no bucket gives its caption."""
    bound = {binding.binding_id: binding for binding in bindings.list_bindings(connection, archive_id)}
    if not bound:
        return None
    if linked := bound_objects.objects_of_images(connection, archive_id, [image_id]).get(image_id):
        binding_id, key = linked[0]
        return f"s3://{bound[binding_id].bucket}/{key}"
    # The objects of an ingest that has just ended are not linked to their images yet.
    uri = connection.scalar(select(images.c.uri).where(images.c.archive_id == archive_id, images.c.id == image_id))
    is_bound = any((uri or "").startswith(object_uri(each.bucket, each.prefix)) for each in bound.values())
    return uri if is_bound else None
