"""Files in, embedded images out: read, hash, decode, store, embed, and one commit for each sub-batch.

Bytes before rows (D13): a picture is in the object store before the transaction that names it. While one sub-batch
is embedded, the next one is read, decoded and uploaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from ragllava.errors import ArchiveChanged, ImageRejected
from ragllava.images import DecodedImage
from ragllava.jobs.runner import ShardContext
from ragllava.records import FileOutcome, FileStatus
from ragllava.stages.reading import read_sources
from ragllava.stages.resources import Resources, require_own_index
from ragllava.stores import archive, blobs, vectors
from ragllava.stores.archive import ExistingImage, NewImage, PendingFile, StoredRow
from ragllava.stores.blobs import NewBlob
from ragllava.stores.objects import content_key

T = TypeVar("T")

# Pictures are reduced to this many times the retriever's own size before it sees them: enough that its own
# resizing decides the pixels, little enough that a 50-megapixel picture costs no more than a small one.
DECODE_SCALE = 4


@dataclass
class Batch:
    """One sub-batch on its way: its files by number, and what was found out about them so far."""

    files: dict[int, PendingFile]
    rejected: dict[int, str] = field(default_factory=dict)  # reason, by file number
    hashes: dict[int, str] = field(default_factory=dict)  # of every readable file
    decoded: dict[str, DecodedImage] = field(default_factory=dict)  # by hash; only what is new to the archive

    def reject(self, sha256: str, reason: str) -> None:
        """All files with these bytes share the fate."""
        for number in [number for number, known in self.hashes.items() if known == sha256]:
            del self.hashes[number]
            self.rejected[number] = reason


def ingest_stage(context: ShardContext[Resources]) -> None:
    """Ingest the files of one shard that have no outcome yet; each sub-batch is committed behind the fence."""
    lease, resources = context.lease, context.resources
    index_id = context.read(lambda c: target_index(c, lease.archive_id, resources))
    pending = context.read(lambda c: archive.load_files(c, lease.job_id, lease.lo, lease.hi))
    files = {file.file_no: file for file in pending}
    # One stream for the whole shard, so that a compressed tar is unpacked once and not for every sub-batch.
    contents = read_sources([(file.file_no, file.uri) for file in pending], resources.fetch)

    def next_batch() -> Batch | None:
        chunk = list(islice(contents, context.settings.files_per_step))
        return prepare(files, chunk, context) if chunk else None

    for batch in _one_ahead(next_batch):
        context.check()
        embedded = embed(batch, context)
        context.commit(lambda c, batch=batch, embedded=embedded: store(c, context, index_id, batch, embedded))  # type: ignore[misc]


def target_index(connection: Connection, archive_id: int, resources: Resources) -> int:
    """The index that new images go to; the archive's first one is made and activated here.

    Raises JobRefused when the archive is indexed by another retriever: vectors of two models never mix.
    """
    retriever = resources.models.retriever
    active = vectors.active_index(connection, archive_id)
    if active is None:
        index_id = vectors.create_index(connection, archive_id, retriever.version, retriever.dim)
        vectors.activate(connection, index_id)
        return index_id
    require_own_index(active, retriever.version)
    return active.index_id


def prepare(
    files: Mapping[int, PendingFile],
    chunk: Sequence[tuple[int, bytes | ImageRejected]],
    context: ShardContext[Resources],
) -> Batch:
    """Hash what was read of each file, decode and upload those whose bytes the archive does not hold yet."""
    batch = Batch({number: files[number] for number, _ in chunk})
    contents: dict[str, bytes] = {}
    for number, data in chunk:
        if isinstance(data, ImageRejected):
            batch.rejected[number] = str(data)
        else:
            batch.hashes[number] = sha256 = hashlib.sha256(data).hexdigest()
            contents[sha256] = data
    known = context.read(lambda c: archive.existing_images(c, context.lease.archive_id, list(contents)))
    fresh = {sha256: data for sha256, data in contents.items() if sha256 not in known}
    _restore_lost(context.resources, {sha256: contents[sha256] for sha256 in known}, known)
    _decode(batch, fresh, context.resources)
    _upload(batch, fresh, context)
    return batch


def embed(batch: Batch, context: ShardContext[Resources]) -> npt.NDArray[np.float32]:
    """Embeddings of the batch's new pictures, one row for each of `batch.decoded` in its order."""
    retriever = context.resources.models.retriever
    pictures = [decoded.picture for decoded in batch.decoded.values()]
    return retriever.embed_images(pictures, batch_size=context.settings.embed_batch)


