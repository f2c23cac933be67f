"""Folders in the object store against a real S3 server, and the manifests that are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ragllava.errors import ObjectCorrupt, ObjectMissing
from ragllava.settings import Settings
from ragllava.stores.object_folders import download_folder, listed_files, upload_folder
from ragllava.stores.objects import ObjectStore
from ragllava.whole_files import MANIFEST, read_sealed, seal_folder


@pytest.fixture
def store(settings: Settings) -> ObjectStore:
    return ObjectStore(settings)


@pytest.fixture
def stored(store: ObjectStore, tmp_path: Path) -> str:
    """The prefix of a sealed folder in the store."""
    folder = tmp_path / "original"
    (folder / "inner").mkdir(parents=True)
    (folder / "a").write_text("a")
    (folder / "inner" / "b").write_text("b")
    seal_folder(folder, {"step": 3})
    upload_folder(store, "training/1/folder", folder, (folder / MANIFEST).read_bytes())
    return "training/1/folder"


def test_a_folder_is_fetched_as_it_was_stored(store: ObjectStore, stored: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert download_folder(store, stored, copy).keys() == {"a", "inner/b"}
    assert read_sealed(copy) == {"step": 3}
    store.delete(f"{stored}/{MANIFEST}")
    with pytest.raises(ObjectMissing):
        download_folder(store, stored, tmp_path / "other")


@pytest.mark.parametrize("name", ["inner/b", MANIFEST])
def test_a_damaged_folder_is_not_fetched(store: ObjectStore, stored: str, tmp_path: Path, name: str) -> None:
    store.put(f"{stored}/{name}", b"other bytes")
    with pytest.raises(ObjectCorrupt, match=name):
        download_folder(store, stored, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    "files",
    [
        {"a": "01", "inner/b": "02"},
        [{"name": "a", "size_bytes": 1, "sha256": "01"}, {"name": "inner/b", "size_bytes": 2, "sha256": "02"}],
    ],
)
def test_both_forms_of_a_manifest_are_read(files: Any) -> None:
    assert listed_files(json.dumps({"step": 3, "files": files}).encode()) == {"a": "01", "inner/b": "02"}


@pytest.mark.parametrize(
    "manifest",
    [
        "{",
        "[]",
        "{}",
        '{"files": 3}',
        '{"files": [{"name": "a"}]}',
        '{"files": {"../a": "01"}}',
        '{"files": {"/a": "01"}}',
        '{"files": [{"name": "inner/../../a", "sha256": "01"}]}',
    ],
)
def test_an_invalid_manifest_is_rejected(manifest: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        listed_files(manifest.encode())
