"""Decode untrusted pictures (docs/reliability.md D14).

`decode` turns the bytes of a file into an upright sRGB picture, or raises ImageRejected with a reason for the user.
The content decides the format, never the file's name. It is the only function that makes pictures of bytes:
thumbnails, retrievers, rerankers and generators all see its result. `ragllava.imaging.sandbox` runs it in child
processes with limits on memory and time; use that for all bytes from outside.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from ragllava.errors import ImageRejected, Rejection, RejectionClass
from ragllava.imaging import colours, kinds, rendering, repair
from ragllava.imaging.embedded import PAGE_KEYWORD, read_embedded
from ragllava.imaging.kinds import Kind

MAX_BYTES = 200_000_000  # of a file
MODEL_SIDE = 1536  # no supported family of models uses more pixels on the longer side
MODEL_THINNEST = 50  # longer side by shorter side; models get the middle of a thinner picture

TOO_MANY_BYTES = Rejection(RejectionClass.TOO_LARGE, f"it has more than the {MAX_BYTES // 1_000_000} MB allowed")
TOO_MUCH_MEMORY = Rejection(RejectionClass.TOO_LARGE, "decoding it takes more memory than allowed")

_DOCUMENTS = (kinds.PDF, kinds.TIFF)
_CUT = (kinds.JPEG, kinds.PNG, kinds.GIF, kinds.BMP)  # a file whose end is missing gives its upper rows
_END_OF_JPEG = b"\xff\xd9"
_LEAST_SHARE = 0.25  # of the rows of a file whose end is missing; with fewer, the picture is not shown

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
class PictureLimits:
    """The largest pictures that are decoded; of some formats, the memory of a decoder allows only fewer pixels."""

    megapixels: int = 250
    side: int = 65_000  # pixels, the longer side

    def check(self, kind: Kind, width: int, height: int) -> None:
        """Raises ImageRejected for a picture of more pixels than allowed."""
        if max(width, height) > self.side:
            raise ImageRejected(
                RejectionClass.TOO_LARGE, f"{width} × {height} pixels: a side is longer than the {self.side:,} allowed"
            )
        megapixels = min(self.megapixels, kind.megapixels or self.megapixels)
        if width * height > megapixels * 1_000_000:
            raise ImageRejected(
                RejectionClass.TOO_LARGE, f"{width} × {height} pixels are more than the {megapixels} million allowed"
            )


_DEFAULT_LIMITS = PictureLimits()


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A picture as a viewer shows it: upright, in sRGB, on a ground where it is transparent (colours.py), the first
    frame of an animation.

    `width` and `height` are those of the full picture after rotation; `picture` is smaller when `decode` was given a
    `max_side` or a `shorter_side`, and may be the middle of the picture only. `embedded` is what the file says about
    itself (embedded.py), if `decode` was asked for it. `note` says what is missing of the picture, if anything is.
    """

    picture: Image.Image
    width: int
    height: int
    media_type: str
    embedded: Mapping[str, Any] = field(default_factory=dict)
    note: str | None = None


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What `decode` is asked for; see there."""

    limits: PictureLimits
    max_side: int | None = None
    shorter_side: int | None = None
    with_embedded: bool = False
    frame: int = 0


def decode(
    data: bytes,
    *,
    max_side: int | None = None,
    shorter_side: int | None = None,
    with_embedded: bool = False,
    limits: PictureLimits = _DEFAULT_LIMITS,
) -> DecodedImage:
    """Decode the picture in `data`. With `max_side`, a longer side above that many pixels is resized down to it.

    With `shorter_side`, the size is divided by a whole number so that the shorter side keeps at least that many pixels
    and less than twice as many. It is fast, and meant for callers that resize again. A smaller picture is not resized.
    A picture thinner than MODEL_THINNEST is then cropped to its middle: a retriever would enlarge 16,384 × 1 pixels to
    gigabytes, and then use only the middle square.

    Accepts the formats of kinds.py, and reads only the first frame. A file whose end is missing gives what there is of
    it, with a note. Raises ImageRejected for a document of several pages (see `count_pages`), any other format,
    damaged content, and above MAX_BYTES or `limits`. Not thread-safe: it changes warning filters and settings of
    Pillow, which belong to the whole process.
    """
    return _decode_or_reject(data, _Wanted(limits, max_side, shorter_side, with_embedded))


def count_pages(data: bytes) -> int:
    """How many pages the document `data` has: 0 for a picture, which `decode` takes as it is.

    Raises ImageRejected for a document that cannot be read, or that has more than MAX_PAGES.
    """
    kind = kinds.kind_of(data)
    if kind not in _DOCUMENTS or kind is None or (kind is kinds.TIFF and kinds.why_raw(data)):
        return 0
    with _rejecting(kind), _quiet():
        number = len(rendering.pages_of(data, kind))
    if number > rendering.MAX_PAGES:
        raise ImageRejected(RejectionClass.TOO_LARGE, f"it has more than the {rendering.MAX_PAGES:,} pages allowed")
    return 0 if kind is kinds.TIFF and number == 1 else number


def page_as_png(data: bytes, page: int, limits: PictureLimits = _DEFAULT_LIMITS) -> bytes:
    """A page of a document as a PNG file, numbered from 1; its longer side has at most PAGE_SIDE pixels.

    The file names its document and page inside (embedded.py), so that equal pages of two documents are two pictures.
    Raises ImageRejected.
    """
    kind = kinds.kind_of(data)
    if kind is kinds.PDF:
        with _rejecting(kind):
            picture = rendering.draw_pdf_page(data, page - 1)
    else:
        with _rejecting(kinds.TIFF), _quiet():
            frame = rendering.pages_of(data, kinds.TIFF)[page - 1]
        picture = _decode_or_reject(data, _Wanted(limits, max_side=rendering.PAGE_SIDE, frame=frame)).picture
    about = PngInfo()
    about.add_text(PAGE_KEYWORD, f"{page} {hashlib.sha256(data).hexdigest()}")
    stream = io.BytesIO()
    picture.save(stream, "PNG", pnginfo=about)
    return stream.getvalue()


def may_have_pages(data: bytes) -> bool:
    """Whether `count_pages` has to look at `data`."""
    return kinds.kind_of(data) in _DOCUMENTS


def fit(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    """The size of a `width` × `height` picture whose longer side is at most `max_side` pixels."""
    longer = max(width, height)
    if max_side is None or longer <= max_side:
        return width, height
    return max(1, round(width * max_side / longer)), max(1, round(height * max_side / longer))


def middle(picture: Image.Image) -> Image.Image:
    """The middle of a picture that is thinner than MODEL_THINNEST; any other picture unchanged."""
    longest = MODEL_THINNEST * min(picture.size)
    if max(picture.size) <= longest:
        return picture
    left, top = (max(0, side - longest) // 2 for side in picture.size)
    return picture.crop((left, top, left + min(picture.width, longest), top + min(picture.height, longest)))


def printable(text: str) -> str:
    """`text` on one line that can be stored and shown: unprintable characters become backslash escapes."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def _decode_or_reject(data: bytes, wanted: _Wanted) -> DecodedImage:
    if len(data) > MAX_BYTES:
        raise ImageRejected(*TOO_MANY_BYTES)
    kind = kinds.kind_of(data)
    if kind is None:
        raise ImageRejected(*kinds.why_not(data))
    if kind is kinds.PDF:
        raise ImageRejected(
            RejectionClass.NO_PICTURE, "it is a PDF document; its pages are pictures, the document is not"
        )
    if kind is kinds.TIFF and (raw := kinds.why_raw(data)) is not None:
        raise ImageRejected(*raw)
    with _rejecting(kind), _quiet():
        try:
            return _decode(data, kind, wanted)
        except ImageRejected:
            raise
        except (OSError, ValueError, SyntaxError) as error:
            return _decode_damaged(data, kind, wanted, error)


