"""What a picture file says about itself: EXIF, IPTC, XMP, and hostile ones."""

from __future__ import annotations

import io
import random
from typing import Any

import pytest
from PIL import ExifTags, Image, PngImagePlugin

from ragllava.imaging.decode import decode
from ragllava.imaging.embedded import MAX_XMP_BYTES
from ragllava.imaging.sandbox import DecoderPool
from ragllava.metadata import MAX_CAPTION, MAX_VALUE
from tests.support.described_pictures import exif, iptc, jpeg_with, place, xmp
from tests.support.picture_files import encoded, quadrants

BASE = ExifTags.Base
NORTH = place("51 30 30.6", "N", "0 7 32", "W")


def embedded(data: bytes) -> dict[str, Any]:
    """As the child processes read it."""
    decoded = decode(data, with_embedded=True)
    assert decoded.picture.size == (64, 48)
    return dict(decoded.embedded)


def test_exif() -> None:
    data = exif(
        {
            BASE.ImageDescription: "Undwick Barn",
            BASE.Make: "Canon",
            BASE.Model: "Canon EOS 5D",
            BASE.Artist: "Ada",
            BASE.Copyright: "© Ada".encode(),
        },
        {BASE.DateTimeOriginal: "1968:05:12 10:30:00", BASE.OffsetTimeOriginal: "+02:00"},
        NORTH,
    )
    assert embedded(jpeg_with(data)) == {
        "caption": "Undwick Barn",
        "camera": "Canon EOS 5D",
        "creator": "Ada",
        "copyright": "© Ada",
        "taken": "1968-05-12T10:30:00+02:00",
        "latitude": 51.5085,
        "longitude": -0.125556,
    }


def test_iptc() -> None:
    data = iptc(
        (1, 90, b"\x1b%G"),
        (2, 120, "Undwick Barn, Köln".encode()),
        (2, 5, b"Barn"),
        (2, 105, b"A barn burns"),
        (2, 25, b"barn"),
        (2, 25, b"fire"),
        (2, 80, b"Ada"),
        (2, 116, b"All rights"),
        (2, 92, b"Market"),
        (2, 90, "Köln".encode()),
        (2, 95, b"NRW"),
        (2, 101, b"Germany"),
        (2, 55, b"19680512"),
        (2, 60, b"103000+0200"),
    )
    expected = {
        "caption": "Undwick Barn, Köln",
        "title": "Barn",
        "headline": "A barn burns",
        "keywords": ["barn", "fire"],
        "creator": "Ada",
        "copyright": "All rights",
        "place": "Market",
        "city": "Köln",
        "province": "NRW",
        "country": "Germany",
        "taken": "1968-05-12T10:30:00+02:00",
    }
    assert embedded(jpeg_with(iptc=data)) == expected
    assert embedded(jpeg_with(iptc=data[8:]))["city"] == "Köln"  # UTF-8 without saying so
    assert embedded(jpeg_with(iptc=iptc((2, 90, "Köln".encode("cp1252"))))) == {"city": "Köln"}


