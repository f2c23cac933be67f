"""What a picture file says about itself: EXIF, IPTC and XMP.

`read_embedded` runs in the processes of `ragllava.imaging.decoding`. Its result has these keys, each from the
first source that has it; sources are asked in the order XMP, IPTC, EXIF:

| key | XMP | IPTC | EXIF |
|---|---|---|---|
| `caption` | `dc:description` | Caption-Abstract (2:120) | ImageDescription, UserComment, XPComment |
| `title` | `dc:title` | Object Name (2:05) | |
| `headline` | `photoshop:Headline` | Headline (2:105) | |
| `keywords` (a list) | `dc:subject` | Keywords (2:25) | |
| `creator` | `dc:creator` | By-line (2:80) | Artist |
| `copyright` | `dc:rights` | Copyright Notice (2:116) | Copyright |
| `place` | `Iptc4xmpCore:Location` | Sub-location (2:92) | |
| `city` | `photoshop:City` | City (2:90) | |
| `province` | `photoshop:State` | Province/State (2:95) | |
| `country` | `photoshop:Country` | Country (2:101) | |
| `taken` | `photoshop:DateCreated`, `exif:DateTimeOriginal` | Date and Time Created (2:55, 2:60) | DateTimeOriginal |
| `digitized` | `xmp:CreateDate` | | DateTimeDigitized |
| `rating` (a number) | `xmp:Rating` | | |
| `camera` | | | Make and Model |
| `latitude`, `longitude` (decimal degrees) | | | GPS |

A page of a document, which decode.py has made a PNG, has `page` (from 1) and `document` (its SHA-256) as well.
A PNG without any of these captions may have one as its text `Description` or `Comment`.

Times are ISO 8601 as far as the source gives them: `1968`, `1968-05`, `1968-05-12T10:30:00+02:00`. Captions that
cameras and programs write by default, such as OLYMPUS DIGITAL CAMERA, and captions without a letter are left out.
Whatever is wrong with the metadata of a picture
is left out, too: it is never a reason to reject the picture.
"""

from __future__ import annotations

import datetime
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from xml.etree import ElementTree

from PIL import ExifTags, Image

from ragllava.metadata import clean_embedded

PAGE_KEYWORD = "RagLLaVA page"  # of the text in the PNG of a page: its number and its document's hash
MAX_XMP_BYTES = 2**20  # a larger packet is not read

_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
_DC = "{http://purl.org/dc/elements/1.1/}"
_PHOTOSHOP = "{http://ns.adobe.com/photoshop/1.0/}"
_XMP = "{http://ns.adobe.com/xap/1.0/}"
_EXIF = "{http://ns.adobe.com/exif/1.0/}"
_LOCATION = "{http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/}Location"

_XMP_TEXTS = {
    "caption": f"{_DC}description",
    "title": f"{_DC}title",
    "headline": f"{_PHOTOSHOP}Headline",
    "copyright": f"{_DC}rights",
    "place": _LOCATION,
    "city": f"{_PHOTOSHOP}City",
    "province": f"{_PHOTOSHOP}State",
    "country": f"{_PHOTOSHOP}Country",
}
_IPTC_TEXTS = {
    "caption": 120,
    "title": 5,
    "headline": 105,
    "copyright": 116,
    "place": 92,
    "city": 90,
    "province": 95,
    "country": 101,
}
_IPTC_RESOURCE = 0x0404  # of Photoshop's, which a JPEG carries in APP13
_UTF_8 = b"\x1b%G"  # as IPTC names a character set

