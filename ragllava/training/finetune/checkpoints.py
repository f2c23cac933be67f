"""Checkpoints that are whole or do not count: the manifest is written last, and read first."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ragllava.errors import UsageError

MANIFEST = "manifest.json"
_PREFIX = "checkpoint-"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint. `fingerprint` names the training that it belongs to; `seconds` were trained until here."""

    folder: Path
    fingerprint: str
    step: int
    last_step: int
    seconds: float

    @property
    def finished(self) -> bool:
        """Whether no step is left."""
        return self.step >= self.last_step


def seal_checkpoint(checkpoint: Checkpoint) -> None:
    """Declare the folder whole: hash what lies in it and write the manifest."""
    values = asdict(checkpoint) | {"files": hash_files(checkpoint.folder)}
    del values["folder"]
    write_whole(checkpoint.folder / MANIFEST, json.dumps(values, indent=1).encode())


def last_checkpoint(folder: Path, fingerprint: str) -> Checkpoint | None:
    """The latest whole checkpoint under `folder`; torn ones are passed over.

    Raises UsageError when it belongs to another training.
    """
    steps = [int(path.name.removeprefix(_PREFIX)) for path in folder.glob(f"{_PREFIX}[0-9]*")]
    for step in sorted(steps, reverse=True):
        found = read_checkpoint(folder / f"{_PREFIX}{step}")
        if found is None:
            continue
        if found.fingerprint != fingerprint:
            raise UsageError(
                f"{found.folder} is a checkpoint of a training with other data, settings or base model; "
                "remove it, or choose another folder for this one"
            )
        return found
    return None


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint in `folder`, or None when it is not whole: no manifest, or files that differ from it."""
    try:
        values: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        files = values.pop("files")
        if hash_files(folder) != files:
            return None
        return Checkpoint(folder=folder, **values)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def clear_old(folder: Path, keep: Collection[str], before: float) -> list[str]:
    """Remove the folders in `folder` whose name is not to be kept and whose files are all older than `before`, in
    seconds since 1970; returns their names."""
    removed = []
    for found in sorted(folder.glob("*/")):
        touched = max((path.lstat().st_mtime for path in (found, *found.rglob("*"))), default=0.0)
        if found.name not in keep and touched < before:
            shutil.rmtree(found, ignore_errors=True)
            removed.append(found.name)
    return removed


def hash_files(folder: Path) -> dict[str, str]:
    """The sha256 (hex) of every file below the folder, by its name there; a manifest is not part of it."""
    names = sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST
    )
    return {name: _sha256(folder / name) for name in names}


def write_whole(file: Path, content: bytes) -> None:
    """Write aside, then rename: who reads the file finds all of it."""
    aside = file.with_name(f"{file.name}.partial")
    aside.write_bytes(content)
    aside.replace(file)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
