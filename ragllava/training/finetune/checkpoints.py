"""Checkpoints that are whole or do not count: the manifest is written last, and read first."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ragllava.errors import UsageError
from ragllava.json_records import from_json, to_json
from ragllava.whole_files import read_sealed, seal_folder

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
    """Mark the folder as complete: write the manifest with the hashes of its files."""
    facts = to_json(checkpoint)
    del facts["folder"]
    seal_folder(checkpoint.folder, facts)


def last_checkpoint(folder: Path, fingerprint: str) -> Checkpoint | None:
    """The latest whole checkpoint under `folder`; torn ones are passed over.

    Raises UsageError when it belongs to another training.
    """
    steps = [int(path.name.removeprefix(_PREFIX)) for path in folder.glob(f"{_PREFIX}[0-9]*")]
    for step in sorted(steps, reverse=True):
        checkpoint = read_checkpoint(folder / f"{_PREFIX}{step}")
        if checkpoint is None:
            continue
        if checkpoint.fingerprint != fingerprint:
            raise UsageError(
                f"{checkpoint.folder} is a checkpoint of a training with other data, settings or base model; "
                "remove it, or choose another folder for this one"
            )
        return checkpoint
    return None


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint in `folder`, or None when it is not whole: no manifest, or files that differ from it."""
    facts = read_sealed(folder)
    try:
        return None if facts is None else from_json(Checkpoint, facts | {"folder": folder})
    except ValueError:
        return None


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
