"""The life of an index: building, active, retired, dropped (docs/reliability.md D12).

An archive has one active index, from which its questions are answered, and perhaps one that is being built beside it.
New images go to both. A retired index gets nothing new any more; it waits for a roll-back until it is dropped.

Who adds images to an archive holds its row shared (`lock_archive`), and whoever makes, switches or drops an index holds
it alone. So no image can miss an index that came into being meanwhile, and a count before the switch is still right
at the switch.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select, text, update

from ragllava.errors import IndexUnusable, UsageError
from ragllava.stores.archives import vectors
from ragllava.stores.archives.vectors import MAX_DIMENSIONS, IndexView, index_gone, partition
from ragllava.stores.schema import archives, indexes, jobs


@dataclass(frozen=True, slots=True)
class IndexDetails:
    """What people want to know of an index. `job_id` is the open job that fills it; `gate` what its gate measured."""

    index: IndexView
    archive: str
    images: int
    gate: dict[str, Any] | None
    created_at: datetime
    activated_at: datetime | None
    retired_at: datetime | None
    job_id: int | None


def lock_archive(connection: Connection, archive_id: int, *, shared: bool) -> None:
    """Hold the archive's row to the end of the transaction: shared by who adds images, alone by who changes indexes."""
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
    """The id of the archive's index by this retriever: the one that is building or active, or a new, empty one.

    With `beside_active`, the active one does not count: its images are embedded again, by the same retriever. Any
    number of workers may call this at once and get the same index. Raises IndexUnusable when the index that is there
    has another number of dimensions.
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
    _create_partition(connection, created, dim)
    return int(created)


def _create_partition(connection: Connection, index_id: int, dim: int) -> None:
    # Made aside and then attached: CREATE TABLE … PARTITION OF would wait for, and hold up, every running search.
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

    Two at once happen one after the other, and the later one wins.
    """
    archive_id = connection.scalar(
        update(archives)
        .where(archives.c.id == indexes.c.archive_id, indexes.c.id == index_id)
        .values(active_index_id=index_id)
        .returning(archives.c.id)
    )
    if archive_id is None:
        raise index_gone(index_id)
    connection.execute(
        update(indexes)
        .where(indexes.c.archive_id == archive_id, indexes.c.state == "active", indexes.c.id != index_id)
        .values(state="retired", retired_at=func.now())
    )
    connection.execute(
        update(indexes)
        .where(indexes.c.id == index_id, indexes.c.state != "active")
        .values(state="active", activated_at=func.now(), retired_at=None)
    )


def revive(connection: Connection, index_id: int) -> None:
    """Let new images go to a retired index again, so that it can be filled; others stay as they are."""
    lock_archive(connection, vectors.get_index(connection, index_id).archive_id, shared=False)
    connection.execute(
        update(indexes)
        .where(indexes.c.id == index_id, indexes.c.state == "retired")
        .values(state="building", retired_at=None)
    )


def retire(connection: Connection, index_id: int) -> None:
    """Let nothing new go to an index that is being built: it will not become active. The active one stays as it is."""
    connection.execute(
        update(indexes)
        .where(indexes.c.id == index_id, indexes.c.state == "building")
        .values(state="retired", retired_at=func.now())
    )


def set_gate(connection: Connection, index_id: int, gate: dict[str, Any]) -> None:
    """Write down what the gate of an index measured, in place of what an earlier one did."""
    connection.execute(update(indexes).where(indexes.c.id == index_id).values(gate=gate))


def drop_index(connection: Connection, index_id: int) -> None:
    """Forget an index and its vectors; harmless when it is gone already.

    Raises UsageError for the active one, and for one that an open job fills. A search that runs right now ends first.
    """
    archive_id = connection.scalar(select(indexes.c.archive_id).where(indexes.c.id == index_id))
    if archive_id is None:
        return
    lock_archive(connection, archive_id, shared=False)
    state = connection.scalar(select(indexes.c.state).where(indexes.c.id == index_id).with_for_update())
    if state == "active":
        raise UsageError(f"index {index_id} is the active one of its archive; activate another one first")
    job_id = connection.scalar(select(jobs.c.id).where(*_fills(index_id), jobs.c.finished_at.is_(None)).limit(1))
    if job_id is not None:
        raise UsageError(f"job {job_id} fills index {index_id}; stop it first: `ragllava jobs cancel {job_id}`")
    connection.execute(text(f"DROP TABLE IF EXISTS {partition(index_id)}"))
    connection.execute(indexes.delete().where(indexes.c.id == index_id))


def droppable_indexes(connection: Connection, older_than_s: float) -> list[int]:
    """Indexes that nothing has needed for so long: retired ones, and half-built ones whose job has ended.

    An index that passed its gate and waits for its switch is kept; so is one that an open job fills.
    """
    rows = connection.scalars(
        text("""
            SELECT i.id FROM indexes i
            WHERE (i.state = 'retired' OR (i.state = 'building' AND i.gate IS NULL))
              AND coalesce(i.retired_at, i.activated_at, i.created_at) < now() - make_interval(secs => :age)
              AND NOT EXISTS (SELECT FROM jobs
                              WHERE kind = 'reindex' AND spec ->> 'index' = i.id::text
                                AND coalesce(finished_at, 'infinity') > now() - make_interval(secs => :age))
            ORDER BY i.id
        """),
        {"age": older_than_s},
    )
    return list(rows)


def find_index(connection: Connection, index_id: int) -> IndexDetails:
    """One index. Raises UsageError for an unknown id."""
    row = connection.execute(_select_details().where(indexes.c.id == index_id)).one_or_none()
    if row is None:
        raise UsageError(f"there is no index {index_id}; `ragllava index list` shows all")
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
    return IndexDetails(
        index=vectors.get_index(connection, row.id),
        archive=row.archive,
        images=vectors.count_embeddings(connection, row.id),
        gate=row.gate,
        created_at=row.created_at,
        activated_at=row.activated_at,
        retired_at=row.retired_at,
        job_id=row.job_id,
    )
