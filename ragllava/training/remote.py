"""Folders in the object store, whole when their manifest is there: it is written last and looked at first."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ragllava.errors import ObjectCorrupt
from ragllava.stores.objects import ObjectStore
from ragllava.training.finetune.checkpoints import read_checkpoint
from ragllava.whole_files import MANIFEST, file_sha256, folder_written_whole

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def upload_folder(objects: ObjectStore, folder: Path, prefix: str) -> None:
    """Store every file of the folder as `<prefix>/<name>`, its manifest last. Raises ServiceUnavailable."""
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    for name in sorted(names, key=lambda name: name == MANIFEST):
        with (folder / name).open("rb") as stream:
            objects.put_stream(f"{prefix}/{name}", stream, (folder / name).stat().st_size)


def download_folder(objects: ObjectStore, prefix: str, folder: Path) -> None:
    """Fetch a whole folder; `folder` appears by a rename, after each file was checked against the manifest.

    Raises ObjectMissing for a folder that is not whole there, ObjectCorrupt, ServiceUnavailable.
    """
    manifest = objects.get(f"{prefix}/{MANIFEST}")
    with folder_written_whole(folder) as part:
        for name, sha256 in json.loads(manifest)["files"].items():
            file = part / name
            file.parent.mkdir(parents=True, exist_ok=True)
            objects.fetch(f"{prefix}/{name}", file)
            if file_sha256(file) != sha256:
                raise ObjectCorrupt(f"the object {prefix}/{name} is damaged: its hash is not the one in its manifest")
        (part / MANIFEST).write_bytes(manifest)


def store_checkpoint(objects: ObjectStore, checkpoint: Path, prefix: str) -> None:
    """Store a whole checkpoint as `<prefix>/checkpoint-<step>`, then remove the others there."""
    upload_folder(objects, checkpoint, f"{prefix}/{checkpoint.name}")
    for step in _stored_steps(objects, prefix, complete=False):
        if f"checkpoint-{step}" != checkpoint.name:
            objects.remove_prefix(f"{prefix}/checkpoint-{step}/")


def restore_checkpoint(objects: ObjectStore, prefix: str, work: Path) -> int | None:
    """Fetch the latest stored checkpoint into `work`, unless one as late is there; returns its step if it was."""
    stored = max(_stored_steps(objects, prefix, complete=True), default=None)
    if stored is None or stored <= _latest_here(work):
        return None
    work.mkdir(parents=True, exist_ok=True)
    download_folder(objects, f"{prefix}/checkpoint-{stored}", work / f"checkpoint-{stored}")
    return stored


def _stored_steps(objects: ObjectStore, prefix: str, *, complete: bool) -> set[int]:
    steps = set()
    for item in objects.list_objects(f"{prefix}/"):
        folder, _, name = item.key.removeprefix(f"{prefix}/").partition("/")
        match = _CHECKPOINT.fullmatch(folder)
        if match and (not complete or name == MANIFEST):
            steps.add(int(match[1]))
    return steps


def _latest_here(work: Path) -> int:
    checkpoints = map(read_checkpoint, work.glob("checkpoint-*"))
    return max((checkpoint.step for checkpoint in checkpoints if checkpoint is not None), default=-1)
