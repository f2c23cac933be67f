"""Pictures with metadata inside: EXIF and XMP by Pillow, IPTC by hand."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from tests.support.picture_files import encoded, quadrants

_NAMESPACES = {
    "dc": "http://purl.org/dc/elements/1.1/",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "exif": "http://ns.adobe.com/exif/1.0/",
    "Iptc4xmpCore": "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/",
}


def exif(
    texts: Mapping[int, Any] | None = None,
    details: Mapping[int, Any] | None = None,
    gps: Mapping[int, Any] | None = None,
) -> Image.Exif:
    """EXIF with these tags of the first folder, of the Exif folder and of the GPS folder."""
    made = Image.Exif()
    made.update(texts or {})
    made.get_ifd(ExifTags.IFD.Exif).update(details or {})
    made.get_ifd(ExifTags.IFD.GPSInfo).update(gps or {})
    return made


def place(latitude: str, north: str, longitude: str, east: str) -> dict[int, Any]:
    """A position as cameras write it; each coordinate as degrees, minutes and seconds: `51 30 30.6`."""

    def rational(text: str) -> tuple[IFDRational, ...]:
        return tuple(IFDRational(round(float(part) * 100), 100) for part in text.split())

    tags = ExifTags.GPS
    return {
        tags.GPSLatitude: rational(latitude),
        tags.GPSLatitudeRef: north,
        tags.GPSLongitude: rational(longitude),
        tags.GPSLongitudeRef: east,
    }


def xmp(inside: str, attributes: str = "", before: str = "") -> bytes:
    """An XMP packet; `inside` are elements of its description."""
    names = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in _NAMESPACES.items())
    return (
        f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>{before}<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" {names} {attributes}>{inside}</rdf:Description>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def iptc(*values: tuple[int, int, bytes]) -> bytes:
    """Datasets (record, number, value) as the bytes of IPTC."""
    return b"".join(struct.pack(">BBBH", 0x1C, record, number, len(value)) + value for record, number, value in values)


def jpeg_with(
    exif: Image.Exif | None = None,
    xmp: bytes | None = None,
    iptc: bytes | None = None,
    size: tuple[int, int] = (64, 48),
) -> bytes:
    """A JPEG with these metadata."""
    options: dict[str, Any] = {"exif": exif} if exif is not None else {}
    if xmp is not None:
        options["xmp"] = xmp
    data = encoded(quadrants(size=size), "JPEG", quality=95, **options)
    return data if iptc is None else data[:2] + _app13(iptc) + data[2:]


def _app13(iptc: bytes) -> bytes:
    padded = iptc + b"\x00" * (len(iptc) % 2)
    resource = b"8BIM" + struct.pack(">H", 0x0404) + b"\x00\x00" + struct.pack(">I", len(iptc)) + padded
    body = b"Photoshop 3.0\x00" + resource
    return b"\xff\xed" + struct.pack(">H", len(body) + 2) + body