XMP = xmp(
    '<dc:description><rdf:Alt><rdf:li xml:lang="de">Scheune</rdf:li>'
    '<rdf:li xml:lang="x-default">Barn &amp; cart</rdf:li></rdf:Alt></dc:description>'
    '<dc:title><rdf:Alt><rdf:li xml:lang="x-default">The barn</rdf:li></rdf:Alt></dc:title>'
    "<dc:subject><rdf:Bag><rdf:li>barn</rdf:li><rdf:li>cart</rdf:li></rdf:Bag></dc:subject>"
    "<dc:creator><rdf:Seq><rdf:li>Ada</rdf:li><rdf:li>Bob</rdf:li></rdf:Seq></dc:creator>"
    "<Iptc4xmpCore:Location>Market</Iptc4xmpCore:Location><photoshop:DateCreated>1968-05</photoshop:DateCreated>",
    'photoshop:City="Ansel" photoshop:Country="Holshire" xmp:Rating="4" xmp:CreateDate="2019-01-02T03:04:05Z"',
)
FROM_XMP = {
    "caption": "Barn & cart",
    "title": "The barn",
    "keywords": ["barn", "cart"],
    "creator": ["Ada", "Bob"],
    "place": "Market",
    "city": "Ansel",
    "country": "Holshire",
    "rating": 4,
    "taken": "1968-05",
    "digitized": "2019-01-02T03:04:05Z",
}


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_xmp_in_every_format(kind: str) -> None:
    options: dict[str, Any] = {"xmp": XMP}
    if kind == "PNG":
        from PIL.PngImagePlugin import PngInfo

        options = {"pnginfo": PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    assert embedded(encoded(quadrants(), kind, **options)) == FROM_XMP


def test_the_first_source_that_has_a_key_counts() -> None:
    all_three = jpeg_with(
        exif(
            {BASE.ImageDescription: "of EXIF", BASE.Artist: "EXIF", BASE.Model: "C1"},
            {BASE.DateTimeOriginal: "2001:01:01 00:00:00"},
        ),
        xmp("<photoshop:City>of XMP</photoshop:City><dc:description>of XMP</dc:description>"),
        iptc((2, 120, b"of IPTC"), (2, 90, b"of IPTC"), (2, 80, b"IPTC"), (2, 55, b"19990000")),
    )
    assert embedded(all_three) == {
        "caption": "of XMP",
        "city": "of XMP",
        "creator": "IPTC",
        "camera": "C1",
        "taken": "1999",
    }
    without_xmp = jpeg_with(exif({BASE.ImageDescription: "of EXIF"}), iptc=iptc((2, 120, b"of IPTC")))
    assert embedded(without_xmp) == {"caption": "of IPTC"}


@pytest.mark.parametrize(
    "caption",
    [
        "OLYMPUS DIGITAL CAMERA         ",
        "SONY DSC",
        "KONICA MINOLTA DIGITAL CAMERA",
        "Digital StillCamera",
        "<Samsung S760 / Kenox S760>",
        "Exif_JPEG_PICTURE",
        "DCIM\\100MEDIA\\DJI_0001.JPG",
        "hdr",
        "  \x00 ",
        "LEAD Technologies Inc. V1.01",
        "Created with GIMP",
        "CREATOR: gd-jpeg v1.0 (using IJG JPEG v62), quality = 90",
        "Untitled-1",
        "Screenshot",
        "AAAAAAAAAAAAAAAA",
        "2019:05:12",
        "---",
    ],
)
def test_default_captions_of_cameras_are_none(caption: str) -> None:
    assert "caption" not in embedded(jpeg_with(exif({BASE.ImageDescription: caption})))


def test_the_caption_of_the_next_source_replaces_a_default() -> None:
    data = jpeg_with(exif({BASE.ImageDescription: "A barn"}), xmp("<dc:description>SONY DSC</dc:description>"))
    assert embedded(data) == {"caption": "A barn"}


@pytest.mark.parametrize(
    "comment",
    [
        b"ASCII\x00\x00\x00A barn",
        b"UNICODE\x00" + "A barn".encode("utf-16-le"),
        b"UNICODE\x00" + "A barn".encode("utf-16-be"),
        bytes(8) + b"A barn",
        b"A barn",
    ],
)
def test_a_user_comment_is_a_caption(comment: bytes) -> None:
    data = exif({BASE.ImageDescription: "SONY DSC"}, {BASE.UserComment: comment})
    assert embedded(jpeg_with(data)) == {"caption": "A barn"}
    described = exif({BASE.ImageDescription: "A boat"}, {BASE.UserComment: comment})
    assert embedded(jpeg_with(described)) == {"caption": "A boat"}


@pytest.mark.parametrize(
    "comment", [b"ASCII\x00\x00\x00      ", b"UNICODE\x00", b"\x01\x02\x03", b"ASCII\x00\x00\x00Screenshot"]
)
def test_an_empty_or_usual_user_comment_is_none(comment: bytes) -> None:
    assert embedded(jpeg_with(exif({}, {BASE.UserComment: comment}))) == {}


def test_the_comment_of_windows_is_a_caption() -> None:
    assert embedded(jpeg_with(exif({BASE.XPComment: "Käfer".encode("utf-16-le") + b"\x00\x00"}))) == {
        "caption": "Käfer"
    }


@pytest.mark.parametrize(
    ("texts", "caption"),
    [
        ({"Description": "A barn"}, "A barn"),
        ({"Comment": "A barn"}, "A barn"),
        ({"Comment": "Created with GIMP"}, None),
        ({"Description": "Created with GIMP", "Comment": "A barn"}, "A barn"),
        ({"Software": "A barn"}, None),
    ],
)
def test_the_text_of_a_png_is_a_caption(texts: dict[str, str], caption: str | None) -> None:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(buffer, "PNG", pnginfo=info)
    assert embedded(buffer.getvalue()).get("caption") == caption


@pytest.mark.parametrize("caption", ["My first digital camera", "A Sony DSC on a table", "hdr of a barn"])
def test_captions_about_cameras_stay(caption: str) -> None:
    assert embedded(jpeg_with(exif({BASE.ImageDescription: caption}))) == {"caption": caption}


@pytest.mark.parametrize(
    ("written", "taken"),
    [
        ("1968:05:12 10:30:00", "1968-05-12T10:30:00"),
        ("1968:05:12", "1968-05-12"),
        ("1968:05:00 00:00:00", "1968-05"),
        ("1968:00:00 00:00:00", "1968"),
        ("0000:00:00 00:00:00", None),
        ("1968:13:01 00:00:00", None),
        ("1968:02:30", None),
        ("    :  :     :  :  ", None),
        ("yesterday", None),
    ],
)
def test_times(written: str, taken: str | None) -> None:
    assert embedded(jpeg_with(exif(details={BASE.DateTimeOriginal: written}))).get("taken") == taken


@pytest.mark.parametrize(
    "gps",
    [
        place("0 0 0", "N", "0 0 0", "E"),
        place("91 0 0", "N", "7 0 0", "E"),
        {ExifTags.GPS.GPSLatitude: (1.0, 2.0, 3.0)},
    ],
)
def test_positions_that_are_none(gps: dict[int, Any]) -> None:
    assert embedded(jpeg_with(exif({BASE.Model: "C1"}, gps=gps))) == {"camera": "C1"}


def test_long_texts_are_cut() -> None:
    data = xmp(f"<dc:description>{'a' * 9_000}</dc:description><photoshop:City>{'b' * 9_000}</photoshop:City>")
    read = embedded(jpeg_with(xmp=data))
    assert {key: len(value) for key, value in read.items()} == {"caption": MAX_CAPTION, "city": MAX_VALUE}


LAUGHS = "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
HOSTILE = {
    "entities": xmp("<dc:title>&j;</dc:title>", before=f'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">{LAUGHS}]>'),
    "a small entity": xmp("<dc:title>&a;</dc:title>", before='<!DOCTYPE x [<!ENTITY a "expanded">]>'),
    "an external entity": xmp(
        "<dc:title>&a;</dc:title>", before='<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
    ),
    "not closed": XMP[: len(XMP) // 2],
    "no XML": b"\xff\xfe\x00 nothing",
    "deep": b"<a>" * 15_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_packet_gives_nothing_and_the_picture_stays(name: str) -> None:
    assert embedded(jpeg_with(exif({BASE.Artist: "Ada"}), HOSTILE[name])) == {"creator": "Ada"}
    in_utf_16 = HOSTILE[name].decode("utf-8", "replace").replace("\ufeff", "").encode("utf-16")
    assert "title" not in embedded(jpeg_with(xmp=in_utf_16[:65_000]))


def test_a_packet_above_the_limit_is_not_read() -> None:
    inside = "<dc:title>A barn</dc:title>"
    fits = xmp(inside)
    assert embedded(encoded(quadrants(), "WEBP", xmp=fits)) == {"title": "A barn"}
    too_large = xmp(inside + " " * MAX_XMP_BYTES)
    assert embedded(encoded(quadrants(), "WEBP", xmp=too_large)) == {}


def test_damaged_metadata_never_reject_a_picture() -> None:
    numbers = random.Random(7)
    whole = jpeg_with(
        exif(
            {BASE.ImageDescription: "A barn", BASE.Model: "C1"}, {BASE.DateTimeOriginal: "1968:05:12 10:30:00"}, NORTH
        ),
        XMP,
        iptc((2, 120, b"of IPTC"), (2, 90, b"of IPTC")),
    )
    pixels = whole.index(b"\xff\xdb")  # the first table of the picture itself
    damaged = []
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(numbers.randrange(1, 30)):
            # Inside the segments; their markers and lengths tell where the picture begins.
            position = numbers.randrange(24, pixels)
            if whole[position - 3 : position + 1].find(b"\xff") < 0:
                data[position] = numbers.randrange(256)
        damaged.append(bytes(data))
    with DecoderPool(1) as pool:
        results = list(pool.decode_all([whole, *damaged, whole], lambda decoded: dict(decoded.embedded)))
    assert [result for result in results if not isinstance(result, dict)] == []
    assert results[0] == results[-1] == FROM_XMP | {"camera": "C1", "latitude": 51.5085, "longitude": -0.125556}


def test_tags_that_overlap_do_not_fill_the_memory() -> None:
    """5,000 tags, each of which has the same 60,000 bytes as its value: 300 MB."""
    count = 5_000
    body = bytearray(b"II*\x00\x08\x00\x00\x00" + count.to_bytes(2, "little"))
    for number in range(count):
        body += (0x8000 + number).to_bytes(2, "little") + (1).to_bytes(2, "little")
        body += (60_000).to_bytes(4, "little") + (0).to_bytes(4, "little")
    data = jpeg_with()
    segment = b"Exif\x00\x00" + bytes(body)
    bad = data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:]
    with DecoderPool(1, memory_bytes=400_000_000) as pool:
        [result] = pool.decode_all([bad], lambda decoded: dict(decoded.embedded))
    assert result == {}