_MOMENT = re.compile(
    r"(\d{4})(?:[:/-](\d\d)(?:[:/-](\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)(?:\.\d+)?\s?(Z|[+-]\d\d:\d\d)?)?)?)?"
)
_CAMERAS = "agfa|benq|canon|casio|fuji(?:film)?|hp|kodak|konica minolta|minolta|nikon|olympus|panasonic|pentax|ricoh|"
_CAMERAS += "samsung|sanyo|sony|vivitar"
_DEFAULT_CAPTION = re.compile(
    rf"(?:(?:{_CAMERAS}) )*(?:digital )?(?:still ?)?camera|(?:sony|minolta) dsc|"
    r"<?(?:digimax|kenox|samsung)\b.*|exif[ _]jpeg.*|dcim\\.*|my beautiful picture|untitled(?:[ -]?\d+)?|default|"
    r"binary comment|ascii|unicode|charset=.*|image description|description|title|comment|screenshot|bildschirmfoto|"
    # Programs that write JPEG files.
    r"lead technologies.*|applemark|creator: gd-jpeg.*|intel\(r\) jpeg.*|jpeg (?:software|encoder).*|"
    r"(?:created|edited) (?:with|in|by) (?:the )?(?:gimp|paint|photoshop|picasa|snapseed|imagemagick|adobe|acdsee)"
    r".*|processed (?:by|with) (?:ebay|vsco).*|file written by adobe.*|(?:optimized|compressed) (?:by|with) .*|"
    r"handmade software.*|acd systems.*|ulead systems.*|lavc[\d.]+|a{8,64}|"
    # Modes of phones.
    r"(?:cof|dav|edf|hdr|mde|ptr|rbt|rhdr|sdr|vhdr|oznor|ozedf|hdrpl|fbt|bty|cog|dig|hmd|mte)",
    re.IGNORECASE,
)


def read_embedded(opened: Image.Image) -> dict[str, Any]:
    """The metadata of a loaded picture by the keys above, as clean as `clean_embedded` makes them; empty if none."""
    merged: dict[str, Any] = {}
    readers: tuple[Callable[[Image.Image], Mapping[str, Any]], ...] = (
        *(_read_page, _read_xmp, _read_iptc, _read_exif, _read_texts),
    )
    for read in readers:
        try:
            values = clean_embedded(read(opened))
        except Exception:  # noqa: BLE001, S112 - the metadata are hostile, the picture itself is good
            continue
        if "caption" in values and is_default_caption(values["caption"]):
            del values["caption"]
        merged = values | merged
    return clean_embedded(merged)


def _read_page(opened: Image.Image) -> Mapping[str, Any]:
    match = re.fullmatch(r"([1-9]\d{0,5}) ([0-9a-f]{64})", str(opened.info.get(PAGE_KEYWORD, "")))
    return {} if match is None else {"page": int(match[1]), "document": match[2]}


def is_default_caption(text: str) -> bool:
    """Whether a caption is one that cameras and programs write without being asked, or has no letter."""
    return not any(map(str.isalpha, text)) or _DEFAULT_CAPTION.fullmatch(text.strip()) is not None


def parse_xmp(data: bytes) -> dict[str, Any]:
    """The values of an XMP packet, as in a file of its own, by the keys above. Raises ValueError."""
    try:
        return clean_embedded(_xmp_values(data))
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(str(error)) from None


# XMP


class _NoDocumentType(ElementTree.TreeBuilder):
    """Refuses a document type, which only an attack has: entities that expand to gigabytes, or name files."""

    def doctype(self, *_: object) -> None:
        raise ValueError("XMP has no document type")


def _read_xmp(opened: Image.Image) -> Mapping[str, Any]:
    packet = opened.info.get("xmp") or opened.info.get("XML:com.adobe.xmp") or b""
    data = packet.encode() if isinstance(packet, str) else bytes(packet)
    return _xmp_values(data) if data and len(data) <= MAX_XMP_BYTES else {}


def _xmp_values(data: bytes) -> dict[str, Any]:
    parser = ElementTree.XMLParser(target=_NoDocumentType())  # noqa: S314 - without a document type there are no entities
    parser.feed(data.strip(b"\x00 \t\r\n"))
    properties = _xmp_properties(parser.close())
    first = {name: values[0] for name, values in properties.items()}
    values: dict[str, Any] = {key: first.get(name) for key, name in _XMP_TEXTS.items()}
    values["keywords"] = properties.get(f"{_DC}subject")
    values["creator"] = _one_or_all(properties.get(f"{_DC}creator", []))
    original = first.get(f"{_PHOTOSHOP}DateCreated"), first.get(f"{_EXIF}DateTimeOriginal")
    values["taken"] = next((moment for text in original if text and (moment := iso_moment(text))), None)
    values["digitized"] = iso_moment(first.get(f"{_XMP}CreateDate", ""))
    values["rating"] = _number(first.get(f"{_XMP}Rating", ""))
    return values


