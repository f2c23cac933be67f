"""Zip and tar files: their members are listed and read as streams, never unpacked to disk (docs/reliability.md D14).

A member's name is never used as a path. The sizes in the file's headers are not trusted when its members are read.
Every problem of a packed file or of a member is an ImageRejected.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO, BinaryIO, cast

from ragllava.errors import ImageRejected
from ragllava.imaging.decode import MAX_BYTES, TOO_MANY_BYTES, printable
from ragllava.stages.ingest.captions import MAX_SIDECAR_BYTES, sidecar_caption
from ragllava.stages.ingest.files import (
    PackedScheme,
    is_hidden,
    is_offered,
    leads_out,
    open_regular,
    packed_scheme,
    sidecar_names,
    unreadable_package,
)

MAX_MEMBERS = 1_000_000
MAX_TOTAL_BYTES = 10**12  # of all members, unpacked
MAX_RATIO = 100  # unpacked to packed bytes
MEMBER_FLOOR = 1_000_000  # a member that unpacks to less may have any ratio
TOTAL_FLOOR = 100_000_000  # a packed file that unpacks to less may have any ratio

# The errors that zipfile, tarfile and the decompressors raise for damaged or hostile files.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
)
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


@dataclass(frozen=True, slots=True)
class Member:
    """One offered member of a packed file; `rejected` is the reason why it cannot be read, if any."""

    name: str
    caption: str | None = None
    rejected: str | None = None


def list_members(scheme: PackedScheme, path: str) -> Iterator[Member]:
    """Every offered member (files.is_offered), in the file's order, with the caption of its sidecar text file.

    Raises ImageRejected, possibly after some members, if the rest of the file is damaged or exceeds the limits.
    """
    with open_regular(path) as file:
        yield from _list_zip(file) if scheme == "zip" else _list_tar(file)


def read_members(
    scheme: PackedScheme, path: str, names: Collection[str]
) -> Iterator[tuple[str, bytes | ImageRejected]]:
    """The bytes of the members `names`, each once, in the file's order; the file is read once.

    At most MAX_BYTES are read of a member. Raises ImageRejected, possibly after some members, if the rest of the file
    cannot be read; a missing name is left out.
    """
    with open_regular(path) as file:
        yield from _read_zip(file, names) if scheme == "zip" else _read_tar(file, names)


def _name_problem(name: str, scheme: PackedScheme) -> str | None:
    """Why a member is rejected for its name alone."""
    if leads_out(name):
        return f"its name leads out of the {scheme} file (../ or an absolute path)"
    if packed_scheme(name) is not None or unreadable_package(name) is not None:
        return f"it is a packed file inside the {scheme} file; unpack it first"
    return None


# Zip


def _list_zip(file: BinaryIO) -> Iterator[Member]:
    packed_bytes = os.fstat(file.fileno()).st_size
    with _damage("zip"), zipfile.ZipFile(file) as package:
        infos = package.infolist()
        if len(infos) > MAX_MEMBERS:
            raise ImageRejected(f"the zip file has more than the {MAX_MEMBERS:,} members allowed")
        total = 0
        for info in infos:
            if info.is_dir() or not is_offered(info.filename):
                continue
            problem = _zip_problem(package, info)
            if problem is None:
                total += info.file_size
                if total > min(MAX_TOTAL_BYTES, max(TOTAL_FLOOR, MAX_RATIO * packed_bytes)):
                    raise ImageRejected("the zip file unpacks to far more than it holds (a zip bomb?)")
            caption = None if problem is not None else _zip_caption(package, info.filename)
            yield Member(info.filename, caption, problem)


def _zip_problem(package: zipfile.ZipFile, info: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return "it is a link or device inside the zip file"
    if info.flag_bits & 0x1:
        return "it is encrypted inside the zip file; unpack it with its password first"
    if info.compress_type not in _ZIP_METHODS:
        return f"it is packed with method {info.compress_type}, which cannot be read; pack it again as a usual zip"
    if info.file_size > max(MEMBER_FLOOR, MAX_RATIO * info.compress_size):
        return f"it unpacks to more than {MAX_RATIO} times its packed size (a zip bomb?)"
    if package.getinfo(info.filename) is not info:
        return "the zip file has another member of the same name"
    return _name_problem(info.filename, "zip")


def _zip_caption(package: zipfile.ZipFile, name: str) -> str | None:
    for sidecar in sidecar_names(name):
        try:
            with package.open(sidecar) as stream:
                return sidecar_caption(stream.read(MAX_SIDECAR_BYTES))
        except KeyError:
            continue  # no such member
        except _DAMAGE:
            return None  # a caption that cannot be read is not a reason to reject the picture
    return None


def _read_zip(file: BinaryIO, names: Collection[str]) -> Iterator[tuple[str, bytes | ImageRejected]]:
    with _damage("zip"), zipfile.ZipFile(file) as package:
        requested = set(names)
        for name in dict.fromkeys(name for name in package.namelist() if name in requested):
            info = package.getinfo(name)
            problem = _zip_problem(package, info)
            if problem is not None:
                yield name, ImageRejected(problem)
                continue
            try:
                with package.open(info) as stream:
                    content: bytes | ImageRejected = read_capped(stream)
            except _DAMAGE as error:
                content = ImageRejected(f"it is damaged inside the zip file: {printable(str(error))}")
            yield name, content


# Tar


def _list_tar(file: BinaryIO) -> Iterator[Member]:
    members: list[Member] = []
    captions: dict[str, str | None] = {}
    damage: ImageRejected | None = None
    try:
        # A sidecar may come after its picture, so the whole file must be read before the first member is yielded.
        with _damage("tar"):
            for package, info in _tar_members(file):
                if is_offered(info.name):
                    members.append(Member(info.name, rejected=_tar_problem(info)))
                elif info.isreg() and info.name.lower().endswith(".txt") and not is_hidden(info.name):
                    captions[info.name] = sidecar_caption(_tar_content(package, info).read(MAX_SIDECAR_BYTES))
    except ImageRejected as error:
        damage = error
    seen: set[str] = set()
    for member in members:
        if member.name in seen and member.rejected is None:
            member = replace(member, rejected="the tar file has another member of the same name")  # noqa: PLW2901
        seen.add(member.name)
        caption = next((captions[name] for name in sidecar_names(member.name) if name in captions), None)
        yield replace(member, caption=caption)
    if damage is not None:
        raise damage


def _tar_problem(info: tarfile.TarInfo) -> str | None:
    if not info.isreg() or info.issparse():
        return "it is a link, device or sparse file inside the tar file"
    return _name_problem(info.name, "tar")


def _read_tar(file: BinaryIO, names: Collection[str]) -> Iterator[tuple[str, bytes | ImageRejected]]:
    requested = set(names)
    with _damage("tar"):
        for package, info in _tar_members(file):
            if info.name not in requested:
                continue
            requested.remove(info.name)
            problem = _tar_problem(info)
            yield info.name, ImageRejected(problem) if problem else read_capped(_tar_content(package, info))
            if not requested:  # the remaining members need not be unpacked
                return


def _tar_members(file: BinaryIO) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Each member except folders, while its content can be read. Raises the errors of tarfile."""
    stream = _ForwardOnly(file)
    with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r:") as package:
        count = 0
        while (info := package.next()) is not None:
            count += 1
            if count > MAX_MEMBERS:
                raise ImageRejected(f"the tar file has more than the {MAX_MEMBERS:,} members allowed")
            if info.size < 0:  # would make tarfile of older Pythons loop forever
                raise ImageRejected("the tar file is damaged: a member has a negative size")
            package.members.clear()  # type: ignore[attr-defined]  # it keeps all of them, one kilobyte each
            if not info.isdir():
                yield package, info
        # tarfile treats a damaged header as the end; the real end consists of zeros.
        if stream.last_read.strip(b"\x00"):
            raise ImageRejected(f"the tar file is damaged after {count:,} members")


