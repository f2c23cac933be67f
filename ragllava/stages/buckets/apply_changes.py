"""Apply observed changes of objects to an archive in one transaction: ingest jobs, retired images, captions.

An observation is compared with the recorded state that it was made against: if another process has written that record
meanwhile, the observation is stale and has no effect. So any number of processes may handle events and scan
concurrently.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from sqlalchemy import Connection

from ragllava.settings import Settings
from ragllava.source_files import SourceFile
from ragllava.stages.buckets.object_captions import (
    CaptionFiles,
    captions_for,
    list_captions,
    object_uri,
    pictures_of_sidecars,
    refresh_captions,
)
from ragllava.stages.ingest.reading import DISAPPEARED
from ragllava.stages.ingest.submit import create_ingest
from ragllava.stages.ingest.uris import MAX_URI, shown
from ragllava.stores.archives import image_changes
from ragllava.stores.archives.archive import document_of
from ragllava.stores.archives.descriptions import ArchiveImage
from ragllava.stores.archives.image_changes import NewName
from ragllava.stores.buckets import bindings, bound_objects, change_events, listed_captions
from ragllava.stores.buckets.bindings import Binding
from ragllava.stores.buckets.bound_objects import BoundObject, ObjectKind, ObjectState

TOO_LONG = f"its address is longer than the {MAX_URI:,} characters allowed"
NOT_USABLE = "it is neither a picture nor a caption"


@dataclass(frozen=True, slots=True)
class Observation:
    """One object: its recorded state `before`, and its state `now`; None: it does not exist (any more).

    `reingest` asks for a picture to be ingested although its object has not changed.
    """

    key: str
    before: BoundObject | None
    now: ObjectState | None
    reingest: bool = False

    @property
    def kind(self) -> ObjectKind:
        """The kind of the object, from its present or former state."""
        state = self.now or self.before
        return state.kind if state is not None else ObjectKind.OTHER

    @property
    def has_new_bytes(self) -> bool:
        """Whether the object is new, or was overwritten."""
        if self.now is None or self.before is None:
            return self.now is not None
        return (self.before.etag, self.before.size_bytes) != (self.now.etag, self.now.size_bytes)

    @property
    def is_change(self) -> bool:
        """Whether there is anything to do."""
        if self.now is None or self.before is None:
            return self.now is not self.before
        said = [(state.caption, state.metadata) for state in (self.before, self.now)]
        return self.has_new_bytes or self.reingest or said[0] != said[1]


@dataclass(slots=True)
class Changes:
    """What was done about observed objects; the lists hold keys."""

    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)  # the object had not changed, but its image was missing
    gone: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)  # pictures whose caption or metadata changed
    # An earlier version is still being ingested, or the tick has to fetch pictures of other hosts.
    waiting: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)  # observed by another process at the same time
    unchanged: int = 0
    job_ids: list[int] = field(default_factory=list)

    @property
    def differences(self) -> dict[str, list[str]]:
        """The keys that differed from their recorded state, by kind of change."""
        return {name: getattr(self, name) for name in ("added", "replaced", "restored", "gone", "captions")}

    def add(self, changes: Changes) -> None:
        """Add the changes of other objects."""
        for member in fields(self):
            setattr(self, member.name, getattr(self, member.name) + getattr(changes, member.name))

    def totals(self) -> dict[str, int]:
        """The number of objects by kind of change, for the counters."""
        return {name: len(keys) for name, keys in self.differences.items()} | {"unchanged": self.unchanged}


def apply_observations(
    connection: Connection,
    settings: Settings,
    binding: Binding,
    observations: Sequence[Observation],
    caption_files: CaptionFiles,
) -> Changes:
    """Apply what was observed; one ingest job is made of all new and changed pictures.

    `caption_files` has those of the observed caption files that are new. Pictures that these concern are due for
    `refresh_due`.
    """
    changes = Changes()
    if not bindings.lock(connection, binding.binding_id):
        return changes
    observations = [_with_reason(binding, observation, caption_files.problems) for observation in observations]
    todo = _actionable(connection, binding, observations, caption_files, changes)
    pictures = [observation for observation in todo if observation.kind is ObjectKind.PICTURE]
    to_ingest = [o for o in pictures if o.now and not o.now.reason and (o.has_new_bytes or o.reingest)]
    gone = [observation.key for observation in todo if observation.now is None]
    _release_images(connection, binding, to_ingest, [picture.key for picture in pictures if picture.now is None])
    states = [_state_to_save(observation) for observation in todo if observation.now is not None]
    bound_objects.save_objects(connection, binding, states)
    bound_objects.delete_objects(connection, binding.binding_id, gone)
    for observation in todo:
        if observation.kind is ObjectKind.CAPTIONS and observation.key not in caption_files.problems:
            list_captions(connection, binding, observation.key, caption_files.rows.get(observation.key))
    if to_ingest:
        keys = [picture.key for picture in to_ingest]
        changes.job_ids.append(_ingest(connection, settings, binding, keys))
    for picture in to_ingest:
        if picture.before is None:
            changes.added.append(picture.key)
        else:
            (changes.replaced if picture.has_new_bytes else changes.restored).append(picture.key)
    changes.added += [o.key for o in todo if o.kind is ObjectKind.QUESTIONS and o.has_new_bytes]
    changes.captions += _refresh(connection, binding, todo, {picture.key for picture in to_ingest})
    changes.gone += gone
    return changes


def refresh_due(connection: Connection, binding: Binding, limit: int) -> list[str] | None:
    """Refresh up to `limit` pictures whose listed caption has changed; returns the keys of those that have another one
    now, None when no picture is due."""
    if not bindings.lock(connection, binding.binding_id):
        return None
    keys = listed_captions.take_due(connection, binding.binding_id, limit)
    return refresh_captions(connection, binding, keys) if keys else None


def settle_binding(connection: Connection, binding: Binding) -> int:
    """Record the outcomes that ingest jobs have for the binding's pictures; returns the number of outcomes.

    The former image of a picture whose new bytes were rejected is retired, because its bytes do not exist any more.
    Captions that changed while the picture was being ingested are applied to it.
    """
    if not bindings.lock(connection, binding.binding_id):
        return 0
    settled = bound_objects.settle(connection, binding.binding_id, [DISAPPEARED])
    # An object that was missing for a moment may have its former bytes again, so no event would report a difference.
    change_events.record(connection, [(binding.bucket, key) for key in settled.transient])
    refused = [object_uri(binding.bucket, key) for key in settled.refused]
    image_changes.retire_at(connection, binding.archive_id, refused)
    refresh_captions(connection, binding, settled.stored, may_remove=False)
    return len(settled.stored) + len(settled.refused) + len(settled.transient)


def _with_reason(binding: Binding, observation: Observation, problems: Mapping[str, str]) -> Observation:
    """The observation with the reason why nothing can be made of the object, as far as its name and content tell."""
    if observation.now is None:
        return observation
    if observation.kind is ObjectKind.OTHER:
        reason: str | None = observation.now.reason or NOT_USABLE
    elif observation.kind is ObjectKind.PICTURE and len(object_uri(binding.bucket, observation.key)) > MAX_URI:
        reason = TOO_LONG
    else:
        reason = problems.get(observation.key, observation.now.reason)
    return replace(observation, now=replace(observation.now, reason=reason))


def _actionable(
    connection: Connection,
    binding: Binding,
    observations: Sequence[Observation],
    caption_files: CaptionFiles,
    changes: Changes,
) -> list[Observation]:
    """The observations that ask for a change that is possible now; the others are counted in `changes`.

    Their recorded state is the current one: the outcome of an ingest job may have been recorded since the object was
    observed.
    """
    recorded = bound_objects.load_objects(connection, binding.binding_id, [o.key for o in observations])
    todo = []
    for observation in observations:
        row = recorded.get(observation.key)
        if _observed(row) != _observed(observation.before) or _is_unread(observation, caption_files):
            changes.stale.append(observation.key)
        elif not observation.is_change:
            changes.unchanged += 1
        elif row is not None and row.is_waiting:
            changes.waiting.append(observation.key)
        else:
            todo.append(replace(observation, before=row))
    return todo


def _observed(row: BoundObject | None) -> tuple[object, ...] | None:
    """What an observation is compared with: the recorded state without the outcome of its ingest job."""
    return None if row is None else (row.seen_at, row.kind, row.etag, row.size_bytes, row.caption)


def _is_unread(observation: Observation, caption_files: CaptionFiles) -> bool:
    """Whether this is a new caption file that was gone when its content was read."""
    is_new = observation.kind is ObjectKind.CAPTIONS and observation.now is not None and observation.is_change
    return is_new and observation.key not in caption_files.rows and observation.key not in caption_files.problems


def _release_images(
    connection: Connection, binding: Binding, replaced: Sequence[Observation], gone: Sequence[str]
) -> None:
    """Rename or retire the images whose objects are gone or were overwritten.

    An image that another object has, too, is named by that object from now on, so that nothing retires it. Else it
    is retired if its object is gone; that of an overwritten object stays until the new image is stored.
    """
    released = [*gone, *(observation.key for observation in replaced if observation.before is not None)]
    images = image_changes.images_at(
        connection, binding.archive_id, [object_uri(binding.bucket, key) for key in released]
    )
    if not images:
        return
    excluded = {(binding.binding_id, key) for key in released}
    names = _other_names(connection, binding.archive_id, images, excluded)
    image_changes.rename_images(connection, binding.archive_id, names)
    image_changes.retire_at(connection, binding.archive_id, [object_uri(binding.bucket, key) for key in gone])


def _other_names(
    connection: Connection, archive_id: int, images: Mapping[str, ArchiveImage], excluded: set[tuple[int, str]]
) -> list[NewName]:
    """For each image (by uri) that an object not in `excluded` (binding, key) has, too: the name by that object.

    An object of a document is linked to the image of one page; the object names all pages.
    """
    objects = bound_objects.objects_of_images(connection, archive_id, [image.image_id for image in images.values()])
    kept: dict[str, tuple[int, str]] = {}
    for uri, image in images.items():
        candidates = [pair for pair in objects.get(image.image_id, []) if pair not in excluded]
        if candidates:
            kept.setdefault(document_of(uri), candidates[0])
    loaded = bindings.load_bindings(connection, {binding_id for binding_id, _ in kept.values()})
    names = []
    for uri, image in images.items():
        if document_of(uri) in kept:
            binding_id, key = kept[document_of(uri)]
            binding, page = loaded[binding_id], uri.removeprefix(document_of(uri))
            names.append(NewName(image.image_id, _source(binding, key) + page, object_uri(binding.bucket, key) + page))
    return names


def _state_to_save(observation: Observation) -> ObjectState:
    """The state to record; it keeps the outcome of the former state only if that was made of the same bytes."""
    assert observation.now is not None  # noqa: S101 - selected by the caller
    before = observation.before
    if before is None or observation.has_new_bytes or observation.reingest:
        return observation.now
    return replace(observation.now, reason=before.reason, image_id=before.image_id)


def _ingest(connection: Connection, settings: Settings, binding: Binding, keys: Sequence[str]) -> int:
    captions = captions_for(connection, binding, keys)
    files = [
        SourceFile(
            _source(binding, key),
            object_uri(binding.bucket, key),
            captions[key].caption,
            metadata=captions[key].metadata,
            pages=captions[key].page_captions,
        )
        for key in keys
    ]
    job_id = create_ingest(connection, settings, binding.archive_id, files, {"input": binding.address})
    bound_objects.assign_job(connection, binding.binding_id, job_id, keys)
    return job_id


def _refresh(connection: Connection, binding: Binding, todo: Iterable[Observation], ingested: set[str]) -> list[str]:
    """Update the captions of pictures that are not ingested now, but whose caption objects or metadata changed."""
    by_kind: dict[ObjectKind, list[str]] = defaultdict(list)
    for observation in todo:
        by_kind[observation.kind].append(observation.key)
    affected = {*by_kind[ObjectKind.PICTURE], *pictures_of_sidecars(connection, binding, by_kind[ObjectKind.CAPTION])}
    return refresh_captions(connection, binding, sorted(affected - ingested))


def _source(binding: Binding, key: str) -> str:
    """The displayed name of an object's image: the key below the bound prefix."""
    return shown(key.removeprefix(binding.prefix))