def store(
    connection: Connection,
    context: ShardContext[Resources],
    index_id: int,
    batch: Batch,
    embedded: npt.NDArray[np.float32],
) -> None:
    """Write images, embeddings and the outcome of every file of the batch, in the caller's transaction."""
    lease = context.lease
    offered = _offered(connection, lease.archive_id, batch)
    rows = archive.store_images(connection, lease.archive_id, list(offered.values()))
    position = {sha256: number for number, sha256 in enumerate(batch.decoded)}
    places = {
        row.image_id: position[image.sha256]
        for row, image in zip(rows, offered.values(), strict=True)
        if image.sha256 in position
    }
    vectors.insert_embeddings(connection, index_id, list(places), embedded[list(places.values())])
    outcomes = [_outcome(number, row) for number, row in zip(offered, rows, strict=True)]
    outcomes += [FileOutcome(number, FileStatus.REJECTED, reason) for number, reason in batch.rejected.items()]
    archive.finish_files(connection, lease.job_id, outcomes)


def _decode(batch: Batch, fresh: dict[str, bytes], resources: Resources) -> None:
    """Decode in the sandbox; what cannot be decoded is rejected and leaves `fresh`."""
    max_side = DECODE_SCALE * resources.models.retriever.image_size
    decoded = resources.decoder.decode_all(list(fresh.values()), max_side)
    for sha256, result in zip(list(fresh), decoded, strict=True):
        if isinstance(result, ImageRejected):
            batch.reject(sha256, str(result))
            del fresh[sha256]
        else:
            batch.decoded[sha256] = result


def _upload(batch: Batch, fresh: dict[str, bytes], context: ShardContext[Resources]) -> None:
    """Bytes before rows: announce, then put; the transaction that names the pictures comes later."""
    new = [NewBlob(sha256, len(data), batch.decoded[sha256].media_type) for sha256, data in fresh.items()]
    wanted = context.read(lambda c: blobs.announce_blobs(c, new))
    put = context.resources.objects.put_content
    uploads = [
        context.resources.threads.submit(put, fresh[blob.sha256], blob.media_type)
        for blob in new
        if blob.sha256 in wanted
    ]
    for upload in uploads:
        upload.result()


def _restore_lost(resources: Resources, contents: Mapping[str, bytes], known: Mapping[str, ExistingImage]) -> None:
    """A picture whose object is gone from the store gets it back when its file is ingested again."""

    def restore(sha256: str) -> None:
        if not resources.objects.exists(content_key(sha256)):
            resources.objects.put_content(contents[sha256], known[sha256].media_type)

    list(resources.threads.map(restore, contents))


def _offered(connection: Connection, archive_id: int, batch: Batch) -> dict[int, NewImage]:
    """The batch's readable files as images, by file number: decoded just now, or known to the archive."""
    others = [sha256 for sha256 in batch.hashes.values() if sha256 not in batch.decoded]
    known = archive.existing_images(connection, archive_id, others)
    offered = {}
    for number, sha256 in batch.hashes.items():
        facts = batch.decoded.get(sha256) or known.get(sha256)
        if facts is None:
            raise ArchiveChanged("a picture left the archive while its duplicate was being looked at; it is read again")
        file = batch.files[number]
        offered[number] = NewImage(
            sha256, file.source, file.uri, file.caption, facts.width, facts.height, facts.media_type
        )
    return offered


def _outcome(file_no: int, row: StoredRow) -> FileOutcome:
    reason = None
    if row.status is FileStatus.DUPLICATE:
        reason = "caption updated" if row.caption_updated else f"the same picture as {row.source}"
    return FileOutcome(file_no, row.status, reason, row.image_id)


def _one_ahead(make: Callable[[], T | None]) -> Iterator[T]:
    """What `make` returns until that is None; the next one is made in a thread while the last one is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="prepare") as thread:
        waiting = thread.submit(make)
        while (made := waiting.result()) is not None:
            waiting = thread.submit(make)
            yield made
