"""The ingest stage: read, hash, decode, store and embed files, with one commit for each sub-batch.

Bytes before rows (docs/reliability.md D13): a picture is in the object store before the transaction that refers to it.
While one sub-batch is embedded, the next one is read, decoded and prepared, both are uploaded in the background, and
the previous one is committed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from ragllava.errors import ArchiveChanged, ImageRejected, IndexUnusable, JobRefused, Rejection, ScoreRejected
from ragllava.jobs.runner import ShardContext
from ragllava.metadata import Metadata
from ragllava.source_files import FileOutcome, FileStatus
from ragllava.stages.ingest.embedding import PreparedImage, in_steps, one_ahead, one_behind, prepare_for
from ragllava.stages.ingest.pages import DocumentOutcomes, Part, PartContent, split_pages
from ragllava.stages.ingest.reading import read_sources
from ragllava.stages.resources import Resources
from ragllava.stores.archives import archive, blobs, image_changes, indexes, ingest_files, vectors, word_index
from ragllava.stores.archives.archive import StoredRow
from ragllava.stores.archives.blobs import NewBlob
from ragllava.stores.archives.descriptions import ArchiveImage, NewImage
from ragllava.stores.archives.ingest_files import PendingFile
from ragllava.stores.archives.vectors import IndexView, Vectors
from ragllava.stores.objects import content_key

if TYPE_CHECKING:
    from ragllava.models.retriever import Retriever

log = logging.getLogger(__name__)

Context = ShardContext[Resources]


@dataclass(frozen=True)
class EmbeddingTarget:
    """A building or active index and its retriever; None: this worker cannot load it, other workers fill the index."""

    index: IndexView
    retriever: Retriever | None


@dataclass
class Batch:
    """One sub-batch in the pipeline: its pictures by their parts of files, and the results so far."""

    files: dict[Part, PendingFile]
    documents: DocumentOutcomes  # of the shard
    targets: list[EmbeddingTarget]
    rejected: dict[Part, Rejection] = field(default_factory=dict)
    hashes: dict[Part, str] = field(default_factory=dict)  # of every readable picture
    prepared: dict[str, PreparedImage] = field(default_factory=dict)  # by hash; only what is new to the archive
    embedded: dict[str, Metadata] = field(default_factory=dict)  # by hash; of files that were opened, also older ones
    uploads: list[Future[str]] = field(default_factory=list)  # of new pictures that are not in the object store

    def reject(self, sha256: str, rejection: Rejection) -> None:
        """Reject all pictures with these bytes."""
        for part in [part for part, hashed in self.hashes.items() if hashed == sha256]:
            del self.hashes[part]
            self.rejected[part] = rejection


def ingest_stage(context: Context) -> None:
    """Ingest the files of one shard that have no outcome yet; each sub-batch is committed behind the fence.

    New pictures are embedded for the active index and for those that are built beside it.
    """
    lease, resources = context.lease, context.resources
    context.read(ensure_index, lease.archive_id, resources)
    pending = context.read(ingest_files.load_files, lease.job_id, lease.lo, lease.hi)
    files = {file.file_no: file for file in pending}
    # One stream for the whole shard, so that a compressed tar is unpacked once and not for every sub-batch.
    contents = read_sources([(file.file_no, file.uri) for file in pending], resources.fetch)
    steps = in_steps(split_pages(contents, resources.decoder), context.settings.files_per_step)
    documents = DocumentOutcomes()
    with _uploads() as uploads:

        def next_batch() -> Batch | None:
            chunk = next(steps, None)
            return prepare(files, documents, chunk, context, uploads) if chunk else None

        with closing(one_ahead(next_batch)) as batches, one_behind() as run:
            for batch in batches:
                context.check()
                run(finish, batch, embed(batch, context), context)
    context.read(word_index.compact_often_written, lease.archive_id)


@contextmanager
def _uploads() -> Iterator[set[Future[str]]]:
    """The uploads of one shard. At its end, those that did not start are cancelled and the others are waited for, so
    that nothing is put after the shard's end."""
    uploads: set[Future[str]] = set()
    try:
        yield uploads
    finally:
        for upload in uploads:
            upload.cancel()
        wait(uploads)


def ensure_index(connection: Connection, archive_id: int, resources: Resources) -> None:
    """Create and activate the archive's first index."""
    if vectors.active_index(connection, archive_id) is None:
        retriever = resources.models.retriever
        indexes.activate(connection, indexes.create_index(connection, archive_id, retriever.version, retriever.dim))


