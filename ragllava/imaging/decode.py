"""Decoding pictures that nobody trusts (docs/reliability.md D14).

`decode` turns the bytes of a file into an upright RGB picture, or raises ImageRejected with a sentence for the
person who offered the file. The content decides, never the file's name. `ragllava.imaging.sandbox` runs it in child
processes with limits on memory and time; use that wherever the bytes come from outside.
"""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass
from typing import cast

from PIL import ExifTags, Image, UnidentifiedImageError

from ragllava.errors import ImageRejected

MAX_BYTES = 50_000_000  # of a file
MAX_PIXELS = 50_000_000
MAX_SIDE = 16_384  # pixels, the longer side
# What models look at: no supported family looks at longer sides, and a strip thinner than this is nothing to look at.
MODEL_SIDE = 1536
MODEL_THINNEST = 50  # longer side by shorter side

TOO_MANY_BYTES = f"it has more than the {MAX_BYTES // 1_000_000} MB allowed"

MEDIA_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "TIFF": "image/tiff",
}

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
)

_REFUSED_PICTURES = (
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

_NO_PICTURES = (
    (b"%PDF", "it is not a picture but a PDF document; export its pages as PNG or JPEG"),
    (b"PK\x03\x04", "it is not a picture but a zip file; give it a name that ends in .zip to have it unpacked"),
    (b"\x1f\x8b", "it is not a picture but a gzip file"),
    (
        b"version https://git-lfs.",
        "it is a Git LFS pointer and not the picture itself; fetch the picture with `git lfs pull`",
    ),
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
    """A picture as a viewer shows it: upright, RGB, transparency laid on white, the first frame of an animation.

    `width` and `height` are those of the full picture after rotation; `picture` is smaller than that when
    `decode` was given a `max_side` or a `shorter_side`, and may be its middle only.
    """

    picture: Image.Image
    width: int
    height: int
    media_type: str


def decode(
    data: bytes, *, max_side: int | None = None, shorter_side: int | None = None, allow_tiff: bool = False
) -> DecodedImage:
    """Decode the whole picture in `data`; its longer side is brought down to `max_side` pixels, never up.

    With `shorter_side` it is divided by a whole number, so that the shorter side keeps that many pixels and less than
    twice as many: the cheap way for one who resizes once more. A picture whose shorter side has fewer is not resized.
    What is thinner than MODEL_THINNEST is then cut to its middle: to bring the shorter side of 16,384 × 1 pixels up to
    what a retriever takes would need gigabytes, of which it looks at the middle square.
    JPEG, PNG, WEBP and GIF are accepted, TIFF only if `allow_tiff`. Raises ImageRejected for anything else, for
    damaged content, and above MAX_BYTES, MAX_PIXELS or MAX_SIDE. Only the first frame is ever looked at.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return _decode_or_reject(data, max_side, shorter_side, allow_tiff=allow_tiff)


def decode_known(data: bytes) -> Image.Image:
    """What a multimodal LLM looks at of a picture whose bytes `decode` has accepted before: at most MODEL_SIDE pixels,
    and its middle where it is thinner than MODEL_THINNEST. Raises ImageRejected.

    Any number of threads may do so at once. `decode` itself may not run in two threads: how Python's warnings are met
    is a state of the whole process.
    """
    return _middle(_decode_or_reject(data, MODEL_SIDE, None, allow_tiff=False).picture)


def _decode_or_reject(data: bytes, max_side: int | None, shorter_side: int | None, *, allow_tiff: bool) -> DecodedImage:
    if len(data) > MAX_BYTES:
        raise ImageRejected(TOO_MANY_BYTES)
    kind = _accepted_kind(data, allow_tiff=allow_tiff)
    try:
        return _decode(data, kind, max_side, shorter_side)
    except ImageRejected:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ImageRejected(f"it has more than the {MAX_PIXELS // 1_000_000} million pixels allowed") from None
    except MemoryError:
        raise ImageRejected("decoding it takes more memory than allowed") from None
    except UnidentifiedImageError:
        raise ImageRejected(f"it is a damaged {kind} picture: its header cannot be read") from None
    # Decoders meet hostile bytes with any exception there is; each of them means the same here.
    except Exception as error:
        raise ImageRejected(f"it is a damaged {kind} picture: {printable(str(error))}") from error


def fit(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    """The size of a `width` × `height` picture whose longer side is at most `max_side` pixels."""
    longer = max(width, height)
    if max_side is None or longer <= max_side:
        return width, height
    return max(1, round(width * max_side / longer)), max(1, round(height * max_side / longer))


def printable(text: str) -> str:
    """`text` on one line that can be stored and shown: control characters and the like as backslash escapes."""
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in text)


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def _accepted_kind(data: bytes, *, allow_tiff: bool) -> str:
    """Name the accepted format of `data` by its first bytes, or raise ImageRejected saying what it is instead."""
    kind = _kind(data)
    if kind is None or (kind == "TIFF" and not allow_tiff):
        raise ImageRejected(_why_not(data, kind))
    return kind


def _kind(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((kind for signature, kind in _SIGNATURES if data.startswith(signature)), None)


def _why_not(data: bytes, kind: str | None) -> str:
    """Say what `data` is, as far as its beginning tells, and what to do about it."""
    if not data:
        return "the file is empty"
    refused = kind or _refused_kind(data)
    if refused is not None:
        return f"{refused} pictures are not accepted; convert it to JPEG, PNG, WEBP or GIF"
    for signature, reason in _NO_PICTURES:
        if data.startswith(signature):
            return reason
    return _why_not_text(data[:2048])


def _why_not_text(beginning: bytes) -> str:
    text = beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<") and b"<svg" in text:
        return "SVG is a drawing program, not a picture; export it as PNG"
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "it is not a picture but a web page (HTML), perhaps the error page of a failed download"
    if b"\x00" not in beginning and _is_text(beginning):
        return "it is not a picture but text"
    return "it is not a picture: its content is of no known kind"


def _refused_kind(data: bytes) -> str | None:
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        if brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"):
            return "HEIC"
        return "AVIF" if brand in (b"avif", b"avis") else None
    return next((kind for signature, kind in _REFUSED_PICTURES if data.startswith(signature)), None)


def _is_text(beginning: bytes) -> bool:
    try:
        beginning.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(beginning) - 4  # the last character may be cut
    return True


def _decode(data: bytes, kind: str, max_side: int | None, shorter_side: int | None) -> DecodedImage:
    with Image.open(io.BytesIO(data), formats=[kind]) as opened:
        width, height = opened.size
        _check_size(width, height)
        target = fit(width, height, max_side)
        divisor = _divisor((width, height), shorter_side)
        if kind == "JPEG":
            # The decoder itself can halve a JPEG up to three times, far faster than resizing afterwards. It
            # stops at twice the target, so that the resize below still has detail to average.
            if target != (width, height):
                opened.draft(None, (2 * target[0], 2 * target[1]))
            elif divisor > 1:
                opened.draft(None, (width // divisor, height // divisor))
        opened.load()
        turn = _UPRIGHT.get(_orientation(opened))
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
    return DecodedImage(picture, width, height, MEDIA_TYPES[kind])


def _divisor(size: tuple[int, int], shorter_side: int | None) -> int:
    return 1 if shorter_side is None else max(1, min(size) // shorter_side)


def _middle(picture: Image.Image) -> Image.Image:
    """The middle of a picture that is thinner than MODEL_THINNEST; any other one as it is."""
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
    """EXIF's orientation, 1 to 8; metadata that cannot be read says upright."""
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - hostile metadata, and the picture itself is good
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
    """Grey of 16 or 32 bits or floats, mapped from the range that the picture uses to 0…255.

    Its own range, because cameras and scanners fill 16 bits with 10 or 12; dividing by 65,535 would leave those
    pictures black. A picture of one single value has no range; it is taken as 16 bits.
    """
    deep = picture if picture.mode == "F" else picture.convert("I")  # the 16-bit modes can do little themselves
    low, high = cast("tuple[float, float]", deep.getextrema())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageRejected("some of its values are not finite numbers; save it as 8-bit PNG")
    if low == high:
        low, high = 0, max(65_535, high)
    scale = 255 / (high - low)
    offset = 0.5 - low * scale  # conversion to 8 bits cuts, so half a step makes it round
    return deep.convert("F").point(lambda value: value * scale + offset).convert("L")
