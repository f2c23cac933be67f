"""The life of an index: building, active, retired, dropped (docs/reliability.md D12).

An archive has one active index, from which its questions are answered, and sometimes one that is being built beside it.
New images go to both. A retired index gets no new images; it is kept for a rollback until it is dropped.

A transaction that adds images to an archive locks its row shared (`lock_archive`); one that creates, switches or drops
an index locks it exclusively. So no image can miss an index that is created meanwhile, and a count before the switch
is still right at the switch.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select, text, update

from ragllava.errors import Conflict, IndexUnusable, NotFound
from ragllava.stores.archives import vectors
from ragllava.stores.archives.vectors import MAX_DIMENSIONS, IndexView, index_gone, partition
from ragllava.stores.database import record
from ragllava.stores.schema import archives, indexes, jobs


@dataclass(frozen=True, slots=True)
class IndexDetails:
    """An overview of an index. `job_id` is the open job that fills it; `gate` what its gate measured."""

    index: IndexView
    archive: str
    images: int
    gate: dict[str, Any] | None
    created_at: datetime
    activated_at: datetime | None
    retired_at: datetime | None
    job_id: int | None


def lock_archive(connection: Connection, archive_id: int, *, shared: bool) -> None:
    """Lock the archive's row until the end of the transaction: shared to add images, exclusively to change indexes."""
    row = select(archives.c.id).where(archives.c.id == archive_id)
    connection.execute(row.with_for_update(read=True) if shared else row.with_for_update(key_share=True))


def create_index(
    connection: Connection,
    archive_id: int,
    retriever: str,
    dim: int,
    spec: dict[str, Any] | None = None,
    *,
    beside_active: bool = False,
) -> int:
    """The id of the archive's index by this retriever: the building or active one, or a new, empty one.

    With `beside_active`, the active one does not count: its images are embedded again, by the same retriever.
    Concurrent callers get the same index. Raises IndexUnusable when the existing index has another number of
    dimensions.
    """
    if not 0 < dim <= MAX_DIMENSIONS:
        raise IndexUnusable(f"{retriever} gives {dim} dimensions; an index holds 1 to {MAX_DIMENSIONS}")
    lock_archive(connection, archive_id, shared=False)
    for index in living_indexes(connection, archive_id):
        if index.retriever == retriever and not (beside_active and index.state == "active"):
            if index.dim != dim:
                raise IndexUnusable(
                    f"index {index.index_id} holds vectors of {index.dim} dimensions, but {retriever} gives {dim}"
                )
            return index.index_id
    values = {"archive_id": archive_id, "retriever": retriever, "dim": dim, "state": "building", "spec": spec}
    created = connection.execute(indexes.insert().values(values).returning(indexes.c.id)).scalar_one()
    create_partition(connection, created, dim)
    return int(created)


def create_partition(connection: Connection, index_id: int, dim: int) -> None:
    """Make the table of the vectors of an index."""
    # Created first, then attached: CREATE TABLE … PARTITION OF would wait for every running search and block new ones.
    name = partition(index_id)
    connection.execute(
        text(f"""
            CREATE TABLE {name} (
                LIKE embeddings INCLUDING STORAGE,
                CONSTRAINT {name}_dimensions CHECK (vector_dims(vector) = {dim})
            )
        """)
    )
    connection.execute(text(f"ALTER TABLE embeddings ATTACH PARTITION {name} FOR VALUES IN ({index_id})"))


def living_indexes(connection: Connection, archive_id: int) -> list[IndexView]:
    """The indexes that new images go to: those that are building or active, by id."""
    return [index for index in vectors.list_indexes(connection, archive_id) if index.state != "retired"]


