"""The Unix sockets of a home: no other account can connect to them, because the folders of the home are closed.

The address of a socket has at most 107 bytes. A longer path is reached through a symbolic link to the home, in a folder
of ours where nobody else can put one.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ragllava.errors import SettingsError

_MOST_BYTES = 107


def short_path(root: Path, socket: Path) -> Path:
    """A path of a socket below the home `root` that is short enough for its address: its own, or one through a link.

    Raises SettingsError when there is none.
    """
    if _fits(socket):
        return socket
    link = _links_folder() / hashlib.sha256(os.fsencode(root)).hexdigest()[:8]
    short = link / socket.relative_to(root)
    if not _fits(short):
        raise SettingsError(
            f"the path of the home {root} is too long for the addresses of sockets; set RAGLLAVA_HOME to a folder "
            f"with a shorter one"
        )
    try:
        _make_link(link, root)
    except OSError as error:
        raise SettingsError(
            f"the path of the home {root} is too long for the addresses of sockets, and no link to it can be made at "
            f"{link} ({error.strerror or error}); set RAGLLAVA_HOME to a folder with a shorter path"
        ) from None
    return short


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= _MOST_BYTES


def _links_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ragllava"


def _make_link(link: Path, root: Path) -> None:
    """Raises OSError, also for a folder in which others could replace the link."""
    link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = link.parent.stat()
    if state.st_uid != os.geteuid() or state.st_mode & 0o022:
        raise PermissionError(f"others can write to {link.parent}")
    if link.is_symlink() and link.readlink() == root:
        return
    part = link.with_name(f"{link.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    part.symlink_to(root)
    part.replace(link)
