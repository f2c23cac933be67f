"""Keeping archives as their bound buckets are: by change events, and by comparing (docs/reliability.md D13).

`fold` takes what events have hinted at, looks at each object and makes one ingest job of all that is new. Events get
lost, so `scan` lists the bucket, compares it with what is known, and repairs the difference. Both end in
`bound_changes`, and any number of both may run at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

from ragllava.errors import ObjectMissing, ServiceUnavailable, SettingsError, UsageError
from ragllava.settings import Settings
from ragllava.stages.buckets.apply_changes import Changes, Look, apply_looks, refusal, settle_binding
from ragllava.stages.buckets.inbox import take_in
from ragllava.stages.buckets.object_captions import (
    Books,
    kind_of,
    metadata_caption,
    object_uri,
    read_books,
    read_sidecar,
)
from ragllava.stores.archives import archive, image_changes
from ragllava.stores.buckets import bindings, bound_objects, change_events
from ragllava.stores.buckets.bindings import Binding, BindingRole
from ragllava.stores.buckets.bound_objects import KnownObject, ObjectKind, SeenObject
from ragllava.stores.buckets.change_events import ChangeEvent
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import ExternalObject, ObjectStore

log = logging.getLogger(__name__)
T = TypeVar("T")

OBJECTS_PER_JOB = 10_000  # looked at together
SHOWN_NAMES = 20  # of each kind of difference, for people
_THREADS = 16
_LEASE_S = 300.0  # to look at that many objects in a store that is far away
_WAIT_S = 5.0  # until an object is looked at again whose former version is still being ingested
_LONGEST_WAIT_S = 60.0
_MOST_FAILURES = 20  # objects that could not be looked at, before the store is taken for away


@dataclass(frozen=True, slots=True)
class ProcessedEvents:
    """What one fold did."""

    change_events: int
    kept: int  # change events that wait for another look
    settled: int
    changes: Changes


@dataclass(slots=True)
class ScanReport:
    """What a scan of one binding found and did; names are keys."""

    address: str
    listed: int = 0
    changes: Changes = field(default_factory=Changes)
    refused: dict[str, str] = field(default_factory=dict)  # known and not tried again until they change
    failed: dict[str, str] = field(default_factory=dict)  # could not be looked at
    problem: str | None = None  # why nothing of it was compared

    @property
    def found_differences(self) -> bool:
        """Whether the archive was not as the bucket is."""
        changes = self.changes
        return bool(changes.added or changes.replaced or changes.restored or changes.gone or changes.captions)

    def as_json(self) -> dict[str, Any]:
        """Counts of everything, and the first names of each."""
        changes = self.changes
        named: dict[str, Sequence[str]] = {
            "added": changes.added,
            "replaced": changes.replaced,
            "restored": changes.restored,
            "gone": changes.gone,
            "captions": changes.captions,
            "waiting": [*changes.waiting, *changes.stale],
        }
        reasons = {"refused": self.refused, "failed": self.failed}
        return {
            "address": self.address,
            "problem": self.problem,
            "listed": self.listed,
            "jobs": changes.job_ids,
            **{name: {"number": len(keys), "first": sorted(keys)[:SHOWN_NAMES]} for name, keys in named.items()},
            **{
                name: {"number": len(found), "first": dict(sorted(found.items())[:SHOWN_NAMES])}
                for name, found in reasons.items()
            },
        }


def process_events(engine: Engine, settings: Settings, objects: ObjectStore) -> ProcessedEvents:
    """Settle what ingest jobs have done, then look at what change events name and do what is needed.

    Raises ServiceUnavailable when the database is away; of a store that is away, the change events are kept.
    """
    settled = settle(engine, objects)
    claimed = in_transaction(engine, change_events.claim, OBJECTS_PER_JOB, _LEASE_S)
    if not claimed:
        return ProcessedEvents(0, 0, settled, Changes())
    known = in_transaction(engine, bindings.list_bindings)
    groups: dict[int, list[ChangeEvent]] = {}
    strays: list[ChangeEvent] = []  # unbound since they were written
    for event in claimed:
        binding = bindings.covering(known, event.bucket, event.key)
        (groups.setdefault(binding.binding_id, []) if binding else strays).append(event)
    in_transaction(engine, change_events.finish, strays)
    sum_of_changes, kept = Changes(), 0
    for binding in known:
        if binding.binding_id in groups:
            changes, unsettled = _process_binding(engine, settings, objects, binding, groups[binding.binding_id])
            sum_of_changes.add(changes)
            kept += unsettled
    return ProcessedEvents(len(claimed), kept, settled, sum_of_changes)


def scan(engine: Engine, settings: Settings, objects: ObjectStore, archive_name: str | None = None) -> list[ScanReport]:
    """Compare bound buckets with what is known of them, and repair what events have lost; of one archive, or of all.

    Raises UsageError for an unknown archive, one without a binding, or a bucket that is not there (nothing is
    retired then), and ServiceUnavailable when the store is away. Of all archives, a bucket that is not there or refuses
    our key is the `problem` of its report, and the others are compared.
    """

    def chosen(connection: Connection) -> list[Binding]:
        if archive_name is None:
            return bindings.list_bindings(connection)
        archive_id = archive.get_archive(connection, archive_name).archive_id
        return bindings.list_bindings(connection, archive_id)

    found = in_transaction(engine, chosen)
    if archive_name is not None and not found:
        raise UsageError(
            f"the archive {archive_name} is bound to no bucket; "
            f"`ragllava archive bind {archive_name} s3://bucket/prefix/` binds it"
        )
    settle(engine, objects)
    if archive_name is not None:
        return [_scan_binding(engine, settings, objects, binding) for binding in found]
    reports = []
    for binding in found:
        try:
            reports.append(_scan_binding(engine, settings, objects, binding))
        except UsageError as error:
            log.warning(str(error), extra={"action": "scan_failed", "binding": binding.address})
            reports.append(ScanReport(binding.address, problem=str(error)))
    return reports


def settle(engine: Engine, objects: ObjectStore) -> int:
    """Take over the outcomes of bound pictures; returns how many there were. Costs little when there are none."""

    def due(connection: Connection) -> list[Binding]:
        return list(bindings.load_bindings(connection, bound_objects.bindings_to_settle(connection)).values())

    count = 0
    for binding in in_transaction(engine, due):
        try:
            books = _books(engine, objects, binding, ())
        except (ServiceUnavailable, SettingsError) as error:
            log.warning(str(error), extra={"action": "captions_unread", "binding": binding.address})
            continue
        count += in_transaction(engine, partial(settle_binding, binding=binding, books=books))
    return count


def _process_binding(
    engine: Engine, settings: Settings, objects: ObjectStore, binding: Binding, about: list[ChangeEvent]
) -> tuple[Changes, int]:
    """Look at the objects of one binding that change events name; returns the changes and how many events are kept."""
    keys = [event.key for event in about]
    try:
        looks, failed = _look(engine, settings, objects, binding, keys)
        books = _books(engine, objects, binding, looks)
    except (ServiceUnavailable, ObjectMissing, SettingsError) as error:
        log.warning(
            str(error), extra={"action": "look_failed", "binding": binding.address, "change_events": len(about)}
        )
        in_transaction(engine, _postpone, about)
        return Changes(), len(about)

    def work(connection: Connection) -> Changes:
        changes = apply_looks(connection, settings, binding, _with_problems(looks, books), books)
        later = {*changes.waiting, *changes.stale}
        change_events.finish(connection, [event for event in about if event.key not in later | failed.keys()])
        change_events.postpone(connection, [event for event in about if event.key in later], _WAIT_S)
        _postpone(connection, [event for event in about if event.key in failed])
        change_events.add_totals(connection, changes.totals())
        return changes

    changes = in_transaction(engine, work)
    _log(binding, changes, failed)
    return changes, len(changes.waiting) + len(changes.stale) + len(failed)


def _postpone(connection: Connection, about: Sequence[ChangeEvent]) -> None:
    """Try again later, after a time that grows with each attempt."""
    by_delay: dict[float, list[ChangeEvent]] = {}
    for event in about:
        by_delay.setdefault(min(_LONGEST_WAIT_S, 2.0 ** min(event.attempts, 10)), []).append(event)
    for delay_s, some in by_delay.items():
        change_events.postpone(connection, some, delay_s)


def _scan_binding(engine: Engine, settings: Settings, objects: ObjectStore, binding: Binding) -> ScanReport:
    report = ScanReport(binding.address)
    try:
        listed = {found.key: found for found in objects.list_external(binding.bucket, binding.prefix)}
    except ObjectMissing:
        raise UsageError(f"there is no bucket {binding.bucket}, so nothing was compared with it") from None
    known = in_transaction(engine, lambda c: list(bound_objects.all_objects(c, binding.binding_id)))
    report.listed = len(listed)
    lost = in_transaction(engine, _adopt_or_lose, binding, known)
    differing = _differences(known, listed) | lost
    report.refused = {row.key: row.reason for row in known if row.reason and row.key not in differing and _is_told(row)}
    for keys in _chunks(sorted(differing), OBJECTS_PER_JOB):
        looks, failed = _look(engine, settings, objects, binding, keys)
        again = [replace(look, again=True) if look.key in lost and look.found else look for look in looks]
        books = _books(engine, objects, binding, looks)
        report.failed |= failed

        def work(connection: Connection, looks: list[Look] = again, books: Books = books) -> Changes:
            changes = apply_looks(connection, settings, binding, _with_problems(looks, books), books)
            change_events.note(connection, [(binding.bucket, key) for key in (*changes.waiting, *changes.stale)])
            return changes

        changes = in_transaction(engine, work)
        _log(binding, changes, failed)
        report.changes.add(changes)
    in_transaction(engine, bindings.note_scan, binding.binding_id)
    return report


def _differences(known: Sequence[KnownObject], listed: Mapping[str, ExternalObject]) -> set[str]:
    """Keys that are not as they were known."""
    same = {
        row.key
        for row in known
        if (found := listed.get(row.key)) is not None and (row.etag, row.size_bytes) == (found.etag, found.size_bytes)
    }
    return (listed.keys() | {row.key for row in known}) - same


def _adopt_or_lose(connection: Connection, binding: Binding, known: Sequence[KnownObject]) -> set[str]:
    """Pictures without a living image: it is found by its file, or the key is returned unless it was refused."""
    settled = [row for row in known if row.kind is ObjectKind.PICTURE and not row.is_waiting]
    alive = image_changes.living(connection, [row.image_id for row in settled if row.image_id is not None])
    orphans = {object_uri(binding.bucket, row.key): row.key for row in settled if row.image_id not in alive}
    filed = image_changes.images_at(connection, binding.archive_id, list(orphans))
    bound_objects.adopt(connection, binding.binding_id, {orphans[uri]: image.image_id for uri, image in filed.items()})
    refused = {row.key for row in settled if row.reason}
    return {key for uri, key in orphans.items() if uri not in filed and key not in refused}


def _is_told(row: KnownObject) -> bool:
    """What was never meant for the archive is no news to anybody."""
    return row.kind is not ObjectKind.OTHER


def _look(
    engine: Engine, settings: Settings, objects: ObjectStore, binding: Binding, keys: Sequence[str]
) -> tuple[list[Look], dict[str, str]]:
    """Look at objects, several at a time; returns the looks, and those that failed with the reason.

    Raises ObjectMissing when the whole bucket is gone: that is no reason to retire an archive.
    """
    known = in_transaction(engine, bound_objects.known_objects, binding.binding_id, keys)
    failed: dict[str, str] = {}

    def guarded(key: str, step: Callable[[], Look]) -> Look | None:
        if len(failed) >= _MOST_FAILURES:
            failed[key] = "the object store does not answer"
            return None
        try:
            return step()
        except (ServiceUnavailable, SettingsError) as error:
            failed[key] = str(error)
            return None

    def look(key: str) -> Look | None:
        return guarded(key, lambda: _look_at(objects, binding, known.get(key), key))

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="look") as threads:
        looks = [found for found in threads.map(look, keys) if found is not None]
    if any(found.found is None for found in looks) and not objects.bucket_exists(binding.bucket):
        raise ObjectMissing(f"there is no bucket {binding.bucket} any more; its archive is left as it is")
    if binding.role is BindingRole.INBOX:
        taken = (guarded(found.key, partial(_take, engine, settings, objects, binding, found)) for found in looks)
        looks = [found for found in taken if found is not None]
    return looks, failed


def _look_at(objects: ObjectStore, binding: Binding, known: KnownObject | None, key: str) -> Look:
    kind = kind_of(binding, key)
    try:
        there = objects.look_external(binding.bucket, key)
        look = Look(key, known, SeenObject(key, kind, there.etag, there.size_bytes))
        caption = _caption(objects, binding, look, there.metadata)
        return Look(key, known, SeenObject(key, kind, there.etag, there.size_bytes, caption))
    except ObjectMissing:
        return Look(key, known, None)


def _caption(objects: ObjectStore, binding: Binding, look: Look, metadata: Mapping[str, str]) -> str | None:
    """What a picture's metadata, or a caption object, say."""
    if look.kind is ObjectKind.PICTURE:
        return metadata_caption(metadata)
    if look.kind is not ObjectKind.CAPTION:
        return None
    if look.known is not None and not look.has_other_bytes:
        return look.known.caption
    return read_sidecar(objects, binding.bucket, look.key)


