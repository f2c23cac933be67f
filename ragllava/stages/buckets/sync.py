"""Keep archives in sync with their bound buckets: by change events, and by scans (docs/reliability.md D13).

`process_events` observes the objects that change events name and makes one ingest job of all that is new. Events can be
lost, so `scan` lists the bucket, compares it with the recorded states, and repairs the difference. Both end in
`apply_observations`, and any number of both may run concurrently.

Objects come from outside. Whatever one of them, or one binding, makes fail, holds up no other (jobs/isolation.py).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Engine

from ragllava.errors import ObjectMissing, RagllavaError, ServiceUnavailable, UsageError
from ragllava.jobs.isolation import Isolation, reason_of
from ragllava.settings import Settings
from ragllava.stages.buckets.apply_changes import (
    NOT_USABLE,
    Changes,
    Observation,
    apply_observations,
    refresh_due,
    settle_binding,
)
from ragllava.stages.buckets.object_captions import (
    CaptionFiles,
    kind_of,
    object_uri,
    read_caption_files,
)
from ragllava.stages.buckets.observing import observe_objects
from ragllava.stores.archives import archive, image_changes
from ragllava.stores.buckets import (
    bindings,
    bound_objects,
    change_events,
    held_removals,
    listed_captions,
    listings,
)
from ragllava.stores.buckets.bindings import Binding, BindingRole
from ragllava.stores.buckets.bound_objects import BoundObject, ObjectKind
from ragllava.stores.buckets.change_events import ChangeEvent
from ragllava.stores.buckets.listings import ListedObject, MissingPictures
from ragllava.stores.database import in_transaction, outside_transaction
from ragllava.stores.maintenance.erasing_images import REMOVED_OBJECT
from ragllava.stores.objects import ObjectStore

log = logging.getLogger(__name__)

OBJECTS_PER_JOB = 10_000  # observed together
SHOWN_NAMES = 20  # of each kind of difference, in reports
_LEASE_S = 300.0  # to observe OBJECTS_PER_JOB objects in a remote store
_WAIT_S = 5.0  # until an object is observed again whose former version is still being ingested
_LONGEST_WAIT_S = 60.0  # for a service that may be back soon
_LONGEST_S = 600.0  # for anything else
_LISTED_AT_ONCE = 1_000
_REFRESHED_AT_ONCE = 2_000


@dataclass(frozen=True, slots=True)
class ProcessedEvents:
    """The result of one `process_events`."""

    change_events: int
    kept: int  # change events whose objects will be observed again
    settled: int
    changes: Changes


@dataclass(slots=True)
class ScanReport:
    """What a scan of one binding found and did."""

    address: str
    listed: int = 0
    changes: Changes = field(default_factory=Changes)
    # The first of those that are not tried again until they change, by key: the reason.
    refused: dict[str, str] = field(default_factory=dict)
    refused_number: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # by key: why the object could not be observed
    held: int = 0  # objects that are gone, so many at once that their pictures stay
    problem: str | None = None  # why nothing was compared

    @property
    def found_differences(self) -> bool:
        """Whether the archive differed from the bucket."""
        return any(self.changes.differences.values())

    def as_json(self) -> dict[str, Any]:
        """The number of objects of each kind, and the first keys."""
        named = self.changes.differences | {"waiting": [*self.changes.waiting, *self.changes.stale]}
        reasons = {"refused": (self.refused_number, self.refused), "failed": (len(self.failed), self.failed)}
        return {
            "address": self.address,
            "problem": self.problem,
            "listed": self.listed,
            "held": self.held,
            "jobs": self.changes.job_ids,
            **{name: {"number": len(keys), "first": sorted(keys)[:SHOWN_NAMES]} for name, keys in named.items()},
            **{
                name: {"number": number, "first": dict(sorted(by_key.items())[:SHOWN_NAMES])}
                for name, (number, by_key) in reasons.items()
            },
        }


def process_events(engine: Engine, settings: Settings, objects: ObjectStore) -> ProcessedEvents:
    """Settle pictures whose ingest jobs have ended, observe the objects of due change events and apply the changes.

    A binding or an object that cannot be processed is postponed with its reason. Raises ServiceUnavailable when the
    database is unavailable.
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
        processed = isolation.run(binding.address, _process_binding, engine, settings, objects, binding, events)
        if processed is None:
            in_transaction(engine, _postpone, events)
            kept += len(events)
        else:
            total.add(processed.changes)
            kept += processed.kept
    return ProcessedEvents(len(claimed), kept, settled, total)


