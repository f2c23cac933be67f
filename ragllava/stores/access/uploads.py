"""Files of the HTTP API: their rows. The bytes lie in the object store, where they are before the row is."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, func, insert, or_, select, tuple_

from ragllava.errors import NotFound, UsageError
from ragllava.stores.database import equals_any, record, records, seconds
from ragllava.stores.schema import uploads

_COLUMNS = (uploads.c.id.label("file_id"), *(column for column in uploads.c if column.name != "id"))
_IS_LIVING = or_(uploads.c.expires_at.is_(None), uploads.c.expires_at > func.now())


@dataclass(frozen=True, slots=True)
class NewUpload:
    """A file whose bytes are stored. `archives` are those of its owner, None: all; `job_id` that of a batch's output.

    `expires_s` are the seconds from now until it is deleted; None: it stays.
    """

    file_id: str
    owner: str
    archives: frozenset[int] | None
    filename: str
    purpose: str
    size_bytes: int
    lines: int
    sha256: str
    object_key: str
    job_id: int | None = None
    expires_s: float | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """A stored file."""

    file_id: str
    owner: str
    filename: str
    purpose: str
    size_bytes: int
    lines: int
    sha256: str
    object_key: str
    job_id: int | None
    created_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list: at most `limit` after the item `after`, the newest first unless `ascending`."""

    limit: int
    after: str | None = None
    ascending: bool = False


def new_file_id() -> str:
    """An id that nobody can guess."""
    return f"file-{secrets.token_hex(12)}"


def insert_upload(connection: Connection, new: NewUpload) -> Upload:
    """Add the row of a file."""
    names = ("owner", "filename", "purpose", "size_bytes", "lines", "sha256", "object_key", "job_id")
    row = {name: getattr(new, name) for name in names}
    expires_at = None if new.expires_s is None else func.now() + seconds(new.expires_s)
    archives = None if new.archives is None else sorted(new.archives)
    connection.execute(insert(uploads).values(**row, id=new.file_id, archives=archives, expires_at=expires_at))
    return get_upload(connection, new.file_id)


def get_upload(connection: Connection, file_id: str) -> Upload:
    """One file. Raises NotFound when it does not exist, was deleted or has expired."""
    query = select(*_COLUMNS).where(uploads.c.id == file_id, _IS_LIVING)
    row = connection.execute(query).one_or_none() if may_be_id(file_id) else None
    if row is None:
        raise unknown_file(file_id)
    return record(Upload, row)


def archives_of(connection: Connection, file_id: str) -> list[int] | None:
    """The archives of the owner of a file, when it sent it; None: all."""
    return connection.scalar(select(uploads.c.archives).where(uploads.c.id == file_id))


def unknown_file(file_id: str) -> NotFound:
    """The error for a file that is not there."""
    return NotFound(f"there is no file {file_id[:80]!r}; it may have been deleted or have expired")


def list_uploads(connection: Connection, page: Page, purpose: str | None = None) -> tuple[list[Upload], bool]:
    """A page of files, and whether more follow. Raises UsageError for an unknown `after`."""
    query = select(*_COLUMNS).where(_IS_LIVING)
    if purpose is not None:
        query = query.where(uploads.c.purpose == purpose)
    place = tuple_(uploads.c.created_at, uploads.c.id)
    if page.after is not None:
        known = select(uploads.c.created_at, uploads.c.id).where(uploads.c.id == page.after, _IS_LIVING)
        row = connection.execute(known).one_or_none() if may_be_id(page.after) else None
        if row is None:
            raise UsageError(f"after: there is no file {page.after[:80]!r}; give the id of the last one of a page")
        at = tuple_(*row)
        query = query.where(place > at if page.ascending else place < at)
    order = (uploads.c.created_at, uploads.c.id)
    query = query.order_by(*(order if page.ascending else (column.desc() for column in order)))
    found = records(Upload, connection.execute(query.limit(page.limit + 1)))
    return found[: page.limit], len(found) > page.limit


def delete_upload(connection: Connection, file_id: str) -> None:
    """Remove the row of a file, if it is there. Its bytes are removed after the commit."""
    connection.execute(delete(uploads).where(uploads.c.id == file_id))


def find_repeated(connection: Connection, new: NewUpload, within_s: float) -> Upload | None:
    """The file that its owner has sent before, with the same name, purpose and bytes."""
    query = select(*_COLUMNS).where(
        uploads.c.owner == new.owner,
        uploads.c.filename == new.filename,
        uploads.c.purpose == new.purpose,
        uploads.c.sha256 == new.sha256,
        uploads.c.created_at > func.now() - seconds(within_s),
        _IS_LIVING,
    )
    row = connection.execute(query.order_by(uploads.c.created_at).limit(1)).one_or_none()
    return record(Upload, row) if row is not None else None


def expired_uploads(connection: Connection, limit: int) -> Sequence[Upload]:
    """Files whose time is over, those first that expired first."""
    query = select(*_COLUMNS).where(uploads.c.expires_at <= func.now()).order_by(uploads.c.expires_at).limit(limit)
    return records(Upload, connection.execute(query))


def existing_keys(connection: Connection, keys: Sequence[str]) -> set[str]:
    """Those of the keys of objects that a file has."""
    return set(connection.scalars(select(uploads.c.object_key).where(equals_any(uploads.c.object_key, keys))))


def may_be_id(given: str) -> bool:
    """Whether this can be the id of a file or batch. Other texts may not even be what Postgres accepts."""
    return given.isascii() and given.isprintable()
