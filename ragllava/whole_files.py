"""Files and folders that are complete or absent: written under a temporary name, then renamed.

A sealed folder holds a manifest with the hash of every other file. The manifest is written last and read first.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


@contextmanager
def written_whole(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """A new file beside `path` to write to. At the end of the block it replaces `path`; after an error it is removed.

    `mode` are its permissions, less the umask. Raises OSError.
    """
    part = _part_of(path)
    part.touch(mode, exist_ok=False)
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str, mode: int = 0o666) -> None:
    """Write a file at once, text as UTF-8: a reader finds all of the content, or the previous one. Raises OSError."""
    with written_whole(path, mode) as part:
        _fill(part, content)


def write_first(path: Path, content: bytes | str) -> bool:
    """As `write_whole`, but a file that is there stays; returns whether this one was written.

    Of several writers at once one writes, unless the file system has no hard links. Raises OSError.
    """
    part = _part_of(path)
    try:
        _fill(part, content)
        return _named_first(part, path)
    finally:
        part.unlink(missing_ok=True)


def link_whole(path: Path, target: Path) -> None:
    """Make `path` a symbolic link to `target`, in place of a link that was there. Several writers may do so at once.

    Raises OSError.
    """
    part = _part_of(path)
    part.symlink_to(target)
    try:
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _named_first(part: Path, path: Path) -> bool:
    try:
        path.hardlink_to(part)  # fails where the name is taken, which a rename does not
    except FileExistsError:
        return False
    except OSError:
        if path.exists():
            return False
        part.replace(path)
    return True


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def _fill(part: Path, content: bytes | str) -> None:
    with part.open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` to fill. At the end of the block it replaces `folder`; after an error it stays
    until the next attempt, which removes it. Raises OSError."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def file_sha256(path: Path) -> str:
    """The sha256 (hex) of a file. Raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_sha256(folder: Path) -> dict[str, str]:
    """The sha256 (hex) of every file below the folder, by its name there; manifests are left out."""
    names = sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST
    )
    return {name: file_sha256(folder / name) for name in names}


def seal_folder(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of a complete folder: the facts (JSON values), and the hash of each file under `files`."""
    write_whole(folder / MANIFEST, json.dumps({**facts, "files": folder_sha256(folder)}, indent=1))


def read_sealed(folder: Path) -> dict[str, Any] | None:
    """The facts of a sealed folder; None where the manifest is absent, or a file differs from it."""
    try:
        facts: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return facts if facts.pop("files") == folder_sha256(folder) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
