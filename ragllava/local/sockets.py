"""The Unix sockets of a home: no other account can connect to them, because the folders of the home are closed.

The address of a socket has at most 107 bytes, and that of PostgreSQL no comma, which would separate two servers. Other
paths are reached through a symbolic link to the home, in a folder of ours where nobody else can put one.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ragllava.errors import SettingsError
from ragllava.whole_files import link_whole

_MOST_BYTES = 107
_ADVICE = "set RAGLLAVA_HOME to a folder with a shorter path and without a comma"


def short_path(root: Path, socket: Path) -> Path:
    """A path of a socket below the home `root` that can be its address: its own, or one through a link.

    Raises SettingsError when there is none.
    """
    problem = _problem(socket)
    if problem is None:
        return socket
    link = _links_folder() / hashlib.sha256(os.fsencode(root)).hexdigest()[:8]
    short = link / socket.relative_to(root)
    if _problem(short) is not None:
        raise SettingsError(f"the path of the home {root} {problem}; {_ADVICE}")
    try:
        _make_link(link, root)
    except OSError as error:
        raise SettingsError(
            f"the path of the home {root} {problem}, and no link to it can be made at {link} "
            f"({error.strerror or error}); {_ADVICE}"
        ) from None
    return short


def _problem(path: Path) -> str | None:
    if len(os.fsencode(path)) > _MOST_BYTES:
        return "is too long for the addresses of sockets"
    return "has a comma, which separates servers in an address of PostgreSQL" if "," in str(path) else None


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
    link_whole(link, root)  # each service of the home does so in a thread of its own
