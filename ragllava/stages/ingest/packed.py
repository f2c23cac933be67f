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

from ragllava.errors import ImageRejected, Rejection, RejectionClass
from ragllava.imaging.decode import MAX_BYTES, TOO_MANY_BYTES, printable
from ragllava.stages.ingest.captions import MAX_CAPTION_FILE_BYTES, NOTHING, Description
from ragllava.stages.ingest.files import (
    PackedScheme,
    is_hidden,
    is_offered,
    leads_out,
    open_regular,
    packed_scheme,
    unreadable_package,
)
from ragllava.stages.ingest.listing import CaptionFile, Listing, is_caption_file
from ragllava.stages.ingest.sidecars import MAX_SIDECAR_BYTES, combined, is_sidecar, read_sidecar, sidecar_names

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
    """One offered member of a packed file; `description` is what its sidecars say, `rejected` why it cannot be
    read, if so."""

    name: str
    description: Description = NOTHING
    rejected: Rejection | None = None


def list_members(scheme: PackedScheme, path: str, listing: Listing | None = None) -> Iterator[Member]:
    """Every offered member (files.is_offered), in the file's order, with what its sidecars say.

    `listing` gets the caption files, whose folders are those inside the packed file, and the members passed over.
    Raises ImageRejected, possibly after some members, if the rest of the file is damaged or exceeds the limits.
    """
    with open_regular(path) as file:
        yield from (_list_zip if scheme == "zip" else _list_tar)(file, listing or Listing())


def read_members(
    scheme: PackedScheme, path: str, names: Collection[str]
) -> Iterator[tuple[str, bytes | ImageRejected]]:
    """The bytes of the members `names`, each once, in the file's order; the file is read once.

    At most MAX_BYTES are read of a member. Raises ImageRejected, possibly after some members, if the rest of the file
    cannot be read; a missing name is left out.
    """
    with open_regular(path) as file:
        yield from _read_zip(file, names) if scheme == "zip" else _read_tar(file, names)


def _name_problem(name: str, scheme: PackedScheme) -> Rejection | None:
    """Why a member is rejected for its name alone."""
    if leads_out(name):
        return _packed(f"its name leads out of the {scheme} file (../ or an absolute path)")
    if packed_scheme(name) is not None or unreadable_package(name) is not None:
        return _packed(f"it is a packed file inside the {scheme} file; unpack it first")
    return None


def _packed(reason: str) -> Rejection:
    return Rejection(RejectionClass.PACKED, reason)


# Zip


class _ZipMembers:
    """The members of a zip file by name. Of two members of one name, `by_name` has the last, as zipfile does."""

    def __init__(self, package: zipfile.ZipFile) -> None:
        self.package = package
        self.infos = [(_zip_name(info), info) for info in package.infolist() if not info.is_dir()]
        self.by_name = dict(self.infos)
        self._folded = {name.casefold(): name for name in self.by_name}

    def spelled(self, name: str) -> str | None:
        """The member of this name in any case."""
        return self._folded.get(name.casefold())


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The member's name. Many programs write UTF-8 without its flag; zipfile reads that as CP437."""
    if info.flag_bits & 0x800 or info.filename.isascii():
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def _list_zip(file: BinaryIO, listing: Listing) -> Iterator[Member]:
    packed_bytes = os.fstat(file.fileno()).st_size
    with _damage("zip"), zipfile.ZipFile(file) as package:
        if len(package.infolist()) > MAX_MEMBERS:
            raise ImageRejected(
                RejectionClass.TOO_LARGE, f"the zip file has more than the {MAX_MEMBERS:,} members allowed"
            )
        members = _ZipMembers(package)
        others = {name for name, _ in members.infos if not is_hidden(name) and not is_offered(name)}
        used: set[str] = set()
        total = 0
        for name, info in members.infos:
            if not is_offered(name):
                if name in others and is_caption_file(name):
                    others.discard(name)
                    _add_caption_file(listing, name, _zip_content(package, info, MAX_CAPTION_FILE_BYTES))
                continue
            problem = _zip_problem(members, name, info)
            if problem is None:
                total += info.file_size
                if total > min(MAX_TOTAL_BYTES, max(TOTAL_FLOOR, MAX_RATIO * packed_bytes)):
                    raise ImageRejected(
                        RejectionClass.PACKED, "the zip file unpacks to far more than it holds (a zip bomb?)"
                    )
            sidecars = [] if problem else [s for n in sidecar_names(name) if (s := members.spelled(n)) in others]
            contents = {s: _zip_content(package, members.by_name[s], MAX_SIDECAR_BYTES) for s in sidecars if s}
            said = (read_sidecar(sidecar, content) for sidecar, content in contents.items() if content is not None)
            yield Member(name, combined(said), problem)
            used.update(contents)
        listing.pass_over(others - used)


