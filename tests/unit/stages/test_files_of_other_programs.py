"""Caption and question files as people and other programs write them: each comes out right, or is refused for the
right reason."""

from __future__ import annotations

import datetime
import gzip
import io
import json
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pytest
from pyarrow import parquet

from ragllava.errors import InvalidInput
from ragllava.stages.answer.question_files import read_questions
from ragllava.stages.ingest.captions import read_captions


def as_parquet(columns: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.table(columns), sink)
    return sink.getvalue()


def as_xlsx(*sheets: list[list[Any]]) -> bytes:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for number, rows in enumerate(sheets):
        sheet = book.create_sheet(f"Sheet {number}")
        for row in rows:
            sheet.append(row)
    sink = io.BytesIO()
    book.save(sink)
    return sink.getvalue()


def lines(*values: Any) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


GATE = "The old gate"
PICTURES = ["gate.png", "quay/barge.png", "Stra\u00dfe.jpg", "000000000007.jpg"]

CAPTION_FILES: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "plain": ("c.csv", b"file,caption\ngate.png,The old gate\n", {"gate.png": GATE}),
    "german Excel": (
        "c.csv",
        "\ufefffile;caption\r\nStra\u00dfe.jpg;Stra\u00dfe\r\n;\r\n".encode(),
        {"Stra\u00dfe.jpg": "Stra\u00dfe"},
    ),
    "Windows-1252": (
        "c.csv",
        "file;caption\r\nStra\u00dfe.jpg;Stra\u00dfe \u2013 1932\r\n".encode("cp1252"),
        {"Stra\u00dfe.jpg": "Stra\u00dfe \u2013 1932"},
    ),
    "UTF-16": ("c.txt", "file\tcaption\r\ngate.png\tThe old gate\r\n".encode("utf-16"), {"gate.png": GATE}),
    "separator line": ("c.csv", b"sep=;\r\nfile;caption\r\ngate.png;The old gate\r\n", {"gate.png": GATE}),
    "gzip": ("c.csv.gz", gzip.compress(b"file,caption\ngate.png,The old gate\n"), {"gate.png": GATE}),
    "Excel": (
        "c.xlsx",
        as_xlsx(
            [["Remarks"], ["none"]], [[], ["File Name", "Caption", "Year"], ["gate.png", GATE, 1932], [None, None]]
        ),
        {"gate.png": GATE},
    ),
    "spelled otherwise": ("c.csv", b"Image Name,Title\ngate.png,The old gate\n", {"gate.png": GATE}),
    "absolute paths": (
        "c.csv",
        b"file,caption\n/srv/ada/gate.png,The old gate\nD:\\scans\\quay\\barge.png,Barge\n",
        {"gate.png": GATE, "quay/barge.png": "Barge"},
    ),
    "addresses": (
        "c.csv",
        b"url,caption\ns3://scans/all/gate.png,The old gate\nhttps://example.org/quay/barge.png?w=90#top,Barge\n",
        {"gate.png": GATE, "quay/barge.png": "Barge"},
    ),
    "white space": ("c.csv", b"file,caption\n gate.png ,The old gate\n", {"gate.png": GATE}),
    "id beside the name": ("c.csv", b"image,file_name,caption\n7,gate.png,The old gate\n", {"gate.png": GATE}),
    "name beside the path": ("c.csv", b"name,path,caption\nGate,gate.png,The old gate\n", {"gate.png": GATE}),
    "an empty column": ("c.csv", b"file,text,description\ngate.png,,The old gate\n", {"gate.png": GATE}),
    "several captions": (
        "c.txt",
        b"image,caption\ngate.png,A gate .\ngate.png,An old gate .\n",
        {"gate.png": "A gate . An old gate ."},
    ),
    "a list": ("c.jsonl", lines({"image": "gate.png", "caption": ["One.", "Two."]}), {"gate.png": "One. Two."}),
    "folder of images": ("metadata.jsonl", lines({"file_name": "gate.png", "text": GATE}), {"gate.png": GATE}),
    "an object": ("c.json", json.dumps({"gate.png": GATE}, indent=1).encode(), {"gate.png": GATE}),
    "objects by name": (
        "c.json",
        json.dumps({"gate.png": {"caption": GATE, "tags": "old"}}).encode(),
        {"gate.png": GATE},
    ),
    "COCO": (
        "captions_val.json",
        json.dumps(
            {
                "info": {"year": 2026},
                "images": [{"id": 7, "file_name": "gate.png", "height": 3}, {"id": 8, "file_name": "none.png"}],
                "annotations": [
                    {"image_id": 7, "id": 1, "caption": "A gate."},
                    {"image_id": 7, "id": 2, "caption": "An old gate."},
                ],
            }
        ).encode(),
        {"gate.png": "A gate. An old gate."},
    ),
    "COCO results": ("c.json", json.dumps([{"image_id": 7, "caption": GATE}]).encode(), {"000000000007.jpg": GATE}),
    "Karpathy": (
        "dataset.json",
        json.dumps(
            {
                "dataset": "x",
                "images": [
                    {
                        "filename": "gate.png",
                        "filepath": "train2014",
                        "split": "test",
                        "sentences": [{"raw": "A gate.", "tokens": ["a", "gate"]}, {"raw": "An old gate."}],
                    }
                ],
            }
        ).encode(),
        {"gate.png": "A gate. An old gate."},
    ),
    "Flickr30k tokens": (
        "results.token",
        b'gate.png#0\tA "gate .\ngate.png#1\tAn old gate .\n',
        {"gate.png": 'A "gate . An old gate .'},
    ),
    "Flickr30k table": (
        "results.csv",
        b"image_name| comment_number| comment\ngate.png| 0| A gate .\ngate.png| 1| An old gate .\n",
        {"gate.png": "A gate . An old gate ."},
    ),
    "Conceptual Captions": (
        "train.tsv",
        b'the old gate, "in\thttp://example.org/gate.png\na barge\thttp://example.org/quay/barge.png\n',
        {"gate.png": 'the old gate, "in', "quay/barge.png": "a barge"},
    ),
    "Conceptual 12M": ("c.tsv", b"http://example.org/gate.png\tThe old gate\n", {"gate.png": GATE}),
    "LAION": (
        "part-0.parquet",
        as_parquet({"URL": ["http://example.org/gate.png"], "TEXT": [GATE], "similarity": [0.3]}),
        {"gate.png": GATE},
    ),
    "img2dataset": (
        "00000.parquet",
        as_parquet(
            {
                "url": ["http://example.org/x.jpg", "http://example.org/y.jpg"],
                "key": ["000000000007", "000000000008"],
                "caption": [GATE, "not downloaded"],
                "status": ["success", "failed_to_download"],
            }
        ),
        {"000000000007.jpg": GATE},
    ),
    "exiftool -csv": (
        "out.csv",
        b"SourceFile,FileName,Directory,Description,ImageDescription,DateTimeOriginal\n"
        b"./gate.png,gate.png,.,The old gate,OLYMPUS DIGITAL CAMERA,2019:05:12 10:30:00\n"
        b"quay/barge.png,barge.png,quay,,SONY DSC,\n",
        {"gate.png": GATE, "quay/barge.png": ""},
    ),
    "exiftool -json": (
        "out.json",
        json.dumps([{"SourceFile": "gate.png", "IPTC:Caption-Abstract": GATE, "EXIF:ImageWidth": 7}]).encode(),
        {"gate.png": GATE},
    ),
    "a column of capitals": ("c.parquet", as_parquet({"FILE": ["gate.png"], "Caption": [GATE]}), {"gate.png": GATE}),
}


