"""Feedback files: every line becomes what somebody said, or an error with its line number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ragllava.errors import InvalidInput, LineError, UsageError
from ragllava.records import Verdict
from ragllava.stages.feedback.files import (
    MAX_ANSWER_CHARACTERS,
    FeedbackLine,
    feedback_of,
    read_feedback,
)


def read(text: str, name: str = "said.jsonl", job_id: int | None = None) -> list[FeedbackLine | LineError]:
    return read_feedback(text.encode(), name=name, job_id=job_id).lines


def error_of(value: dict[str, Any]) -> LineError:
    [line] = feedback_of([value]).lines
    assert isinstance(line, LineError), line
    return line


FULL = FeedbackLine(1, 7, "q1", Verdict.WRONG, "two", ("a.png", 12), ("b c.png",))


def test_a_json_line_says_all() -> None:
    said = {"job": 7, "custom_id": "q1", "verdict": "wrong", "answer": " two ", "relevant": ["a.png", 12],
            "irrelevant": ["b c.png"], "note": "ignored"}  # fmt: skip
    assert read(json.dumps(said)) == [FULL]


def test_a_json_line_says_no_more_than_it_says() -> None:
    [line] = read('{"custom_id": "q1", "verdict": "RIGHT"}', job_id=9)
    assert line == FeedbackLine(1, 9, "q1", Verdict.RIGHT, None, None, ())


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_says_the_same(delimiter: str) -> None:
    header = delimiter.join(["custom_id", "job", "Verdict", "answer", "relevant", "irrelevant"])
    row = delimiter.join(["q1", "7", "wrong", "two", '"a.png; d.png"', "b c.png"])
    empty = delimiter.join(["q2", "7", "right", "", "", ""])
    [first, second] = read(f"{header}\n{row}\n\n{empty}\n", "said.csv")
    assert first == FeedbackLine(2, 7, "q1", Verdict.WRONG, "two", ("a.png", "d.png"), ("b c.png",))
    assert second == FeedbackLine(4, 7, "q2", Verdict.RIGHT)


def test_a_format_is_told_by_the_content_where_the_name_does_not() -> None:
    [line] = read("custom_id,verdict\nq1,right\n", "said", job_id=1)
    assert line == FeedbackLine(2, 1, "q1", Verdict.RIGHT)
    [line] = read('\ufeff{"custom_id": "q1", "verdict": "right"}', "said", job_id=1)
    assert line == FeedbackLine(1, 1, "q1", Verdict.RIGHT)


def test_quoted_cells_span_lines_and_later_lines_keep_their_numbers() -> None:
    text = 'custom_id,verdict,answer\nq1,wrong,"two\nof them"\nq2,nonsense,\n'
    [first, second] = read(text, "said.csv", job_id=1)
    assert isinstance(first, FeedbackLine)
    assert first.answer == "two\nof them"
    assert isinstance(second, LineError)
    assert (second.line, second.code) == (4, "invalid_verdict")


def test_each_line_that_an_unclosed_quote_swallows_is_told() -> None:
    text = 'custom_id,verdict,answer\nq1,right,\nq2,wrong,"two\nq3,right,\n\nq4,"right",\nq5,right,\n'
    lines = read(text, "said.csv", job_id=1)
    assert [(line.line, isinstance(line, LineError)) for line in lines] == [
        (2, False), (3, True), (4, True), (6, True), (7, False),
    ]  # fmt: skip
    assert [line.message for line in lines if isinstance(line, LineError)][1:] == [
        "a quote in the record of line 3 is not closed before this line"
    ] * 2
    headless = read('custom_id,"verdict\nq1,"right\nq2,right\n', "said.csv", job_id=1)
    assert [(line.line, isinstance(line, LineError)) for line in headless] == [(1, True), (2, True), (3, False)]


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"job": None}, "missing_job", "--job"),
        ({"job": "seven"}, "unknown_job", "'seven'"),
        ({"job": True}, "unknown_job", "True"),
        ({"job": 0}, "unknown_job", "'0'"),
        ({"job": 2**63}, "unknown_job", "jobs list"),
        ({"custom_id": ""}, "missing_custom_id", "which question"),
        ({"custom_id": "a\x00b"}, "missing_custom_id", "which question"),
        ({"verdict": None}, "invalid_verdict", "missing"),
        ({"verdict": "maybe"}, "invalid_verdict", "right or wrong"),
        ({"answer": ["two"]}, "invalid_answer", "not a text"),
        ({"answer": "tw\x00o"}, "invalid_answer", "cannot be stored"),
        ({"answer": "two\ud800"}, "invalid_answer", "cannot be stored"),
        ({"answer": "x" * (MAX_ANSWER_CHARACTERS + 1)}, "invalid_answer", "2,000"),
        ({"relevant": "a.png"}, "invalid_images", "`relevant` is not a list"),
        ({"irrelevant": [True]}, "unknown_image", "`irrelevant` holds 'True'"),
        ({"relevant": [""]}, "unknown_image", "no name or id"),
        ({"relevant": [-1]}, "unknown_image", "'-1'"),
        ({"relevant": ["a\ud800"]}, "unknown_image", "no name or id"),
    ],
)
def test_what_cannot_be_meant_is_an_error_of_its_line(change: dict[str, Any], code: str, says: str) -> None:
    error = error_of({"job": 7, "custom_id": "q1", "verdict": "wrong"} | change)
    assert (error.code, error.line) == (code, 1)
    assert says in error.message


def test_lines_that_are_no_json_are_errors_and_the_others_stay() -> None:
    text = 'nonsense\n[1]\n{"a": %s}\n\n{"custom_id": "q1", "verdict": "right"}\n' % ("9" * 5000)
    lines = read(text, job_id=1)
    assert [(line.line, isinstance(line, LineError)) for line in lines] == [(1, True), (2, True), (3, True), (5, False)]


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("", "said.jsonl", "no feedback"),
        ("\n \n", "said.jsonl", "no feedback"),
        ("custom_id,verdict\n", "said.csv", "no feedback"),
        ("question,verdict\nq,right\n", "said.csv", "`custom_id` and `verdict`"),
        ("hello", "said", "`custom_id` and `verdict`"),
        ("PAR1", "said.parquet", "not as Parquet"),
    ],
)
def test_a_file_that_holds_nothing_of_use_is_refused(text: str, name: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        read(text, name)
    assert caught.value.errors[0].line == 0


def test_a_file_that_is_not_utf8_or_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="byte 1 of the file is not UTF-8"):
        read_feedback(b"\xff\xfe{", name="said.jsonl")
    with pytest.raises(UsageError, match=r"none\.csv cannot be read: No such file"):
        read_feedback(tmp_path / "none.csv", name="none.csv")
