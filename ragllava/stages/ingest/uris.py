"""The uris of files: `file://`, `zip://`, `tar://` and `s3://` (source_files.SourceFile.uri).

Paths and member names are percent-encoded byte by byte, so that the database can store names in any encoding. The `!`
between a packed file and its member is unambiguous, because it is encoded in both of them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from ragllava.errors import ImageRejected, RejectionClass
from ragllava.imaging.decode import printable

MAX_URI = 2_000  # characters; the database's index on uris holds at most about 2,700 bytes


@dataclass(frozen=True, slots=True)
class Location:
    """A parsed uri. `path` is the file, or the zip or tar file that holds `member`, or the bucket of `member`."""

    scheme: str
    path: str
    member: str = ""


def file_uri(path: str | Path) -> str:
    """The uri of a local file; `path` is absolute."""
    return "file://" + quote(os.fsencode(path))


def member_uri(scheme: str, path: str | Path, member: str) -> str:
    """The uri of a member of the `zip` or `tar` file (`scheme`) at the absolute `path`."""
    return f"{scheme}://{quote(os.fsencode(path))}!{quote(member.encode('utf-8', 'surrogateescape'))}"


def parse_uri(uri: str) -> Location:
    """Parse a uri; ImageRejected for an unsupported one."""
    scheme, separator, address = uri.partition("://")
    if separator and scheme == "file":
        return Location(scheme, _path(address))
    path, has_member, encoded = address.partition("/" if scheme == "s3" else "!")
    member = unquote_to_bytes(encoded).decode("utf-8", "surrogateescape")
    if has_member and scheme in ("zip", "tar"):
        return Location(scheme, _path(path), member)
    if has_member and scheme == "s3":
        return Location(scheme, path, member)
    raise ImageRejected(RejectionClass.UNSUPPORTED, f"its address {uri[:200]!r} is not one that can be read")


def shown(name: str) -> str:
    """The name of a file or member as storable text on one line; bytes that are not UTF-8 become escapes, too."""
    return printable(name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))


def _path(encoded: str) -> str:
    return os.fsdecode(unquote_to_bytes(encoded))
