"""Caption files."""

from __future__ import annotations

import csv
import datetime
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragllava.errors import InvalidInput, UsageError
from ragllava.metadata import MAX_CAPTION, clean_caption
from ragllava.stages.ingest.captions import Captions, Columns, Description, read_beside, read_captions

NAMES = st.text("abcdefgh0123äß _-", min_size=1, max_size=12).map(lambda name: f"p{name}.png")
TEXTS = st.text(max_size=60)


def captions_of(path: Path, content: str | bytes) -> Captions:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_captions(path)


def assigned(by_picture: Captions, sources: list[str]) -> list[str | None]:
    """The captions of these files."""
    return [description.caption for description in by_picture.assign(sources)]


def errors_of(path: Path, content: str | bytes) -> list[tuple[str, int, str]]:
    with pytest.raises(InvalidInput) as caught:
        captions_of(path, content)
    return [(error.code, error.line, error.message) for error in caught.value.errors]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_usual_csv_is_read(tmp_path: Path, encoding: str, delimiter: str, end: str) -> None:
    rows = [["id", "File_Name", "Caption"], ["1", "a.png", "A cat, black; small"], ["2", "b.png", 'Two "dogs"']]
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter, lineterminator=end).writerows(rows)
    by_picture = captions_of(tmp_path / "captions.csv", stream.getvalue().encode(encoding))
    assert assigned(by_picture, ["a.png", "b.png", "c.png"]) == ["A cat, black; small", 'Two "dogs"', None]