def _tar_content(package: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    content = package.extractfile(info)
    if content is None:
        raise ImageRejected(f"the tar file is damaged at {info.name!r}")
    return content


class _ForwardOnly:
    """The unpacked bytes of a tar file, readable from front to back; in an uncompressed file, members can be skipped.

    Raises ValueError for what a valid tar file never needs: seeking backwards, and a compression ratio of a bomb.
    """

    def __init__(self, file: BinaryIO) -> None:
        signature = file.read(6)
        file.seek(0)
        self._file = file
        self._stream = _unpacking(file, signature)
        self.last_read = b""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= 2 * MAX_BYTES:
            raise ValueError("a header is far too long")
        self.last_read = self._stream.read(size)
        unpacked = self._stream.tell()
        if unpacked > min(MAX_TOTAL_BYTES, max(TOTAL_FLOOR, MAX_RATIO * self._file.tell())):
            raise ValueError("it unpacks to far more than it holds (a bomb?)")
        return self.last_read

    def seek(self, position: int) -> int:
        if self._stream is self._file and position >= self._stream.tell():
            return self._stream.seek(position)
        while (ahead := position - self._stream.tell()) > 0:
            if not self.read(min(ahead, 1 << 20)):
                break
        if position < self._stream.tell():
            raise ValueError("a member lies before its predecessor")
        return self._stream.tell()

    def tell(self) -> int:
        return self._stream.tell()


def _unpacking(file: BinaryIO, signature: bytes) -> IO[bytes]:
    """The unpacked content of a compressed file; `file` itself if it is not compressed."""
    if signature.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=file))
    if signature.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if signature.startswith(b"\xfd7zXZ\x00"):
        return lzma.LZMAFile(file)
    return file


# Both


def read_capped(stream: IO[bytes]) -> bytes | ImageRejected:
    """All bytes of `stream`, or the rejection of a file of more than MAX_BYTES."""
    data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        return ImageRejected(TOO_MANY_BYTES)
    return data


@contextmanager
def _damage(kind: str) -> Iterator[None]:
    """Translate the libraries' errors for a damaged packed file to ImageRejected."""
    try:
        yield
    except _DAMAGE as error:
        raise ImageRejected(f"the {kind} file is damaged: {printable(str(error))}") from error
