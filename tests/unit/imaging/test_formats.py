"""Every format beside the old ones: right, at a bounded cost for hostile files; files that are not whole; RAW files."""

from __future__ import annotations

import gzip
import io
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from ragllava.errors import ImageRejected
from ragllava.imaging import kinds, rendering
from ragllava.imaging.decode import count_pages, decode, page_as_png
from ragllava.imaging.sandbox import DecoderPool
from ragllava.lab.bench.processes import peak_mib
from tests.support.picture_files import (
    BLUE,
    GREEN,
    RED,
    SVG,
    WHITE,
    encoded,
    grainy,
    jpeg,
    png_chunk,
    quadrants,
    raw_png,
)
from tests.support.processes import decoders

MIB = 2**20


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    with DecoderPool(1, memory_bytes=700 * MIB, cpu_seconds=10) as started:
        yield started


def coded(kind: str) -> bytes:
    """The quadrants in a format, without loss where it has such a mode."""
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
        return encoded(quadrants(), kind, quality=-1, chroma=444)
    if kind == "JXL":
        pytest.importorskip("pillow_jxl")
        return encoded(quadrants(), kind, lossless=True)
    if kind == "AVIF":
        return encoded(quadrants(), kind, quality=100, subsampling="4:4:4")
    return SVG if kind == "SVG" else encoded(quadrants(), kind)


@pytest.mark.parametrize(
    ("kind", "media_type"),
    [
        ("TIFF", "image/tiff"),
        ("BMP", "image/bmp"),
        ("PPM", "image/x-portable-anymap"),
        ("AVIF", "image/avif"),
        ("JPEG2000", "image/jp2"),
        ("HEIF", "image/heic"),
        ("JXL", "image/jxl"),
        ("SVG", "image/svg+xml"),
    ],
)
def test_each_format_gives_its_picture(kind: str, media_type: str, pool: DecoderPool) -> None:
    decoded = pool.decode(coded(kind), max_side=64)
    assert decoded.media_type == media_type
    assert decoded.picture.size == (64, 48)
    for point, expected in {(16, 12): RED, (48, 12): GREEN, (16, 36): BLUE, (48, 36): WHITE}.items():
        assert decoded.picture.getpixel(point) == pytest.approx(expected, abs=3)


def test_a_packed_svg_is_an_svg(pool: DecoderPool) -> None:
    assert pool.decode(gzip.compress(SVG)).picture.tobytes() == pool.decode(SVG).picture.tobytes()


def test_lengths_in_an_svg_may_have_units(pool: DecoderPool) -> None:
    drawing = SVG.replace(b'width="64" height="48"', b'width="64pt" height="48pt" viewBox="0 0 64 48"')
    decoded = pool.decode(drawing, max_side=64)
    assert decoded.picture.getpixel((16, 12)) == RED


def test_nothing_outside_an_svg_is_read(tmp_path: Path, pool: DecoderPool) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8), RED).save(secret)
    head = b'<svg xmlns="http://www.w3.org/2000/svg" xmlns:x="http://www.w3.org/1999/xlink" width="8" height="8">'
    for address in (str(secret), secret.as_uri(), f" {secret}", f"&#x2f;{str(secret)[1:]}"):
        for name in ("href", "x:href"):
            drawing = head + f'<image {name}="{address}" width="8" height="8"/></svg>'.encode()
            assert pool.decode(drawing).picture.getcolors(10) == [(1024 * 1024, WHITE)], address
    inner = encoded(Image.new("RGB", (8, 8), BLUE), "PNG")
    import base64

    data = b"data:image/png;base64," + base64.b64encode(inner)
    drawing = head + b'<image href="' + data + b'" width="8" height="8"/></svg>'
    assert pool.decode(drawing).picture.getpixel((500, 500)) == BLUE


def _svg(content: str, size: str = 'width="40" height="20"', before: str = "") -> bytes:
    return (
        f'{before}<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {size}>'
        f"{content}</svg>"
    ).encode()


