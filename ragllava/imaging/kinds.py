"""Which format the bytes of a file have, by their content; and why bytes are not an accepted picture."""

from __future__ import annotations

import re
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass

from ragllava.errors import Rejection, RejectionClass

_RAW = "it is a RAW file of a camera ({family}); export it as JPEG, or use the JPEG that the camera stored beside it"


@dataclass(frozen=True, slots=True)
class Kind:
    """A format of pictures: its name for users, Pillow's name of it, and the package that decodes it, if not Pillow.

    `megapixels` is what a decoder's memory suffices for, if that is less than other formats may have.
    """

    name: str
    pillow_name: str
    media_type: str
    package: str | None = None
    megapixels: int | None = None


JPEG = Kind("JPEG", "JPEG", "image/jpeg")
PNG = Kind("PNG", "PNG", "image/png")
GIF = Kind("GIF", "GIF", "image/gif")
WEBP = Kind("WEBP", "WEBP", "image/webp", megapixels=100)
TIFF = Kind("TIFF", "TIFF", "image/tiff")
BMP = Kind("BMP", "BMP", "image/bmp")
PPM = Kind("PPM", "PPM", "image/x-portable-anymap")
AVIF = Kind("AVIF", "AVIF", "image/avif", megapixels=100)
JPEG_2000 = Kind("JPEG 2000", "JPEG2000", "image/jp2", megapixels=100)
JPEG_XL = Kind("JPEG XL", "JXL", "image/jxl", "pillow-jxl-plugin", megapixels=100)
HEIC = Kind("HEIC", "HEIF", "image/heic", "pillow-heif", megapixels=100)
SVG = Kind("SVG", "SVG", "image/svg+xml", "resvg-py")
PDF = Kind("PDF", "PDF", "application/pdf", "pypdfium2")  # a document: its pages are pictures

MEDIA_TYPES = frozenset(
    kind.media_type for kind in (JPEG, PNG, GIF, WEBP, TIFF, BMP, PPM, AVIF, JPEG_2000, JPEG_XL, HEIC, SVG)
)

_SIGNATURES = (
    (b"\xff\xd8\xff", JPEG),
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"GIF87a", GIF),
    (b"GIF89a", GIF),
    (b"II*\x00", TIFF),
    (b"MM\x00*", TIFF),
    (b"II+\x00", TIFF),
    (b"MM\x00+", TIFF),
    (b"\x00\x00\x00\x0cjP  ", JPEG_2000),
    (b"\xff\x4f\xff\x51", JPEG_2000),
    (b"\x00\x00\x00\x0cJXL ", JPEG_XL),
    (b"\xff\x0a", JPEG_XL),
)
# Of files that begin with a `ftyp` box.
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), HEIC),
    **dict.fromkeys((b"avif", b"avis"), AVIF),
}
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # sizes of the header that follows the first 14 bytes
_GZIP = b"\x1f\x8b"
_PDF_WITHIN = 1024  # bytes before the mark of a PDF; viewers accept so many
_SVG_WITHIN = 8192  # bytes before the first element of an SVG: comments of programs

