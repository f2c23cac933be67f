"""Archives of any size whose images have vectors and, where a question needs them, captions and pictures.

Drawing and embedding 100,000 pictures would take hours and show nothing about a search. So the vectors are mixed from
those of a few hundred drawn postcards, and only images that are near a question have a picture in the object store:
reranking reads no others. All images have a row and a vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ragllava.lab.bench.synthetic import mix_vectors
from ragllava.lab.bench.workload import Workload
from ragllava.postcards.archive import draw_archive
from ragllava.stores.archives import archive, blobs, indexes, vectors
from ragllava.stores.archives.archive import NewImage
from ragllava.stores.archives.blobs import NewBlob
from ragllava.stores.database import in_transaction

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
    """Creates such archives for one list of questions; their pictures are drawn once and shared."""

    def __init__(self, workload: Workload, texts: Sequence[str]) -> None:
        """Embeds the questions and the first postcards."""
        self._client = workload.require_client()
        self._retriever = workload.models.retriever
        self._seed = workload.seed
        self._postcards = draw_archive(workload.seed + 1, max(_EMBEDDED, _NEAR * len(texts)), 0).postcards
        pictures = [postcard.picture() for postcard in self._postcards[:_EMBEDDED]]
        self._real = self._retriever.embed_images(pictures, batch_size=64)
        self.questions = self._retriever.embed_texts(texts)
        self._stored: list[str] = []  # hashes of the first postcards, whose bytes are in the object store

    def create(self, size: int) -> MixedArchive:
        """Create an archive of `size` images, with the index that it would have in production."""
        mixed = mix_vectors(self._real, size, self._seed)
        near = np.unique(np.argsort(-(self.questions @ mixed.T), axis=1)[:, :_NEAR])
        for postcard in self._postcards[len(self._stored) : len(near)]:
            self._stored.append(self._client.objects.put_content(postcard.png(), _MEDIA_TYPE))
        images = [self._without_picture(size, row) for row in range(size)]
        for number, row in enumerate(near.tolist()):
            images[row] = self._with_picture(row, number)
        name, engine = f"bench-{size}", self._client.engine
        archive_id = in_transaction(engine, archive.ensure_archive, name).archive_id
        index_id = in_transaction(
            engine, indexes.create_index, archive_id, self._retriever.version, self._retriever.dim
        )
        for start in range(0, size, _ROWS_PER_COMMIT):
            part = slice(start, start + _ROWS_PER_COMMIT)
            announced = [NewBlob(image.sha256, 1, _MEDIA_TYPE) for image in images[part]]
            in_transaction(engine, blobs.announce_blobs, announced)
            stored = in_transaction(engine, archive.store_images, archive_id, images[part])
            ids = [row.image_id for row in stored]
            in_transaction(engine, vectors.insert_embeddings, index_id, ids, mixed[part])
        in_transaction(engine, indexes.activate, index_id)
        return MixedArchive(name, index_id, vectors.build_hnsw(engine, index_id))

    def _without_picture(self, size: int, row: int) -> NewImage:
        name = f"image-{row}.png"
        sha256 = hashlib.sha256(f"{size} {name}".encode()).hexdigest()
        return NewImage(sha256, name, f"file:///{name}", None, 1, 1, _MEDIA_TYPE)

    def _with_picture(self, row: int, number: int) -> NewImage:
        name, caption = f"image-{row}.png", self._postcards[number].caption
        return NewImage(self._stored[number], name, f"file:///{name}", caption, 1, 1, _MEDIA_TYPE)