def _decode_damaged(data: bytes, kind: Kind, wanted: _Wanted, error: Exception) -> DecodedImage:
    """What can be decoded of a file that is not whole; raises `error` if that is nothing."""
    if kind is kinds.PNG:
        data = repair.png_without_broken_chunks(data)
        try:
            return _decode(data, kind, wanted)
        except (OSError, ValueError, SyntaxError) as second:
            error = second
    if kind in _CUT and "truncated" in str(error).lower():
        if kind is kinds.JPEG:
            data += _END_OF_JPEG  # without it, nothing of a progressive JPEG would be given
        with _accepting_cut_files():
            return _decode(data, kind, wanted, is_cut=True)
    raise error


@contextmanager
def _rejecting(kind: Kind) -> Iterator[None]:
    """Translate what decoders raise to ImageRejected."""
    try:
        yield
    except ImageRejected:
        raise
    except MemoryError:
        raise ImageRejected(*TOO_MUCH_MEMORY) from None
    except UnidentifiedImageError:
        name = f"{kind.name} picture" + (", or RAW file of a camera" if kind is kinds.TIFF else "")
        raise ImageRejected(RejectionClass.DAMAGED, f"it is a damaged {name}: its header cannot be read") from None
    except RuntimeError as error:
        if kind is not kinds.JPEG_XL:
            raise _damaged(kind, error) from error
        # Its plugin raises this for any damage, with a text about building the library.
        raise ImageRejected(
            RejectionClass.DAMAGED, f"it is a damaged {kind.name} picture: it cannot be decoded"
        ) from error
    # Decoders raise exceptions of any type for hostile bytes.
    except Exception as error:
        raise _damaged(kind, error) from error


