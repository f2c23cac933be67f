"""Files in, embedded images out: read, hash, decode, store, embed, and one commit for each sub-batch.

Bytes before rows (docs/reliability.md D13): a picture is in the object store before the transaction that names it.
While one sub-batch is embedded, the next one is read, decoded and prepared, uploads of both go on, and the one before
is committed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from ragllava.errors import ArchiveChanged, ImageRejected, IndexUnusable, JobRefused, ScoreRejected
from ragllava.jobs.runner import ShardContext
from ragllava.records import FileOutcome, FileStatus
from ragllava.stages.ingest.embedding import OneBehind, PreparedImage, in_steps, one_ahead, prepare_for
from ragllava.stages.ingest.reading import read_sources
from ragllava.stages.ingest.uploads import Uploads, done
from ragllava.stages.resources import Resources
from ragllava.stores.archives import archive, blobs, indexes, vectors
from ragllava.stores.archives.archive import ExistingImage, NewImage, PendingFile, StoredRow
from ragllava.stores.archives.blobs import NewBlob
from ragllava.stores.archives.vectors import IndexView, Vectors
from ragllava.stores.objects import content_key

if TYPE_CHECKING:
    from ragllava.models.retriever import Retriever

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """A living index and its retriever; None: it cannot be used here, so the index must be filled by others."""

    index: IndexView
    retriever: Retriever | None


@dataclass
class Batch:
    """One sub-batch on its way: its files by number, and what was found out about them so far."""

    files: dict[int, PendingFile]
    targets: list[Target]
    rejected: dict[int, str] = field(default_factory=dict)  # reason, by file number
    hashes: dict[int, str] = field(default_factory=dict)  # of every readable file
    prepared: dict[str, PreparedImage] = field(default_factory=dict)  # by hash; only what is new to the archive
    uploads: list[Future[str]] = field(default_factory=list)  # of what is new, where the store lacks it

    def reject(self, sha256: str, reason: str) -> None:
        """All files with these bytes share the fate."""
        for number in [number for number, known in self.hashes.items() if known == sha256]:
            del self.hashes[number]
            self.rejected[number] = reason


def ingest_stage(context: ShardContext[Resources]) -> None:
    """Ingest the files of one shard that have no outcome yet; each sub-batch is committed behind the fence.

    New pictures go to the active index and to those that are built beside it.
    """
    lease, resources = context.lease, context.resources
    context.read(ensure_index, lease.archive_id, resources)
    pending = context.read(archive.load_files, lease.job_id, lease.lo, lease.hi)
    files = {file.file_no: file for file in pending}
    # One stream for the whole shard, so that a compressed tar is unpacked once and not for every sub-batch.
    contents = read_sources([(file.file_no, file.uri) for file in pending], resources.fetch)
    steps = in_steps(contents, context.settings.files_per_step)
    with closing(Uploads(resources)) as uploads:

        def next_batch() -> Batch | None:
            chunk = next(steps, None)
            return prepare(files, chunk, context, uploads) if chunk else None

        with closing(one_ahead(next_batch)) as batches, OneBehind() as behind:
            for batch in batches:
                context.check()
                embedded = embed(batch, context)
                behind.run(lambda batch=batch, embedded=embedded: finish(batch, embedded, context))  # type: ignore[misc]


def ensure_index(connection: Connection, archive_id: int, resources: Resources) -> None:
    """The archive's first index is made and activated here."""
    if vectors.active_index(connection, archive_id) is None:
        retriever = resources.models.retriever
        indexes.activate(connection, indexes.create_index(connection, archive_id, retriever.version, retriever.dim))


def find_targets(living: Sequence[IndexView], resources: Resources) -> list[Target]:
    """The indexes that new pictures go to, with their retrievers.

    Raises JobRefused when that of the active one is not here. An index that is being built holds up nobody: what it
    misses is embedded before its gate (reindex_gate.py).
    """
    found: list[Target] = []
    for index in living:
        try:
            found.append(Target(index, resources.retriever_of(index)))
        except JobRefused as error:
            if index.state == "active":
                raise
            _leave_out(index, error)
            found.append(Target(index, None))
    return found


def prepare(
    files: Mapping[int, PendingFile],
    chunk: Sequence[tuple[int, bytes | ImageRejected]],
    context: ShardContext[Resources],
    uploads: Uploads,
) -> Batch:
    """Hash what was read of each file, decode those whose bytes the archive does not hold yet, and begin to upload."""
    archive_id = context.lease.archive_id
    living = context.read(indexes.living_indexes, archive_id)
    batch = Batch({number: files[number] for number, _ in chunk}, find_targets(living, context.resources))
    contents: dict[str, bytes] = {}
    for number, data in chunk:
        if isinstance(data, ImageRejected):
            batch.rejected[number] = str(data)
        else:
            batch.hashes[number] = sha256 = hashlib.sha256(data).hexdigest()
            contents[sha256] = data
    known = context.read(archive.existing_images, archive_id, list(contents))
    fresh = {sha256: data for sha256, data in contents.items() if sha256 not in known}
    _restore_lost(context.resources, {sha256: contents[sha256] for sha256 in known}, known)
    _decode(batch, fresh, context.resources)
    _upload(batch, fresh, context, uploads)
    return batch