def find_targets(living: Sequence[IndexView], resources: Resources) -> list[EmbeddingTarget]:
    """The indexes that new pictures go to, with their retrievers.

    Raises JobRefused when this worker cannot load that of the active index. An index that is being built does not
    block the ingest: the pictures that it misses are embedded before its gate (stages/reindex/gate.py).
    """
    targets: list[EmbeddingTarget] = []
    for index in living:
        try:
            targets.append(EmbeddingTarget(index, resources.retriever_of(index)))
        except JobRefused as error:
            if index.state == "active":
                raise
            _leave_out(index, error)
            targets.append(EmbeddingTarget(index, None))
    return targets


def prepare(
    files: Mapping[int, PendingFile],
    documents: DocumentOutcomes,
    chunk: Sequence[PartContent],
    context: Context,
    uploads: set[Future[str]],
) -> Batch:
    """Hash the files, decode those whose bytes are new to the archive, and start their uploads, added to `uploads`."""
    archive_id = context.lease.archive_id
    living = context.read(indexes.living_indexes, archive_id)
    named = {part: part.named(files[part.file_no]) for part, _ in chunk}
    batch = Batch(named, documents, find_targets(living, context.resources))
    contents: dict[str, bytes] = {}
    for part, data in chunk:
        if isinstance(data, ImageRejected):
            batch.rejected[part] = data.rejection
        else:
            batch.hashes[part] = sha256 = hashlib.sha256(data).hexdigest()
            contents[sha256] = data
    existing = context.read(archive.existing_images, archive_id, contents)
    _restore_lost(context.resources, contents, existing)
    new = {sha256: data for sha256, data in contents.items() if sha256 not in existing}
    _decode(batch, new, context.resources)
    unread = {sha256: contents[sha256] for sha256, image in existing.items() if image.embedded is None}
    batch.embedded |= _read_embedded(unread, context.resources)
    _upload(batch, new, context)
    uploads.update(batch.uploads)
    return batch


def embed(batch: Batch, context: Context) -> dict[int, Vectors]:
    """Embeddings of the batch's new pictures by index: one row for each of `batch.prepared` in its order.

    Removes the prepared pixels.
    """
    embeddings: dict[int, Vectors] = {}
    for target in batch.targets:
        if target.retriever is None:
            continue
        pixels = [image.pixels[target.retriever.version] for image in batch.prepared.values()]
        try:
            rows = target.retriever.embed_pixels(pixels, batch_size=context.settings.embed_batch)
            vectors.check_vectors(target.index, rows)
        except (ScoreRejected, IndexUnusable) as error:
            if target.index.state == "active":
                raise
            _leave_out(target.index, error)
        else:
            embeddings[target.index.index_id] = rows
    for image in batch.prepared.values():
        image.pixels.clear()
    return embeddings


def finish(batch: Batch, embeddings: dict[int, Vectors], context: Context) -> None:
    """Wait for the batch's uploads, then commit it behind the fence. Raises ServiceUnavailable when one failed."""
    for upload in batch.uploads:
        upload.result()
    context.commit(store, context, batch, embeddings)


def store(connection: Connection, context: Context, batch: Batch, embeddings: dict[int, Vectors]) -> None:
    """Write images, embeddings and the outcome of every file of the batch, in the caller's transaction."""
    lease = context.lease
    indexes.lock_archive(connection, lease.archive_id, shared=True)
    living = _still_living(connection, lease.archive_id, batch, embeddings)
    offered = _offered(connection, lease.archive_id, batch)
    stored = archive.store_images(connection, lease.archive_id, list(offered.values()))
    row_of = {sha256: row for row, sha256 in enumerate(batch.prepared)}
    rows = {
        result.image_id: row_of[image.sha256]
        for result, image in zip(stored, offered.values(), strict=True)
        if image.sha256 in row_of
    }
    for index_id in living:
        vectors.insert_embeddings(connection, index_id, list(rows), embeddings[index_id][list(rows.values())])
    results = dict(zip(offered, stored, strict=True))
    outcomes = [_outcome(part, results.get(part), batch) for part in batch.files]
    ingest_files.finish_files(connection, lease.job_id, [outcome for outcome in outcomes if outcome is not None])
    _retire_former_pages(connection, lease.archive_id, batch)


def _still_living(
    connection: Connection, archive_id: int, batch: Batch, embeddings: Mapping[int, Vectors]
) -> list[int]:
    """Those of the indexes that the batch was embedded for which still get new images.

    Raises ArchiveChanged when another index was created or activated meanwhile.
    """
    targets = {target.index.index_id for target in batch.targets}
    living = indexes.living_indexes(connection, archive_id)
    for index in living:
        if index.index_id not in targets or (index.state == "active" and index.index_id not in embeddings):
            raise ArchiveChanged(f"index {index.index_id} is new to the archive; the shard is repeated for it, too")
    return [index.index_id for index in living if index.index_id in embeddings]


