"""An archive made by hand: content, images, vectors and answers without any model."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
from sqlalchemy import Connection, select

from ragllava.jobs import queue
from ragllava.records import Answer, AnswerStatus, Candidate, ModelStamp, StoredImage
from ragllava.stores.archives import archive, blobs, indexes, vectors
from ragllava.stores.archives.blobs import NewBlob
from ragllava.stores.archives.descriptions import NewImage
from ragllava.stores.database import in_transaction
from ragllava.stores.jobs import answers
from ragllava.stores.schema import images
from tests.support.workshop import Workshop

ARCHIVE = "cards"


def put(workshop: Workshop, data: bytes, archive_name: str = ARCHIVE) -> str:
    """A picture on its whole way: announced, put, made live with its first reference. Returns its hash."""
    digest = sha256(data).hexdigest()
    missing = in_transaction(workshop.engine, blobs.announce_blobs, [NewBlob(digest, len(data), "image/png")])
    if digest in missing:
        workshop.resources.objects.put_content(data, "image/png")

    def store(connection: Connection) -> None:
        archive_id = archive.ensure_archive(connection, archive_name).archive_id
        name = f"{digest[:8]}.png"
        offered = NewImage(digest, name, f"file:///{name}", None, 1, 1, "image/png")
        archive.store_images(connection, archive_id, [offered])

    in_transaction(workshop.engine, store)  # repeated when another session held a lock for too long
    return digest


def store_image(workshop: Workshop, data: bytes) -> StoredImage:
    """The same; returns the image."""
    digest = put(workshop, data)
    with workshop.engine.begin() as connection:
        row = connection.execute(select(images).where(images.c.sha256 == digest)).one()
    return StoredImage(row.id, row.sha256, row.source, row.caption)


def make_index(workshop: Workshop, number: int, retriever: str = "clip@1", dim: int = 8) -> int:
    """An active index over so many images with random vectors; returns its id."""
    drawn = np.random.default_rng(5).normal(size=(number, dim)).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    ids = [store_image(workshop, f"image {n}".encode()).image_id for n in range(number)]
    with workshop.engine.begin() as connection:
        archive_id = archive.get_archive(connection, ARCHIVE).archive_id
        index_id = indexes.create_index(connection, archive_id, retriever, dim)
        vectors.insert_embeddings(connection, index_id, ids, drawn)
        indexes.activate(connection, index_id)
    return index_id


def answered_job(workshop: Workshop, given: list[tuple[float, float]]) -> int:
    """A job whose answers were stored without looking for noisy cases; (relevance, confidence) of each."""
    image = store_image(workshop, b"picture")
    stamp = ModelStamp("1:clip@1", "reranker@1", "generator@1", "v1", 0.5)
    job_id = workshop.questions_job(len(given), per_shard=len(given))
    lease = workshop.claim_next()
    results = [
        Answer(
            number,
            AnswerStatus.ANSWERED,
            "yes",
            confidence,
            (Candidate(image, 0, 0.3, relevance, evidence_no=0),),
            stamp,
        )
        for number, (relevance, confidence) in enumerate(given)
    ]
    with workshop.engine.begin() as connection:
        answers.insert_answers(connection, job_id, lease.run_no, lease.shard_id, lease.epoch, results)
        queue.finish(connection, lease)
    return job_id
