"""Entries in the access control lists of folders, for one account, and their removal."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ragllava.errors import SettingsError
from ragllava.local.passage import folders_above, let_pass, withdraw
from tests.support.strangers import ACCOUNT, as_nobody, needs_root

pytestmark = needs_root


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that `nobody` could reach but for its own mode."""
    modes = {path: path.stat().st_mode for path in folders_above(tmp_path / "x") if not path.stat().st_mode & 1}
    for path in modes:
        path.chmod(0o711)
    inner = tmp_path / "inner"
    inner.mkdir()
    yield inner
    for path, mode in modes.items():
        path.chmod(stat.S_IMODE(mode))


def can_enter(folder: Path) -> bool:
    return as_nobody(lambda: os.access(folder, os.X_OK))


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o770, 0o740])
def test_an_entry_is_for_one_account_and_leaves_no_trace(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    record = folder.parent / "passages.json"
    assert not can_enter(folder)
    assert let_pass(ACCOUNT, folders_above(folder / "file"), record, "advice") == [folder]
    assert can_enter(folder)
    assert not as_nobody(lambda: os.access(folder, os.R_OK))
    assert stat.S_IMODE(folder.stat().st_mode) & 0o007 == 0, "others gained a right"
    assert let_pass(ACCOUNT, [folder], record, "advice") == [], "it may pass already"
    withdraw(record)
    assert not can_enter(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == mode
    assert os.listxattr(folder) == []
    withdraw(record)  # a second time is harmless


def test_entries_of_others_stay(folder: Path) -> None:
    folder.chmod(0o700)
    let_pass("daemon", [folder], folder.parent / "other.json", "advice")
    before = os.getxattr(folder, "system.posix_acl_access")
    let_pass(ACCOUNT, [folder], folder.parent / "passages.json", "advice")
    assert can_enter(folder)
    withdraw(folder.parent / "passages.json")
    assert os.getxattr(folder, "system.posix_acl_access") == before


def test_a_folder_without_lists_is_refused_with_advice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.chmod(0o700)

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(SettingsError, match=r"may not pass through .*inner.*not supported.*; set RAGLLAVA_HOME"):
        let_pass(ACCOUNT, [folder], folder.parent / "passages.json", "set RAGLLAVA_HOME")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_what_a_crash_left_is_withdrawn_and_what_was_removed_is_skipped(folder: Path) -> None:
    folder.chmod(0o700)
    record = folder.parent / "passages.json"
    let_pass(ACCOUNT, [folder], record, "advice")
    folder.rmdir()
    withdraw(record)
    assert not record.exists()


def test_an_entry_that_a_change_of_the_mode_took_out_of_force_is_restored(folder: Path) -> None:
    """`chmod` of a folder with a list changes the mask, which limits all entries."""
    folder.chmod(0o700)
    record = folder.parent / "passages.json"
    let_pass(ACCOUNT, [folder], record, "advice")
    folder.chmod(0o700)
    assert not can_enter(folder)
    assert let_pass(ACCOUNT, [folder], record, "advice") == [folder]
    assert can_enter(folder)
    withdraw(record)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert os.listxattr(folder) == []


def test_entries_of_others_that_are_out_of_force_stay_so(folder: Path) -> None:
    folder.chmod(0o700)
    let_pass("daemon", [folder], folder.parent / "other.json", "advice")
    folder.chmod(0o700)
    before = os.getxattr(folder, "system.posix_acl_access")
    with pytest.raises(SettingsError, match="a mask without x"):
        let_pass(ACCOUNT, [folder], folder.parent / "passages.json", "advice")
    assert os.getxattr(folder, "system.posix_acl_access") == before
