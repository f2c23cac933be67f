"""Faults: parts of the work that failed and are postponed, each with its reason, so that the others continue.

A part is named by its room (`results`, `events`, …) and its subject in that room (`job 12`, the address of a binding).
Objects that cannot be observed have their reason in their change event. Every function works in the caller's
transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, func, select, text
from sqlalchemy.dialects.postgresql import insert

from ragllava.stores.database import equals_any, lock_rows, records
from ragllava.stores.schema import faults

MAX_REASON = 1_000  # characters
FIRST_DELAY_S = 5.0
PERSISTENT_ATTEMPTS = 3  # fewer failures may be those of a service that was away for a moment
MOST_GROUPS = 50  # of objects with the same reason, in a listing


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `number` counts the objects that share the reason; `next_try_at` None: only a change helps."""

    room: str
    subject: str
    reason: str
    attempts: int
    since: datetime
    next_try_at: datetime | None
    number: int = 1

    @property
    def is_persistent(self) -> bool:
        """Whether it has failed again and again. A caption file is not tried again, and does not count."""
        return self.attempts >= PERSISTENT_ATTEMPTS

    @property
    def title(self) -> str:
        """`results: job 12`, `object: s3://bucket/key and 3 more`."""
        more = f" and {self.number - 1:,} more" if self.number > 1 else ""
        return f"{self.room}: {self.subject}{more}"

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "room": self.room,
            "subject": self.subject,
            "reason": self.reason,
            "attempts": self.attempts,
            "since": self.since.isoformat(),
            "next_try_at": self.next_try_at.isoformat() if self.next_try_at else None,
            "number": self.number,
        }


def postponed(connection: Connection, room: str) -> dict[str, bool]:
    """The subjects of a room that have a fault, each with whether its next attempt is not due yet."""
    query = select(faults.c.subject, faults.c.not_before > func.now()).where(faults.c.room == room)
    return dict(connection.execute(query).all())


def record(connection: Connection, room: str, subject: str, reason: str, most_s: float) -> None:
    """Record that an attempt failed. The next one is due at once; after each further failure the delay doubles, from
    FIRST_DELAY_S up to `most_s`."""
    shortened = reason.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()[:MAX_REASON]
    delay = text(
        "make_interval(secs => least(:most_s, :first_s * power(2, least(faults.attempts - 1, 20))))"
    ).bindparams(most_s=float(most_s), first_s=FIRST_DELAY_S)
    new = insert(faults).values(room=room, subject=subject, reason=shortened, attempts=1)
    again = {
        "reason": shortened,
        "attempts": faults.c.attempts + 1,
        "failed_at": func.now(),
        "not_before": func.now() + delay,
    }
    connection.execute(new.on_conflict_do_update(index_elements=["room", "subject"], set_=again))


def clear(connection: Connection, room: str, subjects: Iterable[str]) -> None:
    """Remove the faults of these subjects."""
    named = (faults.c.room == room, equals_any(faults.c.subject, subjects))
    lock_rows(connection, faults, *named)
    connection.execute(delete(faults).where(*named))


def list_faults(connection: Connection) -> list[Fault]:
    """What is postponed or cannot be used now, oldest first: parts of the work, objects, and caption files."""
    query = text("""
        SELECT room, subject, reason, attempts, since, not_before AS next_try_at, 1 AS number FROM faults
        UNION ALL
        (SELECT 'object', min('s3://' || bucket || '/' || key), reason, max(attempts), min(received_at),
                min(not_before), count(*)
         FROM change_events WHERE reason IS NOT NULL GROUP BY bucket, reason LIMIT :most)
        UNION ALL
        (SELECT 'caption file', 's3://' || bucket || '/' || key, reason, 1, seen_at, NULL, 1
         FROM bound_objects JOIN bindings ON bindings.id = binding_id
         WHERE kind = 'captions' AND reason IS NOT NULL LIMIT :most)
        ORDER BY since, room, subject
    """)
    return records(Fault, connection.execute(query, {"most": MOST_GROUPS}))
