"""Reindex jobs: which images they embed into which index, and the outcome of each.

The spec of such a job has `source` (where the retriever's files are; null: the active index's or the profile's own),
`selection`, `beside` (a new index beside the active one), `compare` (answer old questions on both), `switch`, `gate`
(the number of the last item, which is not an image), and `index`, as soon as it is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, literal, select, text, update

from ragllava.json_records import from_json
from ragllava.records import JobKind, ReindexStatus, StoredImage
from ragllava.stores.database import copy_rows, equals_any, given, lock_name, record, same
from ragllava.stores.schema import images, jobs, reindexed


@dataclass(frozen=True, slots=True)
class ItemOutcome:
    """The outcome of an item; `reason` is a sentence for the user."""

    item_no: int
    status: ReindexStatus
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ReindexItem:
    """An image to embed. `item_no` None: not an input of the job; `image` None: retired since the submit."""

    item_no: int | None
    image: StoredImage | None

    def ended(self, status: ReindexStatus, reason: str | None = None) -> list[ItemOutcome]:
        """Its outcome, if it is an input of the job; else nothing."""
        return [] if self.item_no is None else [ItemOutcome(self.item_no, status, reason)]


@dataclass(frozen=True, slots=True)
class ReindexingView:
    """A reindexing: its index, as soon as there is one, and the outcome of its gate."""

    index_id: int | None
    selection: str
    gate_status: ReindexStatus | None
    reason: str | None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        gate = {"status": self.gate_status.value if self.gate_status else None, "reason": self.reason}
        return {"index": self.index_id, "selection": self.selection, "gate": gate}


@dataclass(frozen=True, slots=True)
class GapRow:
    """An image without a vector in an index, and the latest reindexing that tried to embed it, if any."""

    image: StoredImage
    job_id: int | None
    job_is_open: bool
    status: ReindexStatus | None
    reason: str | None


def insert_items(connection: Connection, job_id: int, image_ids: Sequence[int]) -> None:
    """Write the inputs of a reindex job: the images in the order given and, last, the gate."""
    rows = ((job_id, number, image_id) for number, image_id in enumerate([*image_ids, None]))
    copy_rows(connection, reindexed, ("job_id", "item_no", "image_id"), rows)


def load_items(connection: Connection, job_id: int, lo: int, hi: int) -> list[ReindexItem]:
    """Items with numbers in [lo, hi) that have no outcome yet, in order; a retired image counts as removed."""
    query = text("""
        SELECT r.item_no, i.id, i.sha256, i.source, i.caption
        FROM reindexed r LEFT JOIN images i ON i.id = r.image_id AND NOT i.retired
        WHERE r.job_id = :job_id AND r.item_no >= :lo AND r.item_no < :hi AND r.status IS NULL
        ORDER BY r.item_no
    """)
    rows = connection.execute(query, {"job_id": job_id, "lo": lo, "hi": hi})
    return [ReindexItem(row.item_no, StoredImage(*row[1:]) if row.id else None) for row in rows]


def finish_items(connection: Connection, job_id: int, outcomes: Sequence[ItemOutcome]) -> None:
    """Write outcomes of items. An item keeps its first outcome."""
    if not outcomes:
        return
    items = reindexed.c
    numbers = [outcome.item_no for outcome in outcomes]
    near = (items.job_id == job_id, items.item_no.between(min(numbers), max(numbers)))
    rows = ((outcome.item_no, outcome.status, outcome.reason) for outcome in outcomes)
    new = given(rows, items.item_no, items.status, items.reason).c
    ended = update(reindexed).where(*near, items.item_no == new.item_no, items.status.is_(None))
    connection.execute(ended.values(status=new.status, reason=new.reason))


def lock_images(connection: Connection, image_ids: Sequence[int]) -> set[int]:
    """Those of the images that are still in the archive; they cannot be retired before the transaction ends."""
    query = select(images.c.id).where(equals_any(images.c.id, image_ids), ~images.c.retired)
    return set(connection.scalars(query.order_by(images.c.sha256).with_for_update(read=True)))


def all_images(connection: Connection, archive_id: int) -> list[int]:
    """The ids of an archive's images, retired ones left out, ascending."""
    query = select(images.c.id).where(images.c.archive_id == archive_id, ~images.c.retired)
    return list(connection.scalars(query.order_by(images.c.id)))