_NOT_ACCEPTED = "{name} pictures are not accepted; convert it to JPEG or PNG"
# The RAW files below do not begin as a TIFF does; the others are recognised by `why_raw`.
_UNSUPPORTED = (
    (b"\x00\x00\x01\x00", _NOT_ACCEPTED.format(name="ICO")),
    (b"8BPS", _NOT_ACCEPTED.format(name="Photoshop")),
    (b"%!PS", _NOT_ACCEPTED.format(name="PostScript")),
    (b"\xc5\xd0\xd3\xc6", _NOT_ACCEPTED.format(name="PostScript")),
    (b"gimp xcf", _NOT_ACCEPTED.format(name="GIMP")),
    (b"AT&TFORM", _NOT_ACCEPTED.format(name="DjVu")),
    (b"\x76\x2f\x31\x01", _NOT_ACCEPTED.format(name="OpenEXR")),
    (b"#?RADIANCE", _NOT_ACCEPTED.format(name="Radiance HDR")),
    (b"FUJIFILMCCD-RAW", _RAW.format(family="Fujifilm RAF")),
    (b"IIRO", _RAW.format(family="Olympus ORF")),
    (b"IIRS", _RAW.format(family="Olympus ORF")),
    (b"MMOR", _RAW.format(family="Olympus ORF")),
    (b"IIU\x00", _RAW.format(family="Panasonic RW2")),
    (b"FOVb", _RAW.format(family="Sigma X3F")),
    (b"\x00MRM", _RAW.format(family="Minolta MRW")),
    (b"II\x1a\x00\x00\x00HEAPCCDR", _RAW.format(family="Canon CRW")),
)
_NO_PICTURES = (
    (b"PK\x03\x04", "it is a zip file, not a picture; give it a name that ends in .zip to have it unpacked"),
    (_GZIP, "it is a gzip file, not a picture"),
    (b"version https://git-lfs.", "it is a Git LFS pointer, not the picture; fetch the picture with `git lfs pull`"),
)
_RAW_MAKERS = {
    "canon": "Canon CR2",
    "nikon": "Nikon NEF",
    "sony": "Sony ARW",
    "pentax": "Pentax PEF",
    "ricoh": "Pentax PEF",
    "samsung": "Samsung SRW",
    "hasselblad": "Hasselblad 3FR",
    "phase one": "Phase One IIQ",
    "leaf": "Leaf MOS",
    "mamiya": "Mamiya MEF",
    "kodak": "Kodak DCR",
    "eastman": "Kodak DCR",
    "epson": "Epson ERF",
    "leica": "Leica RWL",
    "panasonic": "Panasonic RAW",
}
_MAKE, _SUBFILE_TYPE, _PHOTOMETRIC, _SUB_IFDS, _DNG_VERSION = 271, 254, 262, 330, 50706
_SENSOR = (32803, 34892)  # photometric interpretations: colour filter array, linear RAW
_MAX_DIRECTORIES = 16
_MAX_ENTRIES = 512


def kind_of(data: bytes) -> Kind | None:
    """The format of `data` by its content; None if that is no format listed here."""
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12])
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WEBP
    signed = next((kind for signature, kind in _SIGNATURES if data.startswith(signature)), None)
    return signed or next((kind for looks_like, kind in _LOOKS if looks_like(data)), None)


def why_not(data: bytes) -> Rejection:
    """What `data` of an unknown kind is, as far as its first bytes show, and what to do about it."""
    if not data:
        return Rejection(RejectionClass.DAMAGED, "the file is empty")
    unsupported = next((reason for signature, reason in _UNSUPPORTED if data.startswith(signature)), None)
    if data[4:12] == b"ftypcrx ":
        unsupported = _RAW.format(family="Canon CR3")
    if unsupported is not None:
        return Rejection(RejectionClass.UNSUPPORTED, unsupported)
    if data[4:8] == b"ftyp":
        return Rejection(RejectionClass.NO_PICTURE, "it is a video or another MP4 file, not a picture")
    other = next((reason for signature, reason in _NO_PICTURES if data.startswith(signature)), None)
    return Rejection(RejectionClass.NO_PICTURE, other or _why_not_text(data[:2048]))


def why_raw(data: bytes) -> Rejection | None:
    """The reason to reject a file that begins as a TIFF does and is a RAW file of a camera; None for a picture.

    Such a file decodes to the small preview that the camera wrote, which is not the picture.
    """
    try:
        family = _raw_family(data)
    except struct.error:
        family = None  # it is damaged; the decoder says how
    return None if family is None else Rejection(RejectionClass.UNSUPPORTED, _RAW.format(family=family))


def _is_bmp(data: bytes) -> bool:
    return data[:2] == b"BM" and len(data) >= 18 and struct.unpack_from("<I", data, 14)[0] in _BMP_HEADERS


def _is_ppm(data: bytes) -> bool:
    return re.match(rb"P[1-6][ \t\r\n#]", data) is not None


def _is_pdf(data: bytes) -> bool:
    return b"%PDF-" in data[:_PDF_WITHIN]