@given(captions=st.dictionaries(NAMES, TEXTS, max_size=8), kind=st.sampled_from(["csv", "jsonl", "json", "parquet"]))
def test_every_format_gives_back_the_clean_captions(
    tmp_path_factory: pytest.TempPathFactory, captions: dict[str, str], kind: str
) -> None:
    path = tmp_path_factory.mktemp("captions") / f"captions.{kind}"
    entries = [{"image": name, "caption": text} for name, text in captions.items()]
    if kind == "csv":
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, ["image", "caption"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(entries)
        path.write_text(stream.getvalue(), "utf-8", newline="")
    elif kind == "parquet":
        columns = {"image": list(captions), "caption": list(captions.values())}
        schema = pyarrow.schema([("image", pyarrow.string()), ("caption", pyarrow.string())])
        pyarrow.parquet.write_table(pyarrow.table(columns, schema), path)
    else:
        lines = [json.dumps(entry) for entry in entries]
        path.write_text(f"[{','.join(lines)}]" if kind == "json" else "\n".join(lines))
    by_picture = read_captions(path)
    assert assigned(by_picture, list(captions)) == [clean_caption(text) or "" for text in captions.values()]
    assert by_picture.unused() == []


@given(st.text())
def test_a_clean_caption_is_storable_and_on_one_line(text: str) -> None:
    caption = clean_caption(text)
    if caption is None:
        assert not text.replace("\x00", "").replace("\ufeff", "").strip()
    else:
        assert len(caption) <= MAX_CAPTION
        assert "\x00" not in caption
        assert caption.splitlines() == [caption]
        assert caption == caption.strip() == clean_caption(caption)
        caption.encode("utf-8")


def test_several_captions_of_a_picture_are_joined_and_empty_ones_skipped(tmp_path: Path) -> None:
    text = "image,caption\na.png,A cat.\na.png,A black cat.\n./a.png,A cat.\nb.png,\n"
    by_picture = captions_of(tmp_path / "captions.txt", text)
    assert assigned(by_picture, ["a.png", "b.png", "c.png"]) == ["A cat. A black cat.", "", None]
    assert len(by_picture) == 2


def test_other_columns_are_metadata(tmp_path: Path) -> None:
    rows = [
        {"file": "a.png", "caption": "A barn", "Photo Year": 1968, "tags": ["x"], "public": False, "text": "more"},
        {"file": "b.png", "caption": None, "place": {"city": "Ansel"}},
        {"file": "c.png", "caption": ""},
    ]
    by_picture = captions_of(tmp_path / "captions.json", json.dumps(rows))
    assert by_picture.assign(["a.png", "b.png", "c.png"]) == [
        Description("A barn", {"photo_year": 1968, "tags": ["x"], "public": False, "text": "more"}),
        Description("", {"place_city": "Ansel"}),
        Description(""),
    ]


def test_cells_of_a_csv_stay_text_and_empty_ones_are_left_out(tmp_path: Path) -> None:
    text = "File,Caption,Year,,Source,Day\na.png,A barn,1968,x,Library,1968-05-12\nb.png,,,,,\nc.png,A boat\n"
    by_picture = captions_of(tmp_path / "captions.csv", text)
    assert by_picture.assign(["a.png", "b.png", "c.png"]) == [
        Description("A barn", {"year": "1968", "source_": "Library", "day": "1968-05-12"}),
        Description(""),
        Description("A boat"),
    ]


def test_several_rows_of_a_picture_are_one_description(tmp_path: Path) -> None:
    text = "file,caption,by,city\na.png,One.,Ada,Ansel\n./a.png,Two.,Bob,Ansel\na.png,,Ada,\n"
    by_picture = captions_of(tmp_path / "captions.csv", text)
    assert by_picture.assign(["a.png"]) == [Description("One. Two.", {"by": ["Ada", "Bob"], "city": "Ansel"})]


def test_columns_of_parquet_keep_their_types_and_bytes_are_not_read(tmp_path: Path) -> None:
    columns = {
        "File": ["a.png"],
        "caption": ["A barn"],
        "year": pyarrow.array([1968], pyarrow.int32()),
        "day": pyarrow.array([datetime.date(1968, 5, 12)]),
        "tags": pyarrow.array([["x", "y"]]),
        "city": pyarrow.array(["Ansel"]).dictionary_encode(),
        "image_data": pyarrow.array([b"bytes"]),
        "picture": pyarrow.array([{"path": "a.png", "bytes": b"bytes"}]),
        "size": pyarrow.array([{"width": 3, "height": 2}]),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "captions.parquet")
    assert read_captions(tmp_path / "captions.parquet").assign(["a.png"]) == [
        Description(
            "A barn",
            {
                "year": 1968,
                "day": "1968-05-12",
                "tags": ["x", "y"],
                "city": "Ansel",
                "size_width": 3,
                "size_height": 2,
            },
        )
    ]


def test_a_cell_that_is_not_utf_8_spoils_only_a_caption_or_a_name(tmp_path: Path) -> None:
    utf_8 = "b.png,Käfer,Zoë\n".encode()
    by_picture = captions_of(tmp_path / "c.csv", b"file,caption,by\na.png,A barn,Ren\xe9\n" + utf_8)
    assert by_picture.assign(["a.png"]) == [Description("A barn", {"by": "Ren?"})]
    errors = errors_of(tmp_path / "c.csv", b"file,caption,by\na.png,A b\xe4rn,Ada\n" + utf_8)
    assert errors[0][:2] == ("invalid_encoding", 2)


def test_a_quoted_cell_may_span_lines_and_errors_still_name_the_right_one(tmp_path: Path) -> None:
    text = 'image,caption\na.png,"two\nlines"\n\nonly-one-cell\n,no name\nb.png,good\n'
    assert [error[:2] for error in errors_of(tmp_path / "c.csv", text)] == [
        ("missing_column", 5),
        ("invalid_image", 6),
    ]


@pytest.mark.parametrize(
    ("row", "lines"),
    [('b.jpg,"Old Mill, Wenby\nc.jpg,Third\n', [3, 4]), ('b.jpg,"Old" Mill\nc.jpg,"Third"\n', [3])],
)
def test_a_stray_quote_is_named_and_takes_no_other_caption(tmp_path: Path, row: str, lines: list[int]) -> None:
    errors = errors_of(tmp_path / "c.csv", f"image,caption\na.jpg,First\n{row}")
    assert [error[:2] for error in errors] == [("invalid_csv_line", line) for line in lines]


def test_a_missing_column_is_named_with_those_found(tmp_path: Path) -> None:
    ((code, line, message),) = errors_of(tmp_path / "c.csv", "picture;caption\na.png;x\n")
    assert (code, line) == ("missing_column", 0)
    assert "file_name" in message
    assert "picture" in message
    ((_, _, message),) = errors_of(tmp_path / "d.csv", "image,alt\na.png,x\n")
    assert "caption" in message
    assert '"image", "alt"' in message
    assert "--caption-column" in message
    ((_, _, message),) = errors_of(tmp_path / "e.csv", "")
    assert "found none" in message


def test_lines_that_are_wrong_are_all_reported(tmp_path: Path) -> None:
    lines = ['{"image": "a.png", "caption": "ok"}', "{", "", "[1]", '{"image": "b.png"}', '{"image": 7, "text": 8}']
    assert [error[:2] for error in errors_of(tmp_path / "c.jsonl", "\n".join(lines))] == [
        ("invalid_json_line", 2),
        ("invalid_json_line", 4),
        ("missing_column", 5),
        ("invalid_caption", 6),
    ]


@pytest.mark.parametrize(
    ("name", "content", "code", "line"),
    [
        ("c.json", b'[{"image": "a", "caption": "b"},\n oops]', "invalid_json_line", 2),
        ("c.json", b"[" * 100_000, "invalid_json_line", 0),
        ("c.json", b'[{"image": "a", "caption": "b"}, 3]', "invalid_json_line", 2),
        ("c.csv", b"image,caption\na.png,caf\xe9 \xc3\xa9\n", "invalid_encoding", 2),
        ("c.csv", b"image,caption\na.png,\xef\xe5\xf1\xed\xff\n", "invalid_encoding", 2),  # Windows-1251
        ("c.csv.gz", b"\x1f\x8b no gzip", "invalid_gzip", 0),
        ("c.xlsx", b"PK\x03\x04 no Excel", "invalid_xlsx", 0),
        ("c.json", b'[{"image": "a", "caption": "b"},\n{"image": "c", "caption": "caf\xe9"}]', "invalid_encoding", 2),
        ("c.csv", "image,caption\na.png,x\n".encode("utf-16")[:-1], "invalid_encoding", 0),
        ("c.csv", b'image,caption\nb.png,x\na.png,"' + b"x" * 200_000 + b'"\n', "invalid_csv_line", 3),
        ("c.parquet", b"PAR1 no parquet", "invalid_parquet", 0),
    ],
)
def test_damage_is_reported_where_it_is(tmp_path: Path, name: str, content: bytes, code: str, line: int) -> None:
    assert [error[:2] for error in errors_of(tmp_path / name, content)] == [(code, line)]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image": [b"a.png"], "caption": ["x"]}, ("invalid_image", 1)),
        ({"image": ["a.png", "b.png"], "caption": [[1], [2]]}, ("invalid_caption", 1)),
        ({"id": [1], "caption": ["x"]}, ("missing_column", 0)),
    ],
)
def test_parquet_of_other_types_is_refused(
    tmp_path: Path, columns: dict[str, list[Any]], expected: tuple[str, int]
) -> None:
    path = tmp_path / "c.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(InvalidInput) as caught:
        read_captions(path)
    first = caught.value.errors[0]
    assert (first.code, first.line) == expected


