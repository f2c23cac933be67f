"""Decoding against slow references; any bytes raise ImageRejected and nothing else."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageOps, ImageStat

from ragllava.errors import ImageRejected
from ragllava.imaging.decode import MODEL_SIDE, PictureLimits, decode, fit
from ragllava.imaging.sandbox import DecoderPool
from tests.support.picture_files import BLUE, GREEN, RED, encoded, jpeg, quadrants, raw_png


def smooth(size: tuple[int, int]) -> Image.Image:
    """A picture of smooth gradients."""
    width, height = size
    across = Image.linear_gradient("L").rotate(90).resize(size)
    down = Image.linear_gradient("L").resize(size)
    return Image.merge("RGB", (across, down, Image.radial_gradient("L").resize((width, height))))


def largest_difference(left: Image.Image, right: Image.Image) -> int:
    assert left.size == right.size
    extrema = ImageChops.difference(left.convert("RGB"), right.convert("RGB")).getextrema()
    return max(high for _, high in extrema)  # type: ignore[misc]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("max_side", [None, 16])
def test_every_exif_orientation_is_turned_upright(orientation: int, max_side: int | None) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(quadrants(), "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    decoded = decode(data, max_side=max_side)
    assert (decoded.width, decoded.height) == expected.size
    assert largest_difference(decoded.picture.resize(expected.size, Image.Resampling.NEAREST), expected) <= 60


def test_an_orientation_outside_exif_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    assert decode(jpeg(exif=exif)).picture.size == quadrants().size


def test_transparency_is_laid_on_white_as_the_formula_says() -> None:
    numbers = random.Random(3)
    pixels = [tuple(numbers.randrange(256) for _ in range(4)) for _ in range(400)]
    layer = Image.new("RGBA", (20, 20))
    layer.putdata(pixels)
    picture = decode(encoded(layer, "PNG")).picture
    for number, (*colour, alpha) in enumerate(pixels):
        pixel = picture.getpixel((number % 20, number // 20))
        assert isinstance(pixel, tuple)
        for channel, value in zip(pixel, colour, strict=True):
            assert abs(channel - (value * alpha + 255 * (255 - alpha)) / 255) <= 1


@pytest.mark.parametrize("max_side", [40, 150, 333, 1000])
def test_fast_and_slow_scaling_of_a_jpeg_give_the_same_picture(max_side: int) -> None:
    data = jpeg(smooth((1600, 1200)))
    full = Image.open(io.BytesIO(data)).convert("RGB")
    expected = full.resize(fit(1600, 1200, max_side), Image.Resampling.LANCZOS)
    decoded = decode(data, max_side=max_side)
    assert (decoded.width, decoded.height) == (1600, 1200)
    assert largest_difference(decoded.picture, expected) <= 8
    assert max(ImageStat.Stat(ImageChops.difference(decoded.picture, expected)).mean) < 1


@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("size", "shorter_side", "png_size", "jpeg_size"),
    [
        ((1600, 1200), 200, (267, 200), (400, 300)),
        ((1600, 1200), 201, (320, 240), (400, 300)),
        ((1200, 1600), 600, (600, 800), (600, 800)),
        ((1633, 1225), 224, (327, 245), (409, 307)),
        ((3000, 90), 30, (1000, 30), (1500, 45)),
        ((1600, 1200), 1201, (1600, 1200), (1600, 1200)),
        ((64, 48), 2_000, (64, 48), (64, 48)),
    ],
)
def test_a_picture_divided_by_a_whole_number_is_the_one_that_averaging_gives(
    format_: str, size: tuple[int, int], shorter_side: int, png_size: tuple[int, int], jpeg_size: tuple[int, int]
) -> None:
    data = encoded(smooth(size), format_, **({"quality": 95} if format_ == "JPEG" else {}))
    decoded = decode(data, shorter_side=shorter_side)
    assert (decoded.width, decoded.height) == size
    # A JPEG is halved by its coder as often as possible before what is left is divided.
    assert decoded.picture.size == (jpeg_size if format_ == "JPEG" else png_size)
    assert min(shorter_side, *size) <= min(decoded.picture.size) < 2 * shorter_side
    expected = Image.open(io.BytesIO(data)).convert("RGB").resize(decoded.picture.size, Image.Resampling.BOX)
    assert largest_difference(decoded.picture, expected) <= 8
    assert max(ImageStat.Stat(ImageChops.difference(decoded.picture, expected)).mean) < 1


@pytest.mark.parametrize("shorter_side", [16, 17, 24])
def test_a_divided_picture_is_also_turned_upright(shorter_side: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode(jpeg(quadrants().resize((640, 480)), exif=exif), shorter_side=shorter_side)
    assert (decoded.width, decoded.height) == (480, 640)
    assert shorter_side <= decoded.picture.width < decoded.picture.height


@given(width=st.integers(1, 16_384), height=st.integers(1, 16_384), max_side=st.integers(1, 2_000))
def test_fit_keeps_the_aspect_ratio_and_never_enlarges(width: int, height: int, max_side: int) -> None:
    columns, rows = fit(width, height, max_side)
    assert max(columns, rows) == min(max(width, height), max_side)
    scale = max(columns, rows) / max(width, height)
    assert abs(columns - max(1, width * scale)) <= 0.5 + 1e-9
    assert abs(rows - max(1, height * scale)) <= 0.5 + 1e-9
    assert fit(width, height, None) == (width, height)


def test_16_bits_are_scaled_by_the_range_that_the_picture_uses() -> None:
    values = [1000 + 16 * number for number in range(256)]
    deep = Image.new("I;16", (256, 1))
    for x, value in enumerate(values):
        deep.putpixel((x, 0), value)
    grey = decode(encoded(deep, "PNG")).picture.getchannel("R").tobytes()
    assert list(grey) == list(range(256))


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (65_535, 255), (32_768, 128)])
def test_16_bits_of_one_value_are_taken_as_full_scale(value: int, expected: int) -> None:
    picture = decode(encoded(Image.new("I;16", (4, 4), value), "PNG")).picture
    assert picture.getpixel((0, 0)) == (expected,) * 3


@pytest.mark.parametrize("mode", ["F", "I", "I;16", "I;16B"])
def test_deep_tiff_modes_are_scaled(mode: str) -> None:
    deep = Image.new(mode, (3, 1))
    for x, value in enumerate((100, 400, 700)):
        deep.putpixel((x, 0), value)
    picture = decode(encoded(deep, "TIFF")).picture
    assert [picture.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (128, 128, 128), (255, 255, 255)]


def test_floats_that_are_no_numbers_are_rejected() -> None:
    floats = Image.new("F", (2, 1), 0.5)
    floats.putpixel((0, 0), float("nan"))
    with pytest.raises(ImageRejected, match="not finite"):
        decode(encoded(floats, "TIFF"))


def test_a_two_picture_jpeg_of_a_camera_is_its_first_picture() -> None:
    data = encoded(quadrants(), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 48))], quality=95)
    decoded = decode(data)
    assert decoded.media_type == "image/jpeg"
    for point, expected in {(16, 12): RED, (48, 12): GREEN, (16, 36): BLUE}.items():
        assert decoded.picture.getpixel(point) == pytest.approx(expected, abs=6)


def test_of_many_frames_only_the_first_is_looked_at() -> None:
    frames = [Image.new("L", (8, 8), number % 255) for number in range(1, 300)]
    data = encoded(Image.new("L", (8, 8), 200), "GIF", save_all=True, append_images=frames)
    cut = data[: len(data) // 2]  # the later frames are missing
    assert decode(data).picture.getpixel((4, 4)) == (200, 200, 200)
    assert decode(cut).picture.getpixel((4, 4)) == (200, 200, 200)


def one_bit_png(width: int, height: int) -> bytes:
    return raw_png((width, height), 1, 0, bytes(height * (1 + (width + 7) // 8)))


@pytest.mark.parametrize(("size", "accepted"), [((1_000, 3_000), True), ((1_000, 3_001), False)])
def test_the_limit_on_pixels_is_exact(size: tuple[int, int], accepted: bool) -> None:
    limits = PictureLimits(megapixels=3)
    if accepted:
        assert decode(one_bit_png(*size), max_side=30, limits=limits).picture.size == (10, 30)
    else:
        with pytest.raises(ImageRejected, match="3 million"):
            decode(one_bit_png(*size), limits=limits)


@pytest.mark.parametrize(("side", "accepted"), [(65_000, True), (65_001, False)])
def test_the_limit_on_sides_is_exact(side: int, accepted: bool) -> None:
    if accepted:
        assert decode(one_bit_png(1, side)).height == side
    else:
        with pytest.raises(ImageRejected, match=r"65,000"):
            decode(one_bit_png(1, side))


def test_any_damage_is_a_rejection_or_a_picture() -> None:
    numbers = random.Random(4)
    pictures = [
        encoded(quadrants(), kind, **options)
        for kind, options in (
            ("PNG", {}),
            ("JPEG", {"progressive": True}),
            ("GIF", {}),
            ("WEBP", {"lossless": True}),
            ("TIFF", {"compression": "tiff_lzw"}),
        )
    ]
    rejected = 0
    for _ in range(600):
        data = bytearray(numbers.choice(pictures))
        for _ in range(numbers.randrange(1, 6)):
            data[numbers.randrange(len(data))] = numbers.randrange(256)
        if numbers.random() < 0.2:
            del data[numbers.randrange(len(data)) :]
        try:
            decoded = decode(bytes(data), max_side=32)
        except ImageRejected as error:
            rejected += 1
            assert str(error)
        else:
            assert decoded.picture.mode == "RGB"
            assert max(decoded.picture.size) <= 32
    assert 100 < rejected < 600


@given(st.binary(max_size=64))
def test_any_bytes_are_rejected_with_a_reason(data: bytes) -> None:
    with pytest.raises(ImageRejected, match=r"\w"):
        decode(data)


def test_the_caller_keeps_its_warning_filters() -> None:
    code = (
        "import warnings; from ragllava.imaging.decode import decode; from ragllava.errors import ImageRejected\n"
        "before = list(warnings.filters)\n"
        "try: decode(b'')\nexcept ImageRejected: pass\n"
        "assert warnings.filters == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_many_threads_decode_in_children_as_one_process_does() -> None:
    files = [encoded(smooth((1600 + number, 200)), form) for number in range(6) for form in ("PNG", "JPEG")]
    right = [decode(data, max_side=MODEL_SIDE).picture for data in files]
    with DecoderPool(2) as pool, ThreadPoolExecutor(6) as threads:
        decoded = list(threads.map(pool.decode_for_model, files * 5))
        assert [picture.tobytes() for picture in decoded] == [picture.tobytes() for picture in right * 5]
        with pytest.raises(ImageRejected, match="empty"):
            pool.decode_for_model(b"")


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize(("size", "seen"), [((9000, 3), (150, 3)), ((4, 9000), (4, 200)), ((700, 14), (700, 14))])
def test_of_a_strip_models_see_the_middle(size: tuple[int, int], seen: tuple[int, int], form: str) -> None:
    strip = Image.new("RGB", size, "black")
    left, top = ((side - part) // 2 for side, part in zip(size, seen, strict=True))
    strip.paste("white", (left, top, left + seen[0], top + seen[1]))
    decoded = decode(encoded(strip, form), shorter_side=224)
    assert (decoded.width, decoded.height) == size
    assert decoded.picture.size == seen
    assert sum(decoded.picture.convert("L").histogram()[:150]) == 0, "it is the middle"
    with DecoderPool(1) as pool:
        accepted = pool.decode_for_model(encoded(strip, form))
    assert max(accepted.size) <= min(MODEL_SIDE, 50 * min(accepted.size))