def _is_svg(data: bytes) -> bool:
    text = _beginning(data).removeprefix(b"\xef\xbb\xbf")
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = text[2:].replace(b"\x00", b"")
    text = text.lstrip().lower()
    return text.startswith(b"<") and not text.startswith((b"<!doctype html", b"<html")) and b"<svg" in text


_LOOKS = ((_is_bmp, BMP), (_is_ppm, PPM), (_is_pdf, PDF), (_is_svg, SVG))


def _beginning(data: bytes) -> bytes:
    """The first bytes, unpacked if they are those of a gzip file."""
    if not data.startswith(_GZIP):
        return data[:_SVG_WITHIN]
    try:
        return zlib.decompressobj(wbits=31).decompress(data[:_SVG_WITHIN], _SVG_WITHIN)
    except zlib.error:
        return b""


def _why_not_text(beginning: bytes) -> str:
    text = beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "it is a web page (HTML), not a picture; it may be the error page of a failed download"
    if b"\x00" not in beginning and _is_text(beginning):
        return "it is text, not a picture"
    return "it is not a picture of a known format"


def _is_text(beginning: bytes) -> bool:
    try:
        beginning.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(beginning) - 4  # the last character may be cut
    return True


# RAW


def _raw_family(data: bytes) -> str | None:
    if data[8:10] == b"CR":
        return "Canon CR2"
    directories = _tiff_directories(data)
    first = directories[0] if directories else {}
    if _DNG_VERSION in first:
        return "Adobe DNG"
    is_raw = any(_number(data, directory.get(_PHOTOMETRIC)) in _SENSOR for directory in directories)
    # A camera's preview comes first, marked as a reduced picture, and its sensor's data are in a sub-directory.
    is_raw |= _SUB_IFDS in first and _number(data, first.get(_SUBFILE_TYPE)) == 1
    if not is_raw:
        return None
    make = _text(data, first.get(_MAKE)).lower()
    return next((family for maker, family in _RAW_MAKERS.items() if maker in make), make.title() or "unknown camera")


@dataclass(frozen=True, slots=True)
class _Entry:
    """A field of a TIFF directory; `at` is where its value begins."""

    order: str
    kind: int
    count: int
    at: int


def _tiff_directories(data: bytes) -> list[dict[int, _Entry]]:
    """The first directory of a classic TIFF and its sub-directories, by tag, less those beyond the end of a cut file.

    Raises struct.error when the first one is damaged.
    """
    order = "<" if data[:2] == b"II" else ">"
    if struct.unpack_from(order + "H", data, 2)[0] != 42:
        return []
    first = _directory(data, order, struct.unpack_from(order + "I", data, 4)[0])
    directories = [first]
    subs = first.get(_SUB_IFDS)
    if subs is not None:
        with suppress(struct.error):
            count = min(subs.count, _MAX_DIRECTORIES)
            for offset in struct.unpack_from(f"{order}{count}I", data, subs.at):
                directories.append(_directory(data, order, offset))
    return directories


def _directory(data: bytes, order: str, offset: int) -> dict[int, _Entry]:
    (count,) = struct.unpack_from(order + "H", data, offset)
    entries = {}
    for number in range(min(count, _MAX_ENTRIES)):
        at = offset + 2 + 12 * number
        tag, kind, values = struct.unpack_from(order + "HHI", data, at)
        size = {1: 1, 2: 1, 3: 2, 4: 4, 13: 4}.get(kind, 8) * values
        entries[tag] = _Entry(
            order, kind, values, at + 8 if size <= 4 else struct.unpack_from(order + "I", data, at + 8)[0]
        )
    return entries


def _number(data: bytes, entry: _Entry | None) -> int | None:
    if entry is None or entry.kind not in (3, 4):
        return None
    return int(struct.unpack_from(entry.order + ("H" if entry.kind == 3 else "I"), data, entry.at)[0])


def _text(data: bytes, entry: _Entry | None) -> str:
    if entry is None or entry.kind != 2:
        return ""
    return data[entry.at : entry.at + min(entry.count, 64)].partition(b"\x00")[0].decode("ascii", "ignore").strip()
