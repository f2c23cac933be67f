"""Archives of any size whose images have vectors and, where a question needs them, captions and pictures.

Drawing and embedding 100,000 pictures would take hours and show nothing about a search. So the vectors are mixed from
those of a few hundred drawn postcards, and only images that are near a question have a picture in the object store:
reranking reads no others. All images have a row and a vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Engine

from ragllava.lab.bench.synthetic import mix_vectors
from ragllava.lab.bench.workload import Workload
from ragllava.postcards.archive import draw_archive
from ragllava.postcards.postcard import Postcard
from ragllava.stores.archives import archive, blobs, graphs, indexes, vectors
from ragllava.stores.archives.blobs import NewBlob
from ragllava.stores.archives.descriptions import NewImage
from ragllava.stores.archives.vectors import Vectors
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


def create_archives(
    workload: Workload, texts: Sequence[str], sizes: Iterable[int]
) -> tuple[Vectors, dict[int, MixedArchive]]:
    """The vectors of the questions, and an archive of each size with the index that it would have in production.

    The archives share their pictures, which are drawn once.
    """
    client, retriever = workload.require_client(), workload.models.retriever
    postcards = draw_archive(workload.seed + 1, max(_EMBEDDED, _NEAR * len(texts)), 0).postcards
    real = _real_vectors(workload, postcards)
    questions = retriever.embed_texts(texts)
    hashes: list[str] = []  # of the first postcards, whose bytes are in the object store
    archives = {}
    for size in sizes:
        workload.progress(f"growth: creating an archive of {size:,} images")
        mixed = mix_vectors(real, size, workload.seed)
        near = np.unique(np.argsort(-(questions @ mixed.T), axis=1)[:, :_NEAR])
        hashes += [client.objects.put_content(card.png(), _MEDIA_TYPE) for card in postcards[len(hashes) : len(near)]]
        images = [new_image(row, hashlib.sha256(f"{size} image-{row}.png".encode()).hexdigest()) for row in range(size)]
        for row, sha256, card in zip(near.tolist(), hashes, postcards, strict=False):
            images[row] = new_image(row, sha256, card.caption)
        archives[size] = store_archive(client.engine, f"bench-{size}", retriever.version, images, mixed)
    return questions, archives


def mixed_vectors(workload: Workload, number: int) -> Vectors:
    """`number` vectors (N, D) of length 1 that are mixed from those of drawn postcards."""
    postcards = draw_archive(workload.seed + 1, _EMBEDDED, 0).postcards
    return mix_vectors(_real_vectors(workload, postcards), number, workload.seed)


def _real_vectors(workload: Workload, postcards: Sequence[Postcard]) -> Vectors:
    pictures = [postcard.picture() for postcard in postcards[:_EMBEDDED]]
    return workload.models.retriever.embed_images(pictures, batch_size=64)


def new_image(row: int, sha256: str, caption: str | None = None) -> NewImage:
    """Image number `row` of an archive, with this content."""
    name = f"image-{row}.png"
    return NewImage(sha256, name, f"file:///{name}", caption, 1, 1, _MEDIA_TYPE)


def store_archive(
    engine: Engine, name: str, version: str, images: Sequence[NewImage], mixed: Vectors, *, with_graph: bool = True
) -> MixedArchive:
    """An archive of these images and vectors (N, D) by the retriever `version`, with its index as in production.

    Without its graph, which takes the longest to build, for what does not search.
    """
    archive_id = in_transaction(engine, archive.ensure_archive, name).archive_id
    index_id = in_transaction(engine, indexes.create_index, archive_id, version, mixed.shape[1])
    for start in range(0, len(images), _ROWS_PER_COMMIT):
        part = slice(start, start + _ROWS_PER_COMMIT)
        announced = [NewBlob(image.sha256, 1, _MEDIA_TYPE) for image in images[part]]
        in_transaction(engine, blobs.announce_blobs, announced)
        stored = in_transaction(engine, archive.store_images, archive_id, images[part])
        in_transaction(engine, vectors.insert_embeddings, index_id, [row.image_id for row in stored], mixed[part])
    in_transaction(engine, indexes.activate, index_id)
    return MixedArchive(name, index_id, with_graph and graphs.build_hnsw(engine, index_id))
