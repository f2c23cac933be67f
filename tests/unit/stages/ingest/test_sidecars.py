"""Files beside a picture that describe it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ragllava.metadata import MAX_CAPTION
from ragllava.stages.ingest.captions import NOTHING, Description
from ragllava.stages.ingest.sidecars import MAX_SIDECAR_BYTES, combined, read_sidecar, sidecar_names

XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/"
 photoshop:City="Wenby"><dc:description><rdf:Alt><rdf:li xml:lang="x-default">A barn</rdf:li></rdf:Alt></dc:description>
</rdf:Description></rdf:RDF></x:xmpmeta>"""


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"A frog.\nde.utf8=Ein Frosch.\npt_BR.utf8=Um sapo.\n", "A frog."),
        (
            b"A barn in Wenby,\nseen from the road\n\nin the year 1932.\n",
            "A barn in Wenby, seen from the road in the year 1932.",
        ),
        (b"\xef\xbb\xbf\r\n \r\n  A   frog. \r\n", "A frog."),
        ("Ein K\u00e4fer.".encode("utf-16"), "Ein K\u00e4fer."),
        ("Ein K\u00e4fer.".encode("cp1252"), "Ein K\u00e4fer."),
        (b"nul\x00 inside\n", "nul inside"),
        (b"0 0.51 0.48 0.2 0.33\n2 0.1 0.1 0.05 0.05\n", None),  # boxes for a detector
        (b"1932", None),
        (b" \n\n", ""),
        (b"", ""),
        (b"x" * 5_000, "x" * MAX_CAPTION),
        (
            ("K\u00e4fer\n" + "\u00e4" * MAX_SIDECAR_BYTES).encode()[:MAX_SIDECAR_BYTES],
            "K\u00e4fer " + "\u00e4" * (MAX_CAPTION - 6),
        ),
    ],
)
def test_the_lines_of_a_text_are_its_caption(data: bytes, expected: str | None) -> None:
    assert read_sidecar("a.txt", data).caption == expected
    assert read_sidecar("a.caption", data).caption == expected


def test_an_xmp_file_says_what_a_packet_in_the_picture_says() -> None:
    assert read_sidecar("a.xmp", XMP.encode()) == Description("A barn", {"city": "Wenby"})


@pytest.mark.parametrize("data", [b"<x/>", b"<x", b"", b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", b"\xff" * 100])
def test_a_damaged_or_hostile_xmp_file_says_nothing(data: bytes) -> None:
    assert read_sidecar("a.xmp", data) == NOTHING


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            {
                "title": "IMG_7.jpg",
                "description": "The barn",
                "photoTakenTime": {"timestamp": "1558261800", "formatted": "19 May 2019"},
                "geoData": {"latitude": 48.1, "longitude": 11.5, "altitude": 0.0},
                "people": [{"name": "Ada"}],
                "url": "https://photos.example/7",
            },
            Description(
                "The barn",
                {"taken": "2019-05-19T10:30:00Z", "latitude": 48.1, "longitude": 11.5, "people": ["Ada"]},
            ),
        ),
        (
            {"title": "a.jpg", "description": "", "photoTakenTime": {"timestamp": "x"}, "geoData": {"latitude": 0.0}},
            NOTHING,
        ),
        (
            {"caption": "A barn", "key": "000", "width": 640, "status": "success", "url": "http://example.org/a.jpg"},
            Description("A barn", {"width": 640, "url": "http://example.org/a.jpg"}),
        ),
        ({"text": ["A barn.", "A red barn."]}, Description("A barn. A red barn.")),
        ({"shapes": [], "imageData": "x" * 100}, NOTHING),
        ({"title": "an album"}, Description("an album")),
        ([1, 2], NOTHING),
        ("text", NOTHING),
    ],
)
def test_json_of_takeout_and_of_data_sets(value: Any, expected: Description) -> None:
    assert read_sidecar("a.json", json.dumps(value).encode()) == expected


def test_json_that_is_none_says_nothing() -> None:
    assert read_sidecar("a.json", b"{") == NOTHING
    assert read_sidecar("a.json", b"[" * 100_000) == NOTHING


@pytest.mark.parametrize(
    ("picture", "sidecar"),
    [
        ("x/a.png", "x/a.png.txt"),
        ("x/a.png", "x/a.txt"),
        ("a.png", "a.caption"),
        ("a.png", "a.xmp"),
        ("a.png", "a.png.xmp"),
        ("a.jpg", "a.jpg.json"),
        ("a.jpg", "a.jpg.supplemental-metadata.json"),
        ("a-rather-long-name-of-a-picture.jpg", "a-rather-long-name-of-a-picture.jpg.supplement.json"),
        (
            "the-longest-name-of-a-picture-that-was-taken-in-1932.jpg",
            "the-longest-name-of-a-picture-that-was-taken-i.json",
        ),
        ("a(2).jpg", "a.jpg(2).json"),
        ("a(2).jpg", "a.jpg.supplemental-metadata(2).json"),
    ],
)
def test_names_of_sidecars(picture: str, sidecar: str) -> None:
    assert sidecar in sidecar_names(picture)


def test_the_files_of_a_sample_share_their_name_up_to_the_first_dot() -> None:
    assert "s.1/7.txt" in sidecar_names("s.1/7.left.png", of_sample=True)
    assert "s.1/7.txt" not in sidecar_names("s.1/7.left.png")


def test_the_first_sidecar_with_a_caption_wins_and_all_give_metadata() -> None:
    said = [
        Description("", None),
        Description(None, {"city": "Wenby"}),
        Description("text", {"city": "x", "year": 1932}),
    ]
    assert combined(said) == Description("text", {"city": "Wenby", "year": 1932})
    assert combined([Description("")]) == Description("")
    assert combined([]) == NOTHING