@pytest.mark.parametrize("kind", CAPTION_FILES)
def test_caption_files(tmp_path: Path, kind: str) -> None:
    name, content, expected = CAPTION_FILES[kind]
    (tmp_path / name).write_bytes(content)
    captions = read_captions(tmp_path / name)
    said = captions.assign(PICTURES)
    assert {source: d.caption for source, d in zip(PICTURES, said, strict=True) if d.caption is not None} == expected
    assert captions.unused() == []
    assert bool(captions.notes) == (kind == "Windows-1252")


def test_metadata_of_exiftool_have_our_names(tmp_path: Path) -> None:
    name, content, _ = CAPTION_FILES["exiftool -csv"]
    (tmp_path / name).write_bytes(content)
    (first, _) = read_captions(tmp_path / name).assign(["gate.png", "quay/barge.png"])
    assert first.metadata == {"taken": "2019-05-12T10:30:00"}


@pytest.mark.parametrize(
    ("name", "content", "code", "message"),
    [
        ("c.csv", b"file,caption\ngate.png,The old gate, Wenby\n", "invalid_csv_line", "double quotes"),
        ("c.csv", b'file,caption\ngate.png,"The "old" gate"\n', "invalid_csv_line", "each quote"),
        ("c.csv", b"gate.png,The old gate\n", "missing_column", "the first line must be a header"),
        ("c.csv", b"file_name,mood\ngate.png,sad\n", "missing_column", 'found "file_name", "mood"'),
        (
            "c.csv",
            "file,caption\ngate.png,\u0432\u043e\u0440\u043e\u0442\u0430\n".encode("cp1251"),
            "invalid_encoding",
            "not UTF-8",
        ),
        (
            "c.json",
            json.dumps({"images": [], "annotations": [{"bbox": []}]}).encode(),
            "missing_column",
            "no `caption`",
        ),
        ("c.xlsx", as_xlsx([["a", "b"], [1, 2]]), "missing_column", 'found "a", "b"'),
        ("c.xlsx", b"\xd0\xcf\x11\xe0" + bytes(600), "unknown_format", "old Excel file"),
    ],
)
def test_caption_files_that_are_refused(tmp_path: Path, name: str, content: bytes, code: str, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        read_captions(tmp_path / name)
    assert caught.value.errors[0].code == code
    assert message in caught.value.errors[0].message


RED = "Is it red?"

QUESTION_FILES: dict[str, tuple[str, bytes, list[tuple[str, str]]]] = {
    "german Excel": ("q.csv", "\ufeffcustom_id;question\r\n\u00e41;Is it red?\r\n;\r\n".encode(), [("\u00e41", RED)]),
    "Windows-1252": (
        "q.csv",
        "custom_id;question\r\na;Is it \u2013 say \u2013 gr\u00fcn?\r\n".encode("cp1252"),
        [("a", "Is it \u2013 say \u2013 gr\u00fcn?")],
    ),
    "UTF-16": ("q.csv", "custom_id\tquestion\r\na\tIs it red?\r\n".encode("utf-16"), [("a", RED)]),
    "separator line": ("q.csv", b"sep=;\r\ncustom_id;question\r\na;Is it red?\r\n", [("a", RED)]),
    "old Mac": ("q.csv", b"custom_id,question\ra,Is it red?\rb,Is it red?\r", [("a", RED), ("b", RED)]),
    "end of file of DOS": ("q.csv", b"custom_id,question\r\na,Is it red?\r\n\x1a", [("a", RED)]),
    "trailing commas": ("q.csv", b"custom_id,question,,\na,Is it red?,,\n,,,\n", [("a", RED)]),
    "empty ids": ("q.csv", b"custom_id,question\n,Is it red?\n", [("line-2", RED)]),
    "text for Excel": ("q.csv", b'custom_id,question\n="007",Is it red?\n', [("007", RED)]),
    "spaces in the header": ("q.csv", b"Custom ID, Question\na,Is it red?\n", [("a", RED)]),
    "id": ("q.csv", b"id,question\n7,Is it red?\n", [("7", RED)]),
    "question_id": ("q.csv", b"question_id,id,question\n7,x,Is it red?\n", [("7", RED)]),
    "prompt": ("q.csv", b"id,prompt\n7,Is it red?\n", [("7", RED)]),
    "gzip": ("q.jsonl.gz", gzip.compress(lines({"custom_id": "a", "question": RED})), [("a", RED)]),
    "a list": ("q.json", json.dumps([{"custom_id": "a", "question": RED}]).encode(), [("a", RED)]),
    "a list of many lines": (
        "q.jsonl",
        json.dumps([{"custom_id": "a", "question": RED}], indent=2).encode(),
        [("a", RED)],
    ),
    "VQA": ("q.json", json.dumps({"questions": [{"question_id": 7, "question": RED}]}).encode(), [("7", RED)]),
    "lines of a list": (
        "q.jsonl",
        b'{"id": "a", "question": "Is it red?"},\n{"id": "b", "question": "Is it red?"}\n',
        [("a", RED), ("b", RED)],
    ),
    "capital keys": ("q.jsonl", lines({"Custom_ID": "a", "QUESTION": RED}), [("a", RED)]),
    "UTF-16 lines": ("q.jsonl", '{"custom_id": "a", "question": "Is it red?"}\r\n'.encode("utf-16"), [("a", RED)]),
    "a whole number": (
        "q.jsonl",
        lines({"custom_id": 7.0, "question": RED}, {"custom_id": 0.5, "question": RED}),
        [("7", RED), ("0.5", RED)],
    ),
    "Excel": (
        "q.xlsx",
        as_xlsx(
            [["ID", "Question", "Seen"], [7, RED, datetime.datetime(2026, 5, 1)], [None, None], [8.0, RED], [None, RED]]
        ),
        [("7", RED), ("8", RED), ("line-5", RED)],
    ),
    "Parquet of pandas": (
        "q.parquet",
        as_parquet({"ID": [7.0, float("nan"), 8.0], "Question": [RED] * 3}),
        [("7", RED), ("line-2", RED), ("8", RED)],
    ),
    "Parquet of decimals": ("q.parquet", as_parquet({"id": [Decimal("7.50")], "question": [RED]}), [("7.50", RED)]),
    "Parquet of days": (
        "q.parquet",
        as_parquet({"id": [datetime.date(2026, 5, 1)], "question": [RED]}),
        [("2026-05-01", RED)],
    ),
    "Parquet of UUIDs": (
        "q.parquet",
        as_parquet({"id": pa.array([uuid.UUID(int=2**128 - 7).bytes], pa.binary(16)), "question": [RED]}),
        [(str(uuid.UUID(int=2**128 - 7)), RED)],
    ),
    "Parquet of bytes": ("q.parquet", as_parquet({"id": [b"a"], "question": [RED]}), [("a", RED)]),
}


@pytest.mark.parametrize("kind", QUESTION_FILES)
def test_question_files(kind: str) -> None:
    name, content, expected = QUESTION_FILES[kind]
    file = read_questions(content, name=name)
    assert file.errors == []
    assert [(question.custom_id, question.text) for question in file.valid] == expected
    assert bool(file.notes) == (kind == "Windows-1252")


@pytest.mark.parametrize(
    ("name", "content", "code", "message"),
    [
        ("q.csv", b"ID;Frage\n7;Rot?\n", "missing_column", 'found "ID", "Frage"'),
        ("q.csv", b"7,Is it red?\n", "missing_column", "the first line must be a header"),
        ("q.txt", b"Is it red?\nIs it blue?\n", "unknown_format", 'found "Is it red?"'),
        ("q.xlsx", as_xlsx([["Nr", "Frage"], [1, "Rot?"]]), "missing_column", 'found "Nr", "Frage"'),
        ("q.xlsx", b"PK\x03\x04 no spreadsheet", "invalid_xlsx", "not readable"),
        ("q.csv", b"custom_id,question\n", "empty_file", "no question"),
        ("q.json", b"[]", "empty_file", "no question"),
        ("q.parquet", as_parquet({"Nr": [1]}), "missing_column", 'found "Nr"'),
    ],
)
def test_question_files_that_are_refused(name: str, content: bytes, code: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_questions(content, name=name)
    assert caught.value.errors[0].code == code
    assert message in caught.value.errors[0].message


def test_a_line_without_a_question_names_what_it_has() -> None:
    (error,) = read_questions(lines({"ID": 1, "Frage": "Rot?"}), name="q.jsonl").errors
    assert error.message == 'the line has no question; it has "ID", "Frage"'


def test_further_columns_are_kept_as_they_are() -> None:
    file = read_questions(b"id,question,Reference,tags\n1,Is it red?, yes ,\n2,Is it blue?,no,x\n", name="q.csv")
    assert [question.given for question in file.valid] == [
        {"Reference": " yes ", "tags": ""},
        {"Reference": "no", "tags": "x"},
    ]
    assert file.columns == ["Reference", "tags"]
    stored = read_questions(
        lines({"question": RED, "where": "year=1", "a\u0000": {"b\ud800": ["\u0000"]}}), name="q.jsonl"
    )
    assert stored.valid[0].given == {"a\ufffd": {"b\ufffd": ["\ufffd"]}}


def test_further_columns_that_are_too_many_or_too_long_are_left_out_with_a_note() -> None:
    wide = {"question": RED} | {f"column {number}": number for number in range(70)}
    file = read_questions(lines(wide), name="q.jsonl")
    assert len(file.columns) == 64
    assert '"column 64"' in file.notes[0]
    file = read_questions(
        lines({"question": RED, "image": "x" * 20_000}, {"question": RED, "image": "y"}), name="q.jsonl"
    )
    assert [question.given for question in file.valid] == [None, {"image": "y"}]
    assert "the further columns of 1 lines" in file.notes[0]


@pytest.mark.parametrize(
    ("body", "note"),
    [
        ({"messages": [{"role": "user", "content": RED}]}, None),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": RED}]},
            "not used: 1 system message of the batch line",
        ),
        (
            {
                "messages": [
                    {"role": "developer", "content": "Be brief."},
                    {"role": "system", "content": "Be kind."},
                    {"role": "user", "content": "First?"},
                    {"role": "assistant", "content": "Yes."},
                    {"role": "user", "content": RED},
                ]
            },
            "not used: 2 system messages and 2 other turns of the batch line",
        ),
    ],
)
def test_what_of_a_batch_line_is_not_used_is_said(body: dict[str, Any], note: str | None) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    file = read_questions(lines(line), name="q.jsonl")
    assert [(question.text, question.note, question.given) for question in file.valid] == [(RED, note, None)]
    assert bool(file.notes) == (note is not None)


def test_instructions_of_a_response_are_not_used() -> None:
    line = {"url": "/v1/responses", "body": {"input": RED, "instructions": "Be brief."}}
    (question,) = read_questions(lines(line), name="q.jsonl").valid
    assert question.note == "not used: 1 system message of the batch line"
