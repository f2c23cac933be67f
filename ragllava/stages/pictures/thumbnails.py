"""Thumbnails: small JPEGs of stored pictures, made at the first request and kept beside them in the object store.

A thumbnail has the hash of its picture in its key, and is removed with it (stores/objects.py: delete_content).
"""

from __future__ import annotations

import io

from PIL import Image
from sqlalchemy import Connection, Engine

from ragllava.errors import ImageRejected, ObjectCorrupt, ObjectMissing
from ragllava.imaging.sandbox import DecoderPool
from ragllava.stores.archives import blobs
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import ObjectStore, thumbnail_key

SIDE = 256  # pixels
MEDIA_TYPE = "image/jpeg"


def thumbnail(engine: Engine, objects: ObjectStore, decoder: DecoderPool, sha256: str) -> bytes | None:
    """A JPEG of a stored picture, its longer side at most SIDE pixels; None when the picture cannot be read.

    Raises ServiceUnavailable when the object store is away, and DecoderUnavailable.
    """
    try:
        return objects.get(thumbnail_key(sha256))
    except ObjectMissing:
        made = _made(objects, decoder, sha256)
    if made is not None:
        in_transaction(engine, _keep, objects, sha256, made)
    return made


def _made(objects: ObjectStore, decoder: DecoderPool, sha256: str) -> bytes | None:
    try:
        picture = decoder.decode(objects.get_content(sha256), max_side=SIDE).picture
    except (ObjectMissing, ObjectCorrupt, ImageRejected):
        return None
    return as_jpeg(picture)


def as_jpeg(picture: Image.Image) -> bytes:
    """The bytes of a thumbnail."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _keep(connection: Connection, objects: ObjectStore, sha256: str, made: bytes) -> None:
    """Put it while nobody can remove its picture, which would leave it behind."""
    if blobs.hold(connection, sha256):
        objects.put(thumbnail_key(sha256), made, MEDIA_TYPE)