def _read_texts(opened: Image.Image) -> Mapping[str, Any]:
    """The texts of a PNG; a JPEG has none but its comment, which is the encoder's name more often than a caption."""
    texts = getattr(opened, "text", None) or {}
    captions = (str(texts.get(name) or "") for name in ("Description", "Comment"))
    return {"caption": next((text for text in captions if not is_default_caption(text)), None)}


def _xmp_properties(root: ElementTree.Element) -> dict[str, list[str]]:
    """The texts of the simple properties by name, never an empty list; of a text in several languages the default."""
    properties: dict[str, list[str]] = {}
    for description in root.iter(f"{_RDF}Description"):
        for name, text in description.attrib.items():
            properties.setdefault(name, [text])
        for element in description:
            items = list(element.iter(f"{_RDF}li"))
            items.sort(key=lambda item: item.get(_LANGUAGE) not in (None, "x-default"))
            texts = [text for item in items or [element] if (text := (item.text or "").strip())]
            if texts:
                properties.setdefault(element.tag, texts)
    return properties


# IPTC


def _read_iptc(opened: Image.Image) -> Mapping[str, Any]:
    resources = opened.info.get("photoshop")
    data = resources.get(_IPTC_RESOURCE) if isinstance(resources, dict) else None
    if not isinstance(data, bytes):
        return {}
    records = _iptc_records(data)
    is_utf_8 = _UTF_8 in records.get((1, 90), [])

    def texts(dataset: int) -> list[str]:
        return [_decoded(raw, is_utf_8=is_utf_8) for raw in records.get((2, dataset), [])]

    values: dict[str, Any] = {key: next(iter(texts(number)), None) for key, number in _IPTC_TEXTS.items()}
    values["keywords"] = texts(25)
    values["creator"] = _one_or_all(texts(80))
    values["taken"] = _iptc_moment(next(iter(texts(55)), ""), next(iter(texts(60)), ""))
    return values


def _iptc_records(data: bytes) -> dict[tuple[int, int], list[bytes]]:
    """The values of each dataset by record and number, up to the first that is damaged."""
    records: dict[tuple[int, int], list[bytes]] = {}
    position = 0
    while position + 5 <= len(data) and data[position] == 0x1C:
        record, number, size = struct.unpack_from(">BBH", data, position + 1)
        position += 5
        if size & 0x8000 or position + size > len(data):  # the first: a value of more than 32 KB
            break
        records.setdefault((record, number), []).append(data[position : position + size])
        position += size
    return records


def _iptc_moment(date: str, time: str) -> str | None:
    """`19680512` and `103000+0200` as one time; unknown parts of the date are zeros."""
    day = re.fullmatch(r"(\d{4})(\d\d)(\d\d)", date.strip())
    if day is None:
        return None
    clock = re.fullmatch(r"(\d\d)(\d\d)(\d\d)(?:([+-]\d\d)(\d\d))?", time.strip())
    text = "-".join(day.groups())
    if clock is not None:
        hours, minutes, seconds, zone_hours, zone_minutes = clock.groups()
        zone = f"{zone_hours}:{zone_minutes}" if zone_hours else ""
        return iso_moment(f"{text}T{hours}:{minutes}:{seconds}{zone}") or iso_moment(text)
    return iso_moment(text)


# EXIF


def _read_exif(opened: Image.Image) -> Mapping[str, Any]:
    exif = opened.getexif()
    if not exif:
        return {}
    details = exif.get_ifd(ExifTags.IFD.Exif)
    base, tags = ExifTags.Base, {**exif, **details}
    values: dict[str, Any] = {
        "caption": _exif_caption(tags),
        "creator": _exif_text(tags.get(base.Artist)),
        "copyright": _exif_text(tags.get(base.Copyright)),
        "camera": _camera(_exif_text(tags.get(base.Make)), _exif_text(tags.get(base.Model))),
        "taken": _exif_moment(tags.get(base.DateTimeOriginal), tags.get(base.OffsetTimeOriginal)),
        "digitized": _exif_moment(tags.get(base.DateTimeDigitized), tags.get(base.OffsetTimeDigitized)),
    }
    return values | _position(exif.get_ifd(ExifTags.IFD.GPSInfo))


def _exif_caption(tags: Mapping[int, Any]) -> str | None:
    base = ExifTags.Base
    captions = (
        _exif_text(tags.get(base.ImageDescription)),
        _user_comment(tags.get(base.UserComment)),
        _windows_text(tags.get(base.XPComment)),
    )
    return next((text for text in captions if not is_default_caption(" ".join(text.split()))), None)


