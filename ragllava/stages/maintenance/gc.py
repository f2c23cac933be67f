"""Garbage collection: objects in our bucket that nothing refers to (docs/reliability.md D13). It reports them, and
deletes them only with the option `delete`.

Only keys of the kinds that this program writes are examined, and only objects unchanged for a week. Content is removed
under the lock of its blob's row, so an importer of the same bytes waits, or writes them again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import Connection

from ragllava.jobs.isolation import Failures
from ragllava.jobs.runner import ShardContext
from ragllava.stages.maintenance.task_report import Report, counted, mebibytes, shortened, with_failures
from ragllava.stages.resources import Resources
from ragllava.stores.access import uploads
from ragllava.stores.archives import blobs
from ragllava.stores.jobs import answered
from ragllava.stores.maintenance import inspection, orphans, schedules
from ragllava.stores.objects import THUMBNAILS, content_hash, thumbnail_hash

GRACE_S = 7 * 86_400.0

_FOLDER = re.compile(r"(?P<folder>(?:jobs|adapters|training)/(?P<name>[^/]+))/.+")
_JOB = re.compile(r"\d{1,18}")
_CHECKPOINTS = "/checkpoints"
_PAGE = 1_000


@dataclass
class Orphans:
    """The orphans of one kind; `kept` is a sentence about why some of them stay."""

    sizes: dict[str, int] = field(default_factory=dict)  # in bytes, by name
    deleted: int = 0
    kept: str | None = None

    @property
    def size_bytes(self) -> int:
        """Of all of them."""
        return sum(self.sizes.values())

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        figures = {"found": len(self.sizes), "bytes": self.size_bytes, "deleted": self.deleted}
        return figures | {"examples": shortened(list(self.sizes))} | ({"kept": self.kept} if self.kept else {})


@dataclass
class Folder:
    """A folder of the bucket that is kept or deleted as a whole: results of a job, an adapter, a training."""

    size_bytes: int
    changed_at: datetime


@dataclass(frozen=True)
class Collection:
    """What all steps of one garbage collection share."""

    context: ShardContext[Resources]
    delete: bool
    grace_s: float
    before: datetime  # objects that were changed later are left alone
    failures: Failures = field(default_factory=Failures)


def collect_garbage(context: ShardContext[Resources], *, delete: bool = False, grace_s: float = GRACE_S) -> Report:
    """Report, and with the option `delete` remove, objects without a reference that are unchanged for a week."""
    now = context.read(schedules.database_now)
    gc = Collection(context, delete, grace_s, now - timedelta(seconds=grace_s))
    kinds = {"blobs": _collect_blobs(gc), "content_without_row": _collect_content(gc)}
    kinds["thumbnails"] = _collect_thumbnails(gc)
    folders = _old_folders(gc)
    kinds["results"] = _collect_results(gc, folders)
    kinds["uploads"] = _collect_uploads(gc)
    kinds["adapters"] = _collect_while_no_training(gc, folders, "adapters/", _is_orphaned_adapter)
    kinds["trainings"] = _collect_while_no_training(gc, folders, "training/", _is_orphaned_training)
    total = sum(len(kind.sizes) for kind in kinds.values())
    size = mebibytes(sum(kind.size_bytes for kind in kinds.values()))
    summary = f"{counted(total, 'orphan')} of {size} unchanged for {grace_s / 86_400:g} days"
    if gc.delete:
        summary += f", {sum(kind.deleted for kind in kinds.values()):,} deleted"
    elif total:
        summary += "; nothing was deleted: run `ragllava maintenance gc --delete`"
    report = Report(summary, {"delete": gc.delete, **{name: kind.as_json() for name, kind in kinds.items()}})
    return with_failures(report, gc.failures)


def _collect_blobs(gc: Collection) -> Orphans:
    rows = gc.context.read(blobs.unreferenced_blobs, gc.grace_s)
    orphaned = Orphans({blob.sha256: blob.size_bytes for blob in rows})
    while gc.delete:
        gc.context.check()
        removed = _delete_content(gc, gc.context.commit(blobs.mark_deleting, gc.grace_s))
        orphaned.deleted += removed
        if not removed:
            break
    return orphaned


def _collect_content(gc: Collection) -> Orphans:
    """Objects by hash without a row: of a database that was restored, or of an interrupted deletion."""
    context = gc.context
    sizes: dict[str, int] = {}
    old = (listed for listed in context.resources.objects.list_objects("sha256/") if listed.modified_at < gc.before)
    while page := list(islice(old, _PAGE)):
        context.check()
        listed = {sha256: item.size_bytes for item in page if (sha256 := content_hash(item.key))}
        sizes |= {sha256: listed[sha256] for sha256 in context.read(orphans.unknown_hashes, list(listed))}
    orphaned = Orphans(dict(sorted(sizes.items())))
    if sizes and not context.read(orphans.has_content):
        orphaned.kept = "this database has no content at all; check that it belongs to this bucket"
    elif gc.delete:
        adopted = [sha256 for sha256, size in orphaned.sizes.items() if context.commit(orphans.adopt, sha256, size)]
        orphaned.deleted = _delete_content(gc, adopted)
    return orphaned


def _delete_content(gc: Collection, hashes: Iterable[str]) -> int:
    """Delete each in its own transaction, so that an importer of the same bytes waits for no other."""
    removed = 0
    for sha256 in hashes:
        gc.context.check()
        delete_content = gc.context.resources.objects.delete_content
        removed += gc.failures.run(sha256, gc.context.commit, blobs.delete_blob, sha256, delete_content) or 0
    return removed


def _old_folders(gc: Collection) -> dict[str, Folder]:
    """The folders without a recent change; the checkpoints of a training are a folder of their own."""
    folders: dict[str, Folder] = {}
    for kind in ("jobs", "adapters", "training"):
        for listed in gc.context.resources.objects.list_objects(f"{kind}/"):
            match = _FOLDER.fullmatch(listed.key)
            if match is None:
                continue
            name = match["folder"]
            if kind == "training" and listed.key.startswith(f"{name}{_CHECKPOINTS}/"):
                name += _CHECKPOINTS
            folder = folders.setdefault(name, Folder(0, listed.modified_at))
            folder.size_bytes += listed.size_bytes
            folder.changed_at = max(folder.changed_at, listed.modified_at)
        gc.context.check()
    return {name: folder for name, folder in folders.items() if folder.changed_at < gc.before}


def _collect_results(gc: Collection, folders: dict[str, Folder]) -> Orphans:
    """Job ids are never reused, so a folder whose job has no row now stays without one."""
    numbered = {int(name[5:]): name for name in folders if name.startswith("jobs/") and _JOB.fullmatch(name[5:])}
    living = gc.context.read(answered.kinds_of_jobs, list(numbered))
    names = [name for number, name in sorted(numbered.items()) if number not in living]
    return _collect_folders(gc, folders, names, lambda connection, name: True)


def _collect_thumbnails(gc: Collection) -> Orphans:
    """Those without a picture: of a database that was restored. One that is needed after all is made again."""

    def orphans_of(connection: Connection, keys: list[str]) -> set[str]:
        by_hash = {sha256: key for key in keys if (sha256 := thumbnail_hash(key))}
        return {by_hash[sha256] for sha256 in orphans.unknown_hashes(connection, list(by_hash))}

    return _collect_keys(gc, THUMBNAILS, orphans_of)


def _collect_uploads(gc: Collection) -> Orphans:
    """Files of the HTTP API whose row was never written, or is gone."""
    return _collect_keys(gc, "uploads/", lambda connection, keys: {*keys} - uploads.existing_keys(connection, keys))


def _collect_keys(gc: Collection, prefix: str, find: Callable[[Connection, list[str]], set[str]]) -> Orphans:
    """Single objects: those of each page of keys below the prefix that `find` returns."""
    context = gc.context
    orphaned = Orphans()
    old = (listed for listed in context.resources.objects.list_objects(prefix) if listed.modified_at < gc.before)
    while page := list(islice(old, _PAGE)):
        context.check()
        without = context.read(find, [item.key for item in page])
        orphaned.sizes |= {item.key: item.size_bytes for item in page if item.key in without}
    for key in orphaned.sizes if gc.delete else ():
        context.check()
        if gc.failures.run(key, context.resources.objects.delete, key) is None and key not in gc.failures.reasons:
            orphaned.deleted += 1
    return orphaned


def _is_orphaned_adapter(connection: Connection, name: str) -> bool:
    return name.removeprefix("adapters/") not in inspection.adapters_of_versions(connection)


def _is_orphaned_training(connection: Connection, name: str) -> bool:
    """Whether no job and no version names the folder, or it has the checkpoints of a training that has ended."""
    living = orphans.living_trainings(connection)
    training = name.removesuffix(_CHECKPOINTS)
    return training not in living or (name != training and living[training])


def _collect_while_no_training(
    gc: Collection, folders: dict[str, Folder], prefix: str, is_orphan: Callable[[Connection, str], bool]
) -> Orphans:
    candidates = sorted(name for name in folders if name.startswith(prefix))
    names = gc.context.read(lambda connection: [name for name in candidates if is_orphan(connection, name)])
    return _collect_folders(
        gc, folders, names, lambda connection, name: orphans.hold_trainings(connection) and is_orphan(connection, name)
    )


def _collect_folders(
    gc: Collection, folders: dict[str, Folder], names: list[str], may_delete: Callable[[Connection, str], bool]
) -> Orphans:
    """`may_delete` is called again in the transaction that removes a folder."""
    orphaned = Orphans({name: folders[name].size_bytes for name in names})

    def remove(connection: Connection, name: str) -> bool:
        if not may_delete(connection, name):
            return False
        gc.context.resources.objects.remove_prefix(f"{name}/")
        return True

    for name in names if gc.delete else ():
        gc.context.check()
        orphaned.deleted += gc.failures.run(name, gc.context.commit, remove, name) or 0
    if gc.delete and orphaned.deleted < len(names) and gc.failures.reasons.keys().isdisjoint(names):
        orphaned.kept = "the files of an open training cannot be told from orphans; run gc again when it has ended"
    return orphaned
