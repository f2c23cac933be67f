"""The sweep: objects in our bucket that nothing refers to (docs/reliability.md D13). It reports; it deletes when told
to.

Only keys of the kinds that we write are looked at, and only what nobody touched for a week. Content is removed behind
the row that announces it, so an importer of the same bytes waits, or brings them back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import Connection

from ragllava.jobs.runner import ShardContext
from ragllava.stages.maintenance.task_report import Report, TaskRequest, counted, mebibytes, shortened
from ragllava.stages.resources import Resources
from ragllava.stores.archives import blobs
from ragllava.stores.maintenance import orphans, schedules
from ragllava.stores.objects import ObjectInfo

GRACE_S = 7 * 86_400.0

_CONTENT = re.compile(r"sha256/[0-9a-f]{2}/[0-9a-f]{2}/([0-9a-f]{64})")
_FOLDER = re.compile(r"(?P<folder>(?:jobs|adapters|training)/(?P<name>[^/]+))/.+")
_JOB = re.compile(r"\d{1,18}")
_CHECKPOINTS = "/checkpoints"
_PAGE = 1_000


@dataclass
class Orphans:
    """What was found of one kind; `kept` says in one sentence why what was found stays."""

    names: list[str] = field(default_factory=list)
    size_bytes: int = 0
    deleted: int = 0
    kept: str | None = None

    def add(self, name: str, size_bytes: int) -> None:
        """One more."""
        self.names.append(name)
        self.size_bytes += size_bytes

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        figures = {"found": len(self.names), "bytes": self.size_bytes, "deleted": self.deleted}
        return figures | {"examples": shortened(self.names)} | ({"kept": self.kept} if self.kept else {})


@dataclass
class Folder:
    """A folder of the bucket that is whole or nothing: results of a job, an adapter, a training."""

    size_bytes: int
    touched_at: datetime


@dataclass(frozen=True)
class Broom:
    """What all parts of one sweep share."""

    context: ShardContext[Resources]
    delete: bool
    grace_s: float
    before: datetime  # objects that were touched later are left alone

    def is_old(self, found: ObjectInfo) -> bool:
        """Nobody touched it within the grace time."""
        return found.modified_at < self.before


def collect_garbage(context: ShardContext[Resources], request: TaskRequest, *, grace_s: float = GRACE_S) -> Report:
    """Find, and with the option `delete` remove, what nothing refers to and nobody touched for a week."""
    now = context.read(schedules.database_now)
    broom = Broom(context, bool(request.options.get("delete")), grace_s, now - timedelta(seconds=grace_s))
    found = {"blobs": _collect_blobs(broom), "content_without_row": _collect_content(broom)}
    folders = _old_folders(broom)
    found["results"] = _collect_results(broom, folders)
    found["adapters"] = _collect_adapters(broom, folders)
    found["trainings"] = _collect_trainings(broom, folders)
    number = sum(len(one.names) for one in found.values())
    size_bytes = sum(one.size_bytes for one in found.values())
    deleted = sum(one.deleted for one in found.values())
    summary = (
        f"{counted(number, 'orphan')} of {mebibytes(size_bytes)} that nobody touched for {grace_s / 86_400:g} days"
    )
    if broom.delete:
        summary += f", {deleted:,} deleted"
    elif number:
        summary += "; nothing was deleted: `ragllava maintenance sweep --delete` does"
    return Report(summary, {"delete": broom.delete, **{kind: one.as_json() for kind, one in found.items()}})


def _collect_blobs(broom: Broom) -> Orphans:
    context, found = broom.context, Orphans()
    for blob in context.read(blobs.unreferenced_blobs, broom.grace_s):
        found.add(blob.sha256, blob.size_bytes)
    while broom.delete:
        context.check()
        marked = context.commit(blobs.mark_deleting, broom.grace_s)
        removed = _delete_content(broom, marked)
        found.deleted += removed
        if not removed:
            break
    return found


def _collect_content(broom: Broom) -> Orphans:
    """Objects by hash that no row announces: of a database that was set back, or of a deletion cut short."""
    context, found = broom.context, Orphans()
    sizes: dict[str, int] = {}
    for page in _pages(filter(broom.is_old, context.resources.objects.list_objects("sha256/"))):
        context.check()
        here = {match[1]: one.size_bytes for one in page if (match := _CONTENT.fullmatch(one.key))}
        unknown = context.read(orphans.unknown_hashes, list(here))
        sizes |= {sha256: here[sha256] for sha256 in unknown}
    for sha256, size_bytes in sorted(sizes.items()):
        found.add(sha256, size_bytes)
    if sizes and not context.read(orphans.knows_content):
        found.kept = "this database names no content at all: is it the one that belongs to the bucket?"
    elif broom.delete:
        adopted = [sha256 for sha256 in found.names if context.commit(orphans.adopt, sha256, sizes[sha256])]
        found.deleted = _delete_content(broom, adopted)
    return found


def _delete_content(broom: Broom, hashes: Iterable[str]) -> int:
    """One transaction for each, so that an importer of the same bytes waits for no other."""
    context, removed = broom.context, 0
    delete_object = context.resources.objects.delete_content
    for sha256 in hashes:
        context.check()
        removed += context.commit(blobs.delete_blob, sha256, delete_object)
    return removed


def _old_folders(broom: Broom) -> dict[str, Folder]:
    """The folders in which nothing was touched lately; that of a training's checkpoints is one of its own."""
    folders: dict[str, Folder] = {}
    for kind in ("jobs", "adapters", "training"):
        for found in broom.context.resources.objects.list_objects(f"{kind}/"):
            match = _FOLDER.fullmatch(found.key)
            if match is None:
                continue
            name = match["folder"]
            if kind == "training" and found.key.startswith(f"{name}{_CHECKPOINTS}/"):
                name += _CHECKPOINTS
            folder = folders.setdefault(name, Folder(0, found.modified_at))
            folder.size_bytes += found.size_bytes
            folder.touched_at = max(folder.touched_at, found.modified_at)
        broom.context.check()
    return {name: folder for name, folder in folders.items() if folder.touched_at < broom.before}


