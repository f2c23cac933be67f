"""Browsers that are signed in to the console. The database has the hashes of their secrets only.

A sign-in with a key has what the key may do now, and ends with it. One with a token of a provider, or by a link that
`ragllava console` prints, has what it was given, for a time.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, delete, func, insert, or_, select, update

from ragllava.json_records import from_json, to_json
from ragllava.stores.access.keys import IS_USABLE, AccessRole, Limits, Principal, key_digest
from ragllava.stores.schema import api_keys, sign_in_links, sign_ins

IDLE = timedelta(hours=12)
LINK_LASTS = timedelta(minutes=10)
_SEEN_EVERY = timedelta(minutes=1)  # a write for each request would be too many


@dataclass(frozen=True, slots=True)
class NewSignIn:
    """Who signs in. `key` is the one that was entered, if any; `ends_at` None: when it is idle or its key ends."""

    principal: Principal
    key: str | None = None
    ends_at: datetime | None = None


def create_sign_in(connection: Connection, new: NewSignIn) -> str:
    """Sign a browser in; returns its secret. Those that have ended are removed."""
    connection.execute(delete(sign_ins).where(or_(sign_ins.c.seen_at < func.now() - IDLE, _has_ended())))
    secret = secrets.token_urlsafe(32)
    principal, key_id = new.principal, None
    if new.key is not None:
        key_id = connection.scalar(select(api_keys.c.id).where(api_keys.c.sha256 == key_digest(new.key)))
    values = {
        "sha256": key_digest(secret),
        "owner": principal.owner,
        "key_id": key_id,
        "role": principal.role.value,
        "archives": None if principal.archives is None else sorted(principal.archives),
        "limits": to_json(principal.limits),
        "ends_at": new.ends_at,
    }
    connection.execute(insert(sign_ins).values(values))
    return secret


def find_sign_in(connection: Connection, secret: str, *, is_use: bool = True) -> Principal | None:
    """Who has this secret; None for one that is unknown, was idle for too long or has ended, also with its key.

    `is_use`: somebody does something, so that the sign-in is not idle; a page that renews itself does not.
    """
    of_key = sign_ins.outerjoin(api_keys, api_keys.c.id == sign_ins.c.key_id)
    digest = key_digest(secret)
    row = connection.execute(
        select(
            sign_ins.c.owner,
            sign_ins.c.key_id,
            sign_ins.c.seen_at < func.now() - _SEEN_EVERY,
            *(sign_ins.c[name] for name in ("role", "archives", "limits")),
            *(api_keys.c[name].label(f"key_{name}") for name in ("role", "archives", "limits")),
        )
        .select_from(of_key)
        .where(
            sign_ins.c.sha256 == digest,
            sign_ins.c.seen_at >= func.now() - IDLE,
            ~_has_ended(),
            or_(sign_ins.c.key_id.is_(None), IS_USABLE),
        )
    ).one_or_none()
    if row is None:
        return None
    if row[2] and is_use:
        connection.execute(update(sign_ins).where(sign_ins.c.sha256 == digest).values(seen_at=func.now()))
    rights = row[3:6] if row.key_id is None else row[6:9]
    ids = None if rights[1] is None else frozenset(rights[1])
    return Principal(row.owner, AccessRole(rights[0]), ids, from_json(Limits, rights[2]))


def end_sign_in(connection: Connection, secret: str) -> None:
    """Sign a browser out."""
    connection.execute(delete(sign_ins).where(sign_ins.c.sha256 == key_digest(secret)))


def create_link(connection: Connection, owner: str) -> str:
    """The secret of a link that signs its user in once, as an administrator of all archives, within LINK_LASTS.

    For the plain role: whoever has it may do everything anyway.
    """
    connection.execute(delete(sign_in_links).where(sign_in_links.c.ends_at < func.now()))
    secret = secrets.token_urlsafe(32)
    values = {"sha256": key_digest(secret), "owner": owner, "ends_at": func.now() + LINK_LASTS}
    connection.execute(insert(sign_in_links).values(values))
    return secret


def use_link(connection: Connection, secret: str) -> Principal | None:
    """Whose link this is, which is used up; None for one that is unknown, used or too old."""
    used = delete(sign_in_links).where(
        sign_in_links.c.sha256 == key_digest(secret), sign_in_links.c.ends_at >= func.now()
    )
    owner = connection.scalar(used.returning(sign_in_links.c.owner))
    return None if owner is None else Principal(owner, AccessRole.ADMIN, None)


def _has_ended() -> ColumnElement[bool]:
    return func.coalesce(sign_ins.c.ends_at < func.now(), False)
