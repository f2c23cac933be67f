"""Which pictures callers have stored by asking with them, each once for its caller: what a quota counts.

A picture is lent for an hour when it is put into the store. With its first question it becomes the caller's own until
the last job that asks with it is removed. A picture of a search, or of a question that was refused, is removed after
the hour, and with it the bytes, if nothing else refers to them.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, func, select, text

from ragllava.stores.database import equals_any
from ragllava.stores.schema import asked_pictures
from ragllava.stores.sessions import OWNER

LENT_S = 3_600.0  # as long as a request is kept that nobody waits for any more


def lend(connection: Connection, hashes: Sequence[str]) -> None:
    """The session's caller has announced this content for a request, or for questions that may come."""
    connection.execute(_LEND, {"hashes": sorted(hashes), "seconds": LENT_S})


def own(connection: Connection, hashes: Sequence[str]) -> None:
    """The session's caller asks questions with this content."""
    connection.execute(_OWN, {"hashes": sorted(hashes)})


def own_those_of(connection: Connection, job_id: int) -> None:
    """As `own`, with the pictures of the questions of a job."""
    connection.execute(_OWN_THOSE_OF, {"job_id": job_id})


def are_counted(connection: Connection, hashes: Sequence[str]) -> bool:
    """Whether the session's caller has stored all of this content already."""
    owner = func.coalesce(func.current_setting(OWNER, True), "")
    counted = select(func.count()).where(equals_any(asked_pictures.c.sha256, hashes), asked_pictures.c.owner == owner)
    return connection.execute(counted).scalar_one() == len(set(hashes))


def disown(connection: Connection, job_id: int, hashes: Sequence[str]) -> None:
    """Questions of this job with this content are deleted; if no other question of its owner has it, it is let go."""
    connection.execute(_DISOWN, {"job_id": job_id, "hashes": list(hashes)})


def end_loans(connection: Connection, limit: int) -> list[str]:
    """Let up to `limit` pictures go whose time is over; returns their hashes."""
    return list(connection.scalars(_END_LOANS, {"limit": limit}))


_OWNER = f"coalesce(current_setting('{OWNER}', true), '')"

_LEND = text(f"""
    INSERT INTO asked_pictures AS p (sha256, owner, size_bytes, until)
    SELECT sha256, {_OWNER}, size_bytes, now() + make_interval(secs => :seconds) FROM blobs
    WHERE sha256 = ANY(:hashes) ORDER BY sha256
    ON CONFLICT (sha256, owner) DO UPDATE SET until = excluded.until WHERE p.until IS NOT NULL
""")  # noqa: S608 - no foreign text

_MINE = "ON CONFLICT (sha256, owner) DO UPDATE SET until = NULL WHERE p.until IS NOT NULL"

_OWN = text(f"""
    INSERT INTO asked_pictures AS p (sha256, owner, size_bytes)
    SELECT sha256, {_OWNER}, size_bytes FROM blobs WHERE sha256 = ANY(:hashes) ORDER BY sha256 {_MINE}
""")  # noqa: S608 - no foreign text

_OWN_THOSE_OF = text(f"""
    INSERT INTO asked_pictures AS p (sha256, owner, size_bytes)
    SELECT sha256, {_OWNER}, size_bytes FROM blobs
    WHERE sha256 IN (SELECT picture FROM questions WHERE job_id = :job_id AND picture IS NOT NULL)
    ORDER BY sha256 {_MINE}
""")  # noqa: S608 - no foreign text

_DISOWN = text("""
    DELETE FROM asked_pictures p USING jobs j
    WHERE j.id = :job_id AND p.owner = coalesce(j.owner, '') AND p.sha256 = ANY(:hashes) AND p.until IS NULL
      AND NOT EXISTS (SELECT FROM questions q JOIN jobs other ON other.id = q.job_id
                      WHERE q.picture = p.sha256 AND coalesce(other.owner, '') = p.owner)
""")

_END_LOANS = text("""
    DELETE FROM asked_pictures WHERE (sha256, owner) IN (
        SELECT sha256, owner FROM asked_pictures WHERE until < now() ORDER BY until LIMIT :limit
        FOR UPDATE SKIP LOCKED)
    RETURNING sha256
""")
