"""Erasures: the line that stays of each, and what is left to do. Every function works in the caller's transaction.

The line says what kind of thing was erased, how much, when and by whom; it has no name and no content. Until an erasure
is finished, `pending` holds what the remaining steps need, names included, so that any process can finish it after a
crash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, func, select, update

from ragllava.json_records import to_json
from ragllava.stores.database import records, seconds
from ragllava.stores.schema import erasures


class ErasureKind(StrEnum):
    """What is erased."""

    ARCHIVE = "archive"
    PICTURES = "pictures"
    JOB = "job"
    RETIRED = "retired"  # images that are not part of their archive any more


@dataclass(frozen=True, slots=True)
class Pending:
    """What is left to do of an erasure of images. All lists are empty for other kinds.

    `jobs` are those whose rows may name the images, `republished` those whose result files have to be written again.
    `texts` are captions, `names` sources, uris and keys that no other image of the archive has, `words` all their
    words. `is_waiting`: only jobs are left that had not ended. `is_requested`: nothing was done yet, and only `images`
    are known.
    """

    images: tuple[int, ...] = ()
    jobs: tuple[int, ...] = ()
    republished: tuple[int, ...] = ()
    hashes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    is_waiting: bool = False
    is_requested: bool = False

    def without(self, job_id: int) -> Pending:
        """What is left when the rows of this job are clean."""
        return replace(self, jobs=tuple(each for each in self.jobs if each != job_id))


@dataclass(frozen=True, slots=True)
class OpenErasure:
    """An erasure that is not finished."""

    erasure_id: int
    kind: ErasureKind
    archive_id: int | None
    target_id: int | None
    pending: Pending


@dataclass(frozen=True, slots=True)
class ErasureView:
    """The line about an erasure. `target_id` is the image or the job, None for several images and for an archive.

    `account` is the account of the operating system that asked for it, or the maintenance job. `finished_at` None: it
    was interrupted, or waits for a job.
    """

    erasure_id: int
    kind: ErasureKind
    archive_id: int | None
    target_id: int | None
    account: str
    counts: dict[str, int]
    created_at: datetime
    finished_at: datetime | None


_SELECT = select(erasures.c.id.label("erasure_id"), erasures)


def begin(
    connection: Connection,
    kind: ErasureKind,
    account: str,
    *,
    archive_id: int | None,
    target_id: int | None = None,
    pending: Pending | None = None,
) -> int:
    """Insert the line of a new erasure; returns its id."""
    values = {"kind": kind, "archive_id": archive_id, "target_id": target_id, "account": account}
    row = erasures.insert().values(**values, pending=to_json(pending or Pending())).returning(erasures.c.id)
    return int(connection.execute(row).scalar_one())


def load(connection: Connection, erasure_id: int) -> OpenErasure | None:
    """An erasure that is not finished; None when it is."""
    unfinished = (erasures.c.id == erasure_id, erasures.c.finished_at.is_(None))
    rows = records(OpenErasure, connection.execute(_SELECT.where(*unfinished)))
    return rows[0] if rows else None


def open_erasures(connection: Connection, idle_s: float = 0.0) -> list[int]:
    """The ids of all that are not finished and have made no progress for so many seconds, oldest first."""
    idle = erasures.c.updated_at <= func.now() - seconds(idle_s)
    query = select(erasures.c.id).where(erasures.c.finished_at.is_(None), idle)
    return list(connection.scalars(query.order_by(erasures.c.id)))


def progress(
    connection: Connection, erasure_id: int, counts: Mapping[str, int], pending: Pending | None = None
) -> None:
    """Add to the counts of an erasure, and replace what is left to do unless it stays."""
    if not _lock(connection, erasure_id):
        return
    values: dict[str, Any] = {"updated_at": func.now()}
    if any(counts.values()):
        before = connection.execute(select(erasures.c.counts).where(erasures.c.id == erasure_id)).scalar_one()
        values["counts"] = dict(Counter(before) + Counter(counts))
    if pending is not None:
        values["pending"] = to_json(pending)
    connection.execute(update(erasures).where(erasures.c.id == erasure_id).values(values))


def leave_to_tick(connection: Connection, erasure_id: int) -> None:
    """Let the next tick continue an erasure at once, as if it had made no progress for long."""
    chosen = update(erasures).where(erasures.c.id == erasure_id)
    connection.execute(chosen.values(updated_at=func.now() - seconds(86_400.0)))


def finish(connection: Connection, erasure_id: int) -> None:
    """Nothing is left to do: the line stays, without what `pending` had."""
    unfinished = update(erasures).where(erasures.c.id == erasure_id, erasures.c.finished_at.is_(None))
    connection.execute(unfinished.values(pending=None, finished_at=func.now(), updated_at=func.now()))


def view(connection: Connection, erasure_id: int) -> ErasureView:
    """One line."""
    return records(ErasureView, connection.execute(_SELECT.where(erasures.c.id == erasure_id)))[0]


def list_erasures(connection: Connection, limit: int = 50) -> Sequence[ErasureView]:
    """The lines of all erasures, the newest first."""
    return records(ErasureView, connection.execute(_SELECT.order_by(erasures.c.id.desc()).limit(limit)))


def _lock(connection: Connection, erasure_id: int) -> bool:
    unfinished = (erasures.c.id == erasure_id, erasures.c.finished_at.is_(None))
    return connection.scalar(select(erasures.c.id).where(*unfinished).with_for_update()) is not None
