"""List the files that a user offers to an archive: files, folders, zip and tar files.

files.py decides which files of a folder are offered. Every offered file ends as stored, duplicate or rejected; if the
listing itself can tell that a file is unusable, the reason is in SourceFile.rejected.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ragllava.errors import ImageRejected, UsageError
from ragllava.records import SourceFile
from ragllava.stages.ingest.captions import MAX_SIDECAR_BYTES, Captions, sidecar_caption
from ragllava.stages.ingest.files import (
    PackedScheme,
    is_excluded,
    is_hidden,
    is_of_library,
    is_offered,
    open_regular,
    packed_scheme,
    sidecar_names,
    unreadable_package,
    why_unreadable,
)
from ragllava.stages.ingest.packed import list_members
from ragllava.stages.ingest.uris import MAX_URI, file_uri, member_uri, shown


def list_sources(
    paths: Sequence[str | Path], captions: Captions | None = None, exclude: Sequence[str] = ()
) -> Iterator[SourceFile]:
    """Every file that `paths` offer, in a fixed order: files of a folder by name, then its subfolders.

    A path is a picture, a folder (with its subfolders), or a zip or tar file. `source` is relative to the given path.
    Files whose `source` matches a pattern of `exclude` are left out (files.py: is_excluded).
    Captions come from `captions`, else from sidecar text files; metadata come from `captions`. Raises UsageError
    immediately for a path that is empty or does not exist.
    """
    roots = [_existing(path) for path in paths]
    if not roots:
        raise UsageError("no path was given: name a picture, a folder, or a zip or tar file")
    files = (file for root in roots for file in _offered_by(root) if not is_excluded(file.source, exclude))
    if captions is None:
        return files
    listed = list(files)
    assigned = captions.assign([file.source for file in listed])
    return (
        replace(file, caption=description.caption or file.caption, metadata=description.metadata)
        for file, description in zip(listed, assigned, strict=True)
    )


def _existing(path: str | Path) -> Path:
    """The absolute form of a path that the user gave. Raises UsageError if it does not exist."""
    text = os.fspath(path)
    if not text.strip():
        raise UsageError("an empty path was given: name a picture, a folder, or a zip or tar file")
    try:
        Path(text).stat()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"cannot ingest {shown(text)}: {reason.lower()}") from None
    return Path(text).absolute()


def _offered_by(root: Path) -> Iterator[SourceFile]:
    """The files that one existing path offers."""
    if root.is_dir():
        return _walk(root)
    # A path that the user gives may be a link to anywhere; it is followed here, and only here.
    path = root.resolve() if root.is_symlink() else root
    return _offer(path, root.name, [root.with_name(name) for name in sidecar_names(root.name)])


def _walk(root: Path) -> Iterator[SourceFile]:
    """The files of a folder and its subfolders. Each folder is entered once, so cyclic links do no harm."""
    true_root = root.resolve()
    entered: set[tuple[int, int]] = set()
    pending = [(root, "")]  # folders and the prefix of their files' names, the next one last
    while pending:
        folder, prefix = pending.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
        except OSError as error:
            yield _rejected(folder, prefix.rstrip("/") or root.name, f"the folder: {why_unreadable(error)}")
            continue
        names = {entry.name for entry in entries}
        subfolders: list[tuple[Path, str]] = []
        for entry in entries:
            source = prefix + entry.name
            if is_hidden(source) or is_of_library(folder.name, entry.name):
                continue
            try:
                target = _follow(entry, true_root)
                is_folder = stat.S_ISDIR(target.stat().st_mode)
            except (OSError, ImageRejected) as error:
                if is_offered(entry.name):
                    yield _rejected(entry, source, why_unreadable(error) if isinstance(error, OSError) else str(error))
                continue
            if is_folder:
                subfolders.append((target, f"{source}/"))
            elif is_offered(entry.name):
                sidecars = [entry.with_name(name) for name in sidecar_names(entry.name) if name in names]
                yield from _offer(target, source, sidecars)
        pending.extend(reversed(subfolders))


def _follow(path: Path, true_root: Path) -> Path:
    """`path`, or the target of a symbolic link; ImageRejected if that is not inside `true_root`."""
    if not path.is_symlink():
        return path
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: cyclic links, up to Python 3.12
        raise ImageRejected("it is a symbolic link that leads nowhere") from None
    if not target.is_relative_to(true_root):
        raise ImageRejected("it is a symbolic link that leads out of the folder")
    return target


def _offer(path: Path, source: str, sidecars: Sequence[Path]) -> Iterator[SourceFile]:
    """The file at `path`, or its members if it is a zip or tar file.

    That depends on the displayed name, `source`: `path` may be the target of a symbolic link.
    """
    scheme = packed_scheme(source)
    if scheme is not None:
        yield from _offer_members(scheme, path, source)
        return
    problem = _problem(path, source)
    if problem is not None:
        yield _rejected(path, source, problem)
        return
    yield SourceFile(shown(source), file_uri(path), _first_caption(sidecars))


def _offer_members(scheme: PackedScheme, path: Path, source: str) -> Iterator[SourceFile]:
    try:
        for member in list_members(scheme, str(path)):
            uri = member_uri(scheme, path, member.name)
            name = shown(f"{source}/{member.name.removeprefix('./')}")
            yield SourceFile(name, uri, member.caption, member.rejected or _too_long(uri))
    except ImageRejected as rejection:
        yield _rejected(path, source, str(rejection))


def _problem(path: Path, source: str) -> str | None:
    """Why a file is rejected without reading it."""
    extension = unreadable_package(source)
    if extension is not None:
        return f"{extension} files cannot be read; unpack it, or pack it as zip or tar.gz"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return why_unreadable(error)
    if not stat.S_ISREG(mode):
        return "it is not a regular file but a pipe, socket or device"
    if not os.access(path, os.R_OK):
        return "it cannot be read: permission denied"
    return _too_long(file_uri(path))


def _too_long(uri: str) -> str | None:
    return f"its path is longer than the {MAX_URI:,} characters allowed" if len(uri) > MAX_URI else None


def _first_caption(sidecars: Sequence[Path]) -> str | None:
    for sidecar in sidecars:
        if sidecar.is_symlink():  # may lead out of the folder
            continue
        try:
            with open_regular(str(sidecar)) as file:
                return sidecar_caption(file.read(MAX_SIDECAR_BYTES))
        except (ImageRejected, OSError):
            continue  # a caption that cannot be read is not a reason to reject the picture
    return None


def _rejected(path: Path, source: str, reason: str) -> SourceFile:
    return SourceFile(shown(source), file_uri(path), rejected=reason)
