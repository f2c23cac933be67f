"""Formats that other packages than Pillow decode, and the pages of documents.

HEIC and JPEG XL get their decoders by the extra `formats`; PDF and SVG are drawn. Everything here runs in the
processes of `ragllava.imaging.decoding`.
"""

from __future__ import annotations

import gzip
import importlib
import io
from contextlib import suppress
from typing import Any
from xml.etree import ElementTree

from PIL import AvifImagePlugin, Image

from ragllava.errors import ImageRejected, RejectionClass
from ragllava.imaging import kinds
from ragllava.imaging.kinds import Kind

SVG_SIDE = 1024  # pixels, the longer side of a drawn SVG
PAGE_SIDE = 2048  # pixels, the longer side of a drawn page
MAX_PAGES = 1000  # of a document
MAX_SVG_BYTES = 20_000_000  # unpacked

_SUBFILE_TYPE = 254  # a TIFF's tag: bit 0 marks a reduced copy of another page, bit 2 a mask
_NOT_A_PAGE = 0b101


def register(kind: Kind) -> None:
    """Make Pillow able to open `kind`, with one thread, as a child process is one decoder.

    Raises ImageRejected that names the extra when the package of this kind is not installed.
    """
    if kind is kinds.AVIF:
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    elif kind is kinds.HEIC:
        heif = _package(kind, "pillow_heif", "ragllava[formats]")
        heif.options.DECODE_THREADS = 1
        heif.register_heif_opener(thumbnails=False)
    elif kind is kinds.JPEG_XL:
        _package(kind, "pillow_jxl.JpegXLImagePlugin", "ragllava[formats]").DECODE_THREADS = 1


def load_all() -> None:
    """Load whatever of these packages is installed: before a child limits its memory."""
    for kind in (kinds.AVIF, kinds.HEIC, kinds.JPEG_XL):
        with suppress(ImageRejected):  # the first picture of this kind is told why
            register(kind)
    for name in ("pypdfium2", "resvg_py"):
        with suppress(ImportError):
            importlib.import_module(name)


def draw_svg(data: bytes) -> Image.Image:
    """An SVG or SVGZ as RGBA, its longer side SVG_SIDE pixels. Raises ImageRejected.

    Nothing outside the file is read: references to other files are removed before it is drawn.
    """
    svg = _package(kinds.SVG, "resvg_py", "ragllava")
    text = _without_references(_unpacked(data))
    try:
        # Both sides are limits: the drawing fits into them. Looking for the system's fonts takes a tenth of a second.
        png = svg.svg_to_bytes(
            svg_string=text, width=SVG_SIDE, height=SVG_SIDE, dpi=96, skip_system_fonts="text" not in text
        )
    except ValueError as error:
        raise ImageRejected(RejectionClass.DAMAGED, f"it is a damaged SVG picture: {str(error)[:200]}") from None
    with Image.open(io.BytesIO(bytes(png)), formats=["PNG"]) as drawn:
        return drawn.convert("RGBA")


def _unpacked(data: bytes) -> bytes:
    if not data.startswith(b"\x1f\x8b"):
        text = data
    else:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
            text = packed.read(MAX_SVG_BYTES + 1)
    if len(text) > MAX_SVG_BYTES:
        raise ImageRejected(
            RejectionClass.TOO_LARGE, f"it is an SVG picture of more than the {MAX_SVG_BYTES // 1_000_000} MB allowed"
        )
    return text


def _without_references(data: bytes) -> str:
    """The SVG without references to anything outside it: to files, or to addresses."""
    try:
        root = ElementTree.fromstring(data)  # noqa: S314 - expat limits the growth by entities, and loads none
        for element in root.iter():
            for name in [name for name in element.attrib if name.rpartition("}")[2] == "href"]:
                if not element.attrib[name].strip().startswith(("#", "data:")):
                    del element.attrib[name]
        return ElementTree.tostring(root, encoding="unicode")
    except ElementTree.ParseError as error:
        raise ImageRejected(RejectionClass.DAMAGED, f"it is a damaged SVG picture: {error}") from None
    except RecursionError:
        raise ImageRejected(
            RejectionClass.DAMAGED, "it is an SVG picture whose elements are nested too deeply"
        ) from None


def pages_of(data: bytes, kind: Kind) -> list[int]:
    """The pages of a document by the numbers that `draw_pdf_page` and a TIFF's frames have, at most MAX_PAGES + 1."""
    if kind is kinds.PDF:
        with _open_pdf(data) as document:
            return list(range(min(len(document), MAX_PAGES + 1)))
    frames = []
    with Image.open(io.BytesIO(data), formats=["TIFF"]) as opened:
        for frame in range(10 * MAX_PAGES):
            try:
                opened.seek(frame)
            except EOFError:
                break
            if not opened.tag_v2.get(_SUBFILE_TYPE, 0) & _NOT_A_PAGE:  # type: ignore[attr-defined]
                frames.append(frame)
            if len(frames) > MAX_PAGES:
                break
    return frames or [0]


def draw_pdf_page(data: bytes, page: int) -> Image.Image:
    """A page of a PDF as RGB, its longer side PAGE_SIDE pixels. Raises ImageRejected."""
    with _open_pdf(data) as document:
        drawn = document[page]
        width, height = drawn.get_size()
        if not (width > 0 and height > 0):
            raise ImageRejected(RejectionClass.DAMAGED, "the page has no size")
        bitmap = drawn.render(scale=PAGE_SIDE / max(width, height), rev_byteorder=True)
        picture: Image.Image = bitmap.to_pil().convert("RGB")
        return picture


def _open_pdf(data: bytes) -> Any:
    pdfium = _package(kinds.PDF, "pypdfium2", "ragllava")
    try:
        return pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        if "password" in str(error).lower():
            raise ImageRejected(RejectionClass.UNSUPPORTED, "it is a PDF document that needs a password") from None
        raise ImageRejected(RejectionClass.DAMAGED, "it is a damaged PDF document") from None


def _package(kind: Kind, module: str, requirement: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImageRejected(
            RejectionClass.UNSUPPORTED,
            f"{kind.name} files are read by the package {kind.package}, which the ingest worker's Python does not "
            f"have; install it with `pip install '{requirement}'` and ingest the file again",
        ) from None