def use_bomb() -> bytes:
    levels = "".join(f'<g id="a{n + 1}">' + f'<use xlink:href="#a{n}"/>' * 10 + "</g>" for n in range(9))
    return _svg(f'<defs><rect id="a0" width="1" height="1"/>{levels}</defs><use xlink:href="#a9"/>')


def entity_bomb() -> bytes:
    entities = "".join(f'<!ENTITY b{n + 1} "{f"&b{n};" * 10}">' for n in range(9))
    return _svg("<text>&b9;</text>", before=f'<!DOCTYPE svg [<!ENTITY b0 "aaaaaaaaaa">{entities}]>')


def deep_svg() -> bytes:
    return _svg("<g>" * 100_000 + "</g>" * 100_000)


def lying_tiff() -> bytes:
    data = bytearray(encoded(Image.new("L", (64, 64)), "TIFF"))
    for tag, value in ((256, 9_000), (257, 11_000)):
        at = data.index(struct.pack("<HH", tag, 4)) if struct.pack("<HH", tag, 4) in data else -1
        at = at if at >= 0 else data.index(struct.pack("<HH", tag, 3))
        struct.pack_into("<HHII", data, at, tag, 4, 1, value)
    return bytes(data)


def lying_header(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new)


def lying_bmp() -> bytes:
    return lying_header(encoded(quadrants(), "BMP"), struct.pack("<ii", 64, 48), struct.pack("<ii", 60_000, 60_000))


def lying_jpeg_2000() -> bytes:
    size = struct.pack(">II", 64, 48)  # of the codestream
    data = encoded(quadrants(), "JPEG2000", no_jp2=True)
    return lying_header(data, size, struct.pack(">II", 50_000, 50_000))


def box_bomb(kind: str) -> bytes:
    """The header of HEIC or AVIF with sides of 60,000 pixels."""
    return lying_header(
        coded(kind), struct.pack(">II", 64, 64 if kind == "HEIF" else 48), struct.pack(">II", 60_000, 60_000)
    )


def jxl_bomb() -> bytes:
    """A black picture of 12,000 × 12,000 pixels in a few kilobytes."""
    pytest.importorskip("pillow_jxl")
    return encoded(Image.new("L", (12_000, 12_000)), "JXL", effort=1)


