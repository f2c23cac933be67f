"""Scans: compare bound buckets with the recorded states, and repair the differences (docs/reliability.md D13).

Change events can be lost; a scan lists the bucket and finds what they would have told.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Engine

from ragllava.errors import ObjectMissing, RagllavaError, UsageError
from ragllava.jobs.isolation import reason_of
from ragllava.settings import Settings
from ragllava.stages.answer.remote_pictures import fetching_nothing
from ragllava.stages.buckets.apply_changes import (
    NOT_USABLE,
    Changes,
    Observation,
    apply_observations,
)
from ragllava.stages.buckets.object_captions import (
    CaptionFiles,
    kind_of,
    object_uri,
)
from ragllava.stages.buckets.observing import observe_objects
from ragllava.stages.buckets.sync import OBJECTS_PER_JOB, apply_in_parts, log_applied, settle
from ragllava.stores.archives import archive, image_changes
from ragllava.stores.buckets import (
    bindings,
    bound_objects,
    change_events,
    held_removals,
    listings,
)
from ragllava.stores.buckets.bindings import Binding
from ragllava.stores.buckets.bound_objects import BoundObject, ObjectKind
from ragllava.stores.buckets.listings import ListedObject, MissingPictures
from ragllava.stores.database import in_transaction, outside_transaction
from ragllava.stores.maintenance.erasing_images import REMOVED_OBJECT
from ragllava.stores.objects import ObjectStore

log = logging.getLogger(__name__)

SHOWN_NAMES = 20  # of each kind of difference, in reports
_LISTED_AT_ONCE = 1_000


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
            with fetching_nothing():
                observations, failed, slow = observe_objects(
                    engine, settings, objects, binding, list(by_key), listed_now
                )
            observations = [replace(o, reingest=by_key[o.key].is_lost and o.now is not None) for o in observations]
            applied = apply_in_parts(engine, objects, binding, observations, partial(_apply_scanned, settings, binding))
            applied.failed |= failed
            if slow:  # a scan must not wait for other hosts; the tick reads these files beside all else
                in_transaction(engine, change_events.record, [(binding.bucket, key) for key in slow])
                applied.changes.waiting += slow
            log_applied(binding, applied)
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
