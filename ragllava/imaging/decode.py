"""Decode untrusted pictures (docs/reliability.md D14).

`decode` turns the bytes of a file into an upright RGB picture, or raises ImageRejected with a reason for the user.
The content decides the format, never the file's name. `ragllava.imaging.sandbox` runs `decode` in child processes
with limits on memory and time; use it for all bytes from outside.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from PIL import ExifTags, Image, UnidentifiedImageError

from ragllava.errors import ImageRejected
from ragllava.imaging.embedded import read_embedded

MAX_BYTES = 50_000_000  # of a file
MAX_PIXELS = 50_000_000
MAX_SIDE = 16_384  # pixels, the longer side
MODEL_SIDE = 1536  # no supported family of models uses more pixels on the longer side
MODEL_THINNEST = 50  # longer side by shorter side; models get the middle of a thinner picture

TOO_MANY_BYTES = f"it has more than the {MAX_BYTES // 1_000_000} MB allowed"

MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif", "TIFF": "image/tiff"}

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    # No picture of the kinds below is accepted.
    (b"BM", "BMP"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"8BPS", "Photoshop"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
)

# Of files that begin with a `ftyp` box.
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}

_NOT_PICTURES = (
    (b"%PDF", "it is a PDF document, not a picture; export its pages as PNG or JPEG"),
    (b"PK\x03\x04", "it is a zip file, not a picture; give it a name that ends in .zip to have it unpacked"),
    (b"\x1f\x8b", "it is a gzip file, not a picture"),
    (b"version https://git-lfs.", "it is a Git LFS pointer, not the picture; fetch the picture with `git lfs pull`"),
)

# What EXIF's orientation asks a viewer to do; 1 is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A picture as a viewer shows it: upright, RGB, on white where it is transparent, the first frame of an animation.

    `width` and `height` are those of the full picture after rotation; `picture` is smaller when `decode` was given a
    `max_side` or a `shorter_side`, and may be the middle of the picture only. `embedded` is what the file says about
    itself (embedded.py), if `decode` was asked for it.
    """

    picture: Image.Image
    width: int
    height: int
    media_type: str
    embedded: Mapping[str, Any] = field(default_factory=dict)


