"""Adapters in the object store: `adapters/<digest>/<file>`, complete as soon as the manifest is stored
(docs/reliability.md D15)."""

from __future__ import annotations

import json
import logging
import secrets
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
    `manifest.json` is stored last, so an interrupted upload is not an adapter; publishing it again completes it.
    Raises ModelUnavailable for a folder that no worker would load, ServiceUnavailable.
    """
    check_adapter_folder(folder)
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    files = [_describe(path) for path in paths if path.name != MANIFEST]
    hashes = {file.name: file.sha256 for file in files}
    prefix = f"adapters/{digest(hashes)}"
    if not objects.exists(f"{prefix}/{MANIFEST}"):
        for file in files:
            with (folder / file.name).open("rb") as stream:
                objects.put_stream(f"{prefix}/{file.name}", stream, file.size_bytes)
        listing = json.dumps({"files": to_json(files)}, indent=1)
        objects.put(f"{prefix}/{MANIFEST}", listing.encode(), "application/json")
    return hashes


def fetch_adapter(objects: ObjectStore, adapter_sha256: str, cache_folder: Path) -> Path:
    """The local folder of a published adapter: `<cache_folder>/adapters/<adapter_sha256>`.

    Every file is checked against its hash when it is fetched, and again whenever it has changed since; a damaged
    copy is fetched again. Safe to call from several threads and processes at once. Raises ModelUnavailable when the
    adapter is not complete in the store, ServiceUnavailable.
    """
    folder = cache_folder / "adapters" / adapter_sha256
    if _is_complete(folder, adapter_sha256, cache_folder):
        return folder
    # no process number: threads share one, and containers with one cache may have equal ones
    temporary = folder.with_name(f"{adapter_sha256}.{secrets.token_hex(4)}")
    temporary.mkdir(parents=True)
    try:
        _download(objects, adapter_sha256, temporary)
        if folder.exists() and not _is_complete(folder, adapter_sha256, cache_folder):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            temporary.rename(folder)
        except OSError:  # another process was faster; its copy is equal
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
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


def _describe(path: Path) -> _File:
    return _File(path.name, path.stat().st_size, file_sha256(path))


def _download(objects: ObjectStore, adapter_sha256: str, folder: Path) -> None:
    prefix = f"adapters/{adapter_sha256}"
    try:
        listing = objects.get(f"{prefix}/{MANIFEST}")
        files = _read_manifest(listing)
        if digest({file.name: file.sha256 for file in files}) != adapter_sha256:
            raise ModelUnavailable(
                f"{prefix}/{MANIFEST} in the object store is not that of this adapter; train it again"
            )
        for file in files:
            path = folder / file.name
            objects.fetch(f"{prefix}/{file.name}", path)
            path.chmod(0o444)
            if _describe(path) != file:
                raise ModelUnavailable(f"{prefix}/{file.name} was damaged in the object store; train the adapter again")
    except ObjectMissing as error:
        raise ModelUnavailable(f"the adapter {adapter_sha256[:12]}… is incomplete: {error}") from error
    (folder / MANIFEST).write_bytes(listing)


def _read_manifest(listing: bytes) -> list[_File]:
    """Empty for an invalid manifest, or one that names files outside of the folder."""
    try:
        files = from_json(list[_File], json.loads(listing)["files"])
        return files if all(Path(file.name).name == file.name for file in files) else []
    except (ValueError, KeyError, TypeError):
        return []


def _is_complete(folder: Path, adapter_sha256: str, cache_folder: Path) -> bool:
    try:
        files = _read_manifest((folder / MANIFEST).read_bytes())
        actual = manifest(folder, cache_folder)
    except OSError:  # missing, or removed by another process meanwhile
        return False
    hashes = {file.name: file.sha256 for file in files}
    # `manifest` does not hash documents, which have no influence on scores.
    same = all((folder / name).is_file() and actual.get(name, sha256) == sha256 for name, sha256 in hashes.items())
    return same and digest(hashes) == adapter_sha256
