"""Change events: objects that may have changed (docs/reliability.md D13). A change event only asks to look at one.

An event that comes while its object is being looked at must not be lost: each event makes `repeats` grow, and
`finish` removes only what did not grow since it was claimed. Every function works in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select, text
from sqlalchemy.dialects.postgresql import insert

from ragllava.stores.schema import change_event_totals, change_events


@dataclass(frozen=True, slots=True)
class ChangeEvent:
    """One claimed change event; `received_at` and `repeats` tell this state of it from a later one."""

    bucket: str
    key: str
    received_at: datetime
    repeats: int
    attempts: int


@dataclass(frozen=True, slots=True)
class Noted:
    """What became of the objects that a message named."""

    new: int
    repeated: int  # there was a change event about the object already
    unbound: int  # no binding covers the object


def note(connection: Connection, named: Sequence[tuple[str, str]]) -> Noted:
    """Write change events about (bucket, key) objects, in one statement; those outside all bindings leave no trace."""
    distinct = sorted(set(named))
    row = connection.execute(
        text("""
            WITH bound AS (
                SELECT bucket, key FROM unnest(CAST(:buckets AS text[]), CAST(:keys AS text[])) AS named (bucket, key)
                WHERE EXISTS (
                    SELECT FROM bindings WHERE bindings.bucket = named.bucket AND starts_with(named.key, prefix)
                )
            ), noted AS (
                INSERT INTO change_events (bucket, key) SELECT bucket, key FROM bound
                ON CONFLICT (bucket, key) DO UPDATE SET repeats = change_events.repeats + 1
                RETURNING repeats
            )
            SELECT count(*) FILTER (WHERE repeats = 0) AS new, count(*) AS bound FROM noted
        """),
        {"buckets": [bucket for bucket, _ in distinct], "keys": [key for _, key in distinct]},
    ).one()
    repeated = row.bound - row.new + len(named) - len(distinct)
    return Noted(row.new, repeated, len(distinct) - row.bound)


def claim(connection: Connection, limit: int, lease_s: float) -> list[ChangeEvent]:
    """Take up to `limit` change events that are due, oldest first. Of several callers at once each gets others.

    What is neither finished nor postponed within `lease_s` seconds is due again.
    """
    rows = connection.execute(
        text("""
            UPDATE change_events SET not_before = now() + make_interval(secs => :lease_s), attempts = attempts + 1
            FROM (
                SELECT bucket, key FROM change_events WHERE not_before <= now()
                ORDER BY received_at LIMIT :limit FOR UPDATE SKIP LOCKED
            ) due
            WHERE change_events.bucket = due.bucket AND change_events.key = due.key
            RETURNING change_events.bucket, change_events.key, received_at, repeats, attempts
        """),
        {"limit": limit, "lease_s": lease_s},
    )
    return [ChangeEvent(row.bucket, row.key, row.received_at, row.repeats, row.attempts) for row in rows]


def finish(connection: Connection, done: Sequence[ChangeEvent]) -> None:
    """Remove these events; those whose object had another event since they were claimed are due again at once."""
    if not done:
        return
    connection.execute(
        text(f"""
            WITH {_GIVEN}, gone AS (
                DELETE FROM change_events USING given
                WHERE change_events.bucket = given.bucket AND change_events.key = given.key
                  AND change_events.received_at = given.received_at AND change_events.repeats = given.repeats
            )
            UPDATE change_events SET not_before = now(), attempts = 0 FROM given
            WHERE change_events.bucket = given.bucket AND change_events.key = given.key
              AND change_events.received_at = given.received_at AND change_events.repeats > given.repeats
        """),  # noqa: S608 - a constant
        _as_arrays(done),
    )


def postpone(connection: Connection, unsettled: Sequence[ChangeEvent], delay_s: float) -> None:
    """Keep these change events and let them be due again after `delay_s` seconds."""
    if not unsettled:
        return
    connection.execute(
        text(f"""
            WITH {_GIVEN}
            UPDATE change_events SET not_before = now() + make_interval(secs => :delay_s) FROM given
            WHERE change_events.bucket = given.bucket AND change_events.key = given.key
              AND change_events.received_at = given.received_at
        """),  # noqa: S608 - a constant
        _as_arrays(unsettled) | {"delay_s": delay_s},
    )


def count_waiting(connection: Connection) -> int:
    """How many objects are still to be looked at."""
    return connection.scalar(select(func.count()).select_from(change_events)) or 0


def add_totals(connection: Connection, numbers: Mapping[str, int]) -> None:
    """Add to the counters for people; zeros are left out."""
    values = [{"name": name, "number": number} for name, number in sorted(numbers.items()) if number]
    if values:
        given = insert(change_event_totals).values(values)
        grown = {"number": change_event_totals.c.number + given.excluded.number, "updated_at": func.now()}
        connection.execute(given.on_conflict_do_update(index_elements=["name"], set_=grown))


def totals(connection: Connection) -> dict[str, int]:
    """The counters by name."""
    rows = connection.execute(
        select(change_event_totals.c.name, change_event_totals.c.number).order_by(change_event_totals.c.name)
    )
    return {row.name: row.number for row in rows}


_GIVEN = """given AS (
    SELECT * FROM unnest(CAST(:buckets AS text[]), CAST(:keys AS text[]), CAST(:times AS timestamptz[]),
                         CAST(:repeats AS bigint[])) AS listed (bucket, key, received_at, repeats)
)"""


def _as_arrays(some: Sequence[ChangeEvent]) -> dict[str, object]:
    return {
        "buckets": [event.bucket for event in some],
        "keys": [event.key for event in some],
        "times": [event.received_at for event in some],
        "repeats": [event.repeats for event in some],
    }