def cut(kind: str) -> bytes:
    data = coded(kind)
    return data[: len(data) // 2]


HOSTILE: dict[str, Callable[[], bytes]] = {
    "svg of uses": use_bomb,
    "svg of entities": entity_bomb,
    "svg of depth": deep_svg,
    "svg of bytes": lambda: gzip.compress(_svg(" " * 50_000_000)),
    "svg of a file": lambda: _svg("&x;", before='<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/hostname">]>'),
    "svg without end": lambda: SVG[:100],
    "tiff": lying_tiff,
    "bmp": lying_bmp,
    "ppm": lambda: b"P6 60000 60000 255\n" + bytes(1000),
    "jpeg 2000": lying_jpeg_2000,
    "jpeg 2000 without end": lambda: cut("JPEG2000")[:80],
    "heic": lambda: box_bomb("HEIF"),
    "heic without end": lambda: cut("HEIF"),
    "avif": lambda: box_bomb("AVIF"),
    "avif without end": lambda: cut("AVIF"),
    "jpeg xl": jxl_bomb,
    "jpeg xl without end": lambda: cut("JXL"),
    "png": lambda: raw_png((60_000, 60_000), 8, 6, bytes(1000)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_of_each_format_is_rejected_within_the_memory(name: str, pool: DecoderPool) -> None:
    with pytest.raises(ImageRejected, match=r"\w{4}"):
        pool.decode(HOSTILE[name]())
    assert pool.decode(jpeg()).picture.size == (64, 48)
    assert max(map(peak_mib, decoders())) < 700


# Documents


def pdf(pages: int, size: tuple[int, int] = (64, 48)) -> bytes:
    first, *others = [Image.new("RGB", size, (40 * number, 0, 0)) for number in range(pages)]
    return encoded(first, "PDF", save_all=True, append_images=others)


def test_the_pages_of_a_pdf_are_pictures_that_name_their_page(pool: DecoderPool) -> None:
    data = pdf(3)
    assert pool.count_pages(data) == 3
    pages = [pool.page(data, number) for number in (1, 2, 3)]
    for number, page in enumerate(pages, start=1):
        assert isinstance(page, bytes)
        decoded = pool.decode(page)
        assert decoded.embedded["page"] == number
        assert max(decoded.picture.size) == rendering.PAGE_SIDE
        assert decoded.picture.getpixel((1000, 700)) == pytest.approx((40 * (number - 1), 0, 0), abs=4)
    assert pool.page(data, 2) == pages[1], "a page has the same bytes each time"


def test_the_pages_of_a_tiff_are_pictures_but_not_its_reduced_copies(pool: DecoderPool) -> None:
    one = encoded(quadrants(), "TIFF")
    assert pool.count_pages(one) == 0
    both = encoded(quadrants(), "TIFF", save_all=True, append_images=[Image.new("L", (30, 20), 77)])
    assert pool.count_pages(both) == 2
    second = pool.page(both, 2)
    assert isinstance(second, bytes)
    assert pool.decode(second).picture.getcolors() == [(600, (77, 77, 77))]
    small = Image.new("RGB", (8, 6))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    with_preview = encoded(quadrants(), "TIFF", save_all=True, append_images=[small])
    assert pool.count_pages(with_preview) == 0


def test_a_document_that_cannot_be_read_is_rejected_for_its_reason(pool: DecoderPool) -> None:
    for data, reason in ((b"%PDF-1.7\nnothing", "damaged PDF"), (pdf(1)[:300], "damaged PDF")):
        with pytest.raises(ImageRejected, match=reason):
            pool.count_pages(data)
    with pytest.raises(ImageRejected, match="1,000 pages"):
        pool.count_pages(
            encoded(Image.new("1", (1, 1)), "TIFF", save_all=True, append_images=[Image.new("1", (1, 1))] * 1000)
        )
    with pytest.raises(ImageRejected, match="its pages are pictures"):
        pool.decode(pdf(1))


def test_a_page_of_any_size_is_drawn_within_the_memory(pool: DecoderPool) -> None:
    page = pdf(1).replace(b"/MediaBox [ 0 0 64.0 48.0 ]", b"/MediaBox [ 0 0 9e8 48  ]")
    assert b"9e8" in page
    result = pool.page(page, 1)
    assert isinstance(result, ImageRejected) or pool.decode(result).picture.width <= rendering.PAGE_SIDE
    assert max(map(peak_mib, decoders())) < 700


@pytest.mark.parametrize(
    ("module", "data", "requirement"),
    [
        ("pillow_heif", b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "ragllava\\[formats\\]"),
        ("pillow_jxl.JpegXLImagePlugin", b"\xff\x0a" + bytes(20), "ragllava\\[formats\\]"),
        ("resvg_py", SVG, "resvg-py"),
        ("pypdfium2", b"%PDF-1.7", "pypdfium2"),
    ],
)
def test_a_missing_package_is_named_with_what_installs_it(
    module: str, data: bytes, requirement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImageRejected, match=requirement):
        decode(data) if not data.startswith(b"%PDF") else count_pages(data)


# Files that are not whole


def gradient() -> Image.Image:
    noise = grainy((256, 256), 60)
    return Image.merge("RGB", (Image.linear_gradient("L"), noise, noise.rotate(90)))


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("JPEG", {}, 1),
        ("JPEG", {"progressive": True}, 120),
        ("PNG", {}, 0),
        ("GIF", {"interlace": 0}, 0),
        ("BMP", {}, 0),
    ],
)
@pytest.mark.parametrize("missing", [2, 14_000])
def test_a_file_without_its_last_bytes_gives_what_there_is_with_a_note(
    kind: str, options: dict[str, object], tolerance: int, missing: int, pool: DecoderPool
) -> None:
    data = encoded(gradient(), kind, **options)
    assert missing < 0.6 * len(data)
    decoded, whole = pool.decode(data[:-missing]), decode(data)
    assert (decoded.width, decoded.height) == (256, 256)
    upper = (0, 200, 256, 256) if kind == "BMP" else (0, 0, 256, 56)  # the rows of a BMP are stored from below
    difference = ImageChops.difference(decoded.picture.crop(upper), whole.picture.crop(upper))
    assert max(high for _, high in difference.getextrema()) <= tolerance  # type: ignore[misc]
    assert whole.note is None
    if missing > 2:
        assert decoded.note is not None
        assert "end of the file is missing" in decoded.note


def test_a_file_with_less_than_a_quarter_of_its_rows_is_rejected(pool: DecoderPool) -> None:
    data = encoded(gradient(), "JPEG")
    with pytest.raises(ImageRejected, match="quarter"):
        pool.decode(data[: len(data) // 6])


def with_chunk(name: bytes, content: bytes, check: bytes | None = None) -> bytes:
    chunk = png_chunk(name, content)
    plain = encoded(quadrants(), "PNG")
    return plain[:33] + (chunk if check is None else chunk[:-4] + check) + plain[33:]


@pytest.mark.parametrize(
    "data",
    [
        with_chunk(b"tEXt", b"Comment\x00" + b"a" * 30_000_000),
        with_chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(20_000_000))),
        with_chunk(b"iTXt", b"workflow\x00\x01\x00\x00\x00" + zlib.compress(bytes(20_000_000))),
        with_chunk(b"tEXt", b"Comment\x00hello", check=b"\x00\x00\x00\x00"),
        with_chunk(b"iCCP", b"big\x00\x00" + zlib.compress(bytes(5_000_000))),
        with_chunk(b"iCCP", b"broken\x00\x00nothing packed"),
        with_chunk(b"pHYs", b"\x01"),
        with_chunk(b"gAMA", b""),
        with_chunk(b"eXIf", b"\x00"),
        with_chunk(b"cHRM", b"\x01" * 3),
        with_chunk(b"tIME", b"", check=b"\x00\x01\x02\x03"),
    ],
    ids=["tEXt", "zTXt", "iTXt", "checksum", "iCCP", "iCCP packed", "pHYs", "gAMA", "eXIf", "cHRM", "tIME"],
)
def test_chunks_beside_the_pixels_of_a_png_never_make_it_damaged(data: bytes, pool: DecoderPool) -> None:
    decoded = pool.decode(data)
    assert ImageChops.difference(decoded.picture, quadrants()).getbbox() is None
    assert decoded.note is None


def test_small_texts_of_a_png_are_kept_beside_a_broken_chunk(pool: DecoderPool) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a lighthouse"
    plain = encoded(quadrants(), "PNG", exif=exif)
    broken = png_chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(20_000_000)))
    assert pool.decode(plain[:33] + broken + plain[33:]).embedded["caption"] == "a lighthouse"


