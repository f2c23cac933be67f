"""Let one system account pass through folders of others, by an entry in their access control lists (POSIX ACL).

Nobody else gains a right, the modes of the folders stay, and `withdraw` restores the lists. The kernel stores a list as
an extended attribute: a version, then (tag, permissions, id) of each entry, ordered by tag and id.
"""

from __future__ import annotations

import json
import os
import pwd
import struct
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from ragllava.errors import SettingsError
from ragllava.local.processes import run_as
from ragllava.whole_files import write_whole

_ATTRIBUTE = "system.posix_acl_access"
_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")
_OWNER, _USER, _GROUP, _NAMED_GROUP, _MASK, _OTHERS = 1, 2, 4, 8, 16, 32
_NO_ID = 0xFFFFFFFF
_PASS = 1  # x of a folder: reach the files below it, without listing them

Acl = dict[tuple[int, int], int]  # permissions by tag and id


def folders_above(path: Path) -> list[Path]:
    """The folders that lead to a path, outermost first; through a symbolic link also those of its target."""
    above = {*path.absolute().parents, *path.resolve().parents}
    return sorted(above, key=lambda folder: len(folder.parts))


def let_pass(account: str, folders: Iterable[Path], record: Path, advice: str) -> list[Path]:
    """Let an account pass through these folders, outermost first; returns those whose list got an entry.

    Each is noted in the file `record` before it is changed, so that `withdraw` finds it after a crash. Raises
    SettingsError with `advice` for a folder that cannot be changed in this way.
    """
    changed = []
    for folder in folders:
        if _may_pass(account, folder):
            continue
        _note(record, account, folder)
        try:
            _allow(folder, pwd.getpwnam(account).pw_uid)
        except OSError as error:
            reason = error.strerror or str(error)
            raise SettingsError(
                f"the account {account} may not pass through {folder}, and no entry can be added to the access control "
                f"list of that folder ({reason}); {advice}"
            ) from None
        changed.append(folder)
    return changed


def withdraw(record: Path) -> None:
    """Remove the entries that `let_pass` noted in this file, then the file; harmless when there is none."""
    for account, folder in _noted(record):
        with suppress(KeyError, OSError):  # the account or the folder was removed meanwhile
            _disallow(folder, pwd.getpwnam(account).pw_uid)
    record.unlink(missing_ok=True)


def _may_pass(account: str, folder: Path) -> bool:
    """Asked as that account, because modes, lists and security modules decide together."""
    return subprocess.run(["/usr/bin/test", "-x", str(folder)], cwd="/", **run_as(account), check=False).returncode == 0


def _allow(folder: Path, user_id: int) -> None:
    acl = _read(folder)
    acl.pop((_USER, user_id), None)
    mask = acl.get((_MASK, _NO_ID))
    if mask is None:
        acl[_MASK, _NO_ID] = acl[_GROUP, _NO_ID] | _PASS
    elif not mask & _PASS:  # as `chmod 700` leaves it
        if any(rights & _PASS for (tag, _), rights in acl.items() if tag in (_USER, _GROUP, _NAMED_GROUP)):
            # A wider mask would bring these entries of others into force.
            raise OSError("its list has a mask without x")
        acl[_MASK, _NO_ID] = mask | _PASS
    acl[_USER, user_id] = _PASS
    _write(folder, acl)


def _disallow(folder: Path, user_id: int) -> None:
    acl = _read(folder)
    if acl.pop((_USER, user_id), None) is None:
        return
    if not any(tag in (_USER, _NAMED_GROUP) for tag, _ in acl):
        acl.pop((_MASK, _NO_ID), None)  # then the kernel stores the list as the mode again
    _write(folder, acl)


def _read(folder: Path) -> Acl:
    """The list of a folder; one that has none has its mode for a list."""
    if not hasattr(os, "getxattr"):
        raise OSError("this system stores no such list as an attribute")
    try:
        stored = os.getxattr(folder, _ATTRIBUTE)
    except OSError:
        mode = folder.stat().st_mode
        return {(_OWNER, _NO_ID): mode >> 6 & 7, (_GROUP, _NO_ID): mode >> 3 & 7, (_OTHERS, _NO_ID): mode & 7}
    if not stored.startswith(_VERSION):
        raise OSError("its list has an unknown form")
    return {(tag, number): rights for tag, rights, number in _ENTRY.iter_unpack(stored[len(_VERSION) :])}


def _write(folder: Path, acl: Acl) -> None:
    entries = (_ENTRY.pack(tag, rights, number) for (tag, number), rights in sorted(acl.items()))
    os.setxattr(folder, _ATTRIBUTE, _VERSION + b"".join(entries))


def _note(record: Path, account: str, folder: Path) -> None:
    noted = [[account, str(folder)], *([name, str(path)] for name, path in _noted(record))]
    write_whole(record, json.dumps(noted), 0o600)


def _noted(record: Path) -> Iterator[tuple[str, Path]]:
    with suppress(FileNotFoundError):
        yield from [(account, Path(folder)) for account, folder in json.loads(record.read_text())]
