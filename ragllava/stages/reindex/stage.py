"""Reindexing as a job: an archive's images go into an index, anew or where vectors are missing, while questions go on
(docs/reliability.md D12).

The inputs of the job are the images (reindex_images.py) and, as a last shard of its own, the gate (reindex_gate.py). A
new index is built beside the active one and gets new pictures from its first moment; nothing is answered from it before
the gate has passed. Every sub-batch is committed behind the fence and what has its vector is left out, so a job that
was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Engine

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
from ragllava.stores.database import in_transaction

REINDEX_PRIORITY = -10  # everything else goes first
SWITCH_PRIORITY = 0

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


def submit_reindex(engine: Engine, settings: Settings, request: ReindexRequest) -> int:
    """Queue a reindexing; returns its job. Raises UsageError as `create_reindex`."""
    return in_transaction(engine, create_reindex, settings, request)


def create_reindex(connection: Connection, settings: Settings, request: ReindexRequest) -> int:
    """Make the job in the caller's transaction.

    Raises UsageError for an archive without images, while another job builds an index of it, and for selections that
    make no sense with another retriever.
    """
    check_selection(request)
    one = archive.get_archive(connection, request.archive)
    active = vectors.active_index(connection, one.archive_id)
    if active is None:
        raise UsageError(f"the archive {one.name!r} has no image yet; `ragllava ingest` adds some")
    beside = request.retriever is not None or request.selection in (Selection.ALL, Selection.STALE)
    if beside:
        _refuse_second(connection, one.archive_id)
    images = _select_images(connection, active, request.selection, beside=beside)
    spec = {
        "source": asdict(request.retriever) if request.retriever else None,
        "selection": request.selection.value,
        "beside": beside,
        "compare": beside,
        "switch": request.switch,
        "index": None,
    }
    return _create(connection, settings, one.archive_id, spec, images, request.idempotency_key)


def check_selection(request: ReindexRequest) -> None:
    """Raises UsageError for a selection that makes no sense with another retriever."""
    if request.retriever is not None and request.selection not in (Selection.MISSING, Selection.ALL):
        raise UsageError(f"--only {request.selection} is about the active index; with another retriever say --only all")


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
