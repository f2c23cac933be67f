"""Change events: objects that may have changed (docs/reliability.md D13). An event only asks to observe its object.

An event that arrives while its object is being observed must not be lost: each event increments `repeats`, and
`finish` removes only events whose `repeats` did not change since they were claimed. Every function works in the
caller's transaction, and waits for the locks of several events in the order of their keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, case, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from ragllava.stores.database import given, lock_rows, records, same, seconds
from ragllava.stores.schema import change_event_totals, change_events


@dataclass(frozen=True, slots=True)
class ChangeEvent:
    """One claimed change event; `received_at` and `repeats` distinguish its state from a later one."""

    bucket: str
    key: str
    received_at: datetime
    repeats: int
    attempts: int


@dataclass(frozen=True, slots=True)
class RecordedEvents:
    """How many objects of a message got a change event."""

    new: int
    repeated: int  # the object had a change event already
    unbound: int  # no binding covers the object


def record(connection: Connection, objects: Sequence[tuple[str, str]]) -> RecordedEvents:
    """Write change events about (bucket, key) objects, in one statement; none about objects outside all bindings."""
    distinct = sorted(set(objects))
    row = connection.execute(
        text("""
            WITH bound AS (
                SELECT bucket, key FROM unnest(CAST(:buckets AS text[]), CAST(:keys AS text[])) AS named (bucket, key)
                WHERE EXISTS (
                    SELECT FROM bindings WHERE bindings.bucket = named.bucket AND starts_with(named.key, prefix)
                )
            ), recorded AS (
                INSERT INTO change_events (bucket, key) SELECT bucket, key FROM bound ORDER BY bucket, key
                ON CONFLICT (bucket, key) DO UPDATE SET repeats = change_events.repeats + 1
                RETURNING repeats
            )
            SELECT count(*) FILTER (WHERE repeats = 0) AS new, count(*) AS bound FROM recorded
        """),
        {"buckets": [bucket for bucket, _ in distinct], "keys": [key for _, key in distinct]},
    ).one()
    repeated = row.bound - row.new + len(objects) - len(distinct)
    return RecordedEvents(row.new, repeated, len(distinct) - row.bound)


def claim(connection: Connection, limit: int, lease_s: float) -> list[ChangeEvent]:
    """Claim up to `limit` change events that are due, oldest first. Concurrent callers get different events.

    An event that is neither finished, postponed nor renewed within `lease_s` seconds is due again.
    """
    query = text("""
        UPDATE change_events SET not_before = now() + make_interval(secs => :lease_s), attempts = attempts + 1
        FROM (
            SELECT bucket, key FROM change_events WHERE not_before <= now()
            ORDER BY received_at LIMIT :limit FOR UPDATE SKIP LOCKED
        ) due
        WHERE change_events.bucket = due.bucket AND change_events.key = due.key
        RETURNING change_events.*
    """)
    claimed = records(ChangeEvent, connection.execute(query, {"limit": limit, "lease_s": lease_s}))
    return sorted(claimed, key=lambda event: event.received_at)  # an UPDATE returns its rows in any order


def renew(connection: Connection, claimed: ChangeEvent, lease_s: float) -> bool:
    """Keep an event claimed for `lease_s` seconds from now; False if it is gone, or if another caller has it now."""
    is_ours, _ = _are([claimed], "attempts")
    not_before = func.now() + seconds(lease_s)
    return connection.execute(update(change_events).where(is_ours).values(not_before=not_before)).rowcount == 1


def finish(connection: Connection, done: Sequence[ChangeEvent]) -> None:
    """Remove these events; those whose object had another event since they were claimed are due again immediately."""
    if done:
        are_done, repeats = _are(done)
        lock_rows(connection, change_events, are_done)
        gone = delete(change_events).where(are_done, change_events.c.repeats == repeats).cte("gone")
        repeated = update(change_events).where(are_done, change_events.c.repeats > repeats)
        connection.execute(repeated.values(not_before=func.now(), attempts=0, reason=None).add_cte(gone))


def postpone(
    connection: Connection, unsettled: Sequence[ChangeEvent], delay_s: float, reason: str | None = None
) -> None:
    """Keep these change events; they are due again after `delay_s` seconds. `reason`: why the object was not observed.

    An event that came meanwhile is due immediately: perhaps it removes the reason. One that another caller has claimed
    since is left to that caller.
    """
    if unsettled:
        are_unsettled, repeats = _are(unsettled, "attempts")
        lock_rows(connection, change_events, are_unsettled)
        due = case((change_events.c.repeats > repeats, func.now()), else_=func.now() + seconds(delay_s))
        connection.execute(update(change_events).where(are_unsettled).values(not_before=due, reason=reason))


def count_waiting(connection: Connection) -> int:
    """How many objects are still to be observed."""
    return connection.scalar(select(func.count()).select_from(change_events)) or 0


def add_totals(connection: Connection, numbers: Mapping[str, int]) -> None:
    """Add to the counters shown to the user; zeros are left out."""
    values = [{"name": name, "number": number} for name, number in sorted(numbers.items()) if number]
    if values:
        new = insert(change_event_totals).values(values)
        sums = {"number": change_event_totals.c.number + new.excluded.number, "updated_at": func.now()}
        connection.execute(new.on_conflict_do_update(index_elements=["name"], set_=sums))


def totals(connection: Connection) -> dict[str, int]:
    """The counters by name."""
    query = select(change_event_totals.c.name, change_event_totals.c.number).order_by(change_event_totals.c.name)
    return dict(connection.execute(query).all())


def _are(events: Sequence[ChangeEvent], *more: str) -> tuple[ColumnElement[bool], ColumnElement[int]]:
    """The condition that a row is one of these change events, and the `repeats` with which that was claimed.

    `more` are columns that must not have changed either: with `attempts`, no other caller has claimed the event since.
    """
    columns = change_events.c
    rows = ((event.bucket, event.key, event.received_at, event.repeats, event.attempts) for event in events)
    claimed = given(rows, columns.bucket, columns.key, columns.received_at, columns.repeats, columns.attempts)
    return same(change_events, claimed, "bucket", "key", "received_at", *more), claimed.c.repeats
