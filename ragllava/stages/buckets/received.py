"""Notifications in, change events out: what the receiver and the tick do with messages of object stores."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sqlalchemy import Connection, Engine

from ragllava.errors import UsageError
from ragllava.settings import Settings
from ragllava.stages.buckets.notifications import NamedObject, read_notification
from ragllava.stores.buckets import change_events, event_lists
from ragllava.stores.database import in_transaction

log = logging.getLogger(__name__)

ENTRIES_AT_ONCE = 1_000  # of a Redis list


def note_objects(engine: Engine, named: Sequence[NamedObject]) -> change_events.Noted:
    """Write change events about objects, and count them; when this returns, they are committed."""

    def work(connection: Connection) -> change_events.Noted:
        noted = change_events.note(connection, named)
        change_events.add_totals(
            connection, {"received": len(named), "repeated": noted.repeated, "unbound": noted.unbound}
        )
        return noted

    return in_transaction(engine, work)


def not_ours(named: Sequence[NamedObject], settings: Settings) -> list[NamedObject]:
    """Without what we wrote into our own bucket, which cannot be bound."""
    return [(bucket, key) for bucket, key in named if bucket != settings.s3_bucket]


def drain_list(engine: Engine, settings: Settings) -> int:
    """Turn the entries of the Redis list `settings.events_list` into change events; returns the number of entries.

    An entry is removed only after its change events are committed, so none is lost, and one may be read twice. Raises
    ServiceUnavailable.
    """
    if settings.events_list is None:
        return 0
    count = 0
    while entries := event_lists.first_entries(settings.require_redis(), settings.events_list, ENTRIES_AT_ONCE):
        named, unreadable = [], 0
        for entry in entries:
            try:
                named += read_notification(entry)
            except UsageError as error:
                unreadable += 1
                log.warning(str(error), extra={"action": "event_unreadable", "list": settings.events_list})
        note_objects(engine, not_ours(named, settings))
        in_transaction(engine, change_events.add_totals, {"unreadable": unreadable})
        event_lists.remove_entries(settings.require_redis(), settings.events_list, entries)
        count += len(entries)
    return count
