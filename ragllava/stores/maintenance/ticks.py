"""When the last tick ended, by the database's clock; whoever ticks notes it, and sees when that clock was set back."""

from __future__ import annotations

import logging

from sqlalchemy import Connection, func, select, text
from sqlalchemy.dialects.postgresql import insert

from ragllava.stores.database import seconds
from ragllava.stores.schema import ticks

log = logging.getLogger(__name__)

_NAME = "tick"
_STEP_S = 5.0  # two ticks that end at once differ by less
_LONGEST_DELAY_S = 600.0  # of what is postponed


def note_tick(connection: Connection, lease_s: float = 60.0) -> None:
    """Record that a tick has ended now.

    If the last one ended later than now, the clock was set back, or another server took over: times that lie in the
    future are moved to the latest ones that they can have been. Else the shards of a dead worker would stay leased, and
    lost messages queued, until the clock has caught up.
    """
    is_later = select(ticks.c.ended_at > func.now() + seconds(_STEP_S)).where(ticks.c.name == _NAME)
    if connection.scalar(is_later.with_for_update()):
        log.warning("the clock of the database was set back", extra={"action": "clock_set_back"})
        for limiting in _LIMITS:
            connection.execute(text(limiting), {"lease_s": lease_s, "delay_s": _LONGEST_DELAY_S})
    statement = insert(ticks).values(name=_NAME, ended_at=func.now())
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"ended_at": func.now()}))


def last_tick_age_s(connection: Connection) -> float | None:
    """Seconds since the last tick ended; None before the first. Negative after the database's clock was set back."""
    age = func.extract("epoch", func.clock_timestamp() - ticks.c.ended_at)
    seconds = connection.scalar(select(age).where(ticks.c.name == _NAME))
    return None if seconds is None else float(seconds)


# In the order of keys, as all who lock several of these rows.
_LIMITS = (
    """
    UPDATE workers SET seen_at = now() FROM (
        SELECT name FROM workers WHERE seen_at > now() ORDER BY name FOR NO KEY UPDATE
    ) late WHERE workers.name = late.name
    """,
    """
    UPDATE shards SET queued_at = least(queued_at, now()),
        lease_until = least(lease_until, now() + make_interval(secs => :lease_s)),
        not_before = least(not_before, now() + make_interval(secs => :delay_s))
    FROM (
        SELECT id FROM shards WHERE state IN ('pending', 'queued', 'running')
            AND greatest(queued_at, lease_until, not_before) > now() ORDER BY id FOR NO KEY UPDATE
    ) late WHERE shards.id = late.id
    """,
    """
    UPDATE change_events SET not_before = now() + make_interval(secs => :delay_s) FROM (
        SELECT bucket, key FROM change_events WHERE not_before > now() + make_interval(secs => :delay_s)
        ORDER BY bucket, key FOR UPDATE
    ) late WHERE change_events.bucket = late.bucket AND change_events.key = late.key
    """,
    """
    UPDATE faults SET not_before = now() + make_interval(secs => :delay_s) FROM (
        SELECT room, subject FROM faults WHERE not_before > now() + make_interval(secs => :delay_s)
        ORDER BY room, subject FOR UPDATE
    ) late WHERE faults.room = late.room AND faults.subject = late.subject
    """,
)