def _collect_results(broom: Broom, folders: dict[str, Folder]) -> Orphans:
    """A number is never given to a second job, so what has no row now never gets one."""
    numbered = {int(name[5:]): name for name in folders if name.startswith("jobs/") and _JOB.fullmatch(name[5:])}
    living = broom.context.read(orphans.living_jobs, list(numbered))
    names = [name for number, name in sorted(numbered.items()) if number not in living]
    return _collect_folders(broom, folders, names, lambda connection, name: True)


def _collect_adapters(broom: Broom, folders: dict[str, Folder]) -> Orphans:
    def is_orphan(connection: Connection, name: str) -> bool:
        return name.removeprefix("adapters/") not in orphans.living_adapters(connection)

    return _collect_while_no_training(broom, folders, "adapters/", is_orphan)


def _collect_trainings(broom: Broom, folders: dict[str, Folder]) -> Orphans:
    """Folders that neither a job nor a version names, and checkpoints of trainings that have ended."""

    def is_orphan(connection: Connection, name: str) -> bool:
        living = orphans.living_trainings(connection)
        place = name.removesuffix(_CHECKPOINTS)
        return place not in living or (name != place and living[place])

    return _collect_while_no_training(broom, folders, "training/", is_orphan)


def _collect_while_no_training(
    broom: Broom, folders: dict[str, Folder], prefix: str, is_orphan: Callable[[Connection, str], bool]
) -> Orphans:
    candidates = sorted(name for name in folders if name.startswith(prefix))
    names = broom.context.read(lambda c: [name for name in candidates if is_orphan(c, name)])
    return _collect_folders(broom, folders, names, lambda c, name: orphans.hold_trainings(c) and is_orphan(c, name))


def _collect_folders(
    broom: Broom, folders: dict[str, Folder], names: list[str], may_go: Callable[[Connection, str], bool]
) -> Orphans:
    """`may_go` is asked again in the transaction that removes a folder."""
    context, found = broom.context, Orphans()

    def remove(connection: Connection, name: str) -> bool:
        if not may_go(connection, name):
            return False
        context.resources.objects.remove_prefix(f"{name}/")
        return True

    for name in names:
        found.add(name, folders[name].size_bytes)
        if broom.delete:
            context.check()
            found.deleted += context.commit(remove, name)
    if broom.delete and found.deleted < len(names):
        found.kept = "a training is open, whose files cannot be told from orphans yet; sweep again when it has ended"
    return found


def _pages(found: Iterable[ObjectInfo]) -> Iterator[list[ObjectInfo]]:
    remaining = iter(found)
    while page := list(islice(remaining, _PAGE)):
        yield page
