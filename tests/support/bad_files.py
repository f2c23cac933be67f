"""Builds a folder of bad and odd files, each with its expected outcome.

A picture that comes out right shows four quadrants, RED and GREEN above BLUE and WHITE (or what its Case says), so
that a wrong rotation, colour space or transparency shows.
"""

from __future__ import annotations

import os
import random
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image

from tests.support.bad_archives import damaged_tars, damaged_zips, tars, zips
from tests.support.picture_files import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    QUADRANTS,
    RED,
    SIZE,
    SVG,
    WHITE,
    Case,
    Colour,
    bomb_png,
    encoded,
    grainy,
    jpeg,
    png_chunk,
    quadrants,
    raw_png,
)


def build_corpus(folder: Path) -> list[Case]:
    """Fill the empty `folder` and tell what must become of each file that it offers."""
    builders: tuple[Callable[[Path], list[Case]], ...] = (
        _good_jpegs,
        _good_pngs,
        _good_others,
        _odd_names,
        _damaged,
        _too_large,
        _no_pictures,
        _refused_pictures,
        _special_files,
        zips,
        damaged_zips,
        tars,
        damaged_tars,
    )
    folder.mkdir(parents=True, exist_ok=True)
    cases = [case for build in builders for case in build(folder)]
    (folder / ".hidden.png").write_bytes(b"not read")
    (folder / "notes.txt").write_text("not a picture and not a sidecar of one")
    (folder / "captions.csv").write_text("image,caption\n")
    return cases


def _accepted(folder: Path, files: Mapping[str, tuple[bytes, tuple[Colour, ...]]]) -> list[Case]:
    """Write good pictures, each with the colours of its quadrants."""
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return [Case(name, colours=colours) for name, (_, colours) in files.items()]


def _rejected(folder: Path, files: Mapping[str, tuple[bytes, str]]) -> list[Case]:
    """Write bad files, each with a word of the reason why it is rejected."""
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return [Case(name, rejected=word) for name, (_, word) in files.items()]


