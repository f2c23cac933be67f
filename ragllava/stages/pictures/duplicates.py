"""Duplicates of a stored picture: other files with the same bytes, and pictures that look the same.

What looks the same is near in the active index. So the nearest pictures are compared as the sides of a split are
(imaging/likeness.py), from thumbnails that are stored.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image
from sqlalchemy import Connection, Engine

from ragllava.imaging.likeness import Likeness
from ragllava.imaging.likeness import thumbnail as small_pixels
from ragllava.stores.archives import copies, image_lists, vector_search, vectors
from ragllava.stores.archives.archive import ListedImage, get_archive
from ragllava.stores.archives.copies import CopyElsewhere
from ragllava.stores.database import in_transaction

NEAREST = 12  # pictures of the index that are compared


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Of one picture: `names` of other files of its bytes, at most 50, archives that have the same bytes, and pictures
    of its own archive that look the same, the nearest first."""

    names: tuple[str, ...]
    elsewhere: tuple[CopyElsewhere, ...]
    alike: tuple[ListedImage, ...]


def find_duplicates(
    engine: Engine, archive_name: str, image_id: int, thumbnail: Callable[[str], bytes | None]
) -> Duplicates:
    """The duplicates of a picture; `thumbnail` returns a JPEG by the hash of a picture. Raises NotFound.

    Without an index, or for a picture that is in none, no picture looks the same.
    """
    names, elsewhere, sha256, near = in_transaction(engine, _read, archive_name, image_id)
    pixels = {each: small_pixels(Image.open(io.BytesIO(data))) for each in sha256.values() if (data := thumbnail(each))}
    own = sha256[image_id]
    alike = Likeness(pixels).near(pixels, [own]) if own in pixels else set()
    return Duplicates(names, elsewhere, tuple(image for image in near if image.sha256 in alike))


def _read(
    connection: Connection, archive_name: str, image_id: int
) -> tuple[tuple[str, ...], tuple[CopyElsewhere, ...], dict[int, str], list[ListedImage]]:
    """Names, copies elsewhere, hashes by image, and the nearest other images."""
    archive_id = get_archive(connection, archive_name).archive_id
    own = image_lists.content_of(connection, archive_id, image_id)
    index = vectors.active_index(connection, archive_id)
    ids = vector_search.nearest_to(connection, index, image_id, NEAREST) if index else []
    listed = image_lists.load_listed(connection, archive_id, ids)
    near = [listed[each] for each in ids if each in listed]
    hashes = {image_id: own.sha256} | {image.image_id: image.sha256 for image in near}
    return (
        copies.other_names(connection, archive_id, image_id),
        copies.elsewhere(connection, archive_id, own.sha256),
        hashes,
        near,
    )
