"""Adapters in the object store: `adapters/<digest>/<file>`, whole when its manifest is there
(docs/reliability.md D15)."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ragllava.errors import JobRefused, ModelUnavailable, ObjectMissing
from ragllava.json_records import from_json, to_json
from ragllava.models.checks import check_adapter_folder, digest, manifest
from ragllava.records import Role
from ragllava.stages.resources import Resources
from ragllava.stores.learning.registry import ModelVersion
from ragllava.stores.objects import ObjectStore
from ragllava.whole_files import MANIFEST, file_sha256

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _File:
    """One line of the manifest."""

    name: str
    size_bytes: int
    sha256: str


def publish_adapter(objects: ObjectStore, folder: Path) -> dict[str, str]:
    """Store the files of an adapter folder; returns the manifest, file name → sha256 (hex).

    The digest of the manifest (models/checks.py) is the adapter's address and its `adapter_sha256` in the registry.
    `manifest.json` goes last, so an adapter whose upload was cut short is none; publishing it again completes it.
    Raises ModelUnavailable for a folder that no worker would load, ServiceUnavailable.
    """
    check_adapter_folder(folder)
    files = [_describe(path) for path in sorted(folder.iterdir()) if _is_published(path)]
    hashes = {file.name: file.sha256 for file in files}
    place = f"adapters/{digest(hashes)}"
    if not objects.exists(f"{place}/{MANIFEST}"):
        for file in files:
            with (folder / file.name).open("rb") as stream:
                objects.put_stream(f"{place}/{file.name}", stream, file.size_bytes)
        written = json.dumps({"files": to_json(files)}, indent=1)
        objects.put(f"{place}/{MANIFEST}", written.encode(), "application/json")
    return hashes


def fetch_adapter(objects: ObjectStore, adapter_sha256: str, cache_folder: Path) -> Path:
    """The folder of a published adapter on this machine: `<cache_folder>/adapters/<adapter_sha256>`.

    Every file is checked against its hash when it is fetched, and again whenever it has changed since; a damaged
    copy is fetched anew. Any number of processes may do this at once. Raises ModelUnavailable when the adapter is
    not whole in the store, ServiceUnavailable.
    """
    folder = cache_folder / "adapters" / adapter_sha256
    if _is_whole(folder, adapter_sha256, cache_folder):
        return folder
    aside = folder.with_name(f"{adapter_sha256}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        _download(objects, adapter_sha256, aside)
        if folder.exists() and not _is_whole(folder, adapter_sha256, cache_folder):
            shutil.rmtree(folder, ignore_errors=True)
        _take_place(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    if not _is_whole(folder, adapter_sha256, cache_folder):
        raise ModelUnavailable(f"{folder}: another process changed the adapter while it was fetched; try again")
    log.info("adapter fetched", extra={"action": "adapter_fetched", "adapter": adapter_sha256})
    return folder


def apply_champions(resources: Resources, champions: Mapping[Role, ModelVersion]) -> None:
    """Let each role compute with its champion from now on; a role that has none with the bare base.

    Raises JobRefused when this worker cannot: the champion lies on another base than the one that it has loaded,
    or the adapter is not whole or does not fit. Raises ServiceUnavailable.
    """
    folders = {role: _folder_of(version, resources) for role, version in champions.items()}
    for role in Role:
        version = champions.get(role)
        try:
            resources.models.apply_adapter(role, version.name if version else None, folders.get(role))
        except ModelUnavailable as error:
            raise _unusable(role, str(error)) from error


def _folder_of(version: ModelVersion, resources: Resources) -> Path | None:
    loaded = resources.models.base_version
    if version.base_name != loaded:
        raise JobRefused(
            f"the champion {version.role} {version.name} lies on {version.base_name}, but this worker has loaded "
            f"{loaded}; go back with `ragllava models rollback --role {version.role}`, or make the loaded base "
            f"champion with `ragllava models promote {loaded} --role {version.role}`"
        )
    if version.adapter_sha256 is None:
        return None
    try:
        return fetch_adapter(resources.objects, version.adapter_sha256, resources.settings.home / "cache")
    except ModelUnavailable as error:
        raise _unusable(version.role, str(error)) from error


def _unusable(role: Role, reason: str) -> JobRefused:
    return JobRefused(
        f"the champion {role} cannot be used: {reason}; go back with `ragllava models rollback --role {role}`"
    )


def _is_published(path: Path) -> bool:
    return path.is_file() and path.name != MANIFEST and not path.name.startswith(".")


def _describe(path: Path) -> _File:
    return _File(path.name, path.stat().st_size, file_sha256(path))


def _download(objects: ObjectStore, adapter_sha256: str, folder: Path) -> None:
    place = f"adapters/{adapter_sha256}"
    try:
        written = objects.get(f"{place}/{MANIFEST}")
        files = _read_manifest(written)
        if digest({file.name: file.sha256 for file in files}) != adapter_sha256:
            raise ModelUnavailable(f"{place}/{MANIFEST} in the object store is not that of this adapter; train it anew")
        for file in files:
            objects.fetch(f"{place}/{file.name}", folder / file.name)
            (folder / file.name).chmod(0o444)
            if _describe(folder / file.name) != file:
                raise ModelUnavailable(f"{place}/{file.name} was damaged in the object store; train the adapter anew")
    except ObjectMissing as error:
        raise ModelUnavailable(f"the adapter {adapter_sha256[:12]}… is not whole: {error}") from error
    (folder / MANIFEST).write_bytes(written)


def _read_manifest(written: bytes) -> list[_File]:
    """Empty for a text that is no manifest of ours, or that names files outside of the folder."""
    try:
        files = from_json(list[_File], json.loads(written)["files"])
        return files if all(Path(file.name).name == file.name for file in files) else []
    except (ValueError, KeyError, TypeError):
        return []


def _is_whole(folder: Path, adapter_sha256: str, cache_folder: Path) -> bool:
    try:
        files = _read_manifest((folder / MANIFEST).read_bytes())
        found = manifest(folder, cache_folder)
    except OSError:  # not there, or taken away by another process while it was looked at
        return False
    hashes = {file.name: file.sha256 for file in files}
    # Documents have no hash there, and no part in any score.
    same = all((folder / name).is_file() and found.get(name, sha256) == sha256 for name, sha256 in hashes.items())
    return same and digest(hashes) == adapter_sha256


def _take_place(aside: Path, folder: Path) -> None:
    try:
        aside.rename(folder)
    except OSError:
        # Another process was quicker; its copy is as good.
        if not folder.is_dir():
            raise
