"""Picture files made for tests, and what must become of them."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
BLACK, GREY = (0, 0, 0), (128, 128, 128)
QUADRANTS = (RED, GREEN, BLUE, WHITE)
SIZE = (64, 48)

SVG = b"""\xef\xbb\xbf<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" width="64" height="48">
<rect width="32" height="24" fill="#f00"/><rect x="32" width="32" height="24" fill="#0f0"/>
<rect y="24" width="32" height="24" fill="#00f"/></svg>"""


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


def grainy(size: tuple[int, int], spread: float) -> Image.Image:
    """A grey picture whose pixels vary by `spread` around 128: the same one each time, as Pillow's own noise is not."""
    width, height = size
    drawn = np.random.default_rng(0).normal(128, spread, (height, width))
    return Image.fromarray(drawn.clip(0, 255).astype(np.uint8))


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


def bomb_png(side: int = 17_000) -> bytes:
    """A few kilobytes that decode to `side` × `side` black pixels."""
    return raw_png((side, side), 1, 0, bytes(side * (1 + (side + 7) // 8)))
