"""Making a backup beside running work.

First the objects are copied that rows name now, which takes long. Then all rows are read in one snapshot, and what
these name beyond the first objects is copied. An object that was erased meanwhile is missing then, and its row with it
in the next snapshot: so this is repeated until nothing new is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib import metadata

from sqlalchemy import Engine

from ragllava.errors import Conflict, ObjectCorrupt, ObjectMissing, RagllavaError, UsageError
from ragllava.stages.backup.copying import Copied, Copier, OnProgress, Spool, content_list, open_spool
from ragllava.stages.backup.manifest import (
    DAMAGED,
    MANIFESTS,
    Manifest,
    Piece,
    SavedObject,
    SavedTable,
    file_of,
    list_names,
    object_lines,
    read_manifest,
    saved_content,
    saved_objects,
    stored,
    write_lines,
    write_manifest,
)
from ragllava.stages.backup.vaults import Vault
from ragllava.stores.backup.snapshot import Snapshot, open_snapshot
from ragllava.stores.database import locked_outside
from ragllava.stores.objects import ObjectStore

IDS_OF = ("images", "jobs", "archives")  # by which a restore knows what was erased later
_ROUNDS = 5
_NAME = "%Y-%m-%dT%H-%M-%S.%fZ"
_WHOLE_SECONDS = "%Y-%m-%dT%H-%M-%SZ"


@dataclass(frozen=True, slots=True)
class Made:
    """A backup that was made. `copied` files and their bytes were not in the vault before; `absent` are hashes and keys
    that rows name and the object store does not have; `removed` are older backups, `notes` sentences about what could
    not be done."""

    name: str
    vault: str
    rows: int
    pictures: int
    picture_bytes: int
    files: int
    copied: int
    copied_bytes: int
    table_bytes: int
    seconds: float
    absent: tuple[str, ...]
    removed: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class BackupMaker:
    """The services that are saved, and the vault. `check` is called now and then, and may raise to stop."""

    engine: Engine
    objects: ObjectStore
    vault: Vault
    on_progress: OnProgress = lambda _what, _done, _total: None
    check: Callable[[], None] = lambda: None

    def make(self, keep: int = 0) -> Made:
        """Make a backup, and remove all but the newest `keep` (0: none is removed).

        Raises Conflict while another one is being made, and for a vault of another system; UsageError when the vault
        cannot be written, ServiceUnavailable. An interrupted one leaves what it copied, and the next continues there.
        """
        with locked_outside(self.engine, "backup", "backup", wait=False) as is_held:
            if not is_held:
                raise Conflict("another backup of this system is being made; wait for it")
            return self._make(keep)

    def _make(self, keep: int) -> Made:
        began = time.monotonic()
        previous = self._previous()
        self._require_own(previous)
        self.vault.tidy()
        before, there = self._earlier(previous)
        copied, lost = Copied(), set[str]()
        for attempt in range(_ROUNDS + 1):
            last, with_rows = lost, attempt > 0
            manifest, copied_now = self._round(before, there, with_rows=with_rows)
            copied.add(copied_now)
            lost = set(copied_now.lost)
            if with_rows and lost <= last:
                break
        write_manifest(self.vault, manifest)
        removed, notes = self._remove_old(keep, manifest.name)
        return _made(manifest, self.vault, copied, time.monotonic() - began, removed, notes)

    def _round(self, before: dict[str, SavedObject], there: set[str], *, with_rows: bool) -> tuple[Manifest, Copied]:
        """Copy what rows name now; with the rows themselves, the manifest says all. `before` and `there` are what the
        vault has of earlier rounds and backups: the objects beside content by key, and hashes of pieces."""
        copier = Copier(self.objects, self.vault, self.on_progress, self.check)
        with content_list() as content, open_spool() as spool:
            with open_snapshot(self.engine) as snapshot:
                moment = snapshot.moment()
                content.fill(snapshot.content())
                named = snapshot.named_objects()
                rows = self._rows(snapshot, spool, there) if with_rows else _Rows()
            spool.deliver(self.vault, self.check)
            copied = copier.content(content, content.number)
            saved, others = copier.others(named, before)
        copied.add(others)
        before |= {each.key: each for each in saved}
        manifest = Manifest(
            name=_name(moment, max(list_names(self.vault), default="")),
            made_at=moment,
            version=metadata.version("ragllava"),
            content=content.number,
            content_bytes=content.size_bytes,
            objects=write_lines(self.vault, object_lines(saved), there) if with_rows else (),
            absent=tuple(sorted(copied.lost)),
            tables=rows.tables,
            ids=rows.ids,
            sequences=rows.sequences,
            revision=rows.revision,
            identity=rows.identity,
        )
        return manifest, copied

    def _require_own(self, previous: Manifest | None) -> None:
        """Two systems would remove each other's files that no manifest names yet. A restored system continues the vault
        that it was restored from."""
        with open_snapshot(self.engine) as snapshot:
            identity, origin = snapshot.identity(), snapshot.origin()
        if previous is None or previous.identity == identity:
            return
        if origin is None or origin.identity != previous.identity:
            raise Conflict(
                f"the backup {previous.name} in {self.vault.address} is of another database: give each system a folder "
                "or a prefix of its own, also a copy that was restored while the first one goes on"
            )

    def _earlier(self, previous: Manifest | None) -> tuple[dict[str, SavedObject], set[str]]:
        """What the vault has of an earlier backup: the objects beside content by key, and hashes of files.

        Files of a vault get lost, and `--verify` sets damaged ones aside: so it is listed.
        """
        if previous is None:
            return {}, set()
        sizes = {piece.sha256: piece.size_bytes for piece in previous.pieces()}
        try:
            before = {saved.key: saved for saved in saved_objects(self.vault, previous)}
        except (ObjectMissing, ObjectCorrupt):  # then all are copied, and their list is written again
            before = {}
            for piece in previous.objects:
                sizes.pop(piece.sha256, None)
        sizes |= {saved.sha256: saved.size_bytes for saved in before.values()}
        there = {sha256 for sha256, size in stored(self.vault) if sizes.get(sha256) == size}
        return {key: saved for key, saved in before.items() if saved.sha256 in there}, there

    def _previous(self) -> Manifest | None:
        """The newest backup that can be read; without one, everything is copied."""
        for name in reversed(list_names(self.vault)):
            try:
                return read_manifest(self.vault, name)
            except RagllavaError:
                continue
        return None

    def _rows(self, snapshot: Snapshot, spool: Spool, there: set[str]) -> _Rows:
        parts = snapshot.parts()
        tables = []
        for done, part in enumerate(parts, start=1):
            tables.append(SavedTable(part, write_lines(spool, snapshot.rows(part), there)))
            self.on_progress("tables", done, len(parts))
            self.check()
        ids = {name: write_lines(spool, snapshot.ids(name), there) for name in IDS_OF}
        return _Rows(tuple(tables), ids, snapshot.sequences(), snapshot.revision(), snapshot.identity())

    def _remove_old(self, keep: int, made: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Remove all but the newest `keep` backups and the one that was made, and the files that no other one needs;
        returns their names, and sentences about what could not be done."""
        names = list_names(self.vault)
        kept = {*names[-keep:], made}
        removed = tuple(name for name in names if name not in kept) if keep else ()
        if not removed:
            return (), ()
        try:
            needed = self._needed(sorted(kept))
        except (ObjectMissing, ObjectCorrupt, UsageError) as error:
            return (), (f"no older backup was removed, as it is not known which files the others need: {error}",)
        for name in removed:
            self.vault.delete(f"{MANIFESTS}{name}.json")
        for sha256 in [sha256 for sha256, _ in stored(self.vault) if sha256 not in needed]:
            self.vault.delete(file_of(sha256))
        for name, _ in list(self.vault.sizes(DAMAGED)):  # what is erased must not stay there
            if name.removeprefix(DAMAGED) not in needed:
                self.vault.delete(name)
        return removed, ()

    def _needed(self, names: Sequence[str]) -> set[str]:
        """The hashes of all files of these backups."""
        needed: set[str] = set()
        for name in names:
            manifest = read_manifest(self.vault, name)
            needed.update(piece.sha256 for piece in manifest.pieces())
            needed.update(content.sha256 for content in saved_content(self.vault, manifest))
            needed.update(saved.sha256 for saved in saved_objects(self.vault, manifest))
        return needed