def _leave_out(index: IndexView, error: Exception) -> None:
    log.warning(str(error), extra={"action": "index_left_out", "index": index.index_id})


def _decode(batch: Batch, new: dict[str, bytes], resources: Resources) -> None:
    """Decode in the sandbox and prepare for all targets; undecodable pictures are rejected and removed from `new`."""
    retrievers = {target.retriever.version: target.retriever for target in batch.targets if target.retriever}
    prepared = prepare_for(list(retrievers.values()), list(new.values()), resources)
    for sha256, result in zip(list(new), prepared, strict=True):
        if isinstance(result, ImageRejected):
            batch.reject(sha256, result.rejection)
            del new[sha256]
        else:
            batch.prepared[sha256] = result
            batch.embedded[sha256] = result.embedded


def _read_embedded(contents: Mapping[str, bytes], resources: Resources) -> dict[str, Metadata]:
    """The metadata inside pictures that were stored by a version that did not read them."""
    read = resources.decoder.decode_all(contents.values(), lambda decoded: dict(decoded.embedded), shorter_side=1)
    return {
        sha256: {} if isinstance(result, ImageRejected) else result
        for sha256, result in zip(contents, read, strict=True)
    }


def _upload(batch: Batch, new: dict[str, bytes], context: Context) -> None:
    """Bytes before rows: announce, then put; the transaction that refers to the pictures waits for the uploads."""
    announced = [NewBlob(sha256, len(data), batch.prepared[sha256].media_type) for sha256, data in new.items()]
    missing = context.read(blobs.announce_blobs, announced)
    submit, put = context.resources.threads.submit, context.resources.objects.put_content
    batch.uploads = [submit(put, new[blob.sha256], blob.media_type) for blob in announced if blob.sha256 in missing]


def _restore_lost(resources: Resources, contents: Mapping[str, bytes], existing: Mapping[str, ArchiveImage]) -> None:
    """Put a picture whose object is missing from the store again when its file is ingested again."""

    def restore(image: ArchiveImage) -> None:
        if not resources.objects.exists(content_key(image.sha256)):
            resources.objects.put_content(contents[image.sha256], image.media_type)

    list(resources.threads.map(restore, existing.values()))


def _offered(connection: Connection, archive_id: int, batch: Batch) -> dict[Part, NewImage]:
    """The batch's readable pictures as images: just decoded, or already in the archive."""
    unprepared = [sha256 for sha256 in batch.hashes.values() if sha256 not in batch.prepared]
    existing = archive.existing_images(connection, archive_id, unprepared)
    offered = {}
    for part, sha256 in batch.hashes.items():
        facts = batch.prepared.get(sha256) or existing.get(sha256)
        if facts is None:
            raise ArchiveChanged(
                "a picture was removed from the archive while its duplicate was processed; it is read again"
            )
        file = batch.files[part]
        offered[part] = NewImage(
            sha256,
            file.source,
            file.uri,
            file.caption,
            facts.width,
            facts.height,
            facts.media_type,
            file.metadata,
            batch.embedded.get(sha256),
        )
    return offered


def _outcome(part: Part, row: StoredRow | None, batch: Batch) -> FileOutcome | None:
    """The outcome of the part's file; None while pages of it are missing. `row` is None for a rejected picture."""
    if row is None:
        return batch.documents.add(part, FileOutcome.of_rejected(part.file_no, batch.rejected[part]))
    prepared = batch.prepared.get(batch.hashes[part])
    reason = prepared.note if prepared is not None else None
    if row.status is FileStatus.UPDATED:
        updated = [name for name in ("caption", "metadata") if getattr(row, f"{name}_updated")]
        reason = f"{' and '.join(updated)} updated"
    elif row.status is FileStatus.DUPLICATE:
        reason = f"the same picture as {row.source}"
    outcome = FileOutcome(part.file_no, row.status, reason, row.image_id)
    return batch.documents.add(part, outcome, part.missing(batch.files[part]))


def _retire_former_pages(connection: Connection, archive_id: int, batch: Batch) -> None:
    """Retire the pages that an earlier version of a document had and this one does not have."""
    last = {part: batch.files[part].uri for part in batch.files if part.is_last and part not in batch.rejected}
    documents = {part: uri.partition(archive.PAGE_MARK)[0] for part, uri in last.items()}
    former = []
    for uri in image_changes.images_at(connection, archive_id, set(documents.values())):
        document, _, page = uri.partition(archive.PAGE_MARK)
        pages = next(part.pages for part, base in documents.items() if base == document)
        if (int(page) if page else 0) > pages or (pages and not page):
            former.append(uri)
    if former:
        archive.retire_images(connection, archive_id, former)
