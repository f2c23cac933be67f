"""Batches of the HTTP API: their rows, from the request to the files of results."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, insert, select, tuple_, update

from ragllava.errors import KeyReused, NotFound, UsageError
from ragllava.stores.access.uploads import Page, may_be_id
from ragllava.stores.database import lock_name, record, records, seconds
from ragllava.stores.schema import archives, batches, jobs

KEY_S = 24 * 3600.0  # for which an idempotency key is remembered
RETRY_S = 15 * 60.0  # for which a request that says that it is a repetition makes no second batch


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What was asked for. `window_s` are the seconds until it expires; `content_digest` covers all of it.

    With an `idempotency_key`, or with `is_retry`, a repetition finds the batch of the first request.
    """

    owner: str
    archive_id: int
    input_file_id: str
    endpoint: str
    completion_window: str
    window_s: float
    metadata: dict[str, str] | None
    options: dict[str, Any]
    output_expires_s: int | None
    questions: int
    content_digest: str
    idempotency_key: str | None = None
    is_retry: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it is stored, with what is known of its job; `archive` is a name."""

    batch_id: str
    owner: str
    archive_id: int
    archive: str
    job_id: int | None
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None
    options: dict[str, Any]
    output_expires_s: int | None
    questions: int
    errors: list[dict[str, Any]] | None
    counts: dict[str, int] | None
    usage: dict[str, int] | None
    output_file_id: str | None
    error_file_id: str | None
    created_at: datetime
    expires_at: datetime
    in_progress_at: datetime | None
    overdue_at: datetime | None
    cancelling_at: datetime | None
    finalizing_at: datetime | None
    completed_at: datetime | None
    failed_at: datetime | None
    expired_at: datetime | None
    cancelled_at: datetime | None
    ended_at: datetime | None
    is_overdue: bool
    job_state: str | None
    job_finished_at: datetime | None
    job_total: int | None
    job_counts: dict[str, int] | None
    has_result: bool


def _select() -> Select[Any]:
    own = {field.name for field in fields(Batch)}
    columns = [column for column in batches.c if column.name in own]
    return (
        select(
            *columns,
            batches.c.id.label("batch_id"),
            archives.c.name.label("archive"),
            (batches.c.expires_at <= func.now()).label("is_overdue"),
            jobs.c.state.label("job_state"),
            jobs.c.finished_at.label("job_finished_at"),
            jobs.c.total.label("job_total"),
            jobs.c.counts.label("job_counts"),
            jobs.c.result.is_not(None).label("has_result"),
        )
        .join(archives, archives.c.id == batches.c.archive_id)
        .outerjoin(jobs, jobs.c.id == batches.c.job_id)
    )


def create_batch(connection: Connection, new: NewBatch) -> tuple[str, bool]:
    """Add a batch; returns its id and whether it is new. Of two equal requests at once, the second waits for the first.

    Raises KeyReused for a key that belongs to another request of this owner.
    """
    lock_name(connection, "batch", f"{new.owner} {new.idempotency_key or new.content_digest}")
    found = find_repeated(connection, new)
    if found is not None:
        return found, False
    batch_id = f"batch_{secrets.token_hex(12)}"
    given = ("owner", "archive_id", "input_file_id", "endpoint", "completion_window", "metadata", "options")
    row = {name: getattr(new, name) for name in (*given, "output_expires_s", "questions", "content_digest")}
    expires_at = func.now() + seconds(new.window_s)
    connection.execute(
        insert(batches).values(**row, id=batch_id, idempotency_key=new.idempotency_key, expires_at=expires_at)
    )
    return batch_id, True


def find_repeated(connection: Connection, new: NewBatch) -> str | None:
    """The batch that this request has made before."""
    if new.idempotency_key is None:
        if not new.is_retry:
            return None
        within_s, same = RETRY_S, batches.c.content_digest == new.content_digest
    else:
        within_s, same = KEY_S, batches.c.idempotency_key == new.idempotency_key
    query = select(batches.c.id, batches.c.content_digest).where(
        same, batches.c.owner == new.owner, batches.c.created_at > func.now() - seconds(within_s)
    )
    row = connection.execute(query.order_by(batches.c.created_at.desc()).limit(1)).one_or_none()
    if row is None:
        return None
    if row.content_digest != new.content_digest:
        raise KeyReused("this Idempotency-Key belongs to a batch with another content; use a new key")
    return str(row.id)


def get_batch(connection: Connection, batch_id: str) -> Batch:
    """One batch. Raises NotFound."""
    row = connection.execute(_select().where(batches.c.id == batch_id)).one_or_none() if may_be_id(batch_id) else None
    if row is None:
        raise NotFound(f"there is no batch {batch_id[:80]!r}")
    return record(Batch, row)


def list_batches(connection: Connection, page: Page) -> tuple[list[Batch], bool]:
    """A page of batches, the newest first, and whether more follow. Raises UsageError for an unknown `after`."""
    query = _select()
    if page.after is not None:
        known = select(batches.c.created_at, batches.c.id).where(batches.c.id == page.after)
        row = connection.execute(known).one_or_none() if may_be_id(page.after) else None
        if row is None:
            raise UsageError(f"after: there is no batch {page.after[:80]!r}; give the id of the last one of a page")
        query = query.where(tuple_(batches.c.created_at, batches.c.id) < tuple_(*row))
    query = query.order_by(batches.c.created_at.desc(), batches.c.id.desc()).limit(page.limit + 1)
    found = records(Batch, connection.execute(query))
    return found[: page.limit], len(found) > page.limit


def open_batches(connection: Connection) -> Sequence[str]:
    """The batches for which something is left to do: they wait for their job, are overdue, or their job has ended."""
    is_due = (
        batches.c.job_id.is_(None)
        | jobs.c.result.is_not(None)
        | ((batches.c.expires_at <= func.now()) & batches.c.overdue_at.is_(None))
        | batches.c.cancelling_at.is_not(None)
    )
    query = select(batches.c.id).outerjoin(jobs, jobs.c.id == batches.c.job_id)
    query = query.where(batches.c.ended_at.is_(None), is_due).order_by(batches.c.created_at, batches.c.id)
    return list(connection.scalars(query))


def set_job(connection: Connection, batch_id: str, job_id: int) -> bool:
    """Note which job a batch has become; False when it has one already, or has ended."""
    return _change(connection, batch_id, batches.c.job_id.is_(None), job_id=job_id, in_progress_at=func.now())


def set_cancelling(connection: Connection, batch_id: str) -> bool:
    """Note that a batch is to be cancelled; False when it has ended. Repeating it changes nothing."""
    since = func.coalesce(batches.c.cancelling_at, func.now())
    return _change(connection, batch_id, cancelling_at=since)


def set_overdue(connection: Connection, batch_id: str) -> None:
    """Note that the time of a batch is over."""
    _change(connection, batch_id, overdue_at=func.coalesce(batches.c.overdue_at, func.now()))


def end_batch(connection: Connection, batch_id: str, ended: str, **values: Any) -> bool:
    """Set what a batch has become; `ended` is the name of the time: completed_at, failed_at, expired_at, cancelled_at.

    False when it has ended before; then nothing is changed.
    """
    times = {ended: func.now(), "ended_at": func.now()}
    return _change(connection, batch_id, **times, **values)


def fail_without_job(connection: Connection, batch_id: str, **values: Any) -> bool:
    """End a batch as failed; False when it has ended before, or has become a job meanwhile."""
    times = {"failed_at": func.now(), "ended_at": func.now()}
    return _change(connection, batch_id, batches.c.job_id.is_(None), **times, **values)


def _change(connection: Connection, batch_id: str, *conditions: ColumnElement[bool], **values: Any) -> bool:
    open_one = update(batches).where(batches.c.id == batch_id, batches.c.ended_at.is_(None), *conditions)
    return bool(connection.execute(open_one.values(**values)).rowcount)
