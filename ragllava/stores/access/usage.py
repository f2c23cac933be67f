"""What a caller of the HTTP API has used: questions of today, open jobs, stored bytes; and the audit of calls."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime

from sqlalchemy import Connection, func, insert, literal, select, text, update
from sqlalchemy.dialects.postgresql import insert as insert_or_update

from ragllava.errors import QuotaExceeded
from ragllava.stores.database import lock_name, records
from ragllava.stores.schema import api_usage, asked_pictures, audit, batches, jobs, uploads
from ragllava.stores.sessions import OPEN_JOBS, OWNER

_OPEN_JOBS_RETRY_S = 30.0  # jobs end at any time
_SPACE_RETRY_S = 3_600.0
_TODAY = func.date(func.timezone("UTC", func.now()))


@dataclass(frozen=True, slots=True)
class Counted:
    """The day (UTC) that questions were counted for, and how many a caller has asked on it."""

    day: date
    questions: int


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One call: who, which route, the path, the status of the answer."""

    owner: str
    action: str
    target: str
    status: int
    request_id: str


@dataclass(frozen=True, slots=True)
class AuditView:
    """One call as people see it."""

    audit_id: int
    at: datetime
    owner: str
    action: str
    target: str
    status: int
    request_id: str


def list_audit(
    connection: Connection, *, limit: int = 50, before: int | None = None, owner: str | None = None
) -> list[AuditView]:
    """The newest calls first, older than the entry `before`, of one caller if it is given.

    For administrators of all archives: the database shows others nothing.
    """
    query = select(audit.c.id.label("audit_id"), audit).order_by(audit.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(audit.c.id < before)
    if owner is not None:
        query = query.where(audit.c.owner == owner)
    return records(AuditView, connection.execute(query))


def questions_today(connection: Connection, owner: str) -> int:
    """The questions that a caller has asked since midnight (UTC)."""
    query = select(api_usage.c.questions).where(api_usage.c.owner == owner, api_usage.c.day == _TODAY)
    return int(connection.scalar(query) or 0)


def add_questions(connection: Connection, owner: str, number: int) -> Counted:
    """Count questions of today."""
    added = insert_or_update(api_usage).values(owner=owner, day=_TODAY, questions=number)
    counted = added.on_conflict_do_update(
        index_elements=["owner", "day"], set_={"questions": api_usage.c.questions + added.excluded.questions}
    )
    return Counted(*connection.execute(counted.returning(api_usage.c.day, api_usage.c.questions)).one())


def give_back_questions(connection: Connection, owner: str, number: int, day: date) -> None:
    """Take questions that were not asked after all off the day that they were counted for, which may be over."""
    row = (api_usage.c.owner == owner, api_usage.c.day == day)
    rest = func.greatest(api_usage.c.questions - number, literal(0))
    connection.execute(update(api_usage).where(*row).values(questions=rest))


def seconds_to_midnight(connection: Connection) -> float:
    """Until the day of the quota ends, by the database's clock."""
    seconds = "86400 - extract(epoch FROM timezone('UTC', now()))::numeric % 86400"
    return float(connection.execute(text(f"SELECT {seconds}")).scalar_one())


def require_room(connection: Connection, new: int = 0) -> None:
    """Raises QuotaExceeded if more jobs of this session's caller are open than it may have, `new` ones more.

    Batches that have no job yet count too. Of two transactions that create jobs at once, the second waits until the
    first has ended, and then counts its job. Sessions without a limit pass: those of workers and commands.
    """
    settings = (func.current_setting(name, True) for name in (OWNER, OPEN_JOBS))
    owner, limit = connection.execute(select(*settings)).one()
    if not limit or limit == "0":
        return
    lock_name(connection, "open jobs", owner)
    open_jobs = select(func.count()).where(jobs.c.finished_at.is_(None), jobs.c.owner == owner)
    is_waiting = (batches.c.owner == owner, batches.c.ended_at.is_(None), batches.c.job_id.is_(None))
    waiting = select(func.count()).where(*is_waiting)
    if sum(connection.execute(query).scalar_one() for query in (open_jobs, waiting)) + new > int(limit):
        raise QuotaExceeded(
            f"{limit} jobs of this caller are open, as many as it may have; wait until one has ended",
            _OPEN_JOBS_RETRY_S,
        )


def require_space(connection: Connection, owner: str, most_mib: int, new_bytes: int = 0) -> None:
    """Raises QuotaExceeded if a caller has stored more MiB than it may, with so many bytes more; 0: it may store any.

    Call it after the rows of what is stored, in their transaction. Of two transactions that store at once, the second
    waits here until the first has ended, and then counts its bytes.
    """
    if not most_mib:
        return
    lock_name(connection, "stored bytes", owner)
    if stored_bytes(connection, owner) + new_bytes > most_mib * 2**20:
        raise QuotaExceeded(
            f"this caller may store {most_mib:,} MiB; delete files and jobs with pictures, or wait until files "
            "expire and the pictures of searches are let go",
            _SPACE_RETRY_S,
        )


def stored_bytes(connection: Connection, owner: str) -> int:
    """The bytes that a caller has stored: files, and pictures that it asks with, each once. Output files of batches do
    not count.

    The sums are made of entries of two indexes, one for each file and picture that is there now.
    """
    own_files = select(func.coalesce(func.sum(uploads.c.size_bytes), 0))
    own_files = own_files.where(uploads.c.owner == owner, uploads.c.job_id.is_(None))
    pictures = select(func.coalesce(func.sum(asked_pictures.c.size_bytes), 0)).where(asked_pictures.c.owner == owner)
    return sum(int(connection.execute(query).scalar_one()) for query in (own_files, pictures))


def add_audit(connection: Connection, entry: AuditEntry) -> None:
    """Note a call."""
    values = {name: getattr(entry, name) for name in ("owner", "action", "target", "status", "request_id")}
    connection.execute(insert(audit).values(values).inline())  # it may not read the id that it gets