def decode(
    data: bytes,
    *,
    max_side: int | None = None,
    shorter_side: int | None = None,
    allow_tiff: bool = False,
    with_embedded: bool = False,
) -> DecodedImage:
    """Decode the picture in `data`. With `max_side`, a longer side above that many pixels is resized down to it.

    With `shorter_side`, the size is divided by a whole number so that the shorter side keeps at least that many pixels
    and less than twice as many. It is fast, and meant for callers that resize again. A smaller picture is not resized.
    A picture thinner than MODEL_THINNEST is then cropped to its middle: a retriever would enlarge 16,384 × 1 pixels to
    gigabytes, and then use only the middle square.

    Accepts JPEG, PNG, WEBP and GIF, and TIFF if `allow_tiff`. Reads only the first frame. Raises ImageRejected for any
    other format, for damaged content, and above MAX_BYTES, MAX_PIXELS or MAX_SIDE.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return _decode_or_reject(data, max_side, shorter_side, allow_tiff=allow_tiff, with_embedded=with_embedded)


def decode_accepted(data: bytes) -> Image.Image:
    """The input of a multimodal LLM, from bytes that `decode` has accepted before: at most MODEL_SIDE pixels on the
    longer side, and only the middle of a picture thinner than MODEL_THINNEST. Raises ImageRejected.

    Thread-safe. `decode` is not: it changes Python's warning filters, which belong to the whole process.
    """
    return _middle(_decode_or_reject(data, MODEL_SIDE, None, allow_tiff=False).picture)


def _decode_or_reject(
    data: bytes, max_side: int | None, shorter_side: int | None, *, allow_tiff: bool, with_embedded: bool = False
) -> DecodedImage:
    if len(data) > MAX_BYTES:
        raise ImageRejected(TOO_MANY_BYTES)
    kind = _kind(data)
    if kind not in MEDIA_TYPES or (kind == "TIFF" and not allow_tiff):
        raise ImageRejected(_why_not(data, kind))
    try:
        return _decode(data, kind, max_side, shorter_side, with_embedded=with_embedded)
    except ImageRejected:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ImageRejected(f"it has more than the {MAX_PIXELS // 1_000_000} million pixels allowed") from None
    except MemoryError:
        raise ImageRejected("decoding it takes more memory than allowed") from None
    except UnidentifiedImageError:
        raise ImageRejected(f"it is a damaged {kind} picture: its header cannot be read") from None
    # Decoders raise exceptions of any type for hostile bytes.
    except Exception as error:
        raise ImageRejected(f"it is a damaged {kind} picture: {printable(str(error))}") from error


def fit(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    """The size of a `width` × `height` picture whose longer side is at most `max_side` pixels."""
    longer = max(width, height)
    if max_side is None or longer <= max_side:
        return width, height
    return max(1, round(width * max_side / longer)), max(1, round(height * max_side / longer))


def printable(text: str) -> str:
    """`text` on one line that can be stored and shown: unprintable characters become backslash escapes."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def _kind(data: bytes) -> str | None:
    """The format of `data` by its first bytes; None for what is not a picture of a format listed here."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    brand = _BRANDS.get(data[8:12]) if data[4:8] == b"ftyp" else None
    return next((kind for signature, kind in _SIGNATURES if data.startswith(signature)), brand)


def _why_not(data: bytes, kind: str | None) -> str:
    """What `data` is, as far as its first bytes show, and what to do about it."""
    if not data:
        return "the file is empty"
    if kind is not None:
        return f"{kind} pictures are not accepted; convert it to JPEG, PNG, WEBP or GIF"
    for signature, reason in _NOT_PICTURES:
        if data.startswith(signature):
            return reason
    return _why_not_text(data[:2048])


def _why_not_text(beginning: bytes) -> str:
    text = beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<") and b"<svg" in text:
        return "SVG pictures are not accepted; export it as PNG"
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


def _decode(
    data: bytes, kind: str, max_side: int | None, shorter_side: int | None, *, with_embedded: bool
) -> DecodedImage:
    with Image.open(io.BytesIO(data), formats=[kind]) as opened:
        width, height = opened.size
        _check_size(width, height)
        target = fit(width, height, max_side)
        divisor = _divisor((width, height), shorter_side)
        if kind == "JPEG":
            # The decoder can halve a JPEG up to three times, far faster than resizing afterwards. It stops at twice
            # the target, so that the resize below still has detail to average.
            if target != (width, height):
                opened.draft(None, (2 * target[0], 2 * target[1]))
            elif divisor > 1:
                opened.draft(None, (width // divisor, height // divisor))
        opened.load()
        turn = _UPRIGHT.get(_orientation(opened))
        embedded = read_embedded(opened) if with_embedded else {}
        picture = _to_rgb(opened)
    divisor = _divisor(picture.size, shorter_side)
    if divisor > 1:
        picture = picture.reduce(divisor)
    if shorter_side is not None:
        picture = _middle(picture)
    if max(target) < max(picture.size):
        picture = picture.resize(target, Image.Resampling.LANCZOS, reducing_gap=3.0)
    if turn is not None:
        picture = picture.transpose(turn)
        if turn not in (_UPRIGHT[2], _UPRIGHT[3], _UPRIGHT[4]):
            width, height = height, width
    return DecodedImage(picture, width, height, MEDIA_TYPES[kind], embedded)


def _divisor(size: tuple[int, int], shorter_side: int | None) -> int:
    return 1 if shorter_side is None else max(1, min(size) // shorter_side)


def _middle(picture: Image.Image) -> Image.Image:
    """The middle of a picture that is thinner than MODEL_THINNEST; any other picture unchanged."""
    longest = MODEL_THINNEST * min(picture.size)
    if max(picture.size) <= longest:
        return picture
    left, top = (max(0, side - longest) // 2 for side in picture.size)
    return picture.crop((left, top, left + min(picture.width, longest), top + min(picture.height, longest)))


def _check_size(width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE:
        raise ImageRejected(f"{width} × {height} pixels: a side is longer than the {MAX_SIDE:,} allowed")
    if width * height > MAX_PIXELS:
        raise ImageRejected(f"{width} × {height} pixels are more than the {MAX_PIXELS // 1_000_000} million allowed")


def _orientation(picture: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; upright (1) if the metadata cannot be read."""
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - the metadata is hostile, the picture itself is good
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        return _to_8_bit(picture).convert("RGB")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = Image.new("RGB", picture.size, "white")
        white.paste(layer, mask=layer.getchannel("A"))
        return white
    return picture.convert("RGB")


def _to_8_bit(picture: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floats, mapped from the range of values in the picture to 0…255.

    Cameras and scanners use only 10 or 12 of the 16 bits; divided by 65,535, their pictures would be black. A picture
    of one value has no range; it is read as 16 bits.
    """
    deep = picture if picture.mode == "F" else picture.convert("I")  # Pillow supports little for the 16-bit modes
    low, high = cast("tuple[float, float]", deep.getextrema())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageRejected("some of its values are not finite numbers; save it as an 8-bit PNG")
    if low == high:
        low, high = 0, max(65_535, high)
    scale = 255 / (high - low)
    offset = 0.5 - low * scale  # conversion to 8 bits truncates; half a step makes it round
    return deep.convert("F").point(lambda value: value * scale + offset).convert("L")
