"""Turn the notifications of object stores into change events, for the receiver and for the maintenance worker."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sqlalchemy import Connection, Engine

from ragllava.errors import ServiceUnavailable
from ragllava.jobs.isolation import reason_of
from ragllava.settings import Settings
from ragllava.stages.buckets.notifications import NamedObject, read_notification
from ragllava.stores.buckets import change_events, event_lists
from ragllava.stores.database import in_transaction

log = logging.getLogger(__name__)

ENTRIES_AT_ONCE = 1_000  # read from a Redis list


def record_events(connection: Connection, named: Sequence[NamedObject]) -> change_events.RecordedEvents:
    """Write change events about objects, and count them."""
    recorded = change_events.record(connection, named)
    totals = {"received": len(named), "repeated": recorded.repeated, "unbound": recorded.unbound}
    change_events.add_totals(connection, totals)
    return recorded


def without_own_bucket(named: Sequence[NamedObject], settings: Settings) -> list[NamedObject]:
    """The objects that are not in RagLLaVA's own bucket, which cannot be bound."""
    return [(bucket, key) for bucket, key in named if bucket != settings.s3_bucket]


def drain_list(engine: Engine, settings: Settings) -> int:
    """Turn the entries of the Redis list `settings.events_list` into change events; returns the number of entries.

    An entry is removed only after its change events are committed, so none is lost, but one may be read twice. An entry
    that cannot be used is counted as unreadable and removed. Raises ServiceUnavailable.
    """
    if settings.events_list is None:
        return 0
    count = 0
    while entries := event_lists.first_entries(settings.require_redis(), settings.events_list, ENTRIES_AT_ONCE):
        unreadable = _take_entries(engine, settings, entries)
        in_transaction(engine, change_events.add_totals, {"unreadable": unreadable})
        event_lists.remove_entries(settings.require_redis(), settings.events_list, entries)
        count += len(entries)
    return count


def _take_entries(engine: Engine, settings: Settings, entries: Sequence[bytes]) -> int:
    """Write the change events of entries, in halves if that fails, so that only the entry that is to blame is lost.

    Returns the number of unreadable entries. Raises ServiceUnavailable.
    """
    named, unreadable = [], 0
    for entry in entries:
        try:
            named += without_own_bucket(read_notification(entry), settings)
        except Exception as error:  # noqa: BLE001 - the border of a part
            unreadable += 1
            _log_unreadable(settings, error)
    try:
        in_transaction(engine, record_events, named)
    except ServiceUnavailable:
        raise
    except Exception as error:  # noqa: BLE001 - the border of a part
        middle = len(entries) // 2
        if middle:
            return _take_entries(engine, settings, entries[:middle]) + _take_entries(engine, settings, entries[middle:])
        _log_unreadable(settings, error)
        return 1
    return unreadable


def _log_unreadable(settings: Settings, error: Exception) -> None:
    log.warning(reason_of(error), extra={"action": "event_unreadable", "list": settings.events_list})
