"""Result files: a plain reader of each format reads back what was written."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from ragllava.errors import UsageError
from ragllava.json_records import to_json
from ragllava.records import (
    Answer,
    AnswerStatus,
    Candidate,
    Change,
    FileFormat,
    ModelStamp,
    Origin,
    Question,
    StoredImage,
)
from ragllava.stages.answer.question_files import read_questions
from ragllava.stages.results import results
from ragllava.stages.results.output_files import output_file
from ragllava.stages.results.results import Previous, ResultRow, write_errors, write_results

WRITTEN = (FileFormat.JSONL, FileFormat.CSV, FileFormat.PARQUET)
STAMP = ModelStamp(
    "mini-clip", "mini-reranker", "mini-generator", "rerank-1 answer-1", 0.6123456789, "hybrid-1", "need-1"
)


def candidate(number: int, relevance: float, evidence_no: int | None = None, caption: str | None = None) -> Candidate:
    image = StoredImage(number, f"{number:064x}", f"cards/{number}.png", caption)
    return Candidate(image, retrieval_rank=number, retrieval_score=-0.125, relevance=relevance, evidence_no=evidence_no)


BY_CAPTION = replace(
    candidate(2, 0.99999999, 0, "The tower, 1912"), origin=Origin.CAPTION, caption_rank=0, caption_score=7.12345678
)
NOT_RERANKED = replace(candidate(4, 0.0), relevance=None)
ANSWERED = ResultRow(
    line=1,
    custom_id="a",
    question="Which colour, exactly?",
    status=AnswerStatus.ANSWERED,
    answer='deep "red"\nor so',
    confidence=0.87654321,
    candidates=(candidate(3, 0.7, 1), candidate(1, 0.1), BY_CAPTION, NOT_RERANKED),
    models=to_json(STAMP),
    note="a caption was cut",
)
NO_EVIDENCE = ResultRow(2, "b", "Where?", AnswerStatus.NO_EVIDENCE, models=to_json(STAMP))
INVALID = ResultRow(3, None, None, AnswerStatus.FAILED, error_code="empty_question", error="the question is empty")
DEAD = ResultRow(4, "d", "Why?", AnswerStatus.DEAD, error_code="poison", error="=killed its worker twice")
CANCELLED = ResultRow(5, "e", "When?", AnswerStatus.CANCELLED)
ROWS = [ANSWERED, NO_EVIDENCE, INVALID, DEAD, CANCELLED]


def test_a_result_line_has_exactly_the_promised_keys() -> None:
    assert ANSWERED.as_json() == {
        "custom_id": "a",
        "line": 1,
        "question": "Which colour, exactly?",
        "status": "answered",
        "answer": 'deep "red"\nor so',
        "confidence": 0.876543,
        "evidence": [
            {
                "image_id": 2,
                "source": "cards/2.png",
                "uri": None,
                "caption": "The tower, 1912",
                "origin": "caption",
                "retrieval_rank": 3,
                "retrieval_score": -0.125,
                "caption_rank": 1,
                "caption_score": 7.123457,
                "relevance": 1.0,
            },
            {
                "image_id": 3,
                "source": "cards/3.png",
                "uri": None,
                "caption": None,
                "origin": "picture",
                "retrieval_rank": 4,
                "retrieval_score": -0.125,
                "caption_rank": None,
                "caption_score": None,
                "relevance": 0.7,
            },
        ],
        "models": {
            "index": "mini-clip",
            "reranker": "mini-reranker",
            "generator": "mini-generator",
            "prompt": "rerank-1 answer-1",
            "threshold": 0.612346,
            "retrieval": "hybrid-1",
            "depth": "need-1",
        },
        "note": "a caption was cut",
        "error": None,
        "job": None,
        "archive": None,
    }


def test_every_status_has_the_same_keys() -> None:
    assert len({tuple(row.as_json()) for row in ROWS}) == 1
    assert NO_EVIDENCE.as_json()["evidence"] == []
    assert CANCELLED.as_json()["models"] is None
    assert INVALID.as_json()["error"] == {"code": "empty_question", "message": "the question is empty", "line": 3}


def test_a_row_is_made_of_a_question_and_its_answer() -> None:
    question = Question(0, 1, "a", "Which colour, exactly?")
    answer = Answer(
        0,
        AnswerStatus.ANSWERED,
        ANSWERED.answer,
        ANSWERED.confidence,
        ANSWERED.candidates,
        STAMP,
        "a caption was cut",
    )
    assert ResultRow.of(question, answer) == ANSWERED


def test_a_score_that_is_not_finite_is_left_out() -> None:
    row = ResultRow(1, "a", "x", AnswerStatus.ANSWERED, "y", float("nan"), (candidate(1, float("inf"), 0),))
    assert row.as_json()["confidence"] is None
    assert row.as_json()["evidence"][0]["relevance"] is None


def test_json_lines_read_back_equal_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    assert write_results(iter(ROWS), path, FileFormat.JSONL, top_n=2) == 5
    lines = path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [row.as_json() for row in ROWS]


REFRESHED = [
    replace(ANSWERED, previous=Previous(7, AnswerStatus.ANSWERED, "=red", ((2, "cards/2.png"),), (Change.CAPTIONS,))),
    replace(NO_EVIDENCE, previous=Previous(7, AnswerStatus.NO_EVIDENCE, None, ())),
    replace(INVALID, previous=Previous(7, AnswerStatus.FAILED, None, ())),
    replace(DEAD, previous=Previous(7, None, None, ())),
]


def test_a_refresh_has_the_previous_outcome() -> None:
    assert REFRESHED[0].as_json() == ANSWERED.as_json() | {
        "previous": {
            "job": 7,
            "status": "answered",
            "answer": "=red",
            "evidence": [{"image_id": 2, "source": "cards/2.png"}],
            "asked_again": True,
            "because": ["captions"],
            "changed": True,
            "evidence_changed": True,
        }
    }
    assert [row.has_changed for row in REFRESHED] == [True, False, False, True]
    assert len({tuple(row.as_json()) for row in REFRESHED}) == 1


def test_every_format_has_the_previous_outcome(tmp_path: Path) -> None:
    for format in WRITTEN:
        write_results(REFRESHED, tmp_path / format, format, top_n=2, is_refresh=True)
    expected = [row.as_json() for row in REFRESHED]
    assert [json.loads(line) for line in (tmp_path / "jsonl").read_text().splitlines()] == expected
    assert parquet.read_table(tmp_path / "parquet").to_pylist() == expected
    first, second, _, last = read_csv(tmp_path / "csv")
    assert {name: cell for name, cell in first.items() if name.startswith("previous_")} == {
        "previous_job": "7",
        "previous_status": "answered",
        "previous_answer": "'=red",
        "previous_evidence_1_image_id": "2",
        "previous_evidence_1_source": "cards/2.png",
        "previous_evidence_2_image_id": "",
        "previous_evidence_2_source": "",
        "previous_asked_again": "true",
        "previous_because": "captions",
        "previous_changed": "true",
        "previous_evidence_changed": "true",
    }
    assert (second["previous_asked_again"], second["previous_changed"]) == ("false", "false")
    assert (last["previous_status"], last["previous_changed"]) == ("", "true")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def test_metadata_are_written_where_they_were_asked_for(tmp_path: Path) -> None:
    described = [replace(ANSWERED, metadata={2: {"city": "Köln", "tags": ["a"]}}), replace(NO_EVIDENCE, metadata={})]
    assert [image["metadata"] for image in described[0].as_json()["evidence"]] == [{"city": "Köln", "tags": ["a"]}, {}]
    for format in WRITTEN:
        write_results(described, tmp_path / format, format, top_n=2, with_metadata=True)
    line = json.loads((tmp_path / "jsonl").read_text().splitlines()[0])
    assert line["evidence"][0]["metadata"] == {"city": "Köln", "tags": ["a"]}
    rows = list(csv.DictReader((tmp_path / "csv").read_text("utf-8-sig").splitlines()))
    cells = [[row[f"evidence_{no}_metadata"] for no in (1, 2)] for row in rows]
    assert cells == [['{"city": "Köln", "tags": ["a"]}', "{}"], ["", ""]]
    stored = parquet.read_table(tmp_path / "parquet").to_pylist()
    assert [image["metadata"] for image in stored[0]["evidence"]] == cells[0]
    write_results(ROWS, tmp_path / "plain", FileFormat.CSV, top_n=2)
    assert "metadata" not in (tmp_path / "plain").read_text()


def test_csv_has_a_column_for_everything(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    assert write_results(ROWS, path, FileFormat.CSV, top_n=2) == 5
    answered, no_evidence, invalid, dead, _ = read_csv(path)
    assert answered == {
        "custom_id": "a",
        "line": "1",
        "question": "Which colour, exactly?",
        "status": "answered",
        "answer": 'deep "red"\nor so',
        "confidence": "0.876543",
        "evidence_1_image_id": "2",
        "evidence_1_source": "cards/2.png",
        "evidence_1_uri": "",
        "evidence_1_caption": "The tower, 1912",
        "evidence_1_origin": "caption",
        "evidence_1_retrieval_rank": "3",
        "evidence_1_retrieval_score": "-0.125",
        "evidence_1_caption_rank": "1",
        "evidence_1_caption_score": "7.123457",
        "evidence_1_relevance": "1.0",
        "evidence_2_image_id": "3",
        "evidence_2_source": "cards/3.png",
        "evidence_2_uri": "",
        "evidence_2_caption": "",
        "evidence_2_origin": "picture",
        "evidence_2_retrieval_rank": "4",
        "evidence_2_retrieval_score": "-0.125",
        "evidence_2_caption_rank": "",
        "evidence_2_caption_score": "",
        "evidence_2_relevance": "0.7",
        "model_index": "mini-clip",
        "model_reranker": "mini-reranker",
        "model_generator": "mini-generator",
        "model_prompt": "rerank-1 answer-1",
        "model_threshold": "0.612346",
        "model_retrieval": "hybrid-1",
        "model_depth": "need-1",
        "note": "a caption was cut",
        "error_code": "",
        "error": "",
        "job": "",
        "archive": "",
    }
    assert no_evidence["evidence_1_source"] == ""
    assert (invalid["custom_id"], invalid["error_code"], invalid["model_index"]) == ("", "empty_question", "")
    assert dead["error"] == "'=killed its worker twice"


def test_csv_columns_depend_on_the_job_alone(tmp_path: Path) -> None:
    write_results([], tmp_path / "none.csv", FileFormat.CSV, top_n=3)
    write_results(ROWS, tmp_path / "all.csv", FileFormat.CSV, top_n=3)
    first = (tmp_path / "none.csv").read_text().splitlines()[0]
    assert first == (tmp_path / "all.csv").read_text().splitlines()[0]
    assert "evidence_3_relevance" in first


def test_evidence_beyond_top_n_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 1 has 2 images of evidence"):
        write_results(ROWS, tmp_path / "out.csv", FileFormat.CSV, top_n=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@sum", "\tx", "\rx", "'=1", "''-", "＝1", "＋1", "－1", "＠sum", "\ufeff=1", "\nx"]
)
def test_no_text_of_a_csv_starts_a_formula(tmp_path: Path, text: str) -> None:
    path = tmp_path / "out.csv"
    write_results([ResultRow(1, text, text, AnswerStatus.ANSWERED, text)], path, FileFormat.CSV, top_n=1)
    (row,) = read_csv(path)
    assert row["custom_id"] == row["question"] == row["answer"] == "'" + text


@pytest.mark.parametrize("text", ["'tis red", "a=b", " =1", "3 - 1", "", "'", "a; - b", "a;b"])
def test_other_texts_of_a_csv_stay_as_they_are(tmp_path: Path, text: str) -> None:
    path = tmp_path / "out.csv"
    write_results([ResultRow(1, "a", text, AnswerStatus.ANSWERED, text)], path, FileFormat.CSV, top_n=1)
    assert read_csv(path)[0]["answer"] == text


@pytest.mark.parametrize(
    ("text", "cell"),
    [("x;=1+1", "x;'=1+1"), ("x\t@sum", "x\t'@sum"), ("x\n-1", "x\n'-1"), ("x;＝1", "x;'＝1"), ("x;'=1", "x;''=1")],
)
def test_a_program_with_other_separators_finds_no_formula(tmp_path: Path, text: str, cell: str) -> None:
    path = tmp_path / "out.csv"
    write_results([ResultRow(1, "a", text, AnswerStatus.ANSWERED, text)], path, FileFormat.CSV, top_n=1)
    assert read_csv(path)[0]["answer"] == cell
    with path.open(newline="", encoding="utf-8-sig") as file:
        cells = [cell for row in csv.reader(file, delimiter=";", quoting=csv.QUOTE_NONE) for cell in row]
    assert not any(cell.startswith(("=", "@", "-", "＝")) for cell in cells)


def test_names_of_the_users_columns_start_no_formula(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write_results([replace(ANSWERED, given={"x;=1+1": 1})], path, FileFormat.CSV, top_n=2, columns=["x;=1+1"])
    assert "input_x;'=1+1" in read_csv(path)[0]


def test_excel_recognises_the_encoding_and_our_readers_accept_it(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write_results(ROWS, path, FileFormat.CSV, top_n=2)
    content = path.read_bytes()
    assert content.startswith(b'\xef\xbb\xbf"custom_id","line",'), "a byte order mark, and all cells are quoted"
    assert [question.custom_id for question in read_questions(path, name="out.csv").valid] == ["a", "b", "d", "e"]


def test_parquet_reads_back_equal_over_several_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_ROWS_PER_GROUP", 2)
    path = tmp_path / "out.parquet"
    assert write_results(iter(ROWS), path, FileFormat.PARQUET, top_n=2) == 5
    assert parquet.ParquetFile(path).num_row_groups == 3
    assert parquet.read_table(path).to_pylist() == [row.as_json() for row in ROWS]


@pytest.mark.parametrize("format", WRITTEN)
def test_a_job_without_rows_gives_a_readable_file(tmp_path: Path, format: FileFormat) -> None:
    path = tmp_path / "out"
    assert write_results([], path, format, top_n=2) == 0
    if format is FileFormat.PARQUET:
        assert parquet.read_table(path).num_rows == 0
    elif format is FileFormat.CSV:
        assert read_csv(path) == []
    else:
        assert path.read_bytes() == b""


texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20)


@given(text=texts)
def test_any_text_survives_every_format(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("results")
    row = ResultRow(1, "a", text, AnswerStatus.ANSWERED, text, None, (candidate(1, 0.5, 0, text),))
    for format in WRITTEN:
        write_results([row], folder / format, format, top_n=1)
    content = (folder / "jsonl").read_text()
    assert len(content.splitlines()) == 1
    assert json.loads(content) == row.as_json()
    assert parquet.read_table(folder / "parquet").to_pylist() == [row.as_json()]
    (cells,) = read_csv(folder / "csv")
    escaped = text.lstrip("'").startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    for column in ("question", "answer", "evidence_1_caption"):
        assert (cells[column].removeprefix("'") if escaped else cells[column]) == text
        assert not cells[column].startswith(("=", "+", "-", "@", "\t", "\r"))


def test_the_error_file_has_the_failed_and_dead_rows(tmp_path: Path) -> None:
    path = tmp_path / "errors.jsonl"
    assert write_errors(iter(ROWS), path) == 2
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"custom_id": None, "line": 3, "code": "empty_question", "message": "the question is empty"},
        {"custom_id": "d", "line": 4, "code": "poison", "message": "=killed its worker twice"},
    ]


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("the old one")

    def broken() -> Any:
        yield ANSWERED
        raise RuntimeError("the database went away")

    with pytest.raises(RuntimeError, match="went away"):
        write_results(broken(), path, FileFormat.JSONL, top_n=2)
    assert path.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no/out\.csv cannot be written: No such file or directory"):
        write_results(ROWS, tmp_path / "no" / "out.csv", FileFormat.CSV, top_n=2)
    with pytest.raises(UsageError, match="it is a folder"):
        write_results(ROWS, tmp_path, FileFormat.CSV, top_n=2)
    for path in (".", "", "/"):
        with pytest.raises(UsageError, match="it is a folder"), output_file(Path(path)):
            pass


def test_results_repeat_the_further_columns_of_the_input(tmp_path: Path) -> None:
    rows = [replace(ANSWERED, given={"Reference": "red", "tags": ["a", "b"], "n": 7}), NO_EVIDENCE]
    columns = ["Reference", "tags", "n"]
    for format in WRITTEN:
        write_results(rows, tmp_path / format, format, top_n=2, columns=columns)
    first, second = (json.loads(line) for line in (tmp_path / "jsonl").read_text().splitlines())
    assert first["input"] == {"Reference": "red", "tags": ["a", "b"], "n": 7}
    assert second["input"] == {"Reference": None, "tags": None, "n": None}
    assert list(first) == list(second)
    cells = read_csv(tmp_path / "csv")
    assert [[row[f"input_{name}"] for name in columns] for row in cells] == [["red", '["a", "b"]', "7"], ["", "", ""]]
    stored = parquet.read_table(tmp_path / "parquet").to_pylist()
    assert [json.loads(row["input"]) for row in stored] == [first["input"], second["input"]]


def test_results_are_not_written_as_a_spreadsheet(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="JSONL, CSV or Parquet"):
        write_results(ROWS, tmp_path / "r.xlsx", FileFormat.XLSX, top_n=2)
