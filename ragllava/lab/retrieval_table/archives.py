"""Drawn archives in the database alone: pictures are embedded once and drawn again when a question needs them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import Engine

from ragllava.postcards.postcard import Postcard
from ragllava.settings import Settings
from ragllava.stages.resources import PictureCache, Resources
from ragllava.stores.archives import archive, blobs, graphs, indexes, vectors
from ragllava.stores.archives.blobs import NewBlob
from ragllava.stores.archives.descriptions import NewImage
from ragllava.stores.archives.vectors import Vectors
from ragllava.stores.database import in_transaction

if TYPE_CHECKING:
    from PIL.Image import Image

    from ragllava.models.retriever import Retriever

_PICTURES_AT_ONCE = 256
_ROWS_PER_COMMIT = 2_000
_MEDIA_TYPE = "image/png"
_CAPTION_OF_ALL = "A postcard from our collection"

Progress = Callable[[str, int, int], None]  # what is done, how many are, of how many


class CaptionQuality(StrEnum):
    """What the captions of an archive say."""

    GOOD = "good"
    HALF = "half"  # every second image has none
    EMPTY = "empty"  # no image has one
    SAME = "same"  # all images have the same
    NEIGHBOUR = "neighbour"  # each image has that of the next one

    def captions(self, postcards: Sequence[Postcard], seed: int) -> list[str | None]:
        """A caption for each postcard."""
        own: list[str | None] = [postcard.caption for postcard in postcards]
        if self is CaptionQuality.HALF:
            rng = random.Random(seed)  # noqa: S311 - repeatable on purpose
            missing = set(rng.sample(range(len(own)), len(own) // 2))
            return [None if number in missing else caption for number, caption in enumerate(own)]
        if self is CaptionQuality.EMPTY:
            return [None for _ in own]
        if self is CaptionQuality.SAME:
            return [_CAPTION_OF_ALL for _ in own]
        return own[1:] + own[:1] if self is CaptionQuality.NEIGHBOUR else own


class DrawnResources(Resources):
    """Resources whose pictures are drawn, not read from the object store."""

    def __init__(self, settings: Settings) -> None:
        """Pictures are known after `know`."""
        super().__init__(settings)
        self._postcards: dict[str, Postcard] = {}

    def know(self, postcards: Mapping[str, Postcard]) -> None:
        """Draw these postcards for these hashes, and no others from now on."""
        self._postcards = dict(postcards)

    @cached_property
    def pictures(self) -> PictureCache:
        """Drawn pictures, the most recent ones kept."""
        return _DrawnPictures(self, self._draw)

    def _draw(self, sha256: str) -> Image:
        return self._postcards[sha256].picture()


class _DrawnPictures(PictureCache):
    def __init__(self, resources: Resources, draw: Callable[[str], Image]) -> None:
        super().__init__(
            resources.objects, resources.decoder, ThreadPoolExecutor(1), resources.settings.image_cache_mib * 2**20
        )
        self._draw = draw

    def _read(self, sha256: str) -> Image | str:
        return self._draw(sha256)


def hashes_of(seed: int, postcards: Sequence[Postcard]) -> list[str]:
    """A hash that stands for the content of each postcard."""
    return [hashlib.sha256(f"{seed} {postcard.file_name}".encode()).hexdigest() for postcard in postcards]


def embed(retriever: Retriever, postcards: Sequence[Postcard], progress: Progress) -> Vectors:
    """The vectors (N, D) of the drawn pictures, L2-normalised float32."""
    parts = []
    for start in range(0, len(postcards), _PICTURES_AT_ONCE):
        pictures = [postcard.picture() for postcard in postcards[start : start + _PICTURES_AT_ONCE]]
        parts.append(retriever.embed_images(pictures, batch_size=64))
        progress("embed", start + len(pictures), len(postcards))
    return np.concatenate(parts)


def store_archive(
    engine: Engine,
    name: str,
    retriever: str,
    images: Sequence[tuple[str, Postcard, str | None]],
    embedded: Vectors,
    progress: Progress,
) -> int:
    """An archive of (hash, postcard, caption) with an active index, as an ingest would leave it; returns its id."""
    archive_id = in_transaction(engine, archive.ensure_archive, name).archive_id
    index_id = in_transaction(engine, indexes.create_index, archive_id, retriever, embedded.shape[1])
    for start in range(0, len(images), _ROWS_PER_COMMIT):
        part = images[start : start + _ROWS_PER_COMMIT]
        rows = [
            NewImage(sha256, card.file_name, f"file:///{card.file_name}", caption, 112, 112, _MEDIA_TYPE)
            for sha256, card, caption in part
        ]
        in_transaction(engine, blobs.announce_blobs, [NewBlob(row.sha256, 1, _MEDIA_TYPE) for row in rows])
        stored = in_transaction(engine, archive.store_images, archive_id, rows)
        ids = [row.image_id for row in stored]
        in_transaction(engine, vectors.insert_embeddings, index_id, ids, embedded[start : start + len(part)])
        progress(f"store {name}", start + len(part), len(images))
    in_transaction(engine, indexes.activate, index_id)
    graphs.build_hnsw(engine, index_id)
    return archive_id
