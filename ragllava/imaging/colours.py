"""Colours as a screen shows them: 8 bits of sRGB, on a ground where the picture is transparent."""

from __future__ import annotations

import io
import math
from typing import cast

from PIL import Image, ImageChops, ImageCms

from ragllava.errors import ImageRejected, RejectionClass

MAX_PROFILE_BYTES = 2**24  # a larger colour profile is not used

_OF_PROFILE = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}  # a mode and what its profile calls it
_CAMERA_RANGE = 8191  # an eighth of the scale: more than a camera that uses 12 of 16 bits has, with its offset
_VISIBLE = 32  # difference from the ground in at least one channel that makes a pixel visible
_VISIBLE_SHARE = 0.02  # of the opaque pixels; below it, white is not the ground of this picture


def to_8_bits(picture: Image.Image) -> Image.Image:
    """The picture in one of the modes L, LA, RGB, RGBA and CMYK, in the colours of its own profile."""
    mode = picture.mode
    if mode.startswith("I") or mode == "F":
        return _deep_to_8_bits(picture)
    if mode in ("L", "LA", "RGB", "RGBA", "CMYK") and "transparency" not in picture.info:
        return picture
    if picture.has_transparency_data:
        return picture.convert("RGBA")
    return picture.convert("L" if mode == "1" else "RGB")


def to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB or RGBA in sRGB; `picture` as from `to_8_bits`. A profile that is damaged or of other colours is ignored."""
    alpha = picture.getchannel("A") if picture.mode in ("LA", "RGBA") else None
    colours = picture if alpha is None else picture.convert(picture.mode.removesuffix("A"))
    converted = _by_profile(colours, profile) if profile else None
    converted = converted or colours.convert("RGB")
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def on_ground(picture: Image.Image) -> Image.Image:
    """RGB: a transparent picture on white, or on black if almost nothing of it can be seen on white."""
    if picture.mode != "RGBA":
        return picture
    on_white = _on(picture, "white")
    red, green, blue = on_white.split()
    darkest = ImageChops.darker(ImageChops.darker(red, green), blue)
    visible = sum(darkest.histogram()[: 256 - _VISIBLE])
    opaque = sum(picture.getchannel("A").histogram()[_VISIBLE:])
    return on_white if visible >= _VISIBLE_SHARE * opaque else _on(picture, "black")


def _on(picture: Image.Image, colour: str) -> Image.Image:
    ground = Image.new("RGB", picture.size, colour)
    ground.paste(picture, mask=picture.getchannel("A"))
    return ground


def _by_profile(picture: Image.Image, profile: bytes) -> Image.Image | None:
    """The picture in sRGB; None if its profile cannot be used."""
    if len(profile) > MAX_PROFILE_BYTES:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space != _OF_PROFILE.get(picture.mode):
            return None
        if picture.mode == "RGB" and (source.profile.profile_description or "").startswith("sRGB"):
            return picture
        return ImageCms.profileToProfile(
            picture,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _deep_to_8_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floats as L.

    16 bits are full scale, unless the picture is of a camera or scanner that uses only 10 or 12 of them: full scale,
    it would be black. These, and 32 bits and floats, which have no common scale, are mapped from the range of values
    in the picture. A picture of one value has no range; it is read as 16 bits.
    """
    deep = picture if picture.mode == "F" else picture.convert("I")  # Pillow supports little for the 16-bit modes
    low, high = cast("tuple[float, float]", deep.getextrema())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageRejected(
            RejectionClass.DAMAGED, "some of its values are not finite numbers; save it as an 8-bit PNG"
        )
    if low == high or (picture.mode != "F" and low >= 0 and _CAMERA_RANGE < high <= 65_535):
        low, high = 0, max(65_535, high)
    scale = 255 / (high - low)
    offset = 0.5 - low * scale  # conversion to 8 bits truncates; half a step makes it round
    return deep.convert("F").point(lambda value: value * scale + offset).convert("L")
