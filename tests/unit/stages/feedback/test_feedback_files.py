"""Feedback files: every line becomes feedback, or an error with its line number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ragllava.errors import InvalidInput, LineError, UsageError
from ragllava.feedback import Verdict
from ragllava.stages.feedback.files import (
    MAX_ANSWER_CHARACTERS,
    FeedbackLine,
    feedback_of,
    read_feedback,
)


def read(text: str, name: str = "feedback.jsonl", job_id: int | None = None) -> list[FeedbackLine | LineError]:
    return read_feedback(text.encode(), name=name, job_id=job_id).lines


def error_of(value: dict[str, Any]) -> LineError:
    [line] = feedback_of([value]).lines
    assert isinstance(line, LineError), line
    return line


FULL = FeedbackLine(1, 7, "q1", Verdict.WRONG, "two", ("a.png", 12), ("b c.png",))


def test_a_json_line_has_every_key() -> None:
    record = {"job": 7, "custom_id": "q1", "verdict": "wrong", "answer": " two ", "relevant": ["a.png", 12],
            "irrelevant": ["b c.png"], "note": "ignored"}  # fmt: skip
    assert read(json.dumps(record)) == [FULL]


def test_keys_that_a_json_line_lacks_stay_empty() -> None:
    [line] = read('{"custom_id": "q1", "verdict": "RIGHT"}', job_id=9)
    assert line == FeedbackLine(1, 9, "q1", Verdict.RIGHT, None, None, ())


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_has_the_same_keys(delimiter: str) -> None:
    header = delimiter.join(["custom_id", "job", "Verdict", "answer", "relevant", "irrelevant"])
    row = delimiter.join(["q1", "7", "wrong", "two", '"a.png; d.png"', "b c.png"])
    empty = delimiter.join(["q2", "7", "right", "", "", ""])
    [first, second] = read(f"{header}\n{row}\n\n{empty}\n", "feedback.csv")
    assert first == FeedbackLine(2, 7, "q1", Verdict.WRONG, "two", ("a.png", "d.png"), ("b c.png",))
    assert second == FeedbackLine(4, 7, "q2", Verdict.RIGHT)


def test_the_content_gives_the_format_where_the_extension_does_not() -> None:
    [line] = read("custom_id,verdict\nq1,right\n", "feedback", job_id=1)
    assert line == FeedbackLine(2, 1, "q1", Verdict.RIGHT)
    [line] = read('\ufeff{"custom_id": "q1", "verdict": "right"}', "feedback", job_id=1)
    assert line == FeedbackLine(1, 1, "q1", Verdict.RIGHT)


def test_quoted_cells_span_lines_and_later_lines_keep_their_numbers() -> None:
    text = 'custom_id,verdict,answer\nq1,wrong,"two\nof them"\nq2,nonsense,\n'
    [first, second] = read(text, "feedback.csv", job_id=1)
    assert isinstance(first, FeedbackLine)
    assert first.answer == "two\nof them"
    assert isinstance(second, LineError)
    assert (second.line, second.code) == (4, "invalid_verdict")


def test_each_line_that_an_unclosed_quote_swallows_is_an_error() -> None:
    text = 'custom_id,verdict,answer\nq1,right,\nq2,wrong,"two\nq3,right,\n\nq4,"right",\nq5,right,\n'
    lines = read(text, "feedback.csv", job_id=1)
    assert [(line.line, isinstance(line, LineError)) for line in lines] == [
        (2, False), (3, True), (4, True), (6, True), (7, False),
    ]  # fmt: skip
    assert [line.message for line in lines if isinstance(line, LineError)][1:] == [
        "a quote in the record of line 3 is not closed before this line"
    ] * 2
    headless = read('custom_id,"verdict\nq1,"right\nq2,right\n', "feedback.csv", job_id=1)
    assert [(line.line, isinstance(line, LineError)) for line in headless] == [(1, True), (2, True), (3, False)]


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"job": None}, "missing_job", "--job"),
        ({"job": "seven"}, "unknown_job", "'seven'"),
        ({"job": True}, "unknown_job", "True"),
        ({"job": 0}, "unknown_job", "'0'"),
        ({"job": 2**63}, "unknown_job", "jobs list"),
        ({"custom_id": ""}, "missing_custom_id", "which names the question"),
        ({"custom_id": "a\x00b"}, "missing_custom_id", "which names the question"),
        ({"verdict": None}, "invalid_verdict", "missing"),
        ({"verdict": "maybe"}, "invalid_verdict", "right or wrong"),
        ({"answer": ["two"]}, "invalid_answer", "not a string"),
        ({"answer": "tw\x00o"}, "invalid_answer", "cannot be stored"),
        ({"answer": "two\ud800"}, "invalid_answer", "cannot be stored"),
        ({"answer": "x" * (MAX_ANSWER_CHARACTERS + 1)}, "invalid_answer", "2,000"),
        ({"relevant": "a.png"}, "invalid_images", "`relevant` is not a list"),
        ({"irrelevant": [True]}, "unknown_image", "`irrelevant` has 'True'"),
        ({"relevant": [""]}, "unknown_image", "not the name or id"),
        ({"relevant": [-1]}, "unknown_image", "'-1'"),
        ({"relevant": ["a\ud800"]}, "unknown_image", "not the name or id"),
    ],
)
def test_an_invalid_value_is_an_error_of_its_line(change: dict[str, Any], code: str, message: str) -> None:
    error = error_of({"job": 7, "custom_id": "q1", "verdict": "wrong"} | change)
    assert (error.code, error.line) == (code, 1)
    assert message in error.message


def test_lines_that_are_not_json_are_errors_and_the_others_stay() -> None:
    text = 'nonsense\n[1]\n{"a": %s}\n\n{"custom_id": "q1", "verdict": "right"}\n' % ("9" * 5000)
    lines = read(text, job_id=1)
    assert [(line.line, isinstance(line, LineError)) for line in lines] == [(1, True), (2, True), (3, True), (5, False)]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "feedback.jsonl", "no feedback"),
        ("\n \n", "feedback.jsonl", "no feedback"),
        ("custom_id,verdict\n", "feedback.csv", "no feedback"),
        ("question,verdict\nq,right\n", "feedback.csv", "`custom_id` and `verdict`"),
        ("hello", "feedback", "`custom_id` and `verdict`"),
        ("PAR1", "feedback.parquet", "not Parquet"),
    ],
)
def test_a_file_without_feedback_is_refused(text: str, name: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        read(text, name)
    assert caught.value.errors[0].line == 0


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"custom_id,verdict,answer\nq1,wrong,caf\xe9\nq2,right,\xc3\xa9\n", "feedback.csv"),
        (b'\n{"answer": "caf\xe9"}\n{"custom_id": "q2", "verdict": "right"}\n', "feedback.jsonl"),
    ],
)
def test_bytes_that_are_not_utf8_are_an_error_of_their_line(content: bytes, name: str) -> None:
    bad, good = read_feedback(content, name=name, job_id=1).lines
    assert isinstance(bad, LineError)
    assert (bad.line, bad.code) == (2, "invalid_encoding")
    assert isinstance(good, FeedbackLine)
    assert (good.line, good.custom_id, good.verdict) == (3, "q2", Verdict.RIGHT)


def test_a_record_may_have_more_cells_than_the_header_only_if_they_are_empty() -> None:
    bad, good = read("custom_id,verdict\nq1,right,x\nq2,right,,\n", "feedback.csv", job_id=1)
    assert isinstance(bad, LineError)
    assert (bad.line, bad.code, bad.custom_id) == (2, "invalid_csv_line", "q1")
    assert good == FeedbackLine(3, 1, "q2", Verdict.RIGHT)


def test_a_file_that_is_not_utf8_or_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="the file looks like UTF-16; save it as UTF-8"):
        read_feedback("{".encode("utf-16-le") * 9, name="feedback.jsonl")
    with pytest.raises(UsageError, match=r"none\.csv cannot be read: No such file"):
        read_feedback(tmp_path / "none.csv", name="none.csv")
