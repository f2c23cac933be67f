"""Copying objects of the store into a vault of backups: only those that are not there, several at once."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import IO

from ragllava.errors import ObjectCorrupt, ObjectMissing, UsageError
from ragllava.stages.backup.manifest import OBJECTS, SavedObject, file_of
from ragllava.stages.backup.vaults import Vault
from ragllava.stores.backup.snapshot import NamedObjects
from ragllava.stores.objects import ObjectInfo, ObjectStore
from ragllava.whole_files import file_sha256

THREADS = 8
_BETWEEN_CHECKS = 100  # files
# Content is below sha256/, thumbnails are made again, and so are result files in other forms (results/kept.py).
_FOLDERS = ("jobs/", "adapters/", "training/", "uploads/")
_MADE_AGAIN = "/kept/"

OnProgress = Callable[[str, int, int], None]  # what is being done, how much of it, and of how much


@dataclass
class Copied:
    """What was copied. `lost` are hashes and keys that were not there, or whose bytes were not what a row says."""

    files: int = 0
    size_bytes: int = 0
    lost: list[str] = field(default_factory=list)

    def add(self, other: Copied) -> None:
        """Count what was copied besides; what it lost counts with this."""
        self.files += other.files
        self.size_bytes += other.size_bytes
        self.lost = [*self.lost, *other.lost]


@dataclass(frozen=True)
class Copier:
    """From an object store to a vault; `check` is called now and then, and may raise."""

    objects: ObjectStore
    vault: Vault
    on_progress: OnProgress
    check: Callable[[], None]

    def content(self, named: Iterable[tuple[str, int]], total: int) -> Copied:
        """Copy the content with these hashes and sizes, which come in the order of hashes."""
        copied, done = Copied(), 0
        with ThreadPoolExecutor(THREADS) as threads:
            for prefix, group in groupby(named, key=lambda each: each[0][:2]):
                folder = f"{OBJECTS}{prefix}/"
                there = {name.removeprefix(folder): size for name, size in self.vault.sizes(folder)}
                wanted = list(group)
                missing = [(sha256, size) for sha256, size in wanted if there.get(sha256) != size]
                results = zip(missing, threads.map(self._copy_content, missing), strict=True)
                for number, ((sha256, size), is_copied) in enumerate(results, start=1):
                    if number % _BETWEEN_CHECKS == 0:
                        self.check()
                    if is_copied:
                        copied.files += 1
                        copied.size_bytes += size
                    else:
                        copied.lost.append(sha256)
                done += len(wanted)
                self.on_progress("pictures", done, total)
                self.check()
        return copied

    def _copy_content(self, named: tuple[str, int]) -> bool:
        try:
            self.vault.put(file_of(named[0]), self.objects.get_content(named[0]))
        except (ObjectMissing, ObjectCorrupt):
            return False
        return True

    def others(self, named: NamedObjects, before: dict[str, SavedObject]) -> tuple[list[SavedObject], Copied]:
        """Copy what is named beside content; `before` are those of an earlier backup, by key."""
        copied, saved = Copied(), list[SavedObject]()
        listed = [info for folder in _FOLDERS for info in self.objects.list_objects(folder) if is_named(info, named)]
        copied.lost += sorted(named.keys.keys() - {info.key for info in listed})
        with ThreadPoolExecutor(THREADS) as threads:
            results = threads.map(lambda info: self._copy_other(info, before.get(info.key)), listed)
            for done, (info, result) in enumerate(zip(listed, results, strict=True), start=1):
                if result is None:
                    copied.lost += [info.key] * (info.key in named.keys)
                else:
                    saved.append(result[0])
                    copied.files += result[1]
                    copied.size_bytes += result[1] * result[0].size_bytes
                    expected = named.keys.get(info.key)
                    copied.lost += [info.key] * (expected is not None and expected != result[0].sha256)
                self.on_progress("files", done, len(listed))
                if done % _BETWEEN_CHECKS == 0:
                    self.check()
        return saved, copied

    def _copy_other(self, info: ObjectInfo, before: SavedObject | None) -> tuple[SavedObject, bool] | None:
        """The object, and whether it had to be copied; None when it is gone."""
        if before is not None and (before.etag, before.size_bytes) == (info.etag, info.size_bytes):
            return before, False
        try:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "object"
                self.objects.fetch(info.key, file)
                sha256 = file_sha256(file)
                size = file.stat().st_size
                self.vault.put(file_of(sha256), file)
        except ObjectMissing:
            return None
        return SavedObject(info.key, sha256, size, info.etag), True


def is_named(info: ObjectInfo, named: NamedObjects) -> bool:
    """Whether a backup contains the object."""
    folder = "/".join(info.key.split("/", 2)[:2]) + "/"
    return info.key in named.keys or (folder in named.folders and _MADE_AGAIN not in info.key)


@contextmanager
def open_spool() -> Iterator[Spool]:
    """An empty spool, whose files go with the block."""
    with tempfile.TemporaryDirectory(prefix="ragllava-backup-") as folder:
        yield Spool(Path(folder))


class Spool:
    """Files for a vault, in a folder of this machine, as a snapshot must not stay open while they are copied."""

    def __init__(self, folder: Path) -> None:
        """`folder` is empty."""
        self._folder = folder
        self._names: list[str] = []

    def put(self, name: str, data: bytes) -> None:
        """As Sink. Raises UsageError when the disk is full."""
        file = self._file(len(self._names))
        try:
            file.write_bytes(data)
        except OSError as error:
            raise UsageError(
                f"cannot write the rows to {self._folder} ({error.strerror or error}): free some room there, or set "
                "TMPDIR to another folder, and run the same command again"
            ) from error
        self._names.append(name)

    def deliver(self, vault: Vault, check: Callable[[], None]) -> None:
        """Copy all of them."""
        with ThreadPoolExecutor(THREADS) as threads:
            for _ in threads.map(lambda number: vault.put(self._names[number], self._file(number)), self._numbers()):
                check()

    def _numbers(self) -> range:
        return range(len(self._names))

    def _file(self, number: int) -> Path:
        return self._folder / str(number)


@contextmanager
def content_list() -> Iterator[ContentList]:
    """An empty list, whose file goes with the block."""
    with tempfile.TemporaryFile("w+", prefix="ragllava-backup-") as file:
        yield ContentList(file)


class ContentList:
    """The hashes and sizes of content in a file of this machine, as a snapshot must not stay open while objects are
    copied."""

    def __init__(self, file: IO[str]) -> None:
        """`file` is empty."""
        self._file = file
        self.number = 0
        self.size_bytes = 0

    def fill(self, content: Iterable[tuple[str, int]]) -> None:
        """Note all of it."""
        for sha256, size in content:
            self._file.write(f"{sha256} {size}\n")
            self.number += 1
            self.size_bytes += size

    def __iter__(self) -> Iterator[tuple[str, int]]:
        self._file.seek(0)
        for line in self._file:
            sha256, size = line.split()
            yield sha256, int(size)


def hashed(pieces: Iterable[bytes], file: Path) -> str:
    """Write pieces to a file; returns the sha256 (hex) of all."""
    digest = hashlib.sha256()
    with file.open("wb") as copy:
        for piece in pieces:
            digest.update(piece)
            copy.write(piece)
    return digest.hexdigest()
