"""From looks at objects to changes of an archive, in one transaction: ingest jobs, retired images, captions.

A look is compared with the row that it was made against: when somebody else wrote that row meanwhile, the look is
stale and nothing is done. So any number of folds and scans may run at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from ragllava.records import SourceFile
from ragllava.settings import Settings
from ragllava.stages.buckets.object_captions import (
    Books,
    object_uri,
    pictures_of_sidecars,
    refresh_captions,
    wanted_captions,
)
from ragllava.stages.ingest.reading import DISAPPEARED
from ragllava.stages.ingest.submit import create_ingest
from ragllava.stages.ingest.uris import MAX_URI, shown
from ragllava.stores.archives import image_changes
from ragllava.stores.archives.image_changes import NewName
from ragllava.stores.buckets import bindings, bound_objects, change_events
from ragllava.stores.buckets.bindings import Binding
from ragllava.stores.buckets.bound_objects import KnownObject, ObjectKind, SeenObject

TOO_LONG = f"its address is longer than the {MAX_URI:,} characters allowed"
NOT_TAKEN = "it is neither a picture nor a caption"


@dataclass(frozen=True, slots=True)
class Look:
    """One object: what was known of it before, and what is there; `found` None: it is gone.

    `again` asks for a picture to be ingested although its object has not changed.
    """

    key: str
    known: KnownObject | None
    found: SeenObject | None
    again: bool = False

    @property
    def kind(self) -> ObjectKind:
        """What the object is, or was."""
        if self.found is not None:
            return self.found.kind
        return self.known.kind if self.known is not None else ObjectKind.OTHER

    @property
    def has_other_bytes(self) -> bool:
        """New, or written anew since it was known."""
        if self.found is None:
            return False
        known = self.known
        return known is None or (known.etag, known.size_bytes) != (self.found.etag, self.found.size_bytes)

    @property
    def is_change(self) -> bool:
        """Whether there is anything to do."""
        if self.found is None:
            return self.known is not None
        other_caption = self.known is not None and self.known.caption != self.found.caption
        return self.has_other_bytes or self.again or other_caption


@dataclass(slots=True)
class Changes:
    """What was done about looked-at objects, by key."""

    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)  # the object was as before, its image was missing
    gone: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)  # pictures whose caption changed
    unchanged: int = 0
    retired: int = 0  # images
    waiting: list[str] = field(default_factory=list)  # an earlier version is still being ingested
    stale: list[str] = field(default_factory=list)  # somebody else looked at the same time
    job_ids: list[int] = field(default_factory=list)

    def add(self, other: Changes) -> None:
        """Sum up."""
        for name in ("added", "replaced", "restored", "gone", "captions", "waiting", "stale", "job_ids"):
            getattr(self, name).extend(getattr(other, name))
        self.unchanged += other.unchanged
        self.retired += other.retired

    def totals(self) -> dict[str, int]:
        """For the counters."""
        return {
            "added": len(self.added),
            "replaced": len(self.replaced),
            "restored": len(self.restored),
            "gone": len(self.gone),
            "captions": len(self.captions),
            "unchanged": self.unchanged,
        }


def apply_looks(
    connection: Connection, settings: Settings, binding: Binding, looks: Sequence[Look], books: Books
) -> Changes:
    """Do what the looks ask for; of the pictures among them one ingest job is made."""
    changes = Changes()
    if not bindings.lock(connection, binding.binding_id):
        return changes
    todo = _current(connection, binding, looks, changes)
    pictures = [look for look in todo if look.kind is ObjectKind.PICTURE]
    to_ingest = [
        look for look in pictures if look.found and not look.found.reason and (look.has_other_bytes or look.again)
    ]
    gone = [look for look in todo if look.found is None]
    _release(connection, binding, to_ingest, [look.key for look in gone if look.kind is ObjectKind.PICTURE], changes)
    bound_objects.remember(connection, binding.binding_id, [_remembered(look) for look in todo if look.found])
    bound_objects.forget(connection, binding.binding_id, [look.key for look in gone])
    _ingest(connection, settings, binding, to_ingest, books, changes)
    changes.added += [look.key for look in todo if look.kind is ObjectKind.QUESTIONS and look.has_other_bytes]
    _refresh(connection, binding, todo, {look.key for look in to_ingest}, books, changes)
    changes.gone += [look.key for look in gone]
    return changes


def settle_binding(connection: Connection, binding: Binding, books: Books) -> int:
    """Take over what ingest jobs have made of the binding's pictures; returns how many have an outcome now.

    A picture that is refused takes its former image with it, because those bytes are no longer there. Captions that
    came while the picture was on its way are given to it.
    """
    if not bindings.lock(connection, binding.binding_id):
        return 0
    settled = bound_objects.settle(connection, binding.binding_id, [DISAPPEARED])
    # An object that was away for a moment has its former bytes again perhaps, so nothing would tell it from before.
    change_events.note(connection, [(binding.bucket, key) for key in settled.passed])
    refused = [object_uri(binding.bucket, key) for key in settled.refused]
    image_changes.retire_at(connection, binding.archive_id, refused)
    refresh_captions(connection, binding, settled.stored, books, may_remove=False)
    return len(settled.stored) + len(settled.refused) + len(settled.passed)


def _current(connection: Connection, binding: Binding, looks: Sequence[Look], changes: Changes) -> list[Look]:
    """The looks that ask for a change and may have it now; the others are noted in `changes`."""
    now = bound_objects.known_objects(connection, binding.binding_id, [look.key for look in looks])
    todo = []
    for look in looks:
        row = now.get(look.key)
        if (row.seen_at if row else None) != (look.known.seen_at if look.known else None):
            changes.stale.append(look.key)
        elif not look.is_change:
            changes.unchanged += 1
        elif row is not None and row.is_waiting:
            changes.waiting.append(look.key)
        else:
            todo.append(look)
    return todo


def _release(
    connection: Connection, binding: Binding, replaced: Sequence[Look], gone: Sequence[str], changes: Changes
) -> None:
    """Let go of the images whose objects are gone or have other bytes now.

    An image that another object has as well is known by that one from now on, so that nothing retires it. Else it
    is retired if its object is gone; that of an overwritten object stays until the new one is in its place.
    """
    leaving = [*gone, *(look.key for look in replaced if look.known is not None)]
    filed = image_changes.images_at(
        connection, binding.archive_id, [object_uri(binding.bucket, key) for key in leaving]
    )
    if not filed:
        return
    away = {(binding.binding_id, key) for key in leaving}
    others = _remaining(connection, binding.archive_id, [image.image_id for image in filed.values()], away)
    image_changes.rename_images(connection, binding.archive_id, list(others.values()))
    alone = [object_uri(binding.bucket, key) for key in gone]
    changes.retired += image_changes.retire_at(connection, binding.archive_id, alone)


def _remaining(
    connection: Connection, archive_id: int, image_ids: Sequence[int], away: set[tuple[int, str]]
) -> dict[int, NewName]:
    """For images that an object beside those in `away` has as well: that object, by image."""
    shared = bound_objects.sharers(connection, archive_id, image_ids)
    places = {
        image_id: stays[0]
        for image_id, objects in shared.items()
        if (stays := [place for place in objects if place not in away])
    }
    homes = bindings.load_bindings(connection, {binding_id for binding_id, _ in places.values()})
    return {
        image_id: NewName(image_id, _source(homes[binding_id], key), object_uri(homes[binding_id].bucket, key))
        for image_id, (binding_id, key) in places.items()
    }


def _remembered(look: Look) -> SeenObject:
    """What to write down; an image is kept in mind only as long as it is made of these bytes."""
    assert look.found is not None  # noqa: S101 - chosen so by the caller
    found, known = look.found, look.known
    keeps = known is not None and not look.has_other_bytes and not look.again
    return SeenObject(
        found.key,
        found.kind,
        found.etag,
        found.size_bytes,
        found.caption,
        found.job_id,
        known.reason if keeps and known is not None else found.reason,
        known.image_id if keeps and known is not None else None,
    )


def _ingest(
    connection: Connection,
    settings: Settings,
    binding: Binding,
    looks: Sequence[Look],
    books: Books,
    changes: Changes,
) -> None:
    if not looks:
        return
    keys = [look.key for look in looks]
    captions = wanted_captions(connection, binding, keys, books)
    files = [SourceFile(_source(binding, key), object_uri(binding.bucket, key), captions[key]) for key in keys]
    job_id = create_ingest(connection, settings, binding.archive_id, files, {"input": binding.address})
    bound_objects.hand_over(connection, binding.binding_id, job_id, keys)
    changes.job_ids.append(job_id)
    for look in looks:
        if look.known is None:
            changes.added.append(look.key)
        else:
            (changes.replaced if look.has_other_bytes else changes.restored).append(look.key)


def _refresh(
    connection: Connection, binding: Binding, todo: Iterable[Look], ingested: set[str], books: Books, changes: Changes
) -> None:
    """Captions of pictures that are not ingested now, but whose caption objects or metadata changed."""
    by_kind: dict[ObjectKind, list[str]] = {}
    for look in todo:
        by_kind.setdefault(look.kind, []).append(look.key)
    affected = {key for key in by_kind.get(ObjectKind.PICTURE, []) if key not in ingested}
    affected |= pictures_of_sidecars(connection, binding, by_kind.get(ObjectKind.CAPTION, []))
    caption_files = by_kind.get(ObjectKind.CAPTIONS, [])
    if any(key not in books.problems for key in caption_files):
        affected |= set(bound_objects.picture_keys(connection, binding.binding_id))
    changes.captions += refresh_captions(connection, binding, sorted(affected - ingested), books)


def _source(binding: Binding, key: str) -> str:
    """The name that people know an object's image by: what follows the bound prefix."""
    return shown(key.removeprefix(binding.prefix))


def refusal(kind: ObjectKind, uri: str, problems: Mapping[str, str], key: str) -> str | None:
    """Why nothing can be made of an object, as far as its name and its caption file tell."""
    if kind is ObjectKind.OTHER:
        return NOT_TAKEN
    if kind is ObjectKind.PICTURE and len(uri) > MAX_URI:
        return TOO_LONG
    return problems.get(key)
