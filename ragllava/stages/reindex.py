"""Embeds an archive's images into an index, anew or where vectors are missing, while questions go on (RELIABILITY D12).

A reindex job has the images as its inputs and, as a last shard of its own, the gate (reindex_gate.py). A new index is
built beside the active one and gets new pictures from its first moment; nothing is answered from it before the gate
has passed. Every sub-batch is committed behind the fence and what has its vector is left out, so a job that was killed
goes on where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine

from ragllava.errors import (
    ImageRejected,
    IndexGone,
    IndexUnusable,
    JobRefused,
    ObjectCorrupt,
    ObjectMissing,
    UsageError,
)
from ragllava.jobs import control
from ragllava.jobs.control import NewJob
from ragllava.jobs.runner import ShardContext
from ragllava.models.profiles import RetrieverSource
from ragllava.records import JobKind, ReindexStatus, Selection
from ragllava.settings import Settings
from ragllava.stages.embedding import decode_for, one_ahead
from ragllava.stages.resources import Resources
from ragllava.stores import archive, indexes, reindexed, vectors
from ragllava.stores.database import in_transaction
from ragllava.stores.reindexed import ItemOutcome, ReindexItem
from ragllava.stores.vectors import IndexView, Vectors

if TYPE_CHECKING:
    from ragllava.models.retriever import Retriever

log = logging.getLogger(__name__)

REINDEX_PRIORITY = -10  # everything else goes first
SWITCH_PRIORITY = 0

_GONE = "it left the archive"
_FAILED = (ReindexStatus.UNREADABLE, ReindexStatus.FAILED, ReindexStatus.DEAD)


@dataclass(frozen=True, slots=True)
class ReindexRequest:
    """What is to be embedded, and by whom. `retriever` None: by the active index's own.

    `switch`: answer questions from a new index as soon as its gate has passed.
    """

    archive: str
    selection: Selection
    retriever: RetrieverSource | None = None
    switch: bool = True
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """The index that a job fills, its retriever, and what the job is to do (stores/reindexed.py)."""

    index: IndexView
    retriever: Retriever
    spec: dict[str, Any]


def submit_reindex(engine: Engine, settings: Settings, request: ReindexRequest) -> int:
    """Queue a reindexing; returns its job.

    Raises UsageError for an archive without images, while another job builds an index of it, and for selections that
    make no sense with another retriever.
    """
    if request.retriever is not None and request.selection not in (Selection.MISSING, Selection.ALL):
        raise UsageError(f"--only {request.selection} is about the active index; with another retriever say --only all")

    def work(connection: Connection) -> int:
        one = archive.get_archive(connection, request.archive)
        active = vectors.active_index(connection, one.archive_id)
        if active is None:
            raise UsageError(f"the archive {one.name!r} has no image yet; `ragllava ingest` adds some")
        beside = request.retriever is not None or request.selection in (Selection.ALL, Selection.STALE)
        if beside:
            _refuse_second(connection, one.archive_id)
        images = _select_images(connection, active, request.selection, beside=beside)
        spec = {
            "source": request.retriever.as_json() if request.retriever else None,
            "selection": request.selection.value,
            "beside": beside,
            "compare": beside,
            "switch": request.switch,
            "index": None,
        }
        return _create(connection, settings, one.archive_id, spec, images, request.idempotency_key)

    return in_transaction(engine, work)


def submit_switch(engine: Engine, settings: Settings, index_id: int) -> int:
    """Queue a job that fills an index with what came since it was retired or built, and then switches to it.

    From now on new pictures go to it, too. Its gate counts and measures the recall; answers are not compared, because
    somebody has decided. Raises UsageError for the active index, and while another job builds an index of the archive.
    """

    def work(connection: Connection) -> int:
        found = indexes.find_index(connection, index_id)
        index = found.index
        if index.state == "active":
            raise UsageError(f"index {index_id} is the active one of {found.archive!r} already")
        _refuse_second(connection, index.archive_id)
        indexes.revive(connection, index_id)
        images = [image.image_id for image in vectors.unembedded_images(connection, index_id)]
        spec = {
            "source": index.spec,
            "selection": Selection.MISSING.value,
            "beside": True,
            "compare": False,
            "switch": True,
            "index": index_id,
        }
        return _create(connection, settings, index.archive_id, spec, images, None, priority=SWITCH_PRIORITY)

    return in_transaction(engine, work)


def _refuse_second(connection: Connection, archive_id: int) -> None:
    reindexed.lock_submits(connection, archive_id)
    for job_id in reindexed.open_jobs(connection, archive_id):
        raise UsageError(
            f"job {job_id} builds an index of this archive already; wait for it, or stop it with "
            f"`ragllava jobs cancel {job_id}`"
        )


def _select_images(connection: Connection, active: IndexView, selection: Selection, *, beside: bool) -> list[int]:
    if beside:
        return reindexed.all_images(connection, active.archive_id)
    if selection is Selection.MISSING:
        return [image.image_id for image in vectors.unembedded_images(connection, active.index_id)]
    gaps = reindexed.gaps(connection, active.archive_id, active.index_id)
    return sorted(gap.image.image_id for gap in gaps if gap.status in _FAILED)


def _create(
    connection: Connection,
    settings: Settings,
    archive_id: int,
    spec: dict[str, Any],
    images: Sequence[int],
    key: str | None,
    *,
    priority: int = REINDEX_PRIORITY,
) -> int:
    job_id, is_new = control.create(
        connection,
        NewJob(
            kind=JobKind.REINDEX,
            archive_id=archive_id,
            spec=spec | {"gate": len(images)},
            total=len(images) + 1,
            per_shard=settings.files_per_shard,
            priority=priority,
            idempotency_key=key,
            content_digest=spec["selection"],
            last_on="query" if spec["compare"] else "ingest",
        ),
    )
    if is_new:
        reindexed.insert_items(connection, job_id, images)
    return job_id


def reindex_stage(context: ShardContext[Resources]) -> None:
    """Embed the images of one shard that have no outcome yet; or, as the last shard, pass the gate."""
    from ragllava.stages.reindex_gate import pass_gate

    lease = context.lease
    target = find_target(context)
    if lease.lo == target.spec["gate"]:
        pass_gate(context, target)
    else:
        items = context.read(lambda c: reindexed.load_items(c, lease.job_id, lease.lo, lease.hi))
        embed_items(context, target, items)


def find_target(context: ShardContext[Resources]) -> Target:
    """The index that the job fills; the first shard that runs chooses or makes it.

    Raises JobRefused when it is gone, or when its retriever cannot be used here.
    """
    lease, resources = context.lease, context.resources
    spec = context.read(lambda c: reindexed.job_spec(c, lease.job_id))
    if spec["index"] is None:
        active = context.read(lambda c: vectors.active_index(c, lease.archive_id))
        source = spec["source"] or (active.spec if active else None)
        retriever = resources.load_retriever(source)
        own = RetrieverSource.of(resources.models.profile)
        named = source if source and RetrieverSource(**source) != own else None
        spec = context.commit(lambda c: _choose_index(c, context, retriever, named))
    try:
        index = context.read(lambda c: vectors.get_index(c, spec["index"]))
    except IndexGone:
        raise JobRefused(f"index {spec['index']}, which this job fills, was dropped") from None
    return Target(index, resources.retriever_of(index), spec)


def _choose_index(
    connection: Connection, context: ShardContext[Resources], retriever: Retriever, source: dict[str, Any] | None
) -> dict[str, Any]:
    """The job's spec with its index: the active one where that is repaired in place, else one beside it."""
    lease = context.lease
    spec = reindexed.job_spec(connection, lease.job_id)
    if spec["index"] is not None:  # another shard of this job was quicker
        return spec
    indexes.lock_archive(connection, lease.archive_id, shared=False)
    active = vectors.active_index(connection, lease.archive_id)
    is_own = active is not None and active.retriever == retriever.version
    if active is not None and is_own and spec["selection"] != Selection.ALL:
        index_id = active.index_id
    elif not spec["beside"]:
        raise JobRefused(
            f"the active index is by {active.retriever if active else 'nobody'}, but this worker runs "
            f"{retriever.version}: vectors of two models never mix; `ragllava reindex --only stale` makes a new index"
        )
    else:
        index_id = _beside(connection, lease.archive_id, retriever, source)
    reindexed.assign_index(connection, lease.job_id, index_id)
    return spec | {"index": index_id}


