"""List the files that a user offers to an archive: files, folders, zip and tar files.

files.py decides which files of a folder are offered. Every offered file ends as stored, duplicate or rejected; if the
listing itself can tell that a file is unusable, SourceFile.rejected says why.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ragllava.errors import ImageRejected, Rejection, RejectionClass, UsageError
from ragllava.source_files import SourceFile
from ragllava.stages.ingest.captions import NOTHING, Captions, Description, first_description, read_beside
from ragllava.stages.ingest.files import (
    PackedScheme,
    is_excluded,
    is_hidden,
    is_of_library,
    is_offered,
    open_regular,
    packed_scheme,
    unreadable_package,
    why_unreadable,
)
from ragllava.stages.ingest.listing import CaptionFile, Listing, is_caption_file
from ragllava.stages.ingest.packed import list_members
from ragllava.stages.ingest.sidecars import MAX_SIDECAR_BYTES, combined, read_sidecar, sidecar_names
from ragllava.stages.ingest.uris import MAX_URI, file_uri, member_uri, shown


@dataclass(slots=True)
class _Offered:
    """A file that is offered, what its sidecars say, and its whole path, which ends in its displayed name."""

    file: SourceFile
    path: str = ""
    description: Description = field(default=NOTHING)


def list_sources(
    paths: Sequence[str | Path],
    captions: Captions | None = None,
    listing: Listing | None = None,
    *,
    captions_path: Path | None = None,
    exclude: Sequence[str] = (),
) -> Iterator[SourceFile]:
    """Every file that `paths` offer, in a fixed order: files of a folder by name, then its subfolders.

    A path is a picture, a folder (with its subfolders), or a zip or tar file. `source` is relative to the given path.
    Files whose `source` matches a pattern of `exclude` are left out (files.py: is_excluded).
    Captions and metadata come from `captions`, which were read from `captions_path`, else from caption files beside the
    pictures, the nearest first, else from sidecars. `listing` gets counts and remarks. Raises UsageError for a path
    that is empty or does not exist.
    """
    roots = [_existing(path) for path in paths]
    if not roots:
        raise UsageError("no path was given: name a picture, a folder, or a zip or tar file")
    listing = listing if listing is not None else Listing()
    offered: list[_Offered] = []
    for root in roots:
        from_root = [item for item in _offered_by(root, listing) if not is_excluded(item.file.source, exclude)]
        _describe_by_folders(from_root, listing, captions_path)
        offered += from_root
    if captions is not None:
        listed = captions.assign([item.file.source for item in offered], [item.path for item in offered])
        for item, said in zip(offered, listed, strict=True):
            item.description = first_description(said, item.description)
    said_by = [said for item in offered for said in (item.description, *item.description.pages.values())]
    listing.cut += sum(said.is_cut for said in said_by)
    return (_with_description(item.file, item.description) for item in offered)


def describe_listed(files: Sequence[SourceFile], listing: Listing) -> list[SourceFile]:
    """Files that were listed elsewhere, with what the caption files of `listing` say about them."""
    offered = [_Offered(file, file.source) for file in files]
    _describe_by_folders(offered, listing, None)
    listing.cut += sum(item.description.is_cut for item in offered)
    return [_with_description(item.file, item.description) for item in offered]


def _with_description(file: SourceFile, said: Description) -> SourceFile:
    return replace(file, caption=said.caption, metadata=said.metadata, pages=said.page_captions)


def _describe_by_folders(offered: Sequence[_Offered], listing: Listing, already_read: Path | None) -> None:
    """Give the files what the caption files in their folders say; of two, the nearest to the file wins."""
    own = already_read.resolve() if already_read is not None else None
    described: dict[int, list[Description]] = {}
    for file in sorted(listing.caption_files, key=lambda file: (-file.depth, file.folder, file.name)):
        if own is not None and isinstance(file.source, Path) and file.source.resolve() == own:
            continue
        captions = read_beside(file.name, file.source)
        listing.notes += [f"{file.folder}{note}" for note in captions.notes]
        below = [number for number, item in enumerate(offered) if item.file.source.startswith(file.folder)]
        sources = [offered[number].file.source.removeprefix(file.folder) for number in below]
        for number, said in zip(below, captions.assign(sources), strict=True):
            described.setdefault(number, []).append(said)
        listing.listed_captions += len(captions)
        listing.without_file += len(captions.unused())
    listing.caption_files.clear()
    for number, said_by in described.items():
        offered[number].description = first_description(*said_by, offered[number].description)


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


def _offered_by(root: Path, listing: Listing) -> Iterator[_Offered]:
    """The files that one existing path offers."""
    if root.is_dir():
        return _walk(root, listing)
    # A path that the user gives may be a link to anywhere; it is followed here, and only here.
    path = root.resolve() if root.is_symlink() else root
    return _offer(path, root.name, [root.with_name(name) for name in sidecar_names(root.name)], listing, root)


def _walk(root: Path, listing: Listing) -> Iterator[_Offered]:
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
            why = why_unreadable(error)
            yield _rejected(folder, prefix.rstrip("/") or root.name, why._replace(reason=f"the folder: {why.reason}"))
            continue
        names = {entry.name.casefold(): entry.name for entry in entries}
        others: set[str] = set()
        sidecars: set[str] = set()
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
                    yield _rejected(
                        entry, source, why_unreadable(error) if isinstance(error, OSError) else error.rejection
                    )
                continue
            if is_folder:
                subfolders.append((target, f"{source}/"))
            elif is_offered(entry.name):
                beside = [names[folded] for name in sidecar_names(entry.name) if (folded := name.casefold()) in names]
                sidecars.update(beside)
                yield from _offer(target, source, [entry.with_name(name) for name in beside], listing, entry)
            elif is_caption_file(entry.name):
                listing.caption_files.append(CaptionFile(shown(prefix), entry.name, target))
            else:
                others.add(entry.name)
        listing.pass_over(others - sidecars)
        pending.extend(reversed(subfolders))


def _follow(path: Path, true_root: Path) -> Path:
    """`path`, or the target of a symbolic link; ImageRejected if that is not inside `true_root`."""
    if not path.is_symlink():
        return path
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: cyclic links, up to Python 3.12
        raise ImageRejected(RejectionClass.UNREADABLE, "it is a symbolic link that leads nowhere") from None
    if not target.is_relative_to(true_root):
        raise ImageRejected(RejectionClass.UNREADABLE, "it is a symbolic link that leads out of the folder")
    return target


def _offer(path: Path, source: str, sidecars: Sequence[Path], listing: Listing, displayed: Path) -> Iterator[_Offered]:
    """The file at `path`, or its members if it is a zip or tar file.

    That depends on the displayed name, `source`: `path` may be the target of the symbolic link `displayed`.
    """
    scheme = packed_scheme(source)
    if scheme is not None:
        yield from _offer_members(scheme, path, source, listing, displayed)
        return
    problem = _problem(path, source)
    if problem is not None:
        yield _rejected(path, source, problem)
        return
    yield _Offered(SourceFile(shown(source), file_uri(path)), shown(str(displayed)), _read_sidecars(sidecars))


def _offer_members(
    scheme: PackedScheme, path: Path, source: str, listing: Listing, displayed: Path
) -> Iterator[_Offered]:
    first_caption_file = len(listing.caption_files)
    try:
        for member in list_members(scheme, str(path), listing):
            uri = member_uri(scheme, path, member.name)
            name = member.name.removeprefix("./")
            file = SourceFile(shown(f"{source}/{name}"), uri, rejected=member.rejected or _too_long(uri))
            yield _Offered(file, shown(f"{displayed}/{name}"), member.description)
    except ImageRejected as error:
        yield _rejected(path, source, error.rejection)
    listing.caption_files[first_caption_file:] = [
        replace(file, folder=shown(f"{source}/{file.folder}")) for file in listing.caption_files[first_caption_file:]
    ]


def _problem(path: Path, source: str) -> Rejection | None:
    """Why a file is rejected without reading it."""
    extension = unreadable_package(source)
    if extension is not None:
        reason = f"{extension} files cannot be read; unpack it, or pack it as zip or tar.gz"
        return Rejection(RejectionClass.UNSUPPORTED, reason)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return why_unreadable(error)
    if not stat.S_ISREG(mode):
        return Rejection(RejectionClass.UNREADABLE, "it is not a regular file but a pipe, socket or device")
    if not os.access(path, os.R_OK):
        return Rejection(RejectionClass.UNREADABLE, "it cannot be read: permission denied")
    return _too_long(file_uri(path))


def _too_long(uri: str) -> Rejection | None:
    if len(uri) <= MAX_URI:
        return None
    return Rejection(RejectionClass.TOO_LARGE, f"its path is longer than the {MAX_URI:,} characters allowed")


def _read_sidecars(sidecars: Sequence[Path]) -> Description:
    said: list[Description] = []
    for sidecar in sidecars:
        if sidecar.is_symlink():  # may lead out of the folder
            continue
        try:
            with open_regular(str(sidecar)) as file:
                content = file.read(MAX_SIDECAR_BYTES + 1)
        except (ImageRejected, OSError):
            continue  # a caption that cannot be read is not a reason to reject the picture
        if len(content) <= MAX_SIDECAR_BYTES:
            said.append(read_sidecar(sidecar.name, content))
    return combined(said)


def _rejected(path: Path, source: str, why: Rejection) -> _Offered:
    return _Offered(SourceFile(shown(source), file_uri(path), rejected=why), shown(str(path)))
