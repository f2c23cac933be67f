"""Pictures that a viewer still shows although their files are not whole."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from PIL import Image, ImageChops

_PNG_HEAD = 8
_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_KEPT = (b"eXIf", b"iCCP", b"tEXt", b"zTXt", b"iTXt")
_PACKED = (b"iCCP", b"zTXt", b"iTXt")
_MAX_CHUNK_BYTES = 2**20  # unpacked; Pillow rejects a picture whose text or profile has more
_MAX_CHUNKS_BYTES = 2**24  # of all chunks beside the pixels


def png_without_broken_chunks(data: bytes) -> bytes:
    """A PNG file without the ancillary chunks that are damaged, very large or unknown: they do not change pixels."""
    parts, beside = [data[:_PNG_HEAD]], 0
    for name, chunk in _png_chunks(data):
        if name not in _NEEDED:
            beside += len(chunk)
            if name not in _KEPT or beside > _MAX_CHUNKS_BYTES or not _is_harmless(name, chunk):
                continue
        parts.append(chunk)
    return b"".join(parts)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = _PNG_HEAD
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        name = data[position + 4 : position + 8]
        yield name, data[position : position + 12 + length]
        position += 12 + length
    if position < len(data):
        yield b"IDAT", data[position:]  # the beginning of a chunk that is cut off


def _is_harmless(name: bytes, chunk: bytes) -> bool:
    content, check = chunk[8:-4], chunk[-4:]
    if len(content) > _MAX_CHUNK_BYTES or struct.pack(">I", zlib.crc32(chunk[4:-4])) != check:
        return False
    if name not in _PACKED:
        return True
    after_keyword = content.partition(b"\x00")[2]
    if name == b"iTXt":
        is_packed, packed = after_keyword[:1] == b"\x01", after_keyword[2:].split(b"\x00", 2)[-1]
        if not is_packed:
            return True
    else:
        packed = after_keyword[1:]
    unpack = zlib.decompressobj()
    try:
        unpack.decompress(packed, _MAX_CHUNK_BYTES)
    except zlib.error:
        return False
    return unpack.eof


def decoded_share(picture: Image.Image) -> float:
    """The share of the rows above the last rows of one colour: what a decoder had filled when the file ended."""
    grey = picture.convert("L")
    last = grey.getpixel((grey.width - 1, grey.height - 1))
    box = ImageChops.difference(grey, Image.new("L", grey.size, last)).getbbox()
    return 0.0 if box is None else box[3] / grey.height