def scan(
    engine: Engine,
    settings: Settings,
    objects: ObjectStore,
    archive_name: str | None = None,
    *,
    allow_removals: bool = False,
    retry_refused: bool = False,
) -> list[ScanReport]:
    """Compare the bound buckets of one archive, or of all, with the recorded states, and repair the differences.

    When more than `settings.removals_share` of the pictures of a binding are gone, they and all other missing objects
    of it stay, unless `allow_removals` is set. Objects that were refused are tried again when they change, with
    `retry_refused` now, and when this version takes files of their name for pictures and an earlier one did not.

    A bucket that cannot be compared (it is missing, it denies access) is the `problem` of its report, and the others
    are compared. Raises UsageError for an unknown archive and one without a binding. If nothing at all could be
    compared for an archive, its error is raised; nothing is retired then.
    """
    selected = in_transaction(engine, _bindings_of, archive_name)
    if archive_name is not None and not selected:
        raise UsageError(
            f"the archive {archive_name} is not bound to a bucket; "
            f"`ragllava archive bind {archive_name} s3://bucket/prefix/` binds it"
        )
    settle(engine)
    reports: list[ScanReport] = []
    errors: list[Exception] = []
    for binding in selected:
        report = ScanReport(binding.address)
        reports.append(report)
        try:
            share = 1.0 if allow_removals else settings.removals_share
            _scan_binding(engine, settings, objects, binding, report, share, retry_refused=retry_refused)
        except Exception as error:
            report.problem = reason_of(error)
            errors.append(error)
            log.warning(
                report.problem,
                exc_info=None if isinstance(error, RagllavaError) else error,
                extra={"action": "scan_failed", "binding": binding.address},
            )
    if archive_name is not None and len(errors) == len(selected):
        raise errors[0]
    return reports


def _bindings_of(connection: Connection, archive_name: str | None) -> list[Binding]:
    archive_id = archive.get_archive(connection, archive_name).archive_id if archive_name is not None else None
    return bindings.list_bindings(connection, archive_id)


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
    """What was done about observed objects; `failed` has the reason for each object that could not be applied."""

    changes: Changes = field(default_factory=Changes)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """How many objects will be observed again."""
        return len(self.changes.waiting) + len(self.changes.stale) + len(self.failed)


Apply = Callable[[Connection, Sequence[Observation], CaptionFiles], Changes]


def _process_binding(
    engine: Engine, settings: Settings, objects: ObjectStore, binding: Binding, events: list[ChangeEvent]
) -> _Applied:
    """Observe the objects of one binding that change events name, and apply the changes."""
    by_key = {event.key: event for event in events}
    observations, failed = observe_objects(engine, settings, objects, binding, list(by_key))

    def apply(connection: Connection, part: Sequence[Observation], caption_files: CaptionFiles) -> Changes:
        changes = apply_observations(connection, settings, binding, part, caption_files)
        later = {*changes.waiting, *changes.stale}
        done = [by_key[observation.key] for observation in part if observation.key not in later]
        change_events.finish(connection, done)
        change_events.postpone(connection, [by_key[key] for key in sorted(later)], _WAIT_S)
        change_events.add_totals(connection, changes.totals())
        return changes

    applied = _apply(engine, objects, binding, observations, apply)
    applied.failed |= failed
    for reason in set(applied.failed.values()):
        unobserved = [by_key[key] for key in applied.failed if applied.failed[key] == reason]
        in_transaction(engine, _postpone, unobserved, reason)
    _log(binding, applied)
    return applied


def _postpone(connection: Connection, events: Sequence[ChangeEvent], reason: str | None = None) -> None:
    """Try again later, after a delay that grows with each attempt."""
    longest_s = _LONGEST_S if reason else _LONGEST_WAIT_S
    by_delay: dict[float, list[ChangeEvent]] = defaultdict(list)
    for event in events:
        by_delay[min(longest_s, 2.0 ** min(event.attempts, 10))].append(event)
    for delay_s, group in by_delay.items():
        change_events.postpone(connection, group, delay_s, reason)


