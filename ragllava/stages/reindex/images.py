"""The work of a reindex shard: find the index that the job fills, and embed the images that it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from ragllava.errors import (
    ImageRejected,
    IndexGone,
    IndexUnusable,
    JobRefused,
    ObjectCorrupt,
    ObjectMissing,
    RejectionClass,
)
from ragllava.jobs.runner import ShardContext
from ragllava.models.profiles import RetrieverSource
from ragllava.records import ReindexStatus, Selection
from ragllava.stages.ingest.embedding import one_ahead, prepare_for
from ragllava.stages.resources import Resources
from ragllava.stores.archives import indexes, reindex_items, vectors
from ragllava.stores.archives.reindex_items import ItemOutcome, ReindexItem
from ragllava.stores.archives.vectors import IndexView, Vectors

if TYPE_CHECKING:
    from ragllava.models.retriever import Pixels, Retriever

_GONE = "it left the archive"


@dataclass(frozen=True, slots=True)
class ReindexTarget:
    """The index that a job fills, its retriever, and the job's spec (stores/archives/reindex_items.py)."""

    index: IndexView
    retriever: Retriever
    spec: dict[str, Any]


def find_target(context: ShardContext[Resources]) -> ReindexTarget:
    """The index that the job fills; the first shard that runs chooses or creates it.

    Raises JobRefused when it is gone, or when its retriever cannot be used here.
    """
    lease, resources = context.lease, context.resources
    spec = context.read(reindex_items.job_spec, lease.job_id)
    if spec["index"] is None:
        active = context.read(vectors.active_index, lease.archive_id)
        source = spec["source"] or (active.spec if active else None)
        retriever = resources.load_retriever(source)
        if source and RetrieverSource(**source) == resources.models.profile.retriever:
            source = None
        spec = context.commit_job(_choose_index, context, retriever, source)
    try:
        index = context.read(vectors.get_index, spec["index"])
    except IndexGone:
        raise JobRefused(f"index {spec['index']}, which this job fills, was dropped") from None
    return ReindexTarget(index, resources.retriever_of(index), spec)


def _choose_index(
    connection: Connection, context: ShardContext[Resources], retriever: Retriever, source: dict[str, Any] | None
) -> dict[str, Any]:
    """The job's spec with its index: the active index where that is repaired in place, else a new index beside it."""
    lease = context.lease
    spec = reindex_items.job_spec(connection, lease.job_id)
    if spec["index"] is not None:  # another shard of this job has chosen it
        return spec
    indexes.lock_archive(connection, lease.archive_id, shared=False)
    active = vectors.active_index(connection, lease.archive_id)
    is_own = active is not None and active.retriever == retriever.version
    if active is not None and is_own and spec["selection"] != Selection.ALL:
        index_id = active.index_id
    elif not spec["beside"]:
        raise JobRefused(
            f"the active index is by {active.retriever if active else 'no retriever'}, but this worker runs "
            f"{retriever.version}: vectors of two models never mix; `ragllava reindex --only stale` makes a new index"
        )
    else:
        index_id = _beside(connection, lease.archive_id, retriever, source)
    reindex_items.assign_index(connection, lease.job_id, index_id)
    return spec | {"index": index_id}


def _beside(connection: Connection, archive_id: int, retriever: Retriever, source: dict[str, Any] | None) -> int:
    """A new index, or the incomplete index by the same retriever that an ended job has left."""
    for index in indexes.living_indexes(connection, archive_id):
        if index.state == "building" and index.retriever != retriever.version:
            raise JobRefused(
                f"index {index.index_id} by {index.retriever} is not finished: `ragllava index switch "
                f"{index.index_id}` finishes it, `ragllava index drop {index.index_id}` removes it"
            )
    try:
        return indexes.create_index(
            connection, archive_id, retriever.version, retriever.dim, source, beside_active=True
        )
    except IndexUnusable as error:
        raise JobRefused(str(error)) from error


@dataclass(frozen=True, slots=True)
class _Batch:
    """A sub-batch to embed: the prepared pictures, by image, and the outcomes of the other items."""

    items: Sequence[ReindexItem]
    pictures: dict[int, Pixels]
    outcomes: list[ItemOutcome]


def embed_items(
    context: ShardContext[Resources], target: ReindexTarget, items: Sequence[ReindexItem]
) -> dict[int, str]:
    """Embed the images without a vector, a sub-batch at a time; returns why pictures could not be read, by image."""
    unreadable: dict[int, str] = {}
    waiting = iter(items)

    def next_batch() -> _Batch | None:
        chunk = list(islice(waiting, context.settings.files_per_step))
        return _read_batch(context, target, chunk, unreadable) if chunk else None

    for batch in one_ahead(next_batch):
        context.check()
        pictures = list(batch.pictures.values())
        embedded = target.retriever.embed_pixels(pictures, batch_size=context.settings.embed_batch)
        context.commit(_store, context, target, batch, embedded)
    return unreadable


def _read_batch(
    context: ShardContext[Resources], target: ReindexTarget, chunk: Sequence[ReindexItem], unreadable: dict[int, str]
) -> _Batch:
    images = {item.image.image_id: item.image for item in chunk if item.image}
    wanted = context.read(vectors.missing_embeddings, target.index.index_id, list(images))
    hashes = [images[image_id].sha256 for image_id in wanted]
    contents = context.resources.threads.map(lambda sha256: _fetch(context.resources, sha256), hashes)
    prepared = dict(zip(wanted, prepare_for([target.retriever], contents, context.resources), strict=True))
    failed = {image_id: str(result) for image_id, result in prepared.items() if isinstance(result, ImageRejected)}
    unreadable.update(failed)
    outcomes: list[ItemOutcome] = []
    for item in chunk:
        if item.image is None:
            outcomes += item.ended(ReindexStatus.SKIPPED, _GONE)
        elif item.image.image_id in failed:
            outcomes += item.ended(ReindexStatus.UNREADABLE, failed[item.image.image_id])
        elif item.image.image_id not in prepared:
            outcomes += item.ended(ReindexStatus.SKIPPED, "it has its vector already")
    version = target.retriever.version
    readable = {key: result for key, result in prepared.items() if not isinstance(result, ImageRejected)}
    return _Batch(chunk, {image_id: result.pixels[version] for image_id, result in readable.items()}, outcomes)


def _fetch(resources: Resources, sha256: str) -> bytes | ImageRejected:
    try:
        return resources.objects.get_content(sha256)
    except (ObjectMissing, ObjectCorrupt) as error:
        return ImageRejected(RejectionClass.UNREADABLE, str(error))


def _store(
    connection: Connection, context: ShardContext[Resources], target: ReindexTarget, batch: _Batch, embedded: Vectors
) -> None:
    """Write vectors and outcomes of a sub-batch; an image that was retired meanwhile gets no vector."""
    present = reindex_items.lock_images(connection, list(batch.pictures))
    rows = [row for row, image_id in enumerate(batch.pictures) if image_id in present]
    ids = [image_id for image_id in batch.pictures if image_id in present]
    vectors.insert_embeddings(connection, target.index.index_id, ids, embedded[rows])
    outcomes = list(batch.outcomes)
    for item in batch.items:
        if item.image is not None and item.image.image_id in batch.pictures:
            is_here = item.image.image_id in present
            outcomes += item.ended(ReindexStatus.EMBEDDED) if is_here else item.ended(ReindexStatus.SKIPPED, _GONE)
    reindex_items.finish_items(connection, context.lease.job_id, outcomes)
