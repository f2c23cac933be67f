"""Keep archives in sync with their bound buckets, by change events (docs/reliability.md D13).

`process_events` observes the objects that change events name and makes one ingest job of all that is new. Events can be
lost, so `scan` (scanning.py) lists the bucket, compares it with the recorded states, and repairs the difference. Both
end in `apply_observations`, and any number of both may run concurrently.

Objects come from outside. Whatever one of them, or one binding, makes fail, holds up no other (jobs/isolation.py).
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from sqlalchemy import Connection, Engine

from ragllava.errors import ServiceUnavailable
from ragllava.jobs.isolation import Isolation, reason_of
from ragllava.settings import Settings
from ragllava.stages.answer.remote_pictures import fetching_nothing
from ragllava.stages.answer.slow_reads import SlowReads
from ragllava.stages.buckets.apply_changes import (
    Changes,
    Observation,
    apply_observations,
    refresh_due,
    settle_binding,
)
from ragllava.stages.buckets.object_captions import (
    CaptionFiles,
    read_caption_files,
)
from ragllava.stages.buckets.observing import observe_objects
from ragllava.stores.buckets import (
    bindings,
    bound_objects,
    change_events,
    listed_captions,
)
from ragllava.stores.buckets.bindings import Binding, BindingRole
from ragllava.stores.buckets.bound_objects import ObjectKind
from ragllava.stores.buckets.change_events import ChangeEvent
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import ObjectStore

log = logging.getLogger(__name__)

OBJECTS_PER_JOB = 10_000  # observed together
_LEASE_S = 300.0  # to observe OBJECTS_PER_JOB objects in a remote store, or one file with pictures of other hosts
_TURN_S = 60.0  # for files of one inbox with pictures of other hosts; then others get its place
_WAIT_S = 5.0  # until an object is observed again whose former version is still being ingested
_LONGEST_WAIT_S = 60.0  # for a service that may be back soon
_LONGEST_S = 600.0  # for anything else
_REFRESHED_AT_ONCE = 2_000


@dataclass(frozen=True, slots=True)
class ProcessedEvents:
    """The result of one `process_events`."""

    change_events: int
    kept: int  # change events whose objects will be observed again
    settled: int
    changes: Changes


def process_events(engine: Engine, settings: Settings, objects: ObjectStore, slow: SlowReads) -> ProcessedEvents:
    """Settle pictures whose ingest jobs have ended, observe the objects of due change events and apply the changes.

    A binding or an object that cannot be processed is postponed with its reason. Question files with pictures of other
    hosts are left to the threads of `slow`. Their events stay claimed meanwhile: no other process takes them, and they
    are due again if this one dies. Raises ServiceUnavailable when the database is unavailable.
    """
    settled = settle(engine)
    claimed = in_transaction(engine, change_events.claim, OBJECTS_PER_JOB, _LEASE_S)
    all_bindings = in_transaction(engine, bindings.list_bindings)
    isolation = Isolation(engine, "events", [binding.address for binding in all_bindings])
    groups: dict[int, list[ChangeEvent]] = defaultdict(list)
    unbound: list[ChangeEvent] = []  # their binding was removed since
    for event in claimed:
        covering = bindings.covering(all_bindings, event.bucket, event.key)
        (groups[covering.binding_id] if covering else unbound).append(event)
    in_transaction(engine, change_events.finish, unbound)
    total, kept = Changes(), 0
    for binding in sorted(all_bindings, key=lambda binding: isolation.has_failed(binding.address)):
        events = groups.get(binding.binding_id)
        if events is None:
            continue
        with fetching_nothing():
            processed = isolation.run(binding.address, _process_binding, engine, settings, objects, binding, events)
        if processed is None:
            in_transaction(engine, _postpone, events)
            kept += len(events)
            continue
        total.add(processed.changes)
        kept += processed.kept
        left = [event for event in events if event.key in processed.slow]
        in_turn = partial(_process_in_turn, engine, settings, objects, binding, left)
        if left and not slow.begin_if_free(binding.address, isolation, in_turn):
            in_transaction(engine, _postpone, left)
    return ProcessedEvents(len(claimed), kept, settled, total)


def settle(engine: Engine) -> int:
    """Record the outcomes of bound pictures; returns how many there were. Cheap when there are none.

    Pictures whose listed caption has changed are refreshed too, if a process ended before it had done so.
    """
    count = 0
    open_bindings = in_transaction(engine, _bindings_to_settle)
    isolation = Isolation(engine, "settle", [binding.address for binding in open_bindings])
    for binding in open_bindings:
        if not isolation.is_postponed(binding.address):
            count += isolation.run(binding.address, _settle_one, engine, binding) or 0
    return count


def _settle_one(engine: Engine, binding: Binding) -> int:
    count = in_transaction(engine, settle_binding, binding)
    _refresh_all_due(engine, binding)
    return count


def _bindings_to_settle(connection: Connection) -> list[Binding]:
    ids = bound_objects.bindings_to_settle(connection) | listed_captions.bindings_due(connection)
    return list(bindings.load_bindings(connection, ids).values())


def _refresh_all_due(engine: Engine, binding: Binding) -> list[str]:
    """Page by page, so that no transaction is as long as an archive is large."""
    changed: list[str] = []
    while (refreshed := in_transaction(engine, refresh_due, binding, _REFRESHED_AT_ONCE)) is not None:
        changed += refreshed
    return changed


@dataclass(slots=True)
class _Applied:
    """What was done about observed objects; `failed` has the reason for each object that could not be applied, `slow`
    the question files whose pictures have to be fetched."""

    changes: Changes = field(default_factory=Changes)
    failed: dict[str, str] = field(default_factory=dict)
    slow: set[str] = field(default_factory=set)

    @property
    def kept(self) -> int:
        """How many objects will be observed again."""
        return len(self.changes.waiting) + len(self.changes.stale) + len(self.failed) + len(self.slow)


Apply = Callable[[Connection, Sequence[Observation], CaptionFiles], Changes]


def _process_binding(
    engine: Engine, settings: Settings, objects: ObjectStore, binding: Binding, events: list[ChangeEvent]
) -> _Applied:
    """Observe the objects of one binding that change events name, and apply the changes."""
    by_key = {event.key: event for event in events}
    observations, failed, slow = observe_objects(engine, settings, objects, binding, list(by_key))

    def apply(connection: Connection, part: Sequence[Observation], caption_files: CaptionFiles) -> Changes:
        changes = apply_observations(connection, settings, binding, part, caption_files)
        later = {*changes.waiting, *changes.stale}
        done = [by_key[observation.key] for observation in part if observation.key not in later]
        change_events.finish(connection, done)
        change_events.postpone(connection, [by_key[key] for key in sorted(later)], _WAIT_S)
        change_events.add_totals(connection, changes.totals())
        return changes

    applied = apply_in_parts(engine, objects, binding, observations, apply)
    applied.failed |= failed
    applied.slow.update(slow)
    for reason in set(applied.failed.values()):
        unobserved = [by_key[key] for key in applied.failed if applied.failed[key] == reason]
        in_transaction(engine, _postpone, unobserved, reason)
    log_applied(binding, applied)
    return applied


def _process_in_turn(
    engine: Engine, settings: Settings, objects: ObjectStore, binding: Binding, events: Sequence[ChangeEvent]
) -> None:
    """Process question files of an inbox one by one; what is left when the time is over, or after an error, is tried
    again later.

    A claim may have run out, because the pass was long. Files that another process has claimed since are left to it.
    """
    until = time.monotonic() + _TURN_S
    left = deque(events)
    try:
        while left:
            if in_transaction(engine, change_events.renew, left[0], _LEASE_S):
                _process_binding(engine, settings, objects, binding, [left[0]])
            left.popleft()
            if time.monotonic() > until:
                break
    finally:
        in_transaction(engine, _postpone, left)


def _postpone(connection: Connection, events: Sequence[ChangeEvent], reason: str | None = None) -> None:
    """Try again later, after a delay that grows with each attempt."""
    longest_s = _LONGEST_S if reason else _LONGEST_WAIT_S
    by_delay: dict[float, list[ChangeEvent]] = defaultdict(list)
    for event in events:
        by_delay[min(longest_s, 2.0 ** min(event.attempts, 10))].append(event)
    for delay_s, group in by_delay.items():
        change_events.postpone(connection, group, delay_s, reason)


def apply_in_parts(
    engine: Engine, objects: ObjectStore, binding: Binding, observations: Sequence[Observation], apply: Apply
) -> _Applied:
    """Apply observations in one transaction, then refresh the pictures whose captions these have changed."""
    applied = _Applied()
    with _new_caption_files(objects, binding, observations) as caption_files:

        def apply_part(connection: Connection, part: Sequence[Observation]) -> Changes:
            return apply(connection, part, caption_files)

        _apply_part(engine, observations, apply_part, applied)
    if binding.role is BindingRole.PICTURES:
        applied.changes.captions += _refresh_all_due(engine, binding)
    return applied


def _apply_part(
    engine: Engine,
    observations: Sequence[Observation],
    apply: Callable[[Connection, Sequence[Observation]], Changes],
    applied: _Applied,
) -> None:
    """Apply observations in one transaction; if that fails, in halves, so that only the object that is to blame fails.

    Raises ServiceUnavailable.
    """
    try:
        applied.changes.add(in_transaction(engine, apply, observations))
    except ServiceUnavailable:
        raise
    except Exception as error:
        middle = len(observations) // 2
        if middle:
            _apply_part(engine, observations[:middle], apply, applied)
            _apply_part(engine, observations[middle:], apply, applied)
        else:
            applied.failed |= {observation.key: reason_of(error) for observation in observations}
            log.error(reason_of(error), exc_info=error, extra={"action": "object_not_applied"})


def _new_caption_files(
    objects: ObjectStore, binding: Binding, observations: Sequence[Observation]
) -> AbstractContextManager[CaptionFiles]:
    """Those of the observed caption files that are new or were overwritten."""
    is_new = (
        observation.key
        for observation in observations
        if observation.kind is ObjectKind.CAPTIONS and (observation.has_new_bytes or observation.reingest)
    )
    return read_caption_files(objects, binding, is_new)


def log_applied(binding: Binding, applied: _Applied) -> None:
    """A line for what was done, and one for each of the first objects that could not be applied."""
    changes, failed = applied.changes, applied.failed
    facts = {**changes.totals(), "waiting": len(changes.waiting), "failed": len(failed), "jobs": changes.job_ids}
    log.info("bucket compared", extra={"action": "change_events_processed", "binding": binding.address, **facts})
    for key, reason in islice(failed.items(), 3):
        log.warning(reason, extra={"action": "look_failed", "binding": binding.address, "key": key})
