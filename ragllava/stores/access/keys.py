"""Keys of the HTTP API. A key is shown once, when it is made; the database has its hash and its visible prefix."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, and_, any_, func, insert, select, update

from ragllava.errors import NotFound
from ragllava.json_records import from_json, to_json
from ragllava.stores.access.tenancy import Scope
from ragllava.stores.archives.archive import get_archive
from ragllava.stores.database import equals_any
from ragllava.stores.schema import api_keys, archives

_MARK = "rgl_"  # by which scanners of secrets recognise a key


class AccessRole(StrEnum):
    """What a caller may do; each includes those before it."""

    READ = "read"
    ASK = "ask"
    WRITE = "write"
    REVIEW = "review"
    ADMIN = "admin"

    def includes(self, needed: AccessRole) -> bool:
        """Whether this role may do what `needed` may."""
        order = list(AccessRole)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one caller; None: that of the settings, 0: no limit."""

    questions_per_day: int | None = None
    open_jobs: int | None = None
    stored_mib: int | None = None
    requests_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls. `archives` are ids, None: all. `owner` is what jobs, usage and the audit name."""

    owner: str
    role: AccessRole
    archives: frozenset[int] | None
    limits: Limits = field(default_factory=Limits)

    def may_see(self, archive_id: int) -> bool:
        """Whether an archive is one of those that the caller may see."""
        return self.archives is None or archive_id in self.archives

    @property
    def scope(self) -> Scope:
        """What the caller's transactions may see."""
        return Scope(self.archives, self.owner, is_admin=self.role is AccessRole.ADMIN)


@dataclass(frozen=True, slots=True)
class KeyView:
    """A key without its secret. `archives` are names, None: all."""

    prefix: str
    name: str
    role: AccessRole
    archives: tuple[str, ...] | None
    limits: Limits
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key to be made; `archives` are names, None: all."""

    name: str
    role: AccessRole
    archives: Sequence[str] | None = None
    days: float | None = None  # until it expires; None: never
    limits: Limits = field(default_factory=Limits)


def create_key(connection: Connection, new: NewKey) -> tuple[str, KeyView]:
    """Make a key; returns it, which nobody can read again, and its view. Raises NotFound for an unknown archive."""
    ids = None if new.archives is None else [get_archive(connection, name).archive_id for name in new.archives]
    prefix = f"{_MARK}{secrets.token_hex(4)}"
    key = f"{prefix}_{secrets.token_urlsafe(32)}"
    row = {"prefix": prefix, "sha256": key_digest(key), "name": new.name, "role": new.role.value, "archives": ids}
    expires_at = None if new.days is None else func.now() + timedelta(days=new.days)
    connection.execute(insert(api_keys).values(row | {"limits": to_json(new.limits), "expires_at": expires_at}))
    [view] = [view for view in list_keys(connection) if view.prefix == prefix]
    return key, view


def list_keys(connection: Connection) -> list[KeyView]:
    """All keys, the newest first, also those that expired or were revoked."""
    names = select(func.array_agg(archives.c.name)).where(archives.c.id == any_(api_keys.c.archives))
    listed = names.correlate(api_keys).scalar_subquery()
    is_bound = api_keys.c.archives.is_not(None)
    columns = [column for column in api_keys.c if column.name != "archives"]
    rows = connection.execute(
        select(*columns, is_bound.label("is_bound"), listed.label("names")).order_by(api_keys.c.id.desc())
    )
    return [_view(row) for row in rows]


def revoke_key(connection: Connection, prefix: str) -> None:
    """End a key at once; repeating it changes nothing. Raises NotFound for an unknown prefix."""
    revoked = func.coalesce(api_keys.c.revoked_at, func.now())
    changed = connection.execute(update(api_keys).where(api_keys.c.prefix == prefix).values(revoked_at=revoked))
    if not changed.rowcount:
        raise NotFound(f"there is no key {prefix}; `ragllava keys list` shows all")


def revoke_all_but(connection: Connection, valid: Sequence[int]) -> int:
    """End all keys but those with these ids; returns how many were ended."""
    ended = update(api_keys).where(api_keys.c.revoked_at.is_(None), ~equals_any(api_keys.c.id, valid))
    return connection.execute(ended.values(revoked_at=func.now())).rowcount


def find_principal(connection: Connection, key: str) -> Principal | None:
    """Whose key this is; None for one that is unknown, expired or revoked."""
    row = connection.execute(
        select(api_keys.c.prefix, api_keys.c.role, api_keys.c.archives, api_keys.c.limits).where(
            api_keys.c.sha256 == key_digest(key), IS_USABLE
        )
    ).one_or_none()
    if row is None:
        return None
    ids = None if row.archives is None else frozenset(row.archives)
    return Principal(f"key {row.prefix}", AccessRole(row.role), ids, from_json(Limits, row.limits))


def has_usable_key(connection: Connection) -> bool:
    """Whether anybody has a key that is valid now."""
    return connection.scalar(select(api_keys.c.id).where(IS_USABLE).limit(1)) is not None


def ids_of_archives(connection: Connection, names: Sequence[str]) -> frozenset[int]:
    """The archives of these names that exist."""
    return frozenset(connection.scalars(select(archives.c.id).where(archives.c.name.in_(names))))


def key_digest(key: str) -> str:
    """The sha256 (hex) of a key. Its secret has 256 random bits, so no slow hash is needed."""
    return hashlib.sha256(key.encode()).hexdigest()


IS_USABLE = and_(
    api_keys.c.revoked_at.is_(None),
    (api_keys.c.expires_at.is_(None)) | (api_keys.c.expires_at > func.now()),
)


def _view(row: Any) -> KeyView:
    values = dict(row._mapping) | {"archives": tuple(sorted(row.names or ())) if row.is_bound else None}
    return from_json(KeyView, values)