def test_files_that_cannot_be_read_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing\.csv cannot be read: No such file"):
        read_captions(tmp_path / "missing.csv")
    with pytest.raises(UsageError, match=r"ends in \.csv"):
        read_captions(tmp_path / "captions.docx")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match="directory"):
        read_captions(tmp_path / "folder.csv")


def test_a_caption_with_a_comma_outside_quotes_is_refused_not_cut(tmp_path: Path) -> None:
    content = 'file,caption\na.png,Old Mill, Wenby, 1932\nb.png,"Old Mill, Wenby",\nc.png,Barn,,\n'
    assert [error[:2] for error in errors_of(tmp_path / "c.csv", content)] == [("invalid_csv_line", 2)]


def test_columns_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("Bild;Datei;Legende;caption\n1;a.png;Das Tor;x\n")
    by_picture = read_captions(tmp_path / "c.csv", Columns("datei", "LEGENDE"))
    assert by_picture.assign(["a.png"]) == [Description("Das Tor", {"bild": "1", "caption_": "x"})]


def test_a_file_beside_pictures_need_not_be_right() -> None:
    wrong = b"file_name,text\na.png,Barn, red\nb.png,Mill\n"
    captions = read_beside("metadata.csv", wrong)
    assert dict(captions.items()) == {"b.png": Description("Mill")}
    assert captions.notes == (
        "metadata.csv: 1 rows were passed over; the first is line 2: the record has 3 cells under 2 columns; put texts "
        "with commas in double quotes",
    )
    only_metadata = read_beside("metadata.csv", b"file_name,Year\na.png,1932\n")
    assert dict(only_metadata.items()) == {"a.png": Description(None, {"year": "1932"})}
    other = read_beside("metadata.csv", b"sensor,reading\n1,2\n")
    assert len(other) == 0
    assert "metadata.csv: not used" in other.notes[0]


def test_a_caption_that_is_too_long_is_known_to_be_cut(tmp_path: Path) -> None:
    content = f"file,caption\na.png,{'x' * MAX_CAPTION}\nb.png,{'y ' * MAX_CAPTION}\n"
    a, b = captions_of(tmp_path / "c.csv", content).assign(["a.png", "b.png"])
    assert (a.is_cut, b.is_cut) == (False, True)


def test_a_row_names_a_page_of_a_document(tmp_path: Path) -> None:
    by_picture = captions_of(
        tmp_path / "captions.csv",
        "file,caption,year\n"
        "scans/album.pdf,The album,\n"
        "album.pdf#page=2,A lighthouse,1932\n"
        "album.pdf#page=0,Nothing,\n"
        "other.pdf#page=1,Elsewhere,\n",
    )
    [album, picture] = by_picture.assign(["scans/album.pdf", "a.png"], ["/bucket/scans/album.pdf", "/bucket/a.png"])
    assert (album.caption, album.metadata, picture) == ("The album", None, Description())
    assert dict(album.pages) == {2: Description("A lighthouse", {"year": "1932"})}
    assert by_picture.unused() == ["album.pdf#page=0", "other.pdf#page=1"]


def test_an_address_of_a_page_keeps_its_number(tmp_path: Path) -> None:
    by_picture = captions_of(tmp_path / "captions.csv", "url,caption\ns3://b/Scans/Album.pdf#page=4,A boat\n")
    [album] = by_picture.assign(["scans/album.pdf"])
    assert dict(album.pages) == {4: Description("A boat")}


def test_pages_alone_find_their_document_and_a_file_of_the_whole_name_goes_first(tmp_path: Path) -> None:
    by_picture = captions_of(tmp_path / "captions.csv", "file,caption\na.tif#page=1,One\na.tif#page=2,Two\n")
    [named, document] = by_picture.assign(["a.tif#page=2", "x/a.tif"])
    assert (named.caption, dict(named.pages)) == ("Two", {})
    assert (document.caption, dict(document.pages)) == (None, {1: Description("One")})
    assert by_picture.unused() == []