# RAW


def tiff_of(tags: dict[int, tuple[int, int, bytes | int]]) -> bytes:
    """A classic TIFF of one directory: by tag the type, the number of values, and the value (or its bytes)."""
    entries, more = b"", b""
    start = 8 + 2 + 12 * len(tags) + 4
    for tag, (kind, count, value) in sorted(tags.items()):
        if isinstance(value, bytes):
            entries += struct.pack("<HHII", tag, kind, count, start + len(more))
            more += value
        else:
            entries += struct.pack("<HHI", tag, kind, count) + struct.pack("<I", value)
    return b"II*\x00" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + more


def make(name: bytes) -> tuple[int, int, bytes]:
    return 2, len(name) + 1, name + b"\x00"


@pytest.mark.parametrize(
    ("data", "family"),
    [
        (b"II*\x00\x10\x00\x00\x00CR\x02\x00" + bytes(40), "Canon CR2"),
        (b"\x00\x00\x00\x18ftypcrx " + bytes(40), "Canon CR3"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(40), "Fujifilm RAF"),
        (b"IIRO\x08\x00\x00\x00" + bytes(40), "Olympus ORF"),
        (b"IIU\x00\x18\x00\x00\x00" + bytes(40), "Panasonic RW2"),
        (b"FOVb" + bytes(40), "Sigma X3F"),
        (tiff_of({254: (4, 1, 1), 271: make(b"NIKON CORPORATION"), 330: (4, 1, 8)}), "Nikon NEF"),
        (tiff_of({262: (3, 1, 32803), 271: make(b"SONY")}), "Sony ARW"),
        (tiff_of({262: (3, 1, 2), 50706: (1, 4, 0x0401)}), "Adobe DNG"),
        (tiff_of({262: (3, 1, 32803), 271: make(b"PENTAX Corporation")}), "Pentax PEF"),
    ],
)
def test_a_raw_file_is_rejected_by_the_name_of_its_family(data: bytes, family: str) -> None:
    with pytest.raises(ImageRejected, match=f"RAW file of a camera .{family}"):
        decode(data)
    assert count_pages(data) == 0


