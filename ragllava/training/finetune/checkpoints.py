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
    """Declare the folder whole: hash what lies in it and write the manifest."""
    facts = to_json(checkpoint)
    del facts["folder"]
    seal_folder(checkpoint.folder, facts)


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
    facts = read_sealed(folder)
    try:
        return None if facts is None else from_json(Checkpoint, facts | {"folder": folder})
    except ValueError:
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