def _name(moment: datetime, last: str) -> str:
    """The name of a backup of this moment, which comes after the last one of the vault: clocks go back, too."""
    name = _at_millisecond(moment)
    if name > last:
        return name
    for form, step in ((_NAME, timedelta(milliseconds=1)), (_WHOLE_SECONDS, timedelta(seconds=1))):
        with suppress(ValueError):
            name = _at_millisecond(datetime.strptime(last, form).replace(tzinfo=UTC) + step)
            break
    return name  # somebody named the last one otherwise: then by the clock alone


def _at_millisecond(moment: datetime) -> str:
    return f"{moment.strftime(_NAME)[:-4]}Z"


@dataclass(frozen=True, slots=True)
class _Rows:
    """What one snapshot gave."""

    tables: tuple[SavedTable, ...] = ()
    ids: dict[str, tuple[Piece, ...]] = field(default_factory=dict)
    sequences: dict[str, int] = field(default_factory=dict)
    revision: str = ""
    identity: str = ""


def _made(
    manifest: Manifest, vault: Vault, copied: Copied, seconds: float, removed: tuple[str, ...], notes: tuple[str, ...]
) -> Made:
    return Made(
        name=manifest.name,
        vault=vault.address,
        rows=manifest.rows,
        pictures=manifest.content,
        picture_bytes=manifest.content_bytes,
        files=sum(piece.lines for piece in manifest.objects),
        copied=copied.files,
        copied_bytes=copied.size_bytes,
        table_bytes=sum(piece.size_bytes for piece in manifest.pieces()),
        seconds=seconds,
        absent=manifest.absent,
        removed=removed,
        notes=notes,
    )