def activate(connection: Connection, index_id: int) -> None:
    """Answer questions from this index from now on; the archive's former one becomes retired, its vectors stay.

    Of two concurrent calls the later one wins. Raises IndexGone.
    """
    archive_id = connection.scalar(
        update(archives)
        .where(archives.c.id == indexes.c.archive_id, indexes.c.id == index_id)
        .values(active_index_id=index_id)
        .returning(archives.c.id)
    )
    if archive_id is None:
        raise index_gone(index_id)
    former = (indexes.c.archive_id == archive_id, indexes.c.state == "active", indexes.c.id != index_id)
    connection.execute(update(indexes).where(*former).values(state="retired", retired_at=func.now()))
    activated = update(indexes).where(indexes.c.id == index_id, indexes.c.state != "active")
    connection.execute(activated.values(state="active", activated_at=func.now(), retired_at=None))


def revive(connection: Connection, index_id: int) -> None:
    """Let new images go to a retired index again, so that it can be filled; no effect in other states."""
    lock_archive(connection, vectors.get_index(connection, index_id).archive_id, shared=False)
    retired = update(indexes).where(indexes.c.id == index_id, indexes.c.state == "retired")
    connection.execute(retired.values(state="building", retired_at=None))


def retire(connection: Connection, index_id: int) -> None:
    """Stop adding images to an index that is being built: it will not become active. No effect in other states."""
    building = update(indexes).where(indexes.c.id == index_id, indexes.c.state == "building")
    connection.execute(building.values(state="retired", retired_at=func.now()))


def set_gate(connection: Connection, index_id: int, gate: dict[str, Any]) -> None:
    """Store what the gate of an index measured, in place of an earlier result."""
    connection.execute(update(indexes).where(indexes.c.id == index_id).values(gate=gate))


def drop_index(connection: Connection, index_id: int) -> None:
    """Drop an index and its vectors; no effect when it is dropped already.

    Raises UsageError for the active one, and for one that an open job fills. Waits for running searches.
    """
    archive_id = connection.scalar(select(indexes.c.archive_id).where(indexes.c.id == index_id))
    if archive_id is None:
        return
    lock_archive(connection, archive_id, shared=False)
    state = connection.scalar(select(indexes.c.state).where(indexes.c.id == index_id).with_for_update())
    if state == "active":
        raise Conflict(f"index {index_id} is the active one of its archive; activate another one first")
    job_id = connection.scalar(select(jobs.c.id).where(*_fills(index_id), jobs.c.finished_at.is_(None)).limit(1))
    if job_id is not None:
        raise Conflict(f"job {job_id} fills index {index_id}; stop it first: `ragllava jobs cancel {job_id}`")
    connection.execute(text(f"DROP TABLE IF EXISTS {partition(index_id)}"))
    connection.execute(indexes.delete().where(indexes.c.id == index_id))


def find_index(connection: Connection, index_id: int) -> IndexDetails:
    """One index. Raises UsageError for an unknown id."""
    row = connection.execute(_select_details().where(indexes.c.id == index_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no index {index_id}; `ragllava index list` shows all")
    return _details(connection, row)


def all_indexes(connection: Connection, archive_id: int | None = None) -> list[IndexDetails]:
    """The indexes of an archive, or of all, by archive and age."""
    query = _select_details().order_by(archives.c.name, indexes.c.id)
    if archive_id is not None:
        query = query.where(indexes.c.archive_id == archive_id)
    return [_details(connection, row) for row in connection.execute(query).all()]


def _select_details() -> Any:
    filling = select(func.max(jobs.c.id)).where(*_fills(indexes.c.id), jobs.c.finished_at.is_(None)).scalar_subquery()
    return select(indexes, archives.c.name.label("archive"), filling.label("job_id")).join(
        archives, archives.c.id == indexes.c.archive_id
    )


def _fills(index_id: Any) -> tuple[Any, ...]:
    return jobs.c.kind == "reindex", jobs.c.spec["index"].as_integer() == index_id


def _details(connection: Connection, row: Row[Any]) -> IndexDetails:
    index = vectors.get_index(connection, row.id)
    return record(IndexDetails, row, index=index, images=vectors.count_embeddings(connection, row.id))
