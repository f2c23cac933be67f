"""Files and folders appear at once or not at all; a damaged sealed folder does not count."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from ragllava.whole_files import (
    MANIFEST,
    file_sha256,
    folder_sha256,
    folder_written_whole,
    read_sealed,
    seal_folder,
    write_first,
    write_whole,
    written_whole,
)


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")
    with written_whole(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
        assert part.parent == path.parent
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_old_file_is_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), written_whole(path) as part:
        part.write_text("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.txt"
    write_whole(path, "η", 0o600)
    assert path.read_bytes() == "η".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_of_several_writers_at_once_the_first_one_s_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are at the same point: each has looked, if it looks, and none has written."""
    path, together = tmp_path / "reason.json", Barrier(8)

    def sync(descriptor: int) -> None:
        assert not path.exists()
        together.wait(60)

    monkeypatch.setattr(os, "fsync", sync)
    with ThreadPoolExecutor(8) as threads:
        written = list(threads.map(lambda number: write_first(path, f"reason {number}"), range(8)))
    assert sorted(written) == [False] * 7 + [True]
    assert path.read_text() == f"reason {written.index(True)}"
    assert list(tmp_path.iterdir()) == [path]


def test_where_files_have_one_name_only_the_first_one_stays_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, other: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # so does FAT

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = tmp_path / "reason.json"
    assert [write_first(path, "first"), write_first(path, "second")] == [True, False]
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_the_one_before(tmp_path: Path) -> None:
    folder = tmp_path / "result"
    with pytest.raises(RuntimeError), folder_written_whole(folder) as part:
        (part / "half").write_text("")
        raise RuntimeError
    assert not folder.exists()
    for name in ("first", "second"):
        with folder_written_whole(folder) as part:
            (part / name).write_text(name)
        assert [path.name for path in folder.iterdir()] == [name]
    assert list(tmp_path.iterdir()) == [folder]


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_bytes(b"a")
    (tmp_path / MANIFEST).write_text("{}")
    expected = hashlib.sha256(b"a").hexdigest()
    assert file_sha256(tmp_path / "inner" / "a") == expected
    assert folder_sha256(tmp_path) == {"inner/a": expected}


@pytest.mark.parametrize("damage", ["other content", "another file", "a file less", "no manifest", "torn manifest"])
def test_a_damaged_folder_does_not_count(tmp_path: Path, damage: str) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    seal_folder(tmp_path, {"step": 3})
    assert read_sealed(tmp_path) == {"step": 3}
    assert list(json.loads((tmp_path / MANIFEST).read_text())) == ["step", "files"]
    if damage == "other content":
        (tmp_path / "a").write_text("A")
    elif damage == "another file":
        (tmp_path / "c").write_text("c")
    elif damage == "a file less":
        (tmp_path / "b").unlink()
    elif damage == "no manifest":
        (tmp_path / MANIFEST).unlink()
    else:
        (tmp_path / MANIFEST).write_text("{")
    assert read_sealed(tmp_path) is None