def _apply(
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


def _scan_binding(
    engine: Engine,
    settings: Settings,
    objects: ObjectStore,
    binding: Binding,
    report: ScanReport,
    removals_share: float,
    *,
    retry_refused: bool,
) -> None:
    """Fills in `report`. Neither the listing nor the recorded states are in memory: the database compares them."""
    with outside_transaction(engine) as session:
        listings.begin(session)
        try:
            listed = objects.list_external(binding.bucket, binding.prefix)
            while part := [ListedObject(i.key, i.etag, i.size_bytes) for i in islice(listed, _LISTED_AT_ONCE)]:
                report.listed += listings.add(session, part)
        except ObjectMissing:
            raise UsageError(f"there is no bucket {binding.bucket}, so nothing was compared with it") from None
        listings.compare(session, binding.binding_id)
        _relink_images(engine, session, binding)
        _add_refused(engine, session, binding, retry=retry_refused)
        missing = listings.missing_pictures(session, binding.binding_id)
        if in_transaction(engine, _hold, binding, missing, removals_share):
            report.held = listings.leave_missing(session)
        refusals = listings.refusals(session, binding.binding_id, SHOWN_NAMES)
        report.refused, report.refused_number = refusals.first, refusals.number
        last = ""
        while page := listings.differences(session, last, OBJECTS_PER_JOB):
            last = page[-1].key
            by_key = {difference.key: difference for difference in page}
            listed_now = {d.key: ListedObject(d.key, d.etag, d.size_bytes or 0) for d in page if d.etag is not None}
            observations, failed = observe_objects(engine, settings, objects, binding, list(by_key), listed_now)
            observations = [replace(o, reingest=by_key[o.key].is_lost and o.now is not None) for o in observations]
            applied = _apply(engine, objects, binding, observations, partial(_apply_scanned, settings, binding))
            applied.failed |= failed
            _log(binding, applied)
            report.failed |= applied.failed
            report.changes.add(applied.changes)
    in_transaction(engine, bindings.record_scan, binding.binding_id)


def _hold(connection: Connection, binding: Binding, missing: MissingPictures, share: float) -> bool:
    """Whether the missing objects are too many to be believed; recorded for `ragllava status`."""
    if not held_removals.is_too_much(missing.number, missing.pictures, share):
        held_removals.release(connection, binding.archive_id, binding.address)
        return False
    held_removals.hold(connection, binding.archive_id, binding.address, missing.number, missing.pictures)
    return True


def _apply_scanned(
    settings: Settings,
    binding: Binding,
    connection: Connection,
    observations: Sequence[Observation],
    caption_files: CaptionFiles,
) -> Changes:
    changes = apply_observations(connection, settings, binding, observations, caption_files)
    change_events.record(connection, [(binding.bucket, key) for key in (*changes.waiting, *changes.stale)])
    return changes


def _relink_images(engine: Engine, session: Connection, binding: Binding) -> None:
    """Find the images of pictures whose recorded image is missing or retired, by their uris.

    The pictures without an image, except rejected ones, become differences.
    """
    last = ""
    while page := in_transaction(engine, bound_objects.unlinked_pictures, binding.binding_id, last, OBJECTS_PER_JOB):
        last = max(page)
        links = in_transaction(engine, _link_images, binding, list(page))
        listings.add_lost(session, [key for key, reason in page.items() if key not in links and not reason])


def _add_refused(engine: Engine, session: Connection, binding: Binding, *, retry: bool) -> None:
    """Make differences of the refused objects that are to be tried again."""
    last = ""
    while page := in_transaction(engine, bound_objects.refused_objects, binding.binding_id, last, OBJECTS_PER_JOB):
        last = page[-1].key
        listings.add_lost(session, [refused.key for refused in page if _is_retried(binding, refused, retry)])


def _is_retried(binding: Binding, refused: BoundObject, retry: bool) -> bool:
    if refused.reason == NOT_USABLE:  # by its name, which an earlier version may have known less about
        return kind_of(binding, refused.key) is not refused.kind
    return retry and refused.kind in (ObjectKind.PICTURE, ObjectKind.CAPTIONS) and refused.reason != REMOVED_OBJECT


def _link_images(connection: Connection, binding: Binding, keys: Sequence[str]) -> dict[str, int]:
    by_uri = {object_uri(binding.bucket, key): key for key in keys}
    images = image_changes.images_at(connection, binding.archive_id, by_uri)
    links: dict[str, int] = {}
    for uri, image in sorted(images.items(), key=lambda item: item[1].image_id):
        links.setdefault(by_uri[archive.document_of(uri)], image.image_id)  # of a document, one page
    bound_objects.link_images(connection, binding.binding_id, links)
    return links


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


def _log(binding: Binding, applied: _Applied) -> None:
    changes, failed = applied.changes, applied.failed
    facts = {**changes.totals(), "waiting": len(changes.waiting), "failed": len(failed), "jobs": changes.job_ids}
    log.info("bucket compared", extra={"action": "change_events_processed", "binding": binding.address, **facts})
    for key, reason in islice(failed.items(), 3):
        log.warning(reason, extra={"action": "look_failed", "binding": binding.address, "key": key})