def _zip_content(package: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes | None:
    """The content of a member; None if it cannot be read or has more than `most` bytes."""
    try:
        with package.open(info) as stream:
            content = stream.read(most + 1)
    except _DAMAGE:
        return None  # captions that cannot be read are not a reason to reject pictures
    return content if len(content) <= most else None


def _add_caption_file(listing: Listing, name: str, content: bytes | None) -> None:
    folder, base = os.path.split(name.replace("\\", "/"))
    if content is None:
        listing.notes.append(f"{name}: not used: it is damaged, or larger than {MAX_CAPTION_FILE_BYTES // 2**20} MiB")
    else:
        listing.caption_files.append(CaptionFile(f"{folder}/" if folder else "", base, content))


def _zip_problem(members: _ZipMembers, name: str, info: zipfile.ZipInfo) -> Rejection | None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return _packed("it is a link or device inside the zip file")
    if info.flag_bits & 0x1:
        reason = "it is encrypted inside the zip file; unpack it with its password first"
        return Rejection(RejectionClass.UNSUPPORTED, reason)
    if info.compress_type not in _ZIP_METHODS:
        reason = f"it is packed with method {info.compress_type}, which cannot be read; pack it again as a usual zip"
        return Rejection(RejectionClass.UNSUPPORTED, reason)
    if info.file_size > max(MEMBER_FLOOR, MAX_RATIO * info.compress_size):
        return _packed(f"it unpacks to more than {MAX_RATIO} times its packed size (a zip bomb?)")
    if members.by_name[name] is not info:
        return _packed("the zip file has another member of the same name")
    return _name_problem(name, "zip")


def _read_zip(file: BinaryIO, names: Collection[str]) -> Iterator[tuple[str, bytes | ImageRejected]]:
    with _damage("zip"), zipfile.ZipFile(file) as package:
        requested = set(names)
        members = _ZipMembers(package)
        for name in dict.fromkeys(name for name, _ in members.infos if name in requested):
            info = members.by_name[name]
            problem = _zip_problem(members, name, info)
            if problem is not None:
                yield name, ImageRejected(*problem)
                continue
            try:
                with package.open(info) as stream:
                    content: bytes | ImageRejected = read_capped(stream)
            except _DAMAGE as error:
                content = ImageRejected(
                    RejectionClass.DAMAGED, f"it is damaged inside the zip file: {printable(str(error))}"
                )
            yield name, content


# Tar


def _list_tar(file: BinaryIO, listing: Listing) -> Iterator[Member]:
    members: list[Member] = []
    sidecars: dict[str, Description] = {}  # by name without regard to case
    others: dict[str, str] = {}
    damage: ImageRejected | None = None
    try:
        # A sidecar may come after its picture, so the whole file must be read before the first member is yielded.
        with _damage("tar"):
            for package, info in _tar_members(file):
                if is_offered(info.name):
                    members.append(Member(info.name, rejected=_tar_problem(info)))
                elif info.isreg() and not is_hidden(info.name):
                    if is_caption_file(info.name):
                        content = _tar_content(package, info).read(MAX_CAPTION_FILE_BYTES + 1)
                        is_whole = len(content) <= MAX_CAPTION_FILE_BYTES
                        _add_caption_file(listing, info.name.removeprefix("./"), content if is_whole else None)
                        continue
                    others[info.name.casefold()] = info.name
                    if is_sidecar(info.name) and info.size <= MAX_SIDECAR_BYTES:
                        content = _tar_content(package, info).read(MAX_SIDECAR_BYTES)
                        sidecars[info.name.casefold()] = read_sidecar(info.name, content)
    except ImageRejected as error:
        damage = error
    seen: set[str] = set()
    for member in members:
        if member.name in seen and member.rejected is None:
            member = replace(member, rejected=_packed("the tar file has another member of the same name"))  # noqa: PLW2901
        seen.add(member.name)
        own = [name for n in sidecar_names(member.name, of_sample=True) if (name := n.casefold()) in sidecars]
        yield replace(member, description=combined(sidecars[name] for name in own))
        for name in own:
            others.pop(name, None)
    listing.pass_over(others.values())
    if damage is not None:
        raise damage


def _tar_problem(info: tarfile.TarInfo) -> Rejection | None:
    if not info.isreg() or info.issparse():
        return _packed("it is a link, device or sparse file inside the tar file")
    return _name_problem(info.name, "tar")


def _read_tar(file: BinaryIO, names: Collection[str]) -> Iterator[tuple[str, bytes | ImageRejected]]:
    requested = set(names)
    with _damage("tar"):
        for package, info in _tar_members(file):
            if info.name not in requested:
                continue
            requested.remove(info.name)
            problem = _tar_problem(info)
            yield info.name, ImageRejected(*problem) if problem else read_capped(_tar_content(package, info))
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
                raise ImageRejected(
                    RejectionClass.TOO_LARGE, f"the tar file has more than the {MAX_MEMBERS:,} members allowed"
                )
            if info.size < 0:  # would make tarfile of older Pythons loop forever
                raise ImageRejected(RejectionClass.DAMAGED, "the tar file is damaged: a member has a negative size")
            package.members.clear()  # type: ignore[attr-defined]  # it keeps all of them, one kilobyte each
            if not info.isdir():
                yield package, info
        # tarfile treats a damaged header as the end; the real end consists of zeros.
        if stream.last_read.strip(b"\x00"):
            raise ImageRejected(RejectionClass.DAMAGED, f"the tar file is damaged after {count:,} members")


def _tar_content(package: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    content = package.extractfile(info)
    if content is None:
        raise ImageRejected(RejectionClass.DAMAGED, f"the tar file is damaged at {info.name!r}")
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
        return ImageRejected(*TOO_MANY_BYTES)
    return data


@contextmanager
def _damage(kind: str) -> Iterator[None]:
    """Translate the libraries' errors for a damaged packed file to ImageRejected."""
    try:
        yield
    except _DAMAGE as error:
        raise ImageRejected(RejectionClass.DAMAGED, f"the {kind} file is damaged: {printable(str(error))}") from error