def embed(batch: Batch, context: ShardContext[Resources]) -> dict[int, Vectors]:
    """Embeddings of the batch's new pictures by index: one row for each of `batch.prepared` in its order.

    The prepared pixels are gone afterwards.
    """
    found: dict[int, Vectors] = {}
    for target in batch.targets:
        if target.retriever is None:
            continue
        pixels = [image.pixels[target.retriever.version] for image in batch.prepared.values()]
        try:
            embedded = target.retriever.embed_pixels(pixels, batch_size=context.settings.embed_batch)
            vectors.check_vectors(target.index, embedded)
        except (ScoreRejected, IndexUnusable) as error:
            if target.index.state == "active":
                raise
            _leave_out(target.index, error)
        else:
            found[target.index.index_id] = embedded
    for image in batch.prepared.values():
        image.pixels.clear()
    return found


def finish(batch: Batch, embedded: dict[int, Vectors], context: ShardContext[Resources]) -> None:
    """Wait for the batch's uploads, then commit it behind the fence."""
    done(batch.uploads)
    context.commit(store, context, batch, embedded)


def store(
    connection: Connection,
    context: ShardContext[Resources],
    batch: Batch,
    embedded: dict[int, Vectors],
) -> None:
    """Write images, embeddings and the outcome of every file of the batch, in the caller's transaction."""
    lease = context.lease
    indexes.lock_archive(connection, lease.archive_id, shared=True)
    living = _still_living(connection, lease.archive_id, batch, embedded)
    offered = _offered(connection, lease.archive_id, batch)
    rows = archive.store_images(connection, lease.archive_id, list(offered.values()))
    position = {sha256: number for number, sha256 in enumerate(batch.prepared)}
    places = {
        row.image_id: position[image.sha256]
        for row, image in zip(rows, offered.values(), strict=True)
        if image.sha256 in position
    }
    for index_id in living:
        vectors.insert_embeddings(connection, index_id, list(places), embedded[index_id][list(places.values())])
    outcomes = [_outcome(number, row) for number, row in zip(offered, rows, strict=True)]
    outcomes += [FileOutcome(number, FileStatus.REJECTED, reason) for number, reason in batch.rejected.items()]
    archive.finish_files(connection, lease.job_id, outcomes)


def _still_living(connection: Connection, archive_id: int, batch: Batch, embedded: Mapping[int, Vectors]) -> list[int]:
    """Those of the indexes that the batch was embedded for which still get new images.

    Raises ArchiveChanged when another one came into being meanwhile, or became active.
    """
    known = {target.index.index_id for target in batch.targets}
    living = indexes.living_indexes(connection, archive_id)
    for index in living:
        if index.index_id not in known or (index.state == "active" and index.index_id not in embedded):
            raise ArchiveChanged(f"index {index.index_id} is new to the archive; what follows goes to it, too")
    return [index.index_id for index in living if index.index_id in embedded]


def _leave_out(index: IndexView, error: Exception) -> None:
    log.warning(str(error), extra={"action": "index_left_out", "index": index.index_id})


def _decode(batch: Batch, fresh: dict[str, bytes], resources: Resources) -> None:
    """Decode in the sandbox and prepare for all targets; what cannot be decoded is rejected and leaves `fresh`."""
    retrievers = {target.retriever.version: target.retriever for target in batch.targets if target.retriever}
    prepared = prepare_for(list(retrievers.values()), list(fresh.values()), resources)
    for sha256, result in zip(list(fresh), prepared, strict=True):
        if isinstance(result, ImageRejected):
            batch.reject(sha256, str(result))
            del fresh[sha256]
        else:
            batch.prepared[sha256] = result


def _upload(batch: Batch, fresh: dict[str, bytes], context: ShardContext[Resources], uploads: Uploads) -> None:
    """Bytes before rows: announce, then put; the transaction that names the pictures waits for it."""
    new = [NewBlob(sha256, len(data), batch.prepared[sha256].media_type) for sha256, data in fresh.items()]
    wanted = context.read(blobs.announce_blobs, new)
    batch.uploads = uploads.start([blob for blob in new if blob.sha256 in wanted], fresh)


def _restore_lost(resources: Resources, contents: Mapping[str, bytes], known: Mapping[str, ExistingImage]) -> None:
    """A picture whose object is gone from the store gets it back when its file is ingested again."""

    def restore(sha256: str) -> None:
        if not resources.objects.exists(content_key(sha256)):
            resources.objects.put_content(contents[sha256], known[sha256].media_type)

    list(resources.threads.map(restore, contents))


def _offered(connection: Connection, archive_id: int, batch: Batch) -> dict[int, NewImage]:
    """The batch's readable files as images, by file number: decoded just now, or known to the archive."""
    others = [sha256 for sha256 in batch.hashes.values() if sha256 not in batch.prepared]
    known = archive.existing_images(connection, archive_id, others)
    offered = {}
    for number, sha256 in batch.hashes.items():
        facts = batch.prepared.get(sha256) or known.get(sha256)
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
