"""Captions that lie beside pictures, in folders and in packed files, and what a listing passes over."""

from __future__ import annotations

import io
import json
import tarfile
import unicodedata
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest

from ragllava.source_files import SourceFile
from ragllava.stages.ingest.captions import Captions, read_captions
from ragllava.stages.ingest.listing import Listing
from ragllava.stages.ingest.reading import read_sources
from ragllava.stages.ingest.sources import list_sources

TAKEOUT = json.dumps({"title": "t.jpg", "description": "A boat", "photoTakenTime": {"timestamp": "0"}})
FILES = {
    "a.png": "",
    "b.png": "",
    "c.png": "",
    "t.jpg": "",
    "captions.csv": 'file,caption,Year\na.png,"Old Mill, Wenby",1932\nb.png,,\nsub/d.png,from above,\nnone.png,x,\n',
    "metadata.jsonl": '{"file_name": "a.png", "text": "not this one"}\n{"file_name": "c.png", "text": "A gate"}\n',
    "a.txt": "a sidecar",
    "c.caption": "a sidecar, too",
    "t.jpg.supplemental-metadata.json": TAKEOUT,
    "sub/d.png": "",
    "sub/e.png": "",
    "sub/captions.csv": "file;caption\nd.png;from beside\ne.png;The quay\n",
    "notes.txt": "of no picture",
    "film.mp4": "",
    "film2.MP4": "",
    "paper.doc": "",
    ".hidden": "",
}
CAPTIONS = {
    "a.png": "Old Mill, Wenby",
    "b.png": "",
    "c.png": "A gate",
    "t.jpg": "A boat",
    "sub/d.png": "from beside",
    "sub/e.png": "The quay",
}


def in_folder(path: Path, files: Mapping[str, str]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(content)
    return path


def in_zip(path: Path, files: Mapping[str, str]) -> Path:
    with zipfile.ZipFile(path / "p.zip", "w") as package:
        for name, content in files.items():
            package.writestr(name, content)
    return path / "p.zip"


def in_tar(path: Path, files: Mapping[str, str]) -> Path:
    with tarfile.open(path / "p.tar.gz", "w:gz") as package:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content.encode())
            package.addfile(info, io.BytesIO(content.encode()))
    return path / "p.tar.gz"


def listed(path: Path, listing: Listing | None = None, captions: Captions | None = None) -> dict[str, SourceFile]:
    files = list_sources([path], captions, listing)
    return {file.source.removeprefix("p.zip/").removeprefix("p.tar.gz/"): file for file in files}


@pytest.mark.parametrize("pack", [in_folder, in_zip, in_tar])
def test_captions_beside_pictures_are_used_and_the_rest_is_counted(tmp_path: Path, pack: type) -> None:
    listing = Listing()
    files = listed(pack(tmp_path, FILES), listing)
    assert {source: file.caption for source, file in files.items()} == CAPTIONS
    assert files["a.png"].metadata == {"year": "1932"}
    assert files["t.jpg"].metadata == {"taken": "1970-01-01T00:00:00Z"}
    assert listing.passed_over == {".mp4": 2, ".doc": 1, ".txt": 1}
    assert listing.passed_kinds() == "2 .mp4, 1 .doc, 1 .txt"
    assert (listing.listed_captions, listing.without_file) == (8, 1)


@pytest.mark.parametrize("pack", [in_folder, in_zip, in_tar])
def test_a_caption_file_that_is_named_wins_over_those_beside(tmp_path: Path, pack: type) -> None:
    named = Captions({"a.png": "named", "b.png": "", "c.png": ""})
    captions = {source: file.caption for source, file in listed(pack(tmp_path, FILES), captions=named).items()}
    assert captions == CAPTIONS | {"a.png": "named"}


def test_the_named_file_is_not_read_twice(tmp_path: Path) -> None:
    folder = in_folder(tmp_path, {"a.png": "", "captions.csv": "file,caption\na.png,x\ngone.png,y\n"})
    listing = Listing()
    path = folder / "captions.csv"
    list(list_sources([folder], read_captions(path), listing, captions_path=path))
    assert listing.listed_captions == 0


@pytest.mark.parametrize("pack", [in_folder, in_zip, in_tar])
def test_a_file_that_is_no_caption_file_is_said(tmp_path: Path, pack: type) -> None:
    listing = Listing()
    files = listed(pack(tmp_path, {"x/a.png": "", "x/metadata.csv": "sensor,value\n1,2\n"}), listing)
    assert files["x/a.png"].caption is None
    (note,) = listing.notes
    assert "x/metadata.csv: not used" in note


def test_samples_of_webdataset_share_their_files(tmp_path: Path) -> None:
    files = {
        "00/1.left.png": "",
        "00/1.right.png": "",
        "00/1.txt": "Two views",
        "00/2.jpg": "",
        "00/2.json": json.dumps({"caption": "only here", "key": "2", "width": 3}),
        "00/2.cls": "7",
    }
    found = listed(in_tar(tmp_path, files))
    assert {source: file.caption for source, file in found.items() if not source.endswith(".cls")} == {
        "00/1.left.png": "Two views",
        "00/1.right.png": "Two views",
        "00/2.jpg": "only here",
    }
    assert found["00/2.jpg"].metadata == {"width": 3}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_of_a_zip_in_utf_8_without_the_flag(tmp_path: Path, form: Literal["NFC", "NFD"]) -> None:
    name = unicodedata.normalize(form, "Schl\u00f6\u00df/\u5199\u771f.png").encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as package:
        package.writestr("A" * len(name), "content")
        package.writestr("plain.png", "plain")
    (tmp_path / "p.zip").write_bytes(buffer.getvalue().replace(b"A" * len(name), name))
    captions = Captions({"Schl\u00f6\u00df/\u5199\u771f.png": "photo"})
    files = list(list_sources([tmp_path / "p.zip"], captions))
    assert [file.source for file in files] == [f"p.zip/{name.decode()}", "p.zip/plain.png"]
    assert files[0].caption == "photo"
    contents = dict(read_sources(list(enumerate(file.uri for file in files)), lambda *_: b""))
    assert contents == {0: b"content", 1: b"plain"}


def test_other_names_of_a_zip_stay_as_they_were(tmp_path: Path) -> None:
    name = "Schl\u00f6\u00df.png".encode("cp437")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as package:
        package.writestr("A" * len(name), "content")
    (tmp_path / "p.zip").write_bytes(buffer.getvalue().replace(b"A" * len(name), name))
    (file,) = list_sources([tmp_path / "p.zip"])
    assert file.source == "p.zip/Schl\u00f6\u00df.png"


def test_cut_captions_are_counted(tmp_path: Path) -> None:
    listing = Listing()
    listed(in_folder(tmp_path, {"a.png": "", "a.txt": "word " * 1000, "b.png": "", "b.txt": "short"}), listing)
    assert listing.cut == 1


def test_sidecars_are_found_in_any_case(tmp_path: Path) -> None:
    files = listed(in_folder(tmp_path, {"IMG_1.JPG": "", "IMG_1.TXT": "A gate", "IMG_2.jpg": "", "img_2.Xmp": "<x/>"}))
    assert {source: file.caption for source, file in files.items()} == {"IMG_1.JPG": "A gate", "IMG_2.jpg": None}
