"""Archives of any size whose images have vectors, captions and, where somebody looks, pictures.

Drawing and embedding 100,000 pictures would take hours and show nothing about a search. So the vectors are mixed from
those of some hundred drawn postcards, and only the images that come near a question have a picture in the store: all
that reranking ever reads. The others have a row and a vector like any image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ragllava.lab.bench.workload import System, Workload, picture_of, png_of
from ragllava.models.retriever import Retriever
from ragllava.postcards.archive import draw_archive
from ragllava.stores.archives import archive, blobs, indexes, vectors
from ragllava.stores.archives.archive import NewImage
from ragllava.stores.archives.blobs import NewBlob
from ragllava.stores.archives.vectors import Vectors
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import ObjectStore

_EMBEDDED = 300  # postcards whose vectors are mixed
_NEAR = 40  # images of each question that get a picture: more than a search returns, as a graph may miss a few
_ROWS_PER_COMMIT = 5_000
_MEDIA_TYPE = "image/png"


@dataclass(frozen=True, slots=True)
class MixedArchive:
    """An archive that is ready for questions."""

    name: str
    index_id: int
    has_graph: bool


class MixedArchives:
    """Makes such archives for one list of questions; their pictures are drawn once for all of them."""

    def __init__(self, workload: Workload, texts: Sequence[str]) -> None:
        """Embeds the questions and some postcards."""
        self._system: System = workload.require_system()
        self._objects = ObjectStore(self._system.settings)
        self._retriever: Retriever = workload.models.retriever
        self._seed = workload.seed
        drawn = draw_archive(workload.seed + 1, max(_EMBEDDED, _NEAR * len(texts)), 0)
        self._postcards = drawn.postcards
        pictures = [picture_of(card) for card in self._postcards[:_EMBEDDED]]
        self._real = self._retriever.embed_images(pictures, batch_size=64)
        self.questions: Vectors = self._retriever.embed_texts(texts)
        self._stored: list[str] = []  # hashes of the first postcards, whose bytes are in the store

    def make(self, images: int) -> MixedArchive:
        """An archive of so many images, with the index that production would give it."""
        mixed = mix_vectors(self._real, images, self._seed)
        near = np.unique(np.argsort(-(self.questions @ mixed.T), axis=1)[:, :_NEAR])
        self._store_pictures(len(near))
        with_picture = {int(row): place for place, row in enumerate(near)}
        offered = [self._image(images, row, with_picture.get(row)) for row in range(images)]
        name, engine = f"bench-{images}", self._system.engine
        archive_id = in_transaction(engine, lambda c: archive.ensure_archive(c, name).archive_id)
        retriever = self._retriever
        index_id = in_transaction(engine, indexes.create_index, archive_id, retriever.version, retriever.dim)
        for start in range(0, images, _ROWS_PER_COMMIT):
            part = slice(start, start + _ROWS_PER_COMMIT)
            self._insert(archive_id, index_id, offered[part], mixed[part])
        in_transaction(engine, indexes.activate, index_id)
        return MixedArchive(name, index_id, vectors.build_hnsw(engine, index_id))

    def _insert(self, archive_id: int, index_id: int, offered: Sequence[NewImage], rows: Vectors) -> None:
        announced = [NewBlob(image.sha256, 1, _MEDIA_TYPE) for image in offered]
        in_transaction(self._system.engine, blobs.announce_blobs, announced)
        stored = in_transaction(self._system.engine, archive.store_images, archive_id, offered)
        ids = [row.image_id for row in stored]
        in_transaction(self._system.engine, vectors.insert_embeddings, index_id, ids, rows)

    def _store_pictures(self, number: int) -> None:
        for card in self._postcards[len(self._stored) : number]:
            self._stored.append(self._objects.put_content(png_of(picture_of(card)), _MEDIA_TYPE))

    def _image(self, images: int, row: int, place: int | None) -> NewImage:
        name = f"image-{row}.png"
        if place is None:
            sha256 = hashlib.sha256(f"{images} {name}".encode()).hexdigest()
            return NewImage(sha256, name, f"file:///{name}", None, 1, 1, _MEDIA_TYPE)
        return NewImage(self._stored[place], name, f"file:///{name}", self._postcards[place].caption, 1, 1, _MEDIA_TYPE)


def mix_vectors(real: Vectors, number: int, seed: int) -> Vectors:
    """`number` vectors (N, D) of length 1: each a real one moved by half of the difference of two others.

    So they spread as the real ones do, in every direction alike.
    """
    random = np.random.default_rng(seed)
    base, plus, minus = (real[random.integers(len(real), size=number)] for _ in range(3))
    mixed = base + 0.5 * (plus - minus)
    found: Vectors = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return found
