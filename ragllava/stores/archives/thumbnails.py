"""Thumbnails of pictures, by which near-duplicates are found. They are made when a training first needs them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import Connection, bindparam, select, update

from ragllava.imaging.likeness import is_thumbnail
from ragllava.stores.database import equals_any
from ragllava.stores.schema import blobs


def load_thumbnails(connection: Connection, hashes: Collection[str]) -> dict[str, bytes]:
    """The thumbnails that are stored and can be compared; those of an earlier version are made again."""
    query = select(blobs.c.sha256, blobs.c.thumbnail).where(
        equals_any(blobs.c.sha256, sorted(hashes)), blobs.c.thumbnail.is_not(None)
    )
    return {row.sha256: row.thumbnail for row in connection.execute(query) if is_thumbnail(row.thumbnail)}


def store_thumbnails(connection: Connection, thumbnails: Mapping[str, bytes]) -> None:
    """Store thumbnails; pictures that were erased meanwhile are passed over."""
    if thumbnails:
        connection.execute(
            update(blobs).where(blobs.c.sha256 == bindparam("of")).values(thumbnail=bindparam("made")),
            [{"of": sha256, "made": made} for sha256, made in sorted(thumbnails.items())],
        )