def _take(engine: Engine, settings: Settings, objects: ObjectStore, binding: Binding, look: Look) -> Look:
    if look.found is None or look.kind is not ObjectKind.QUESTIONS or not look.has_other_bytes:
        return look
    taken = take_in(engine, settings, objects, binding, look.key, look.found.etag)
    return replace(look, found=replace(look.found, job_id=taken.job_id, reason=taken.reason))


def _books(engine: Engine, objects: ObjectStore, binding: Binding, looks: Iterable[Look]) -> Books:
    """The caption files of a binding as they are now, those of `looks` included."""
    if binding.role is not BindingRole.PICTURES:
        return Books(None, {})
    keys = set(in_transaction(engine, bound_objects.keys_of_kind, binding.binding_id, ObjectKind.CAPTIONS))
    keys |= {look.key for look in looks if look.kind is ObjectKind.CAPTIONS}
    return read_books(objects, binding, keys)


def _with_problems(looks: Sequence[Look], books: Books) -> list[Look]:
    """The looks with the reasons why nothing can be made of some of the objects."""
    return [
        replace(look, found=replace(look.found, reason=reason))
        if look.found is not None
        and (reason := refusal(look.kind, object_uri("", look.key), books.problems, look.key)) is not None
        else look
        for look in looks
    ]


def _log(binding: Binding, changes: Changes, failed: Mapping[str, str]) -> None:
    facts = {**changes.totals(), "waiting": len(changes.waiting), "failed": len(failed), "jobs": changes.job_ids}
    log.info("bucket compared", extra={"action": "change_events_processed", "binding": binding.address, **facts})
    for key, reason in islice(failed.items(), 3):
        log.warning(reason, extra={"action": "look_failed", "binding": binding.address, "key": key})


def _chunks(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]
