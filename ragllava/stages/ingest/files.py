"""Which files are offered to an archive by their names, and how an untrusted file is opened.

**Every file is offered to the archive unless its name shows that it is something else**, so a picture with a wrong or
no extension is not missed, and a damaged one is reported as rejected. Files of other known kinds (`.txt`, `.csv`,
`.mp4`, …), hidden files and the auxiliary files of operating systems are skipped silently. A file that the user names
is always offered.
"""

from __future__ import annotations

import errno
import fnmatch
import itertools
import os
import posixpath
import re
import stat
from collections.abc import Sequence
from io import BufferedReader
from typing import Literal

from ragllava.errors import ImageRejected, Rejection, RejectionClass

PackedScheme = Literal["zip", "tar"]

# Text, data and documents; audio and video; programs; compressed files that are not archives; temporary files.
_OTHER_KINDS = """
    txt text md rst csv tsv json jsonl ndjson geojson xml html htm xhtml css doc docx odt rtf tex bib xls xlsx
    ods ppt pptx odp epub mobi log yaml yml toml ini cfg conf dat db sqlite parquet pq arrow feather npy npz mat h5
    hdf5 pkl pickle pt pth bin safetensors onnx xmp thm aae exif srt vtt sub
    mp3 ogg oga wav flac aac m4a opus mid midi wma mp4 m4v mov avi mkv webm mpg mpeg wmv flv 3gp ogv insv lrv
    py pyc ipynb js ts c h cpp java rb go rs sh bat exe dll so o a jar php sql url lnk desktop torrent
    gz bz2 xz zst
    caption cap cls
    bak tmp swp part crdownload lock md5 sha1 sha256 sha512 sig asc
"""
_OTHER_EXTENSIONS = frozenset(_OTHER_KINDS.split())
_OTHER_NAMES = frozenset({"readme", "license", "licence", "copying", "copyright", "changelog", "makefile"})
# Of macOS, Python, Windows, network drives (thumbnails and deleted files) and file systems.
_CLUTTER_FOLDERS = frozenset(
    {
        *("__macosx", "__pycache__", "$recycle.bin", "system volume information", "lost+found"),
        *("@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
    }
)
_PREVIEWS = ".lrdata"  # ends the names of folders in which Lightroom keeps previews
_PHOTO_LIBRARY = (".photoslibrary", ".photolibrary")  # of macOS; the pictures themselves lie in its `originals`
_OF_LIBRARY = frozenset({"resources", "database", "private", "external", "internal", "scopes"})

_TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz")
_UNREADABLE_PACKAGES = (".rar", ".7z", ".tar.zst", ".tzst", ".tar.lz", ".tar.lz4")


def is_offered(name: str) -> bool:
    """Whether a file of this name (with or without folders) is offered to the archive."""
    if is_hidden(name):
        return False
    if packed_scheme(name) is not None or unreadable_package(name) is not None:
        return True
    base = posixpath.basename(name).lower()
    extension = posixpath.splitext(base)[1].removeprefix(".")
    return base not in _OTHER_NAMES and extension not in _OTHER_EXTENSIONS


def is_hidden(name: str) -> bool:
    """Whether a part of the name begins with a dot, or is a folder that a program created."""
    parts = re.split(r"[/\\]", name)
    if any((part.startswith(".") and part not in (".", "..")) or _is_clutter(part.lower()) for part in parts):
        return True
    return any(is_of_library(folder, inside) for folder, inside in itertools.pairwise(parts))


def is_of_library(folder: str, name: str) -> bool:
    """Whether `name` in the folder of this name is what a photo library keeps beside its pictures."""
    return folder.lower().endswith(_PHOTO_LIBRARY) and name.lower() in _OF_LIBRARY


def _is_clutter(part: str) -> bool:
    return part in _CLUTTER_FOLDERS or part.endswith(_PREVIEWS)


def is_excluded(name: str, patterns: Sequence[str]) -> bool:
    """Whether a shell pattern (`*`, `?`, `[…]`) matches a name with its folders, one of the folders, or the last part.

    Without regard to case; `*` matches `/` as well.
    """
    folded = name.lower()
    parts = folded.split("/")
    names = [*parts, *("/".join(parts[:number]) for number in range(2, len(parts) + 1))]
    return any(fnmatch.fnmatchcase(part, pattern.lower().rstrip("/")) for pattern in patterns for part in names)


def packed_scheme(name: str) -> PackedScheme | None:
    """`zip` or `tar` if the name is that of a readable packed file."""
    lower = name.lower()
    if lower.endswith(".zip"):
        return "zip"
    return "tar" if lower.endswith(_TAR_ENDINGS) else None


def unreadable_package(name: str) -> str | None:
    """The extension, if the name is that of a packed file of an unsupported kind."""
    return next((ending for ending in _UNREADABLE_PACKAGES if name.lower().endswith(ending)), None)


def leads_out(name: str) -> bool:
    """Whether the name of a packed member is absolute or leads out of the folder that it would be unpacked in."""
    parts = re.split(r"[/\\]", name)
    return parts[0] == "" or ".." in parts or re.match(r"[A-Za-z]:", name) is not None


def open_regular(path: str) -> BufferedReader:
    """Open a regular file for reading; ImageRejected for a pipe, a device, or a file that does not exist any more.

    Never blocks: without O_NONBLOCK, opening a pipe without a writer would block forever. Never follows a symbolic
    link: the listing has followed the permitted ones, so a link found here leads out of the folder (a rejected file is
    tried again), or replaced the file since.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ImageRejected(*why_unreadable(error)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ImageRejected(RejectionClass.UNREADABLE, "it is not a regular file but a folder, pipe, socket or device")
    return os.fdopen(descriptor, "rb")


def why_unreadable(error: OSError) -> Rejection:
    """The rejection of a file for an error of the file system."""
    if isinstance(error, FileNotFoundError):
        reason = "it disappeared since it was listed"
    elif error.errno == errno.ELOOP:
        reason = "it is a symbolic link that leads out of the folder, or that was put there since it was listed"
    else:
        reason = f"it cannot be read: {(error.strerror or str(error)).lower()}"
    return Rejection(RejectionClass.UNREADABLE, reason)
