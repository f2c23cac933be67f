"""Whether a backup is whole: every file is read, and its hash and its lines are compared with the manifest.

A damaged file is set aside, below DAMAGED: then the next backup writes it again, if the system still has its bytes.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from ragllava.errors import ObjectCorrupt, ObjectMissing, UsageError
from ragllava.stages.backup.copying import THREADS, OnProgress, hashed
from ragllava.stages.backup.manifest import (
    DAMAGED,
    Manifest,
    SavedContent,
    SavedObject,
    file_of,
    pieces_of,
    read_manifest,
    read_piece,
    saved_content,
    saved_objects,
)
from ragllava.stages.backup.vaults import Vault

_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Verified:
    """A backup that was read. `problems` are sentences; () when it is whole."""

    name: str
    vault: str
    made_at: str
    version: str
    revision: str
    rows: int
    pictures: int
    files: int
    size_bytes: int
    absent: tuple[str, ...]
    problems: tuple[str, ...]


def verify(vault: Vault, name: str | None, on_progress: OnProgress) -> Verified:
    """Read a whole backup, the newest without a name. Raises as `read_manifest`."""
    manifest = read_manifest(vault, name)
    problems: list[str] = []
    size_bytes = 0
    pieces = list(dict.fromkeys(manifest.pieces()))
    for done, piece in enumerate(pieces, start=1):
        if (problem := _problem(vault, piece.sha256, partial(read_piece, vault, piece))) is not None:
            problems.append(problem)
        size_bytes += piece.size_bytes
        on_progress("tables", done, len(pieces))
    if problems:  # what the tables name is not known then
        return _verified(vault, manifest, 0, 0, size_bytes, problems)
    pictures = files = 0
    named = _named(vault, manifest)
    with ThreadPoolExecutor(THREADS) as threads:
        while page := list(islice(named, _PAGE)):
            problems += filter(None, threads.map(lambda each: _file_problem(vault, each), page))
            pictures += sum(isinstance(each, SavedContent) for each in page)
            files += sum(isinstance(each, SavedObject) for each in page)
            size_bytes += sum(each.size_bytes for each in page)
            on_progress("pictures", pictures + files, manifest.content)
    expected = manifest.content - sum("/" not in each for each in manifest.absent)
    if pictures != expected:
        problems.append(f"the table of contents names {pictures:,} pictures, and the manifest {expected:,}")
    return _verified(vault, manifest, pictures, files, size_bytes, problems)


def _named(vault: Vault, manifest: Manifest) -> Iterator[SavedContent | SavedObject]:
    yield from saved_objects(vault, manifest)
    yield from saved_content(vault, manifest)


def _problem(vault: Vault, sha256: str, read: Callable[[], object]) -> str | None:
    try:
        read()
    except ObjectMissing as error:
        return f"{error}; the next backup writes it again if the system still has it"
    except ObjectCorrupt as error:
        return f"{error}; {_set_aside(vault, sha256)}"
    return None


def _set_aside(vault: Vault, sha256: str) -> str:
    """Move a damaged file; returns what to know of it."""
    name, aside = file_of(sha256), f"{DAMAGED}{sha256}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "copy"
            with vault.open(name) as stream:
                hashed(pieces_of(stream), copy)
            vault.put(aside, copy)
        vault.delete(name)
    except (UsageError, OSError) as error:
        return f"it could not be set aside ({error}), so remove it: later backups take it for whole"
    return f"it is {aside} now, and the next backup writes it again if the system still has it"


def _file_problem(vault: Vault, named: SavedContent | SavedObject) -> str | None:
    def read() -> None:
        digest, size = hashlib.sha256(), 0
        with vault.open(file_of(named.sha256)) as stream:
            for data in pieces_of(stream):
                digest.update(data)
                size += len(data)
        if (digest.hexdigest(), size) != (named.sha256, named.size_bytes):
            raise ObjectCorrupt(f"{vault.address}/{file_of(named.sha256)} is damaged: it does not have its hash")

    return _problem(vault, named.sha256, read)


def _verified(
    vault: Vault, manifest: Manifest, pictures: int, files: int, size_bytes: int, problems: list[str]
) -> Verified:
    return Verified(
        name=manifest.name,
        vault=vault.address,
        made_at=manifest.made_at.isoformat(),
        version=manifest.version,
        revision=manifest.revision,
        rows=manifest.rows,
        pictures=pictures,
        files=files,
        size_bytes=size_bytes,
        absent=manifest.absent,
        problems=tuple(problems),
    )