def nikon_with_preview() -> bytes:
    """A preview of 8 x 8 pixels comes first; the directory of the sensor's data is named, and lies beyond the end."""
    name = b"NIKON CORPORATION\x00"
    tags: dict[int, tuple[int, int, bytes | int]] = {254: (4, 1, 1), 256: (3, 1, 8), 257: (3, 1, 8), 258: (3, 1, 8)}
    tags |= {259: (3, 1, 1), 262: (3, 1, 1), 271: (2, len(name), name), 273: (4, 1, 300), 277: (3, 1, 1)}
    tags |= {278: (3, 1, 8), 279: (4, 1, 64), 330: (4, 1, 5_000_000)}
    return tiff_of(tags).ljust(300, b"\x00") + bytes(range(64))


def test_a_raw_file_that_is_not_whole_is_not_taken_for_its_preview() -> None:
    whole = nikon_with_preview()
    with pytest.raises(ImageRejected, match=r"RAW file of a camera .Nikon NEF"):
        decode(whole)
    for length in range(4, len(whole)):  # wherever it is cut
        with pytest.raises(ImageRejected, match=r"RAW file|damaged TIFF"):
            decode(whole[:length])
    for beginning in (b"II*\x00", b"MM\x00*"):
        with pytest.raises(ImageRejected, match=r"a damaged TIFF picture, or RAW file of a camera: its header"):
            decode(beginning + bytes(100))


def test_a_film_and_a_letter_are_not_taken_for_pictures() -> None:
    assert kinds.kind_of(b"BMW is the name of a firm, and these are words") is None
    assert kinds.kind_of(b"P1 is the first of three points") is kinds.PPM
    for data, reason in ((b"BMW is the name of a firm", "text"), (b"\x00\x00\x00\x18ftypmp42" + bytes(9), "MP4")):
        with pytest.raises(ImageRejected, match=reason):
            decode(data)


def test_a_damaged_jpeg_xl_is_not_told_how_to_build_its_library(pool: DecoderPool) -> None:
    pytest.importorskip("pillow_jxl")
    for data in (b"\x00\x00\x00\x0cJXL \r\n\x87\n" + bytes(50), b"\xff\x0a" + bytes(30)):
        with pytest.raises(ImageRejected, match="it is a damaged JPEG XL picture: it cannot be decoded"):
            pool.decode(data)


def test_a_page_can_be_drawn_without_a_pool() -> None:
    with Image.open(io.BytesIO(page_as_png(pdf(2), 2))) as page:
        assert page.size == (2048, 1536)
