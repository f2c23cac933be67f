"""Adapters in the object store: `adapters/<digest>/<file>`, complete as soon as the manifest is stored
(docs/reliability.md D15)."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ragllava.errors import JobRefused, ModelUnavailable, ObjectCorrupt, ObjectMissing
from ragllava.models.checks import check_adapter_folder, digest, manifest
from ragllava.records import Role
from ragllava.stages.resources import Resources
from ragllava.stores.learning.registry import ModelVersion
from ragllava.stores.object_folders import download_folder, listed_files, upload_folder
from ragllava.stores.objects import ObjectStore
from ragllava.whole_files import MANIFEST, folder_sha256

log = logging.getLogger(__name__)


def publish_adapter(objects: ObjectStore, folder: Path) -> dict[str, str]:
    """Store the files of an adapter folder; returns the manifest, file name → sha256 (hex).

    The digest of the manifest (models/checks.py) is the adapter's address and its `adapter_sha256` in the registry.
    `manifest.json` is stored last, so an interrupted upload is not an adapter; publishing it again completes it.
    Raises ModelUnavailable for a folder that no worker would load, ServiceUnavailable.
    """
    check_adapter_folder(folder)
    hashes = folder_sha256(folder)
    prefix = f"adapters/{digest(hashes)}"
    if not objects.exists(f"{prefix}/{MANIFEST}"):
        files = [
            {"name": name, "size_bytes": (folder / name).stat().st_size, "sha256": sha256}
            for name, sha256 in hashes.items()
        ]
        upload_folder(objects, prefix, folder, json.dumps({"files": files}, indent=1).encode())
    return hashes


def fetch_adapter(objects: ObjectStore, adapter_sha256: str, cache_folder: Path) -> Path:
    """The local folder of a published adapter: `<cache_folder>/adapters/<adapter_sha256>`.

    Every file is checked against its hash when it is fetched, and again whenever it has changed since; a damaged
    copy is fetched again. Safe to call from several processes at once. Raises ModelUnavailable when the adapter is
    not complete in the store, ServiceUnavailable.
    """
    folder = cache_folder / "adapters" / adapter_sha256
    if _is_complete(folder, adapter_sha256, cache_folder):
        return folder
    scratch = folder.with_name(f"{adapter_sha256}.{os.getpid()}")
    try:
        copy = _download(objects, adapter_sha256, scratch / "adapter")
        if folder.exists() and not _is_complete(folder, adapter_sha256, cache_folder):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            copy.rename(folder)
        except OSError:  # another process was faster; its copy is equal
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if not _is_complete(folder, adapter_sha256, cache_folder):
        raise ModelUnavailable(f"{folder}: another process changed the adapter while it was fetched; try again")
    log.info("adapter fetched", extra={"action": "adapter_fetched", "adapter": adapter_sha256})
    return folder


def apply_champions(resources: Resources, champions: Mapping[Role, ModelVersion]) -> None:
    """Apply the champion of each role; a role without a champion uses the base model alone.

    Raises JobRefused when this worker cannot: the champion was trained on another base than the loaded one, or its
    adapter is incomplete or does not fit. Raises ServiceUnavailable.
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
            f"the champion {version.role} {version.name} needs the base {version.base_name}, but this worker has "
            f"loaded {loaded}; go back with `ragllava models rollback --role {version.role}`, or make the loaded base "
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


def _download(objects: ObjectStore, adapter_sha256: str, folder: Path) -> Path:
    prefix = f"adapters/{adapter_sha256}"
    try:
        files = download_folder(objects, prefix, folder)
    except ObjectMissing as error:
        raise ModelUnavailable(f"the adapter {adapter_sha256[:12]}… is incomplete: {error}") from error
    except ObjectCorrupt as error:
        raise ModelUnavailable(f"{error}; train the adapter again") from error
    if digest(files) != adapter_sha256:
        raise ModelUnavailable(f"{prefix}/{MANIFEST} in the object store is not that of this adapter; train it again")
    for name in files:
        (folder / name).chmod(0o444)
    return folder


def _is_complete(folder: Path, adapter_sha256: str, cache_folder: Path) -> bool:
    try:
        files = listed_files((folder / MANIFEST).read_bytes())
        actual = manifest(folder, cache_folder)
    except (OSError, ValueError):  # missing, damaged, or removed by another process meanwhile
        return False
    # `manifest` does not hash documents, which have no influence on scores.
    same = all((folder / name).is_file() and actual.get(name, sha256) == sha256 for name, sha256 in files.items())
    return same and digest(files) == adapter_sha256
