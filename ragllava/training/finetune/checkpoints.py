"""Checkpoints that are whole or do not count: the manifest is written last, and read first."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ragllava.errors import UsageError
from ragllava.json_records import from_json, to_json
from ragllava.stores.object_folders import download_folder, upload_folder
from ragllava.stores.objects import ObjectStore
from ragllava.whole_files import MANIFEST, read_sealed, seal_folder

_PREFIX = "checkpoint-"
_STORED_MANIFEST = re.compile(rf"{_PREFIX}(\d+)/{MANIFEST}")


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
    """Mark the folder as complete: write the manifest with the hashes of its files."""
    facts = to_json(checkpoint)
    del facts["folder"]
    seal_folder(checkpoint.folder, facts)


def complete_checkpoints(work: Path, after: int = -1) -> list[Checkpoint]:
    """The complete checkpoints in `work` after step `after`, in the order of their steps; damaged ones are ignored."""
    steps = sorted(int(path.name.removeprefix(_PREFIX)) for path in work.glob(f"{_PREFIX}[0-9]*"))
    checkpoints = [read_checkpoint(work / f"{_PREFIX}{step}") for step in steps if step > after]
    return [checkpoint for checkpoint in checkpoints if checkpoint is not None]


def last_checkpoint(work: Path, fingerprint: str) -> Checkpoint | None:
    """The latest complete checkpoint in `work`. Raises UsageError when it belongs to another training."""
    checkpoint = next(reversed(complete_checkpoints(work)), None)
    if checkpoint is not None and checkpoint.fingerprint != fingerprint:
        raise UsageError(
            f"{checkpoint.folder} is a checkpoint of a training with other data, settings or base model; "
            "remove it, or choose another folder for this one"
        )
    return checkpoint


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint in `folder`, or None when it is not whole: no manifest, or files that differ from it."""
    facts = read_sealed(folder)
    try:
        return None if facts is None else from_json(Checkpoint, facts | {"folder": folder})
    except ValueError:
        return None


def store_checkpoint(objects: ObjectStore, checkpoint: Path, prefix: str) -> None:
    """Store a complete checkpoint as `<prefix>/checkpoint-<step>`, then remove the others there."""
    stored = f"{prefix}/{checkpoint.name}"
    upload_folder(objects, stored, checkpoint, (checkpoint / MANIFEST).read_bytes())
    for key in [item.key for item in objects.list_objects(f"{prefix}/{_PREFIX}")]:
        if not key.startswith(f"{stored}/"):
            objects.delete(key)


def restore_checkpoint(objects: ObjectStore, prefix: str, work: Path) -> int | None:
    """Fetch the latest stored checkpoint into `work` and return its step; None if `work` has one that is as late."""
    keys = [item.key.removeprefix(f"{prefix}/") for item in objects.list_objects(f"{prefix}/")]
    step = max((int(match[1]) for match in map(_STORED_MANIFEST.fullmatch, keys) if match), default=None)
    if step is None or complete_checkpoints(work, after=step - 1):
        return None
    download_folder(objects, f"{prefix}/{_PREFIX}{step}", work / f"{_PREFIX}{step}")
    return step


def clear_old(folder: Path, keep: Collection[str], before: float) -> list[str]:
    """Remove the folders in `folder` whose name is not to be kept and whose files are all older than `before`, in
    seconds since 1970; returns their names."""
    removed = []
    for path in sorted(folder.glob("*/")):
        touched = max((file.lstat().st_mtime for file in (path, *path.rglob("*"))), default=0.0)
        if path.name not in keep and touched < before:
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path.name)
    return removed
