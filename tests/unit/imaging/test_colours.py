"""Colours against libvips, and grounds that keep transparent pictures visible."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from PIL import Image, ImageChops, ImageDraw

from ragllava.imaging.decode import DecodedImage, decode
from ragllava.imaging.sandbox import DecoderPool
from tests.support.color_profiles import ADOBE_RGB, DISPLAY_P3, PRO_PHOTO, cmyk_profile, grey_profile, rgb_profile
from tests.support.picture_files import encoded, raw_png

PICTURES = 200
_MODES = {"RGB": ("PNG", "JPEG", "TIFF", "WEBP"), "L": ("PNG", "JPEG", "TIFF"), "CMYK": ("JPEG", "TIFF")}

_OPTIONS: dict[str, dict[str, object]] = {"JPEG": {"quality": 98}, "WEBP": {"lossless": True}}


def patches(numbers: random.Random, mode: str) -> Image.Image:
    """Patches of random colours, large enough that no coder mixes them at their centres."""
    picture = Image.new(mode, (128, 128))
    draw = ImageDraw.Draw(picture)
    for left in range(0, 128, 32):
        for top in range(0, 128, 32):
            colour = tuple(numbers.randrange(256) for _ in picture.getbands())
            draw.rectangle((left, top, left + 31, top + 31), fill=colour if len(colour) > 1 else colour[0])
    return picture


def profiles(numbers: random.Random, mode: str) -> bytes:
    gamma = numbers.choice((1.8, 2.0, 2.2))
    if mode == "L":
        return grey_profile(gamma)
    if mode == "CMYK":
        return cmyk_profile(numbers.choice((0.8, 0.9)), points=5)
    return rgb_profile(numbers.choice((ADOBE_RGB, DISPLAY_P3, PRO_PHOTO)), gamma)


def deep_png(numbers: random.Random) -> bytes:
    """16 bits of grey or colour, over the full range."""
    channels, colour_type = numbers.choice(((1, 0), (3, 2)))
    row = b"\x00" + b"".join(numbers.randbytes(2) * channels for _ in range(63)) + b"\xff\xff" * channels
    return raw_png((64, 64), 16, colour_type, row * 64)


def generated() -> Iterator[tuple[str, bytes]]:
    numbers = random.Random(15)
    for number in range(PICTURES):
        mode = ("RGB", "L", "CMYK", "deep")[number % 4]
        if mode == "deep":
            yield mode, deep_png(numbers)
            continue
        form = numbers.choice(_MODES[mode])
        options = _OPTIONS.get(form, {})
        yield f"{mode} {form}", encoded(patches(numbers, mode), form, icc_profile=profiles(numbers, mode), **options)


def by_libvips(data: bytes) -> Image.Image:
    """The picture in sRGB as libvips shows it."""
    vips = pytest.importorskip("pyvips")
    picture = vips.Image.new_from_buffer(data, "")
    if picture.get_typeof("icc-profile-data"):
        picture = picture.icc_transform("srgb", embedded=True, intent="relative")
    picture = picture.colourspace("srgb").cast("uchar", shift=picture.format == "ushort")
    if picture.bands == 1:
        picture = picture.bandjoin([picture, picture])
    return Image.frombytes("RGB", (picture.width, picture.height), picture.write_to_memory())


def test_colours_are_those_of_libvips() -> None:
    far = []
    for name, data in generated():
        right, ours = by_libvips(data), decode(data).picture
        step = 1 if name == "deep" else 32
        centres = [(x + step // 2, y + step // 2) for x in range(0, right.width, step) for y in range(0, 128, 32)]
        differences = [
            abs(a - b)
            for point in centres
            if point[1] < right.height
            for a, b in zip(right.getpixel(point), ours.getpixel(point), strict=True)  # type: ignore[arg-type]
        ]
        if max(differences) > 2:
            far.append((name, max(differences)))
    assert far == []


@pytest.mark.parametrize(
    "profile",
    [b"", b"not a profile", rgb_profile(ADOBE_RGB, 2.2)[:300], cmyk_profile(points=2), bytes(20_000_000)],
    ids=["empty", "text", "cut", "of other colours", "oversized"],
)
def test_a_profile_that_cannot_be_used_is_ignored(profile: bytes) -> None:
    plain = Image.new("RGB", (8, 8), (10, 200, 30))
    with DecoderPool(1) as pool:
        for form in ("PNG", "TIFF", "JPEG") if len(profile) < 60_000 else ("PNG", "TIFF"):
            decoded = pool.decode(encoded(plain, form, icc_profile=profile))
            assert all(
                abs(a - b) <= 2
                for a, b in zip(decoded.picture.getpixel((4, 4)), (10, 200, 30), strict=True)  # type: ignore[arg-type]
            )


def test_profiles_with_flipped_bytes_never_reject_a_picture() -> None:
    numbers = random.Random(16)
    plain = Image.new("CMYK", (8, 8), (10, 200, 30, 40))
    data = cmyk_profile(points=3)
    with DecoderPool(1, cpu_seconds=5) as pool:
        for _ in range(60):
            broken = bytearray(data)
            for _ in range(numbers.randrange(1, 9)):
                broken[numbers.randrange(len(broken))] = numbers.randrange(256)
            assert isinstance(pool.decode(encoded(plain, "TIFF", icc_profile=bytes(broken))), DecodedImage)


def drawn(colour: str, kind: str) -> Image.Image:
    layer = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(layer).ellipse((8, 8, 56, 56), fill=colour)
    picture = decode(encoded(layer, kind)).picture
    assert picture.getpixel((32, 32)) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    return picture


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF"])
@pytest.mark.parametrize(
    ("colour", "ground"), [("white", 0), ("#f4f4f4", 0), ("black", 255), ("yellow", 255), ("#888", 255), ("red", 255)]
)
def test_a_transparent_picture_lies_on_a_ground_that_shows_it(colour: str, ground: int, kind: str) -> None:
    assert drawn(colour, kind).getpixel((0, 0)) == (ground,) * 3


def test_a_picture_of_nothing_is_white() -> None:
    assert decode(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "PNG")).picture.getcolors() == [(64, (255,) * 3)]


def test_the_screen_of_a_gif_is_white_outside_its_first_frame() -> None:
    small = encoded(Image.new("P", (8, 8), 0), "GIF")  # index 0 is black
    start = small.index(b",", 13)
    larger = bytearray(small)
    larger[6:10] = (16).to_bytes(2, "little") * 2  # of the screen
    larger[start + 1 : start + 5] = (4).to_bytes(2, "little") * 2  # where the frame lies on it
    picture = decode(bytes(larger)).picture
    white = Image.new("RGB", (16, 16), "white")
    assert ImageChops.difference(picture, white).getbbox() == (4, 4, 12, 12)