def _damaged(kind: Kind, error: Exception) -> ImageRejected:
    return ImageRejected(RejectionClass.DAMAGED, f"it is a damaged {kind.name} picture: {printable(str(error))}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of odd metadata, and without Pillow's own limit on pixels: PictureLimits.check is asked."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@contextmanager
def _accepting_cut_files() -> Iterator[None]:
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


def _decode(data: bytes, kind: Kind, wanted: _Wanted, *, is_cut: bool = False) -> DecodedImage:
    if kind is kinds.SVG:
        drawn = rendering.draw_svg(data)
        return _finish(DecodedImage(drawn, *drawn.size, kind.media_type), wanted, None, None)
    rendering.register(kind)
    with Image.open(io.BytesIO(data), formats=[kind.pillow_name]) as opened:
        if wanted.frame:
            opened.seek(wanted.frame)
        width, height = opened.size
        wanted.limits.check(kind, width, height)
        if kind is kinds.JPEG:
            _draft(opened, wanted)
        drawn_box = opened.tile[0].extents if kind is kinds.GIF and opened.tile else None
        opened.load()
        note = _note_of_cut(opened) if is_cut else None
        # The decoder of JPEG XL has turned the picture; what EXIF says is about the JPEG that it was made of.
        turn = None if kind is kinds.JPEG_XL else _UPRIGHT.get(_orientation(opened))
        embedded = read_embedded(opened) if wanted.with_embedded else {}
        profile = opened.info.get("icc_profile")
        picture = colours.to_8_bits(opened)
        if drawn_box is not None and drawn_box != (0, 0, *opened.size):
            picture = _only_within(picture, drawn_box)
        decoded = DecodedImage(picture, width, height, kind.media_type, embedded, note)
        return _finish(decoded, wanted, profile if isinstance(profile, bytes) else None, turn)


def _finish(
    decoded: DecodedImage, wanted: _Wanted, profile: bytes | None, turn: Image.Transpose | None
) -> DecodedImage:
    """The decoded picture in the size that is wanted, in sRGB, upright."""
    picture, width, height = decoded.picture, decoded.width, decoded.height
    target = fit(width, height, wanted.max_side)
    divisor = _divisor(picture.size, wanted.shorter_side)
    if divisor > 1:
        picture = picture.reduce(divisor)
    if wanted.shorter_side is not None:
        picture = middle(picture)
    if max(target) < max(picture.size):
        picture = picture.resize(target, Image.Resampling.LANCZOS, reducing_gap=3.0)
    picture = colours.on_ground(colours.to_srgb(picture, profile))
    if turn is not None:
        picture = picture.transpose(turn)
        if turn not in (_UPRIGHT[2], _UPRIGHT[3], _UPRIGHT[4]):
            width, height = height, width
    return replace(decoded, picture=picture, width=width, height=height)


def _draft(opened: Image.Image, wanted: _Wanted) -> None:
    """Let the decoder halve a JPEG up to three times, far faster than resizing afterwards.

    It stops at twice the target, so that the resize still has detail to average.
    """
    width, height = opened.size
    target = fit(width, height, wanted.max_side)
    divisor = _divisor((width, height), wanted.shorter_side)
    if target != (width, height):
        opened.draft(None, (2 * target[0], 2 * target[1]))
    elif divisor > 1:
        opened.draft(None, (width // divisor, height // divisor))


def _divisor(size: tuple[int, int], shorter_side: int | None) -> int:
    return 1 if shorter_side is None else max(1, min(size) // shorter_side)


def _note_of_cut(opened: Image.Image) -> str:
    """What is missing of a file whose end is missing. Raises ImageRejected if that is most of the picture."""
    share = repair.decoded_share(opened)
    if share < _LEAST_SHARE:
        raise ImageRejected(
            RejectionClass.DAMAGED, "it is a damaged picture: the file ends before a quarter of its rows"
        )
    return f"the end of the file is missing; about {share:.0%} of its rows were decoded"


def _only_within(picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The picture, transparent outside `box`: a GIF whose first frame is smaller than its screen."""
    layer = picture.convert("RGBA")
    screen = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    screen.paste(layer.crop(box), box[:2])
    return screen


def _orientation(picture: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; upright (1) if the metadata cannot be read."""
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - the metadata is hostile, the picture itself is good
        return 1
    return value if isinstance(value, int) else 1