def count_images(connection: Connection, archive_id: int) -> int:
    """How many images an archive has, retired ones left out."""
    query = select(func.count(images.c.id)).where(images.c.archive_id == archive_id, ~images.c.retired)
    return connection.execute(query).scalar_one()


def job_spec(connection: Connection, job_id: int) -> dict[str, Any]:
    """The job's spec with its current index."""
    return dict(connection.scalar(select(jobs.c.spec).where(jobs.c.id == job_id)) or {})


def assign_index(connection: Connection, job_id: int, index_id: int) -> None:
    """Let all shards of a job fill this index."""
    extended = jobs.c.spec.concat(literal({"index": index_id}, jobs.c.spec.type))
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(spec=extended))


def given_up(connection: Connection, job_id: int) -> dict[int, str]:
    """The images that the job gave up because they killed or failed their workers, with the reason."""
    dead = (reindexed.c.job_id == job_id, reindexed.c.status == ReindexStatus.DEAD, reindexed.c.image_id.is_not(None))
    return dict(connection.execute(select(reindexed.c.image_id, reindexed.c.reason).where(*dead)).all())


def lock_submits(connection: Connection, archive_id: int) -> None:
    """Prevent other submitters from queueing a reindexing of this archive until the end of the transaction."""
    lock_name(connection, "reindexing", archive_id)


def open_jobs(connection: Connection, archive_id: int) -> list[int]:
    """Reindex jobs of an archive that build or fill an index that is not the active one, and have not ended."""
    of_archive = (jobs.c.archive_id == archive_id, jobs.c.kind == JobKind.REINDEX, jobs.c.finished_at.is_(None))
    return list(
        connection.scalars(select(jobs.c.id).where(*of_archive, jobs.c.spec["beside"].as_boolean()).order_by(jobs.c.id))
    )


def views(connection: Connection, specs: Mapping[int, Mapping[str, Any]]) -> dict[int, ReindexingView]:
    """The reindexings of reindex jobs, by job; `specs` are their specs, by job."""
    gates = [(job_id, spec["gate"]) for job_id, spec in specs.items() if spec.get("gate") is not None]
    are_gates = same(reindexed, given(gates, reindexed.c.job_id, reindexed.c.item_no), "job_id", "item_no")
    query = select(reindexed.c.job_id, reindexed.c.status.label("gate_status"), reindexed.c.reason).where(are_gates)
    outcomes = {row.job_id: dict(row._mapping) for row in connection.execute(query)} if gates else {}
    views = {}
    for job_id, spec in specs.items():
        gate = outcomes.get(job_id, {"gate_status": None, "reason": None})
        view = gate | {"index_id": spec["index"], "selection": spec["selection"]}
        views[job_id] = from_json(ReindexingView, view)
    return views


def gaps(connection: Connection, archive_id: int, index_id: int | None) -> list[GapRow]:
    """Every image of an archive that has no vector in the index, with the newest attempt to embed it for this index.

    Sorted by source. `index_id` None: there is no index, so all images.
    """
    no_vector = "true"
    if index_id is not None:
        # Of the whole table, which the role of the HTTP API may read, unlike its partitions.
        vector = f"SELECT 1 FROM embeddings e WHERE e.index_id = {index_id:d} AND e.image_id = i.id LIMIT 1"  # noqa: S608
        no_vector = f"({vector}) IS NULL"
    query = text(f"""
        SELECT i.id, i.sha256, i.source, i.caption, job_id, coalesce(is_open, false) AS job_is_open, status, reason
        FROM images i LEFT JOIN LATERAL (
            SELECT r.job_id, r.status, r.reason, jobs.finished_at IS NULL AS is_open
            FROM reindexed r JOIN jobs ON jobs.id = r.job_id
            WHERE r.image_id = i.id
              AND coalesce(jobs.spec ->> 'index' = :index_id, jobs.finished_at IS NULL)
            ORDER BY r.job_id DESC LIMIT 1) latest ON true
        WHERE i.archive_id = :archive_id AND NOT i.retired AND {no_vector}
        ORDER BY i.source, i.id
    """)  # noqa: S608 - a number
    rows = connection.execute(query, {"archive_id": archive_id, "index_id": str(index_id)})
    return [record(GapRow, row, image=StoredImage(*row[:4])) for row in rows]