def _user_comment(value: object) -> str:
    """A comment begins with eight bytes that name its character set; programs leave them out at times."""
    if not isinstance(value, bytes):
        return _exif_text(value)
    if value.startswith(b"UNICODE\x00"):
        # The byte order of the file is not known here; that which gives more western characters is right.
        texts = [value[8:].decode(encoding, "replace") for encoding in ("utf-16-le", "utf-16-be")]
        return max(texts, key=lambda text: sum(char < "\u3000" for char in text) - text.count("\ufffd")).strip("\x00 ")
    has_name = value.startswith((b"ASCII\x00\x00\x00", b"JIS\x00\x00\x00\x00\x00", bytes(8)))
    return _exif_text(value[8:] if has_name else value)


def _windows_text(value: object) -> str:
    """What Windows writes: UTF-16, as bytes or as a tuple of them."""
    if isinstance(value, tuple) and all(isinstance(item, int) and 0 <= item < 256 for item in value):
        value = bytes(value)
    return value.decode("utf-16-le", "replace").partition("\x00")[0].strip() if isinstance(value, bytes) else ""


def _exif_text(value: object) -> str:
    """The text up to its NUL. Pillow decodes it as Latin-1, and most programs write UTF-8."""
    if isinstance(value, str):
        value = value.encode("latin-1", "replace")
    return _decoded(value, is_utf_8=False).partition("\x00")[0].strip() if isinstance(value, bytes) else ""


def _exif_moment(value: object, offset: object) -> str | None:
    text, zone = _exif_text(value), _exif_text(offset)
    return iso_moment(f"{text}{zone}") or iso_moment(text)


def _camera(make: str, model: str) -> str:
    """Maker and model; many models begin with their maker."""
    is_named = bool(make) and model.casefold().startswith(make.split(maxsplit=1)[0].casefold())
    return model if is_named else f"{make} {model}"


def _position(gps: Mapping[int, Any]) -> dict[str, float]:
    latitude = _degrees(gps.get(ExifTags.GPS.GPSLatitude), gps.get(ExifTags.GPS.GPSLatitudeRef), "S", 90)
    longitude = _degrees(gps.get(ExifTags.GPS.GPSLongitude), gps.get(ExifTags.GPS.GPSLongitudeRef), "W", 180)
    if latitude is None or longitude is None or latitude == longitude == 0:  # some cameras write 0 for an unknown place
        return {}
    return {"latitude": latitude, "longitude": longitude}


def _degrees(parts: Any, reference: object, negative: str, most: int) -> float | None:
    if not isinstance(parts, tuple) or not 1 <= len(parts) <= 3:
        return None
    degrees: float = sum(float(part) / 60**power for power, part in enumerate(parts))
    if not (math.isfinite(degrees) and 0 <= degrees <= most):
        return None
    return round(-degrees if _exif_text(reference).upper() == negative else degrees, 6)


# Values


def _decoded(raw: bytes, *, is_utf_8: bool) -> str:
    """UTF-8, or what old programs on Windows wrote."""
    try:
        return raw.decode("utf-8", "replace" if is_utf_8 else "strict")
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")


def _one_or_all(texts: Iterable[str]) -> str | list[str]:
    listed = list(texts)
    return listed[0] if len(listed) == 1 else listed


def _number(text: str) -> int | float | None:
    number = float(text) if re.fullmatch(r"-?\d{1,9}(\.\d{1,9})?", text.strip()) else None
    return int(number) if number is not None and number.is_integer() else number


def iso_moment(text: str) -> str | None:
    """A date or time as ISO 8601, as far as it is known; None for what is no date, such as 0000:00:00."""
    match = _MOMENT.fullmatch(text.strip())
    if match is None:
        return None
    year, month, day, time, zone = match.groups()
    known = [year]
    for part in (month, day):
        if part in (None, "00"):
            time = None
            break
        known.append(part)
    iso = "-".join(known) + (f"T{time}{zone or ''}" if time else "")
    try:
        datetime.datetime.fromisoformat(iso.replace("Z", "+00:00") if time else "-".join([*known, "01", "01"][:3]))
    except ValueError:
        return None
    return iso