def _good_jpegs(folder: Path) -> list[Case]:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn it clockwise
    grey = tuple((level,) * 3 for level in (76, 150, 29, 255))  # ITU-R 601 luma of the four colours
    files = {
        "plain.jpg": jpeg(),
        "progressive.jpg": jpeg(progressive=True),
        "trailing-garbage.jpg": jpeg() + random.Random(1).randbytes(5_000),
        "wrong-extension.png": jpeg(),
        "no-extension": jpeg(),
        "unknown.extension": jpeg(),
        "broken-exif.jpg": jpeg(exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f"),
        "cmyk.jpg": jpeg(quadrants("CMYK")),
        "grey.jpg": jpeg(quadrants("L")),
        "rotated.jpg": jpeg(exif=exif),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    special = {
        "grey.jpg": Case("grey.jpg", colours=grey),
        "rotated.jpg": Case("rotated.jpg", size=(SIZE[1], SIZE[0]), colours=(BLUE, RED, WHITE, GREEN)),
    }
    return [special.get(name, Case(name)) for name in files]


def _good_pngs(folder: Path) -> list[Case]:
    transparent = quadrants("RGBA")
    transparent.putalpha(Image.new("L", SIZE, 255))
    transparent.paste((0, 0, 0, 0), (0, 0, SIZE[0] // 2, SIZE[1] // 2))  # top left: black, seen through
    white_corner = (WHITE, GREEN, BLUE, WHITE)
    palette = quadrants("P")
    half_grey = Image.new("LA", SIZE, (0, 127))
    deep = Image.new("I;16", (2, 2))
    for position, value in zip(((0, 0), (1, 0), (0, 1), (1, 1)), (1000, 1000 + 2046, 1000, 1000 + 4092), strict=True):
        deep.putpixel(position, value)
    deep = deep.resize(SIZE, Image.Resampling.NEAREST)
    rows = b"".join(
        b"\x00" + b"".join(struct.pack(">HHH", *(value * 257 for value in pixel)) for pixel in row)
        for row in (((RED,) * 32 + (GREEN,) * 32),) * 24 + (((BLUE,) * 32 + (WHITE,) * 32),) * 24
    )
    bilevel = Image.new("1", SIZE, 0)
    bilevel.paste(1, (0, 0, 32, 24))
    keyed = quadrants()
    keyed.info["transparency"] = RED
    animation = [quadrants(), Image.new("RGB", SIZE, BLACK)]
    text_bomb = png_chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(20_000_000)))
    files = {
        "plain.png": (encoded(quadrants(), "PNG"), QUADRANTS),
        "really-png.jpg": (encoded(quadrants(), "PNG"), QUADRANTS),
        "palette.png": (encoded(palette, "PNG"), QUADRANTS),
        "alpha.png": (encoded(transparent, "PNG"), white_corner),
        "palette-alpha.png": (encoded(transparent.quantize(16, Image.Quantize.FASTOCTREE), "PNG"), white_corner),
        "grey-alpha.png": (encoded(half_grey, "PNG"), (GREY,) * 4),
        "16-bit-grey.png": (encoded(deep, "PNG"), (BLACK, GREY, BLACK, WHITE)),
        "16-bit-colour.png": (raw_png(SIZE, 16, 2, rows), QUADRANTS),
        "1-bit.png": (encoded(bilevel, "PNG"), (WHITE, BLACK, BLACK, BLACK)),
        "colour-key.png": (encoded(keyed, "PNG", transparency=RED), white_corner),
        "animated.png": (encoded(animation[0], "PNG", save_all=True, append_images=animation[1:]), QUADRANTS),
        "text-bomb.png": (_with_text(text_bomb), QUADRANTS),
        "much-text.png": (_with_text(png_chunk(b"tEXt", b"Comment\x00" + b"a" * 3_000_000)), QUADRANTS),
    }
    (folder / "1x1.png").write_bytes(encoded(Image.new("RGB", (1, 1), RED), "PNG"))
    (folder / "1x1.txt").write_text("\ufeff\n  One red\x00 dot. \nde.utf8=Ein roter Punkt.\n", "utf-8")
    dot = Case("1x1.png", size=(1, 1), colours=(RED,) * 4, caption="One red dot.")
    return [*_accepted(folder, files), dot]


def _with_text(chunk: bytes) -> bytes:
    plain = encoded(quadrants(), "PNG")
    return plain[:33] + chunk + plain[33:]  # after the header


def _good_others(folder: Path) -> list[Case]:
    transparent = quadrants("RGBA")
    transparent.paste((0, 0, 0, 0), (0, 0, SIZE[0] // 2, SIZE[1] // 2))
    second = [Image.new("RGB", SIZE, BLACK)]
    white_corner = (WHITE, GREEN, BLUE, WHITE)
    files = {
        "plain.gif": (encoded(quadrants("P"), "GIF"), QUADRANTS),
        "transparent.gif": (encoded(transparent, "GIF"), white_corner),
        "animated.gif": (encoded(quadrants(), "GIF", save_all=True, append_images=second), QUADRANTS),
        "lossy.webp": (encoded(quadrants(), "WEBP", quality=95), QUADRANTS),
        "alpha.webp": (encoded(transparent, "WEBP", lossless=True), white_corner),
        "animated.webp": (
            encoded(quadrants(), "WEBP", lossless=True, save_all=True, append_images=second),
            QUADRANTS,
        ),
        "old.bmp": (encoded(quadrants(), "BMP"), QUADRANTS),
        "scan.tiff": (encoded(quadrants(), "TIFF"), QUADRANTS),
        "portable.ppm": (encoded(quadrants(), "PPM"), QUADRANTS),
        "new-lossless.jp2": (encoded(quadrants(), "JPEG2000"), QUADRANTS),
    }
    (folder / "drawing.png").write_bytes(SVG)
    return [Case("drawing.png", size=(1024, 768)), *_accepted(folder, files)]


def _odd_names(folder: Path) -> list[Case]:
    names = {
        "two\nlines.png": r"two\nlines.png",
        "escape\x1b[31m.png": r"escape\x1b[31m.png",
        os.fsdecode(b"latin-\xe9.png"): r"latin-\xe9.png",
        "почтовая открытка 🖼.png": "почтовая открытка 🖼.png",
        "100% #1 ?a=b! 'x' & \"y\".png": "100% #1 ?a=b! 'x' & \"y\".png",
        "n" * 251 + ".png": "n" * 251 + ".png",
    }
    for name in names:
        (folder / name).write_bytes(encoded(quadrants(), "PNG"))
    deep = folder / "deep"
    for number in range(12):
        deep /= f"{number:02}-" + "d" * 200
    deep.mkdir(parents=True)
    (deep / "far.png").write_bytes(encoded(quadrants(), "PNG"))
    far = str((deep / "far.png").relative_to(folder))
    return [*(Case(source) for source in names.values()), Case(far, rejected="longer than")]


def _damaged(folder: Path) -> list[Case]:
    plain, wrong_sum = encoded(quadrants(), "PNG"), bytearray(encoded(quadrants(), "PNG"))
    wrong_sum[-20] ^= 0xFF
    noise = grainy((300, 200), 90).convert("RGB")
    lying = raw_png((4000, 4000), 8, 2, bytes(301))
    files = {
        "empty.png": (b"", "empty"),
        "start.jpg": (jpeg(noise)[: len(jpeg(noise)) // 9], "quarter"),
        "start.png": (encoded(noise, "PNG")[:20_000], "quarter"),
        "half.webp": (encoded(noise, "WEBP", lossless=True)[:30_000], "damaged WEBP"),
        "start.gif": (encoded(noise, "GIF")[:3_000], "quarter"),
        "header-only.png": (plain[:33], "damaged PNG"),
        "signature-only.jpg": (b"\xff\xd8\xff", "damaged JPEG"),
        "wrong-checksum.png": (bytes(wrong_sum), "damaged PNG"),
        "lying-size.png": (lying, "quarter"),
    }
    return _rejected(folder, files)


def _too_large(folder: Path) -> list[Case]:
    lying = bytearray(jpeg())
    start = lying.index(b"\xff\xc0") + 5
    lying[start : start + 4] = struct.pack(">HH", 17_000, 17_000)
    side = raw_png((70_000, 1), 8, 0, bytes(70_001))
    files = {
        "bomb.png": (bomb_png(), "million"),
        "lying-size.jpg": (bytes(lying), "million"),
        "long-side.png": (side, "side"),
    }
    with (folder / "heavy.png").open("wb") as file:
        file.write(encoded(quadrants(), "PNG"))
        file.truncate(200_000_001)
    return [Case("heavy.png", rejected="200 MB"), *_rejected(folder, files)]


def _no_pictures(folder: Path) -> list[Case]:
    files = {
        "text.png": (b"I am not a picture.\n", "text"),
        "page.jpg": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "web page"),
        "paper.jpg": (b"%PDF-1.7\n", "PDF"),
        "film.jpg": (b"\x00\x00\x00\x18ftypqt  " + bytes(100), "MP4"),
        "noise.webp": (random.Random(2).randbytes(4_000), "known format"),
        "riff.webp": (b"RIFF\x10\x00\x00\x00WAVEfmt " + bytes(100), "known format"),
        "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        "holiday.rar": (b"Rar!\x1a\x07\x00", ".rar"),
    }
    return _rejected(folder, files)


def _refused_pictures(folder: Path) -> list[Case]:
    floats = Image.new("F", (2, 1), 0.5)
    floats.putpixel((0, 0), float("nan"))
    files = {
        "icon.ico": (encoded(quadrants(), "ICO"), "ICO"),
        "floats.tif": (encoded(floats, "TIFF"), "not finite"),
        "phone.heic": (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "HEIC"),
        "new.avif": (b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00", "AVIF"),
        "drawing.svg": (b"<svg><rect", "SVG"),
    }
    return _rejected(folder, files)


def _special_files(folder: Path) -> list[Case]:
    os.mkfifo(folder / "pipe.png")
    (folder / "nowhere.png").symlink_to("missing.png")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "good-link.png").symlink_to("plain.png")
    (folder / "itself").symlink_to(".")
    outside = folder.parent / f"{folder.name}-outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(encoded(quadrants(), "PNG"))
    (folder / "secret.png").symlink_to(outside / "secret.png")
    (folder / "secrets").symlink_to(outside)
    (folder / "locked.png").write_bytes(encoded(quadrants(), "PNG"))
    (folder / "locked.png").chmod(0)
    return [
        Case("pipe.png", rejected="regular file"),
        Case("nowhere.png", rejected="nowhere"),
        Case("circle.png", rejected="nowhere"),
        Case("good-link.png"),
        Case("secret.png", rejected="out of the folder"),
        Case("secrets", rejected="out of the folder"),
        Case("locked.png", rejected=None if os.geteuid() == 0 else "permission"),  # root may read anything
    ]
