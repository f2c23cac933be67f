"""Keep archives in sync with their bound buckets: by change events, and by scans (docs/reliability.md D13).

`process_events` observes the objects that change events name and makes one ingest job of all that is new. Events can be
lost, so `scan` lists the bucket, compares it with the recorded states, and repairs the difference. Both end in
`apply_observations`, and any number of both may run concurrently.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Engine

from ragllava.errors import ObjectMissing, ServiceUnavailable, SettingsError, UsageError
from ragllava.settings import Settings
from ragllava.stages.buckets.apply_changes import Changes, Observation, apply_observations, settle_binding
from ragllava.stages.buckets.inbox import submit_question_file
from ragllava.stages.buckets.object_captions import (
    CaptionFiles,
    kind_of,
    metadata_caption,
    object_uri,
    read_caption_files,
    read_sidecar,
)
from ragllava.stores.archives import archive, image_changes
from ragllava.stores.buckets import bindings, bound_objects, change_events, held_removals
from ragllava.stores.buckets.bindings import Binding, BindingRole
from ragllava.stores.buckets.bound_objects import BoundObject, ObjectKind, ObjectState
from ragllava.stores.buckets.change_events import ChangeEvent
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import ObjectStore

log = logging.getLogger(__name__)

OBJECTS_PER_JOB = 10_000  # observed together
SHOWN_NAMES = 20  # of each kind of difference, in reports
_THREADS = 16
_LEASE_S = 300.0  # to observe OBJECTS_PER_JOB objects in a remote store
_WAIT_S = 5.0  # until an object is observed again whose former version is still being ingested
_LONGEST_WAIT_S = 60.0
_MAX_FAILURES = 20  # objects that could not be observed, before the store is considered unavailable


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
    refused: dict[str, str] = field(default_factory=dict)  # by key: the reason; not tried again until they change
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
        reasons = {"refused": self.refused, "failed": self.failed}
        return {
            "address": self.address,
            "problem": self.problem,
            "listed": self.listed,
            "held": self.held,
            "jobs": self.changes.job_ids,
            **{name: {"number": len(keys), "first": sorted(keys)[:SHOWN_NAMES]} for name, keys in named.items()},
            **{
                name: {"number": len(by_key), "first": dict(sorted(by_key.items())[:SHOWN_NAMES])}
                for name, by_key in reasons.items()
            },
        }


def process_events(engine: Engine, settings: Settings, objects: ObjectStore) -> ProcessedEvents:
    """Settle pictures whose ingest jobs have ended, observe the objects of due change events and apply the changes.

    Raises ServiceUnavailable when the database is unavailable; change events of an unavailable store are kept.
    """
    settled = settle(engine, objects)
    claimed = in_transaction(engine, change_events.claim, OBJECTS_PER_JOB, _LEASE_S)
    if not claimed:
        return ProcessedEvents(0, 0, settled, Changes())
    all_bindings = in_transaction(engine, bindings.list_bindings)
    groups: dict[int, list[ChangeEvent]] = defaultdict(list)
    unbound: list[ChangeEvent] = []  # their binding was removed since
    for event in claimed:
        covering = bindings.covering(all_bindings, event.bucket, event.key)
        (groups[covering.binding_id] if covering else unbound).append(event)
    in_transaction(engine, change_events.finish, unbound)
    total, kept = Changes(), 0
    for binding in all_bindings:
        if binding.binding_id in groups:
            changes, unsettled = _process_binding(engine, settings, objects, binding, groups[binding.binding_id])
            total.add(changes)
            kept += unsettled
    return ProcessedEvents(len(claimed), kept, settled, total)


def scan(
    engine: Engine,
    settings: Settings,
    objects: ObjectStore,
    archive_name: str | None = None,
    *,
    allow_removals: bool = False,
) -> list[ScanReport]:
    """Compare the bound buckets of one archive, or of all, with the recorded states, and repair the differences.

    When more than `settings.removals_share` of the pictures of a binding are gone, they and all other missing objects
    of it stay, unless `allow_removals` is set.

    Raises UsageError for an unknown archive, one without a binding, or a missing bucket (then nothing is retired), and
    ServiceUnavailable when the store is unavailable. In a scan of all archives, a bucket that is missing or denies
    access is the `problem` of its report, and the others are compared.
    """
    selected = in_transaction(engine, _bindings_of, archive_name)
    if archive_name is not None and not selected:
        raise UsageError(
            f"the archive {archive_name} is not bound to a bucket; "
            f"`ragllava archive bind {archive_name} s3://bucket/prefix/` binds it"
        )
    settle(engine, objects)
    reports = []
    for binding in selected:
        try:
            reports.append(_scan_binding(engine, settings, objects, binding, allow_removals=allow_removals))
        except UsageError as error:
            if archive_name is not None:
                raise
            log.warning(str(error), extra={"action": "scan_failed", "binding": binding.address})
            reports.append(ScanReport(binding.address, problem=str(error)))
    return reports


def _bindings_of(connection: Connection, archive_name: str | None) -> list[Binding]:
    archive_id = archive.get_archive(connection, archive_name).archive_id if archive_name is not None else None
    return bindings.list_bindings(connection, archive_id)


def settle(engine: Engine, objects: ObjectStore) -> int:
    """Record the outcomes of bound pictures; returns how many there were. Cheap when there are none."""
    count = 0
    for binding in in_transaction(engine, _bindings_to_settle):
        try:
            caption_files = _caption_files(engine, objects, binding, ())
        except (ServiceUnavailable, SettingsError) as error:
            log.warning(str(error), extra={"action": "captions_unread", "binding": binding.address})
            continue
        count += in_transaction(engine, settle_binding, binding, caption_files)
    return count


def _bindings_to_settle(connection: Connection) -> list[Binding]:
    return list(bindings.load_bindings(connection, bound_objects.bindings_to_settle(connection)).values())


def _process_binding(
    engine: Engine, settings: Settings, objects: ObjectStore, binding: Binding, events: list[ChangeEvent]
) -> tuple[Changes, int]:
    """Observe the objects of one binding that change events name; returns the changes and how many events are kept."""
    try:
        observations, failed = _observe(engine, settings, objects, binding, [event.key for event in events])
        caption_files = _caption_files(engine, objects, binding, observations)
    except (ServiceUnavailable, ObjectMissing, SettingsError) as error:
        log.warning(
            str(error), extra={"action": "look_failed", "binding": binding.address, "change_events": len(events)}
        )
        in_transaction(engine, _postpone, events)
        return Changes(), len(events)

    def apply(connection: Connection) -> Changes:
        changes = apply_observations(connection, settings, binding, observations, caption_files)
        later = {*changes.waiting, *changes.stale}
        change_events.finish(connection, [event for event in events if event.key not in later | failed.keys()])
        change_events.postpone(connection, [event for event in events if event.key in later], _WAIT_S)
        _postpone(connection, [event for event in events if event.key in failed])
        change_events.add_totals(connection, changes.totals())
        return changes

    changes = in_transaction(engine, apply)
    _log(binding, changes, failed)
    return changes, len(changes.waiting) + len(changes.stale) + len(failed)


def _postpone(connection: Connection, events: Sequence[ChangeEvent]) -> None:
    """Try again later, after a delay that grows with each attempt."""
    by_delay: dict[float, list[ChangeEvent]] = defaultdict(list)
    for event in events:
        by_delay[min(_LONGEST_WAIT_S, 2.0 ** min(event.attempts, 10))].append(event)
    for delay_s, group in by_delay.items():
        change_events.postpone(connection, group, delay_s)


def _scan_binding(
    engine: Engine, settings: Settings, objects: ObjectStore, binding: Binding, *, allow_removals: bool
) -> ScanReport:
    try:
        listed = {info.key: info for info in objects.list_external(binding.bucket, binding.prefix)}
    except ObjectMissing:
        raise UsageError(f"there is no bucket {binding.bucket}, so nothing was compared with it") from None
    recorded = in_transaction(engine, bound_objects.all_objects, binding.binding_id)
    lost = in_transaction(engine, _relink_images, binding, recorded)
    unchanged = {
        row.key
        for row in recorded
        if (info := listed.get(row.key)) is not None and (row.etag, row.size_bytes) == (info.etag, info.size_bytes)
    }
    differing = ((listed.keys() | {row.key for row in recorded}) - unchanged) | lost
    report = ScanReport(binding.address, len(listed))
    gone = {row.key for row in recorded if row.key not in listed}
    share = 1.0 if allow_removals else settings.removals_share
    if in_transaction(engine, _hold, binding, recorded, gone, share):
        differing, report.held = differing - gone, len(gone)
    report.refused = {
        row.key: row.reason
        for row in recorded
        if row.reason and row.kind is not ObjectKind.OTHER and row.key not in differing
    }
    remaining = iter(sorted(differing))
    while keys := list(islice(remaining, OBJECTS_PER_JOB)):
        observations, failed = _observe(engine, settings, objects, binding, keys)
        caption_files = _caption_files(engine, objects, binding, observations)
        observations = [replace(o, reingest=o.key in lost and o.now is not None) for o in observations]
        changes = in_transaction(engine, _apply_scanned, settings, binding, observations, caption_files)
        _log(binding, changes, failed)
        report.failed |= failed
        report.changes.add(changes)
    in_transaction(engine, bindings.record_scan, binding.binding_id)
    return report


def _hold(
    connection: Connection, binding: Binding, recorded: Sequence[BoundObject], gone: set[str], share: float
) -> bool:
    """Whether the missing objects are too many to be believed; recorded for `ragllava status`."""
    pictures = [row.key for row in recorded if row.kind is ObjectKind.PICTURE]
    missing = sum(key in gone for key in pictures)
    if not held_removals.is_too_much(missing, len(pictures), share):
        held_removals.release(connection, binding.archive_id, binding.address)
        return False
    held_removals.hold(connection, binding.archive_id, binding.address, missing, len(pictures))
    return True


def _apply_scanned(
    connection: Connection,
    settings: Settings,
    binding: Binding,
    observations: Sequence[Observation],
    caption_files: CaptionFiles,
) -> Changes:
    changes = apply_observations(connection, settings, binding, observations, caption_files)
    change_events.record(connection, [(binding.bucket, key) for key in (*changes.waiting, *changes.stale)])
    return changes


def _relink_images(connection: Connection, binding: Binding, recorded: Sequence[BoundObject]) -> set[str]:
    """Find the images of pictures whose recorded image is missing or retired, by their uris.

    Returns the keys of the pictures without an image, except rejected ones.
    """
    settled = [row for row in recorded if row.kind is ObjectKind.PICTURE and not row.is_waiting]
    living = image_changes.living(connection, [row.image_id for row in settled if row.image_id is not None])
    unlinked = {object_uri(binding.bucket, row.key): row for row in settled if row.image_id not in living}
    images = image_changes.images_at(connection, binding.archive_id, unlinked)
    links = {unlinked[uri].key: image.image_id for uri, image in images.items()}
    bound_objects.link_images(connection, binding.binding_id, links)
    return {row.key for row in unlinked.values() if row.key not in links and not row.reason}


def _observe(
    engine: Engine, settings: Settings, objects: ObjectStore, binding: Binding, keys: Sequence[str]
) -> tuple[list[Observation], dict[str, str]]:
    """Observe objects, several at a time; returns the observations, and the reasons for objects where that failed.

    Raises ObjectMissing when the whole bucket is missing: that must not retire a whole archive.
    """
    recorded = in_transaction(engine, bound_objects.load_objects, binding.binding_id, keys)
    failed: dict[str, str] = {}

    def attempt(key: str, step: Callable[[], Observation]) -> Observation | None:
        if len(failed) >= _MAX_FAILURES:
            failed[key] = "the object store does not answer"
            return None
        try:
            return step()
        except (ServiceUnavailable, SettingsError) as error:
            failed[key] = str(error)
            return None

    def observe(key: str) -> Observation | None:
        return attempt(key, partial(_observe_object, objects, binding, recorded.get(key), key))

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="observe") as threads:
        observations = [observation for observation in threads.map(observe, keys) if observation is not None]
    if any(observation.now is None for observation in observations) and not objects.bucket_exists(binding.bucket):
        raise ObjectMissing(f"there is no bucket {binding.bucket} any more; its archive is not changed")
    if binding.role is BindingRole.INBOX:
        submitted = (
            attempt(o.key, partial(_submit_questions, engine, settings, objects, binding, o)) for o in observations
        )
        observations = [observation for observation in submitted if observation is not None]
    return observations, failed


def _observe_object(objects: ObjectStore, binding: Binding, before: BoundObject | None, key: str) -> Observation:
    try:
        info = objects.stat_external(binding.bucket, key)
        now = ObjectState(key, kind_of(binding, key), info.etag, info.size_bytes)
        if now.kind is ObjectKind.PICTURE:
            now = replace(now, caption=metadata_caption(info.metadata))
        elif now.kind is ObjectKind.CAPTION:
            if before is not None and not Observation(key, before, now).has_new_bytes:
                now = replace(now, caption=before.caption)
            else:
                now = replace(now, caption=read_sidecar(objects, binding.bucket, key))
        return Observation(key, before, now)
    except ObjectMissing:
        return Observation(key, before, None)


def _submit_questions(
    engine: Engine, settings: Settings, objects: ObjectStore, binding: Binding, observation: Observation
) -> Observation:
    now = observation.now
    if now is None or now.kind is not ObjectKind.QUESTIONS or not observation.has_new_bytes:
        return observation
    result = submit_question_file(engine, settings, objects, binding, observation.key, now.etag)
    return replace(observation, now=replace(now, job_id=result.job_id, reason=result.reason))


def _caption_files(
    engine: Engine, objects: ObjectStore, binding: Binding, observations: Iterable[Observation]
) -> CaptionFiles:
    """The current content of a binding's caption files, including those of `observations`."""
    if binding.role is not BindingRole.PICTURES:
        return CaptionFiles()
    keys = set(in_transaction(engine, bound_objects.keys_of_kind, binding.binding_id, ObjectKind.CAPTIONS))
    keys |= {observation.key for observation in observations if observation.kind is ObjectKind.CAPTIONS}
    return read_caption_files(objects, binding, keys)


def _log(binding: Binding, changes: Changes, failed: Mapping[str, str]) -> None:
    facts = {**changes.totals(), "waiting": len(changes.waiting), "failed": len(failed), "jobs": changes.job_ids}
    log.info("bucket compared", extra={"action": "change_events_processed", "binding": binding.address, **facts})
    for key, reason in islice(failed.items(), 3):
        log.warning(reason, extra={"action": "look_failed", "binding": binding.address, "key": key})
