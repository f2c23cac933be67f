"""Builds a folder of bad and odd files, each with the outcome that an archive owes its user.

A picture that comes out right shows four quadrants, RED and GREEN above BLUE and WHITE (or what CASES says), so
that a wrong rotation, colour space or transparency shows.
"""

from __future__ import annotations

import gzip
import io
import os
import random
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

Colour = tuple[int, int, int]

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
BLACK, GREY = (0, 0, 0), (128, 128, 128)
QUADRANTS = (RED, GREEN, BLUE, WHITE)
SIZE = (64, 48)


@dataclass(frozen=True, slots=True)
class Case:
    """The outcome of one file: `rejected` with this word in the reason, or right.

    `colours` are those at the centres of the quadrants: top left, top right, bottom left, bottom right.
    """

    source: str
    rejected: str | None = None
    size: tuple[int, int] = SIZE
    colours: tuple[Colour, ...] = QUADRANTS
    caption: str | None = None


def quadrants(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    """The picture that all others are made of."""
    width, height = size
    picture = Image.new("RGB", size, RED)
    picture.paste(GREEN, (width // 2, 0, width, height // 2))
    picture.paste(BLUE, (0, height // 2, width // 2, height))
    picture.paste(WHITE, (width // 2, height // 2, width, height))
    return picture.convert(mode)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of a picture file."""
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def jpeg(picture: Image.Image | None = None, **options: object) -> bytes:
    """A JPEG of quality 95, without colour subsampling unless it is grey."""
    picture = picture or quadrants()
    return encoded(picture, "JPEG", quality=95, **options)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG file with its right checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def raw_png(size: tuple[int, int], depth: int, colour_type: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG file put together by hand; `rows` already have their filter bytes."""
    header = struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + b"".join(extra)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def bomb_png(side: int = 13_000) -> bytes:
    """A few kilobytes that decode to `side` × `side` black pixels."""
    return raw_png((side, side), 1, 0, bytes(side * (1 + (side + 7) // 8)))


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
        _zips,
        _damaged_zips,
        _tars,
        _damaged_tars,
    )
    folder.mkdir(parents=True, exist_ok=True)
    cases = [case for build in builders for case in build(folder)]
    (folder / ".hidden.png").write_bytes(b"not looked at")
    (folder / "notes.txt").write_text("not a picture and not a sidecar of one")
    (folder / "captions.csv").write_text("image,caption\n")
    return cases


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
    for place, value in zip(((0, 0), (1, 0), (0, 1), (1, 1)), (1000, 1000 + 2046, 1000, 1000 + 4092), strict=True):
        deep.putpixel(place, value)
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
        "much-text.png": (_with_text(png_chunk(b"tEXt", b"Comment\x00" + b"a" * 3_000_000)), QUADRANTS),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    (folder / "1x1.png").write_bytes(encoded(Image.new("RGB", (1, 1), RED), "PNG"))
    (folder / "1x1.txt").write_text("\ufeff\n  One red\x00 dot. \nde.utf8=Ein roter Punkt.\n", "utf-8")
    dot = Case("1x1.png", size=(1, 1), colours=(RED,) * 4, caption="One red dot.")
    return [*(Case(name, colours=colours) for name, (_, colours) in files.items()), dot]


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
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return [Case(name, colours=colours) for name, (_, colours) in files.items()]


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
    noise = Image.effect_noise((300, 200), 90).convert("RGB")
    lying = raw_png((4000, 4000), 8, 2, bytes(301))
    text_bomb = png_chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(20_000_000)))
    files = {
        "empty.png": (b"", "empty"),
        "half.jpg": (jpeg(noise)[: len(jpeg(noise)) // 2], "truncated"),
        "half.png": (encoded(noise, "PNG")[:60_000], "truncated"),
        "half.webp": (encoded(noise, "WEBP", lossless=True)[:30_000], "damaged WEBP"),
        "half.gif": (encoded(noise, "GIF")[:10_000], "damaged GIF"),
        "header-only.png": (plain[:33], "damaged PNG"),
        "signature-only.jpg": (b"\xff\xd8\xff", "damaged JPEG"),
        "wrong-checksum.png": (bytes(wrong_sum), "damaged PNG"),
        "lying-size.png": (lying, "truncated"),
        "text-bomb.png": (_with_text(text_bomb), "damaged PNG"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return [Case(name, rejected=word) for name, (_, word) in files.items()]


def _too_large(folder: Path) -> list[Case]:
    lying = bytearray(jpeg())
    start = lying.index(b"\xff\xc0") + 5
    lying[start : start + 4] = struct.pack(">HH", 16_000, 16_000)
    side = raw_png((20_000, 1), 8, 0, bytes(20_001))
    files = {
        "bomb.png": (bomb_png(), "million"),
        "lying-size.jpg": (bytes(lying), "million"),
        "long-side.png": (side, "side"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    with (folder / "heavy.png").open("wb") as file:
        file.write(encoded(quadrants(), "PNG"))
        file.truncate(50_000_001)
    return [Case("heavy.png", rejected="50 MB"), *(Case(name, rejected=word) for name, (_, word) in files.items())]


def _no_pictures(folder: Path) -> list[Case]:
    files = {
        "text.png": (b"I am not a picture.\n", "text"),
        "page.jpg": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "web page"),
        "paper.jpg": (b"%PDF-1.7\n", "PDF"),
        "noise.webp": (random.Random(2).randbytes(4_000), "no known kind"),
        "riff.webp": (b"RIFF\x10\x00\x00\x00WAVEfmt " + bytes(100), "no known kind"),
        "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        "holiday.rar": (b"Rar!\x1a\x07\x00", ".rar"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return [Case(name, rejected=word) for name, (_, word) in files.items()]


def _refused_pictures(folder: Path) -> list[Case]:
    floats = Image.new("F", (2, 2), 0.5)
    drawing = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>'
    files = {
        "drawing.svg": (drawing, "SVG"),
        "drawing.png": (b"\xef\xbb\xbf" + drawing, "SVG"),
        "old.bmp": (encoded(quadrants(), "BMP"), "BMP"),
        "icon.ico": (encoded(quadrants(), "ICO"), "ICO"),
        "scan.tiff": (encoded(quadrants(), "TIFF"), "TIFF"),
        "floats.tif": (encoded(floats, "TIFF"), "TIFF"),
        "phone.heic": (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "HEIC"),
        "new.avif": (b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00", "AVIF"),
        "portable.ppm": (b"P6\n2 2\n255\n" + bytes(range(128, 140)), "no known kind"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return [Case(name, rejected=word) for name, (_, word) in files.items()]


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


def _zips(folder: Path) -> list[Case]:
    good = encoded(quadrants(), "PNG")
    with zipfile.ZipFile(folder / "album.zip", "w", zipfile.ZIP_DEFLATED) as package:
        package.writestr("trip/one.png", good)
        package.writestr("trip/one.txt", "The first.\nder erste")
        package.writestr("trip/two.jpg", jpeg())
        package.writestr("trip/two.jpg.txt", "The second.")
        package.writestr("trip/.DS_Store", b"clutter")
        package.writestr("__MACOSX/trip/._one.png", b"clutter")
        package.writestr("../evil.png", good)
        package.writestr("/etc/evil.png", good)
        package.writestr("C:\\evil.png", good)
        package.writestr("trip/text.png", "no picture")
        package.writestr("inner.zip", b"PK\x03\x04")
        package.writestr("bomb.png", bytes(30_000_000))
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        package.writestr(link, "/etc/passwd")
    return [
        Case("album.zip/trip/one.png", caption="The first."),
        Case("album.zip/trip/two.jpg", caption="The second."),
        Case("album.zip/../evil.png", rejected="leads out"),
        Case("album.zip//etc/evil.png", rejected="leads out"),
        Case("album.zip/C:\\evil.png", rejected="leads out"),
        Case("album.zip/trip/text.png", rejected="text"),
        Case("album.zip/inner.zip", rejected="inside the zip"),
        Case("album.zip/bomb.png", rejected="100 times"),
        Case("album.zip/link.png", rejected="link"),
    ]


def _damaged_zips(folder: Path) -> list[Case]:
    noise = Image.effect_noise((100, 100), 90)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as package:
        package.writestr("a.png", encoded(noise, "PNG"))
    whole = stream.getvalue()
    encrypted = bytearray(whole)
    encrypted[6] |= 1  # the flag in the member's own header
    encrypted[whole.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    flipped = bytearray(whole)
    flipped[200] ^= 0xFF
    (folder / "encrypted.zip").write_bytes(encrypted)
    (folder / "flipped.zip").write_bytes(flipped)
    (folder / "cut.zip").write_bytes(whole[:-30])
    (folder / "text.zip").write_text("no zip file")
    with zipfile.ZipFile(folder / "twice.zip", "w") as package, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of what we do here on purpose
        package.writestr("a.png", b"the first is hidden by the second")
        package.writestr("a.png", encoded(quadrants(), "PNG"))
    return [
        Case("encrypted.zip/a.png", rejected="encrypted"),
        Case("flipped.zip/a.png", rejected="damaged"),
        Case("cut.zip", rejected="damaged"),
        Case("text.zip", rejected="damaged"),
        Case("twice.zip/a.png", rejected="same name"),
        Case("twice.zip/a.png"),
    ]


def _tars(folder: Path) -> list[Case]:
    good = encoded(quadrants(), "PNG")
    cases: list[Case] = []
    for name, mode in (("a.tar", "w:"), ("b.tar.gz", "w:gz"), ("c.tar.xz", "w:xz"), ("d.tbz2", "w:bz2")):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode=mode) as package:  # type: ignore[call-overload]
            _add(package, "./one.png", good)
            _add(package, os.fsdecode(b"latin-\xe9.png"), good)
            _add(package, "../evil.png", good)
            _add(package, "inner.tar.gz", b"")
            _add(package, "one.png", b"another picture of the same shown name")
            _add(package, "./one.png", good)
            for kind, member in (
                (tarfile.SYMTYPE, "sym.png"),
                (tarfile.LNKTYPE, "hard.png"),
                (tarfile.CHRTYPE, "device.png"),
                (tarfile.FIFOTYPE, "pipe.png"),
            ):
                info = tarfile.TarInfo(member)
                info.type, info.linkname = kind, "/etc/passwd"
                package.addfile(info)
            _add(package, "./one.txt", "A caption that comes later.".encode("utf-16"))
        (folder / name).write_bytes(stream.getvalue())
        cases += [
            Case(f"{name}/one.png", caption="A caption that comes later."),
            Case(f"{name}/one.png", rejected="text"),
            Case(f"{name}/one.png", rejected="same name", caption="A caption that comes later."),
            Case(f"{name}/latin-\\xe9.png"),
            Case(f"{name}/../evil.png", rejected="leads out"),
            Case(f"{name}/inner.tar.gz", rejected="inside the tar"),
            *(Case(f"{name}/{member}.png", rejected="link, device") for member in ("sym", "hard", "device", "pipe")),
        ]
    return cases


def _damaged_tars(folder: Path) -> list[Case]:
    good = encoded(Image.effect_noise((200, 200), 90), "PNG")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:") as package:
        for number in range(3):
            _add(package, f"{number}.png", encoded(quadrants(), "PNG") if number == 0 else good)
    whole = stream.getvalue()
    second = whole.index(b"1.png")
    wrong_header = bytearray(whole)
    wrong_header[second + 148 : second + 156] = b"garbage!"  # the header's checksum
    (folder / "cut.tar").write_bytes(whole[: second + 3_000])
    (folder / "cut.tar.gz").write_bytes(gzip.compress(whole)[:8_000])
    (folder / "header.tar").write_bytes(wrong_header)
    (folder / "empty.tar").write_bytes(b"")
    with gzip.open(folder / "bomb.tgz", "wb", compresslevel=1) as bomb:
        info = tarfile.TarInfo("zeros.png")
        info.size = 1 << 28
        bomb.write(info.tobuf())
        for _ in range(1 << 8):
            bomb.write(bytes(1 << 20))
    return [
        Case("cut.tar/0.png"),
        Case("cut.tar/1.png", rejected="damaged"),
        Case("cut.tar", rejected="damaged"),
        Case("cut.tar.gz/0.png"),
        Case("cut.tar.gz/1.png", rejected="damaged"),
        Case("cut.tar.gz", rejected="damaged"),
        Case("header.tar/0.png"),
        Case("header.tar", rejected="damaged after 1"),
        Case("empty.tar", rejected="damaged"),
        Case("bomb.tgz/zeros.png", rejected="MB"),
        Case("bomb.tgz", rejected="bomb"),
    ]


def _add(package: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    package.addfile(info, io.BytesIO(content))
