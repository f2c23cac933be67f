"""Reindexing as a job: embeds an archive's images into a new index, or where vectors are missing, while questions are
answered (docs/reliability.md D12).

The inputs of the job are the images (images.py) and, in a last shard of its own, the gate (gate.py). A new index is
built beside the active one and receives new pictures from the start; it answers no question before the gate has
passed. Every sub-batch is committed behind the fence, and images with a vector are skipped, so a killed job continues
where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection

from ragllava.errors import UsageError
from ragllava.jobs import control
from ragllava.jobs.control import NewJob
from ragllava.jobs.runner import ShardContext
from ragllava.models.profiles import RetrieverSource
from ragllava.records import JobKind, ReindexStatus, Selection
from ragllava.settings import Settings
from ragllava.stages.reindex.gate import pass_gate
from ragllava.stages.reindex.images import embed_items, find_target
from ragllava.stages.resources import Resources
from ragllava.stores.archives import archive, indexes, reindex_items, vectors
from ragllava.stores.archives.vectors import IndexView

REINDEX_PRIORITY = -10  # below all other jobs
SWITCH_PRIORITY = 0

_FAILED = (ReindexStatus.UNREADABLE, ReindexStatus.FAILED, ReindexStatus.DEAD)


@dataclass(frozen=True, slots=True)
class ReindexRequest:
    """What to embed. `retriever` None: with the active index's retriever.

    `switch`: make a new index the active one as soon as its gate has passed. `name` is what the lists of jobs call it.
    """

    archive: str
    selection: Selection
    retriever: RetrieverSource | None = None
    switch: bool = True
    idempotency_key: str | None = None
    name: str | None = None


def submit_reindex(connection: Connection, settings: Settings, request: ReindexRequest) -> int:
    """Queue a reindexing; returns its job.

    Raises UsageError for an archive without images, while another job builds an index of it, and for selections that
    another retriever excludes.
    """
    check_selection(request)
    archive_id = archive.get_archive(connection, request.archive).archive_id
    active = vectors.active_index(connection, archive_id)
    if active is None:
        raise UsageError(f"the archive {request.archive!r} has no image yet; `ragllava ingest` adds some")
    beside = request.retriever is not None or request.selection in (Selection.ALL, Selection.STALE)
    if beside:
        _refuse_second(connection, archive_id)
    images = _select_images(connection, active, request.selection, beside=beside)
    spec = {
        "source": asdict(request.retriever) if request.retriever else None,
        "selection": request.selection.value,
        "beside": beside,
        "compare": beside,
        "switch": request.switch,
        "index": None,
    }
    return _create(connection, settings, archive_id, spec, images, request.idempotency_key, name=request.name)


def check_selection(request: ReindexRequest) -> None:
    """Raises UsageError for a selection that another retriever excludes."""
    if request.retriever is not None and request.selection not in (Selection.MISSING, Selection.ALL):
        raise UsageError(f"--only {request.selection} concerns the active index; with another retriever use --only all")


def submit_switch(connection: Connection, settings: Settings, index_id: int) -> int:
    """Queue a job that completes a building or retired index and then switches to it.

    From now on the index also receives new pictures. Its gate counts and measures the recall; answers are not compared,
    because the user has decided. Raises UsageError for the active index, and while another job builds an index of the
    archive.
    """
    details = indexes.find_index(connection, index_id)
    index = details.index
    if index.state == "active":
        raise UsageError(f"index {index_id} is already the active index of {details.archive!r}")
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


def _refuse_second(connection: Connection, archive_id: int) -> None:
    reindex_items.lock_submits(connection, archive_id)
    for job_id in reindex_items.open_jobs(connection, archive_id):
        raise UsageError(
            f"job {job_id} builds an index of this archive already; wait for it, or stop it with "
            f"`ragllava jobs cancel {job_id}`"
        )


def _select_images(connection: Connection, active: IndexView, selection: Selection, *, beside: bool) -> list[int]:
    if beside:
        return reindex_items.all_images(connection, active.archive_id)
    if selection is Selection.MISSING:
        return [image.image_id for image in vectors.unembedded_images(connection, active.index_id)]
    gaps = reindex_items.gaps(connection, active.archive_id, active.index_id)
    return sorted(gap.image.image_id for gap in gaps if gap.status in _FAILED)


def _create(  # noqa: PLR0913 - what a job has
    connection: Connection,
    settings: Settings,
    archive_id: int,
    spec: dict[str, Any],
    images: Sequence[int],
    key: str | None,
    *,
    priority: int = REINDEX_PRIORITY,
    name: str | None = None,
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
            name=name,
        ),
    )
    if is_new:
        reindex_items.insert_items(connection, job_id, images)
    return job_id


def reindex_stage(context: ShardContext[Resources]) -> None:
    """Embed the images of one shard that have no outcome yet; or, as the last shard, pass the gate."""
    lease = context.lease
    target = find_target(context)
    if lease.lo == target.spec["gate"]:
        pass_gate(context, target)
    else:
        items = context.read(reindex_items.load_items, lease.job_id, lease.lo, lease.hi)
        embed_items(context, target, items)