def _beside(connection: Connection, archive_id: int, retriever: Retriever, source: dict[str, Any] | None) -> int:
    """A new index, or the half-built one by the same retriever that an ended job has left."""
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
    """One sub-batch on its way: the pictures that were read, by image, and what was found out about the others."""

    items: Sequence[ReindexItem]
    pictures: dict[int, Any]
    outcomes: list[ItemOutcome]


def embed_items(context: ShardContext[Resources], target: Target, items: Sequence[ReindexItem]) -> dict[int, str]:
    """Embed what has no vector yet, a sub-batch at a time; returns why pictures could not be read, by image."""
    unreadable: dict[int, str] = {}
    waiting = iter(items)

    def next_batch() -> _Batch | None:
        chunk = list(islice(waiting, context.settings.files_per_step))
        return _read_batch(context, target, chunk, unreadable) if chunk else None

    for batch in one_ahead(next_batch):
        context.check()
        pictures = list(batch.pictures.values())
        embedded = target.retriever.embed_images(pictures, batch_size=context.settings.embed_batch)
        context.commit(lambda c, batch=batch, embedded=embedded: _store(c, context, target, batch, embedded))  # type: ignore[misc]
    return unreadable


def _read_batch(
    context: ShardContext[Resources], target: Target, chunk: Sequence[ReindexItem], unreadable: dict[int, str]
) -> _Batch:
    images = {item.image.image_id: item.image for item in chunk if item.image}
    wanted = context.read(lambda c: vectors.missing_embeddings(c, target.index.index_id, list(images)))
    hashes = [images[image_id].sha256 for image_id in wanted]
    contents = context.resources.threads.map(lambda sha256: _fetch(context.resources, sha256), hashes)
    decoded = dict(zip(wanted, decode_for(target.retriever, contents, context.resources), strict=True))
    failed = {image_id: str(result) for image_id, result in decoded.items() if isinstance(result, ImageRejected)}
    unreadable.update(failed)
    outcomes: list[ItemOutcome] = []
    for item in chunk:
        if item.image is None:
            outcomes += item.ended(ReindexStatus.SKIPPED, _GONE)
        elif item.image.image_id in failed:
            outcomes += item.ended(ReindexStatus.UNREADABLE, failed[item.image.image_id])
        elif item.image.image_id not in decoded:
            outcomes += item.ended(ReindexStatus.SKIPPED, "it has its vector already")
    pictures = {
        image_id: result.picture for image_id, result in decoded.items() if not isinstance(result, ImageRejected)
    }
    return _Batch(chunk, pictures, outcomes)


def _fetch(resources: Resources, sha256: str) -> bytes | ImageRejected:
    try:
        return resources.objects.get_content(sha256)
    except (ObjectMissing, ObjectCorrupt) as error:
        return ImageRejected(str(error))


def _store(
    connection: Connection, context: ShardContext[Resources], target: Target, batch: _Batch, embedded: Vectors
) -> None:
    """Write vectors and outcomes of a sub-batch; a picture that was retired meanwhile gets no vector."""
    present = reindexed.lock_images(connection, list(batch.pictures))
    rows = [row for row, image_id in enumerate(batch.pictures) if image_id in present]
    ids = [image_id for image_id in batch.pictures if image_id in present]
    vectors.insert_embeddings(connection, target.index.index_id, ids, embedded[rows])
    outcomes = list(batch.outcomes)
    for item in batch.items:
        if item.image is not None and item.image.image_id in batch.pictures:
            is_here = item.image.image_id in present
            outcomes += item.ended(ReindexStatus.EMBEDDED) if is_here else item.ended(ReindexStatus.SKIPPED, _GONE)
    reindexed.finish_items(connection, context.lease.job_id, outcomes)
