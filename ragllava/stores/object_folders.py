"""Folders in the object store, complete as soon as their manifest is stored: it is written last and read first.

A manifest is a JSON object that lists all other files of the folder under `files`, in one of two forms: their sha256 by
name, or a list of objects with `name` and `sha256`.
"""

from __future__ import annotations

import json
from pathlib import Path

from ragllava.errors import ObjectCorrupt
from ragllava.stores.objects import ObjectStore
from ragllava.whole_files import MANIFEST, file_sha256, folder_written_whole


def listed_files(manifest: bytes) -> dict[str, str]:
    """The sha256 (hex) of the files in a manifest, by name. ValueError if it is invalid or names files elsewhere."""
    try:
        files = json.loads(manifest)["files"]
        hashes = files if isinstance(files, dict) else {file["name"]: file["sha256"] for file in files}
        outside = [name for name in hashes if Path(name).is_absolute() or ".." in Path(name).parts]
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a manifest: {error!r}") from None
    if outside:
        raise ValueError(f"{outside[0]} is not in the folder")
    return hashes


def upload_folder(objects: ObjectStore, prefix: str, folder: Path, manifest: bytes) -> None:
    """Store every file that the manifest lists as `<prefix>/<name>`, and the manifest last.

    Raises ServiceUnavailable.
    """
    for name in listed_files(manifest):
        objects.put(f"{prefix}/{name}", folder / name)
    objects.put(f"{prefix}/{MANIFEST}", manifest, "application/json")


def download_folder(objects: ObjectStore, prefix: str, folder: Path) -> dict[str, str]:
    """Fetch a complete folder and return its files as `listed_files` does.

    `folder` appears by a rename, after each file was checked against the manifest. Raises ObjectMissing for a folder
    that is not complete in the store, ObjectCorrupt, ServiceUnavailable.
    """
    manifest = objects.get(f"{prefix}/{MANIFEST}")
    try:
        files = listed_files(manifest)
    except ValueError as error:
        raise ObjectCorrupt(f"the object {prefix}/{MANIFEST} is damaged: {error}") from error
    with folder_written_whole(folder) as part:
        for name, sha256 in files.items():
            file = part / name
            file.parent.mkdir(parents=True, exist_ok=True)
            objects.fetch(f"{prefix}/{name}", file)
            if file_sha256(file) != sha256:
                raise ObjectCorrupt(f"the object {prefix}/{name} is damaged: its hash is not the one in its manifest")
        (part / MANIFEST).write_bytes(manifest)
    return files
