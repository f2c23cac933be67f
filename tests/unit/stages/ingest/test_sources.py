"""Listing and reading what users offer. The hostile files are in test_hostile_files."""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragllava.errors import (
    ImageRejected,
    ObjectMissing,
    ObjectTooLarge,
    RejectionClass,
    ServiceUnavailable,
    UsageError,
)
from ragllava.imaging.decode import MAX_BYTES
from ragllava.source_files import SourceFile
from ragllava.stages.ingest import packed
from ragllava.stages.ingest.captions import Captions
from ragllava.stages.ingest.files import is_offered, leads_out, open_regular
from ragllava.stages.ingest.reading import read_sources
from ragllava.stages.ingest.sources import list_sources
from ragllava.stages.ingest.uris import file_uri, member_uri, parse_uri, shown


def fill(folder: Path, *names: str) -> Path:
    """A folder of files that hold their own names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def no_objects(bucket: str, key: str) -> bytes:
    raise AssertionError(f"s3://{bucket}/{key} was read")


def contents(files: list[SourceFile]) -> list[str]:
    """What the listed files hold, read through their uris."""
    texts = []
    for _, content in read_sources([(number, file.uri) for number, file in enumerate(files)], no_objects):
        assert isinstance(content, bytes), content
        texts.append(content.decode())
    return texts


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("a.png", True),
        ("A.JPG", True),
        ("scan.tiff", True),
        ("drawing.svg", True),
        ("0a1b2c3d", True),
        ("image.2023", True),
        ("album.zip", True),
        ("album.tar.gz", True),
        ("album.rar", True),
        ("sub/a.png", True),
        ("a.png.txt", False),
        ("notes.TXT", False),
        ("captions.csv", False),
        ("film.mp4", False),
        ("VID_20240101_00_001.insv", False),  # a 360° camera's
        ("Thumbs.db", False),
        (".DS_Store", False),
        ("._a.png", False),
        (".git/a.png", False),
        ("__MACOSX/a.png", False),
        ("README", False),
        ("changelog.gz", False),
        ("../a.png", True),
    ],
)
def test_a_name_tells_whether_a_file_is_offered(name: str, offered: bool) -> None:
    assert is_offered(name) is offered


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/x", "\\x", "C:\\x", "c:x", "a\\..\\b", ".."])
def test_names_that_lead_out(name: str) -> None:
    assert leads_out(name)


@pytest.mark.parametrize("name", ["a", "a/b", "..a/b..", "./a", "a..png", "..."])
def test_names_that_stay(name: str) -> None:
    assert not leads_out(name)


def test_a_folder_is_listed_in_order_with_relative_names(tmp_path: Path) -> None:
    fill(tmp_path, "b.png", "a.png", "z/c.png", "c/d.png", "c/a/e.png", "notes.txt", ".x/f.png", "empty/.keep")
    files = list(list_sources([tmp_path]))
    assert [file.source for file in files] == ["a.png", "b.png", "c/d.png", "c/a/e.png", "z/c.png"]
    assert contents(files) == [file.source for file in files]
    assert list(list_sources([str(tmp_path)])) == files


def test_a_relative_path_gives_absolute_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "photos/a.png")
    monkeypatch.chdir(tmp_path)
    (file,) = list_sources(["photos"])
    assert file == SourceFile("a.png", f"file://{tmp_path}/photos/a.png")


def test_what_the_user_names_himself_is_always_offered(tmp_path: Path) -> None:
    fill(tmp_path, "notes.txt", ".hidden.png", "a.png", "sub/b.png")
    paths = [tmp_path / "notes.txt", tmp_path / ".hidden.png", tmp_path / "a.png", tmp_path / "sub"]
    assert [file.source for file in list_sources(paths)] == ["notes.txt", ".hidden.png", "a.png", "b.png"]


@pytest.mark.parametrize("path", ["", "  ", "/no/such/path", "nul\x00byte"])
def test_a_path_that_is_not_there_is_an_error_at_once(path: str) -> None:
    with pytest.raises(UsageError):
        list_sources([path])


def test_no_path_is_an_error() -> None:
    with pytest.raises(UsageError, match="no path was given"):
        list_sources([])


def test_links_in_a_circle_list_each_folder_once(tmp_path: Path) -> None:
    fill(tmp_path, "a/one.png", "b/two.png", ".store/three.png")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "b" / "again").symlink_to("../a")
    (tmp_path / "stored").symlink_to(".store")
    files = list(list_sources([tmp_path]))
    assert sorted(contents(files)) == [".store/three.png", "a/one.png", "b/two.png"]


def test_a_linked_zip_is_known_by_the_links_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / ".blob", "w") as package:
        package.writestr("a.png", "inside")
    (tmp_path / "album.zip").symlink_to(".blob")
    (file,) = list_sources([tmp_path])
    assert file.source == "album.zip/a.png"
    assert contents([file]) == ["inside"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "locked/a.png", "b.png")
    (tmp_path / "locked").chmod(0)
    try:
        files = {file.source: file.rejected for file in list_sources([tmp_path])}
    finally:
        (tmp_path / "locked").chmod(0o700)
    if os.geteuid() == 0:
        assert files == {"b.png": None, "locked/a.png": None}  # root may read anything
    else:
        reason = "the folder: it cannot be read: permission denied"
        assert files == {"b.png": None, "locked": (RejectionClass.UNREADABLE, reason)}


def test_sidecars_give_captions_and_a_caption_file_wins(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.jpg", "c.png", "sub/d.png")
    (tmp_path / "a.txt").write_text("from a.txt")
    (tmp_path / "a.png.txt").write_text("from a.png.txt\nsecond line")
    (tmp_path / "b.txt").write_text("from b.txt")
    outside = fill(tmp_path.parent / f"{tmp_path.name}-outside", "secret.txt") / "secret.txt"
    (tmp_path / "c.txt").symlink_to(outside)
    captions = {file.source: file.caption for file in list_sources([tmp_path])}
    assert captions == {"a.png": "from a.png.txt second line", "b.jpg": "from b.txt", "c.png": None, "sub/d.png": None}
    (single,) = list_sources([tmp_path / "b.jpg"])
    assert single.caption == "from b.txt"
    by_picture = Captions({"b.jpg": "from the caption file", "d.png": "by name", "none.png": "unused"})
    captions = {file.source: file.caption for file in list_sources([tmp_path], by_picture)}
    assert captions == {
        "a.png": "from a.png.txt second line",
        "b.jpg": "from the caption file",
        "c.png": None,
        "sub/d.png": "by name",
    }
    assert by_picture.unused() == ["none.png"]


@given(st.binary(min_size=1, max_size=40).filter(lambda name: b"\x00" not in name), st.binary(max_size=40))
def test_any_name_survives_the_way_through_a_uri(path: bytes, member: bytes) -> None:
    absolute = "/" + os.fsdecode(path)
    assert parse_uri(file_uri(absolute)).path == absolute
    name = member.decode("utf-8", "surrogateescape")
    uri = member_uri("tar", absolute, name)
    location = parse_uri(uri)
    assert (location.scheme, location.path, location.member) == ("tar", absolute, name)
    assert re.fullmatch(r"tar://[A-Za-z0-9/_.~%-]+![A-Za-z0-9/_.~%-]*", uri)
    assert shown(absolute).isprintable()


@pytest.mark.parametrize("uri", ["", "a.png", "http://host/a.png", "file:/a", "zip:///a.zip", "s3://bucket"])
def test_other_uris_are_rejected_one_by_one(uri: str, tmp_path: Path) -> None:
    fill(tmp_path, "a.png")
    results = dict(read_sources([(1, uri), (2, file_uri(tmp_path / "a.png"))], no_objects))
    assert isinstance(results[1], ImageRejected)
    assert results[2] == b"a.png"


def test_what_changed_since_the_listing_is_a_rejection_of_that_file(tmp_path: Path) -> None:
    fill(tmp_path, "gone.png", "good.png", "grown.png", "pipe.png")
    files = list(list_sources([tmp_path]))
    (tmp_path / "gone.png").unlink()
    (tmp_path / "pipe.png").unlink()
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait for ever
    os.truncate(tmp_path / "grown.png", MAX_BYTES + 1)
    results = [content for _, content in read_sources([(no, file.uri) for no, file in enumerate(files)], no_objects)]
    assert results[1] == b"good.png"
    assert "disappeared" in str(results[0])
    assert "200 MB" in str(results[2])
    assert "pipe" in str(results[3])


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    os.truncate(tmp_path / "a.png", MAX_BYTES)
    ((_, content),) = read_sources([(0, file_uri(tmp_path / "a.png"))], no_objects)
    assert isinstance(content, bytes)
    assert len(content) == MAX_BYTES


def test_objects_are_read_through_the_store() -> None:
    store = {("bucket", "a b/ü!.png"): b"pixels"}

    def open_object(bucket: str, key: str) -> bytes:
        if key == "down":
            raise ServiceUnavailable("the store does not answer")
        if key == "large":
            raise ObjectTooLarge("in other words")
        try:
            return store[bucket, key]
        except KeyError:
            raise ObjectMissing(key) from None

    files = [(5, "s3://bucket/a%20b/%C3%BC%21.png"), (6, "s3://bucket/missing.png"), (7, "s3://bucket/large")]
    (picture, missing, large) = read_sources(files, open_object)
    assert picture == (5, b"pixels")
    assert missing[0] == 6
    assert "disappeared" in str(missing[1])
    assert isinstance(large[1], ImageRejected)
    assert large[1].rejection == (RejectionClass.TOO_LARGE, "in other words")
    with pytest.raises(ServiceUnavailable):
        list(read_sources([(7, "s3://bucket/down")], open_object))


def write_zip(path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
        for name in names:
            package.writestr(name, name)


def write_tar(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w:") as package:
        for name in names:
            source = path.with_suffix(".member")
            source.write_text(name)
            package.add(source, name)
            source.unlink()


PACKERS: list[tuple[str, Callable[[Path, list[str]], None]]] = [
    ("a.zip", write_zip),
    ("a.tar", write_tar),
    ("a.tar.gz", write_tar),
]


@pytest.mark.parametrize(("name", "pack"), PACKERS)
def test_members_are_read_in_one_pass_whatever_is_asked(
    tmp_path: Path, name: str, pack: Callable[[Path, list[str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"folder {number % 3}/{number}.png" for number in range(40)]
    pack(tmp_path / name, names)
    opened: list[str] = []

    def counting_open(path: str) -> BinaryIO:
        opened.append(path)
        return open_regular(path)

    monkeypatch.setattr(packed, "open_regular", counting_open)
    files = list(list_sources([tmp_path / name]))
    assert [file.source for file in files] == [f"{name}/{member}" for member in names]
    opened.clear()
    asked = [(number, files[number].uri) for number in (7, 3, 39, 3, 0)]
    asked.append((99, member_uri(files[0].uri[:3], tmp_path / name, "missing.png")))
    results = list(read_sources(asked, no_objects))
    assert len(opened) == 1
    assert sorted(number for number, _ in results) == [0, 3, 3, 7, 39, 99]
    for number, content in results:
        if number == 99:
            assert "disappeared" in str(content)
        else:
            assert content == names[number].encode()


@pytest.mark.parametrize(("name", "pack"), PACKERS)
def test_a_packed_file_that_disappeared_rejects_its_members(
    tmp_path: Path, name: str, pack: Callable[[Path, list[str]], None]
) -> None:
    pack(tmp_path / name, ["a.png", "b.png"])
    fill(tmp_path, "c.png")
    files = list(list_sources([tmp_path / name, tmp_path / "c.png"]))
    (tmp_path / name).unlink()
    results = dict(read_sources([(number, file.uri) for number, file in enumerate(files)], no_objects))
    assert results.pop(2) == b"c.png"
    assert all("disappeared" in str(result) for result in results.values())
    assert len(results) == 2


@pytest.mark.parametrize(("name", "pack"), PACKERS)
def test_too_many_members_reject_the_packed_file(
    tmp_path: Path, name: str, pack: Callable[[Path, list[str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "MAX_MEMBERS", 3)
    pack(tmp_path / name, [f"{number}.png" for number in range(4)])
    *_, last = list_sources([tmp_path / name])
    assert last.source == name
    assert "3 members" in str(last.rejected)


def test_many_small_bombs_in_a_zip_are_one_large_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "TOTAL_FLOOR", 5_000_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as package:
        for number in range(20):
            package.writestr(f"{number}.png", bytes(900_000))  # each below the floor of a single member
    files = list(list_sources([tmp_path / "a.zip"]))
    assert [file.rejected for file in files[:-1]] == [None] * 5
    assert files[-1].source == "a.zip"
    assert "bomb" in str(files[-1].rejected)


def test_a_zip_that_lies_about_sizes_cannot_make_us_read_more(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
        package.writestr("a.png", bytes(60_000_000))
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = (1_000).to_bytes(4, "little")  # the unpacked size
    path.write_bytes(data)
    (file,) = list_sources([path])
    ((_, content),) = read_sources([(0, file.uri)], no_objects)
    assert isinstance(content, ImageRejected)


def test_a_tar_with_a_negative_size_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, ["a.png", "b.png"])
    data = bytearray(path.read_bytes())
    start = data.index(b"b.png")
    header = bytearray(data[start : start + 512])
    header[124:136] = b"\xff" * 10 + (0x10000 - 1024).to_bytes(2, "big")  # -1024 in base 256: back to where we were
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    data[start : start + 512] = header
    path.write_bytes(data)
    files = list(list_sources([path]))
    assert [file.rejected is None for file in files] == [True, False]
    assert "negative" in str(files[1].rejected)


@pytest.mark.skipif(not Path("/usr/share/tuxpaint/stamps").is_dir(), reason="tuxpaint-stamps-default is not installed")
def test_the_stamps_of_tuxpaint_have_their_english_captions() -> None:
    files = {file.source: file for file in list_sources(["/usr/share/tuxpaint/stamps"])}
    assert files["animals/amphibians/frog.png"].caption == "A frog."
    assert len(files) > 900
    assert sum(file.caption is not None for file in files.values()) > 0.95 * len(files)


CLUTTER = [
    "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg",
    "#recycle/gone.jpg",
    "$RECYCLE.BIN/S-1-5/gone.jpg",
    "System Volume Information/x.jpg",
    "lost+found/x.jpg",
    "Ours.photoslibrary/resources/derivatives/a.jpg",
    "Ours.photoslibrary/database/a.jpg",
    "Catalog Previews.lrdata/1/2.lrprev",
]


def test_thumbnails_and_deleted_files_of_other_programs_are_left_out(tmp_path: Path) -> None:
    originals = ["Ours.photoslibrary/originals/1/a.heic", "resources/a.jpg"]
    folder = fill(tmp_path / "nas", *CLUTTER, *originals)
    assert sorted(file.source for file in list_sources([folder])) == sorted(originals)
    library = [file.source for file in list_sources([folder / "Ours.photoslibrary"])]
    assert library == ["originals/1/a.heic"]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as package:
        for name in (*CLUTTER, *originals):
            package.writestr(name, name)
    members = [file.source for file in list_sources([tmp_path / "all.zip"])]
    assert sorted(members) == sorted(f"all.zip/{name}" for name in originals)


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ((), {"a.jpg", "B.PDF", "2019/a.jpg", "2019/drafts/c.jpg", "2020/thumb_1.jpg"}),
        (("*.pdf",), {"a.jpg", "2019/a.jpg", "2019/drafts/c.jpg", "2020/thumb_1.jpg"}),
        (("drafts",), {"a.jpg", "B.PDF", "2019/a.jpg", "2020/thumb_1.jpg"}),
        (("2019/", "thumb_*"), {"a.jpg", "B.PDF"}),
        (("2019/*",), {"a.jpg", "B.PDF", "2020/thumb_1.jpg"}),
        (("2019/drafts",), {"a.jpg", "B.PDF", "2019/a.jpg", "2020/thumb_1.jpg"}),
        (("a.jpg",), {"B.PDF", "2019/drafts/c.jpg", "2020/thumb_1.jpg"}),
    ],
)
def test_files_and_folders_are_excluded_by_patterns(patterns: tuple[str, ...], left: set[str], tmp_path: Path) -> None:
    folder = fill(tmp_path, "a.jpg", "B.PDF", "2019/a.jpg", "2019/drafts/c.jpg", "2020/thumb_1.jpg")
    assert {file.source for file in list_sources([folder], exclude=patterns)} == left
