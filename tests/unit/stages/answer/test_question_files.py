"""Question files: every line becomes one Question or one LineError, with any bytes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from ragllava.errors import InvalidInput, LineError, UsageError
from ragllava.records import FileFormat, Question
from ragllava.stages.answer import question_files
from ragllava.stages.answer.question_files import QuestionFile, read_questions
from ragllava.stages.record_files import csv_files, encodings, json_files
from ragllava.stages.record_files.opening import format_by_extension

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"


def read(content: bytes | str, name: str = "q.jsonl") -> QuestionFile:
    return read_questions(content.encode() if isinstance(content, str) else content, name=name)


def json_lines(*lines: Any) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def parquet_bytes(columns: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.table(columns), sink)
    return sink.getvalue()


def the_error(content: bytes | str, name: str = "q.jsonl") -> LineError:
    """The error of a file whose only entry is invalid."""
    (entry,) = read(content, name).lines
    assert isinstance(entry, LineError)
    return entry


def refusal(content: bytes | str, name: str = "q.jsonl") -> LineError:
    """The error of a file that is refused."""
    with pytest.raises(InvalidInput) as caught:
        read(content, name)
    (error,) = caught.value.errors
    assert error.line == 0
    assert name in str(caught.value)
    return error


def test_json_lines_become_questions_numbered_by_line_and_order() -> None:
    content = '{"custom_id": "a", "question": " Red? "}\n\n  \r\n{"custom_id": 7, "question": "Blue?", "x": 1}'
    assert read(content).lines == [Question(0, 1, "a", "Red?"), Question(1, 4, "7", "Blue?", given={"x": 1})]


def test_an_invalid_line_keeps_its_number_between_valid_ones() -> None:
    file = read('{"question": "one"}\n{"question": "tw\n{"question": "three"}\n')
    assert [type(line).__name__ for line in file.lines] == ["Question", "LineError", "Question"]
    assert file.valid == [Question(0, 1, "line-1", "one"), Question(2, 3, "line-3", "three")]
    assert [(error.code, error.line) for error in file.errors] == [("invalid_json_line", 2)]
    with pytest.raises(InvalidInput, match=r"^q\.jsonl, line 2: .*JSON"):
        file.require_valid()


def test_a_file_of_valid_lines_passes() -> None:
    read('{"question": "one"}').require_valid()


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('{"custom_id": "a"}', "missing_question"),
        ('{"question": null}', "missing_question"),
        ('{"question": 5}', "missing_question"),
        ('{"question": ["a"]}', "missing_question"),
        ('{"question": " \\n "}', "empty_question"),
        ('{"question": "' + "x" * 8001 + '"}', "question_too_long"),
        ('{"question": "x", "custom_id": ""}', "invalid_custom_id"),
        ('{"question": "x", "custom_id": "  "}', "invalid_custom_id"),
        ('{"question": "x", "custom_id": true}', "invalid_custom_id"),
        ('{"question": "x", "custom_id": [1]}', "invalid_custom_id"),
        ('{"question": "x", "custom_id": {}}', "invalid_custom_id"),
        ('{"question": "x", "custom_id": "a\\u0000"}', "invalid_custom_id"),
        ('{"question": "x", "custom_id": "a\\ud800"}', "invalid_custom_id"),
        ('{"question": "x", "custom_id": "' + "x" * 65 + '"}', "invalid_custom_id"),
        ('{"question": "x"', "invalid_json_line"),
        ("[1]", "invalid_json_line"),
        ('"text"', "invalid_json_line"),
        ("5" * 5000, "invalid_json_line"),
        ("[" * 200_000, "invalid_json_line"),
        (b'{"question": "caf\xe9"}', "invalid_encoding"),
    ],
)
def test_invalid_lines_are_named(line: bytes | str, code: str) -> None:
    assert the_error(line).code == code
    assert the_error(line).line == 1


def test_the_longest_question_and_custom_id_are_accepted() -> None:
    line = json_lines({"question": "x" * 8000, "custom_id": "y" * 64})
    assert read(line).lines == [Question(0, 1, "y" * 64, "x" * 8000)]


def test_nul_and_lone_surrogates_in_a_question_become_replacement_characters() -> None:
    assert read('{"question": "a\\u0000b\\ud800c\\ud83d\\ude00"}').valid[0].text == "a\ufffdb\ufffdc😀"


def test_custom_ids_are_unique_whether_given_or_generated() -> None:
    lines = [
        {"custom_id": "a", "question": "1"},
        {"custom_id": "a", "question": "2"},
        {"custom_id": "line-4", "question": "3"},
        {"question": "4"},
        {"custom_id": "b", "question": ""},
        {"custom_id": "b", "question": "6"},
    ]
    file = read(json_lines(*lines))
    assert [question.custom_id for question in file.valid] == ["a", "line-4"]
    assert [(e.line, e.code, e.custom_id) for e in file.errors] == [
        (2, "duplicate_custom_id", None),
        (4, "duplicate_custom_id", None),
        (5, "empty_question", "b"),
        (6, "duplicate_custom_id", None),
    ]
    assert file.errors[0].message == 'the custom_id "a" is taken by line 1'


def batch(url: Any, body: Any, **more: Any) -> str:
    return json_lines({"custom_id": "a", "method": "POST", "url": url, "body": body} | more)


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": "Red?"}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "Red?"}]}]}),
        (
            CHAT,
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "First?"},
                    {"role": "assistant", "content": "Yes."},
                    {"role": "user", "content": "Red?"},
                ]
            },
        ),
        (RESPONSES, {"input": "Red?"}),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Red?"}]}]}),
    ],
)
def test_an_openai_batch_line_asks_the_last_message_of_the_user(url: str, body: Any) -> None:
    (question,) = read(batch(url, body)).valid
    assert (question.line, question.custom_id, question.text, question.given) == (1, "a", "Red?", None)


def test_text_parts_of_a_message_are_joined() -> None:
    parts = [{"type": "text", "text": "Is it"}, {"type": "text", "text": "red?"}]
    assert read(batch(CHAT, {"messages": [{"role": "user", "content": parts}]})).valid[0].text == "Is it\nred?"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (batch("/v1/embeddings", {"input": "x"}), "url_mismatch"),
        (batch(CHAT, {"messages": []}, method="GET"), "url_mismatch"),
        (batch([CHAT], {"messages": []}), "url_mismatch"),
        (batch(CHAT, "x"), "missing_question"),
        (batch(CHAT, {"input": "x"}), "missing_question"),
        (batch(CHAT, {"messages": "x"}), "missing_question"),
        (batch(CHAT, {"messages": [{"role": "system", "content": "x"}, 5]}), "missing_question"),
        (batch(CHAT, {"messages": [{"role": "user"}]}), "missing_question"),
        (batch(CHAT, {"messages": [{"role": "user", "content": []}]}), "empty_question"),
        (
            batch(CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
            "unsupported_content",
        ),
        (batch(CHAT, {"messages": [{"role": "user", "content": ["x"]}]}), "unsupported_content"),
        (batch(CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}), "unsupported_content"),
    ],
)
def test_openai_batch_lines_that_ask_no_question_are_named_with_their_custom_id(line: str, code: str) -> None:
    assert (the_error(line).code, the_error(line).custom_id) == (code, "a")


@pytest.mark.parametrize(
    ("content", "name", "code"),
    [
        (b"", "q.jsonl", "empty_file"),
        (b"", "q.parquet", "empty_file"),
        (b"\n \r\n", "q.jsonl", "empty_file"),
        (b"question\n", "q.csv", "empty_file"),
        ('{"question": "x"}'.encode("utf-16-be"), "q.jsonl", "invalid_encoding"),
        ("question\nx\n".encode("utf-16")[:-1], "questions", "invalid_encoding"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "q.xlsx", "unknown_format"),
        (b"PK\x03\x04 is not enough", "q.xlsx", "invalid_xlsx"),
        (b"\x1f\x8b is not enough", "q.csv.gz", "invalid_gzip"),
        (b"text,id\nx,1\n", "q.csv", "missing_column"),
        (b"what is this", "questions", "unknown_format"),
        (b"\x89PNG\r\n", "q.png", "unknown_format"),
        (b"PAR1 is not enough PAR1", "q.parquet", "invalid_parquet"),
        (parquet_bytes({"text": ["x"]}), "q.parquet", "missing_column"),
        (parquet_bytes({"question": pa.array([], pa.string())}), "q.parquet", "empty_file"),
    ],
)
def test_unusable_files_are_refused(content: bytes, name: str, code: str) -> None:
    assert refusal(content, name).code == code


def test_too_many_lines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(question_files, "MAX_LINES", 3)
    assert len(read('{"question": "x"}\n' * 3).lines) == 3
    assert refusal('{"question": "x"}\n' * 4).code == "too_many_lines"


def test_a_line_above_the_limit_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (encodings, csv_files, json_files):
        monkeypatch.setattr(module, "MAX_LINE_CHARACTERS", 30)
    file = read('{"question": "' + "x" * 100 + '"}\n{"question": "y"}\n')
    assert [error.code for error in file.errors] == ["line_too_long"]
    assert file.valid == [Question(1, 2, "line-2", "y")]
    assert refusal("question\n" + "x" * 100, "q.csv").code == "line_too_long"


def test_csv_records_are_numbered_by_the_line_they_start_on() -> None:
    content = '\ufeffCustom_ID,Question,more\r\na,"Is it\r\nred?",x\r\n\r\nb,"Say ""hi"", then?"\r\nc,Blue?,y'
    assert read(content, "q.csv").lines == [
        Question(0, 2, "a", "Is it\r\nred?", given={"more": "x"}),
        Question(1, 5, "b", 'Say "hi", then?'),
        Question(2, 6, "c", "Blue?", given={"more": "y"}),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found_in_the_header(delimiter: str) -> None:
    content = f"custom_id{delimiter}question\n1{delimiter}Red?\n"
    assert read(content, "q.csv").lines == [Question(0, 2, "1", "Red?")]


def test_csv_errors_are_named() -> None:
    content = (
        b"custom_id,question\n"
        b"a,What is red, and blue?\n"  # one cell too many
        b"a,Red?\n"
        b"c\n"
        b"d,caf\xe9\n"
        b"e,Fine \xc3\xa9?\n"  # UTF-8: the line before is damaged
        b'f,"never closed\n'
    )
    file = read(content, "q.csv")
    assert [(error.line, error.code) for error in file.errors] == [
        (2, "invalid_csv_line"),
        (3, "duplicate_custom_id"),
        (4, "missing_question"),
        (5, "invalid_encoding"),
        (7, "invalid_csv_line"),
    ]
    assert file.valid == [Question(4, 6, "e", "Fine é?")]


@pytest.mark.parametrize(
    ("lines", "swallowed"),
    [
        ('q-2,"What?\nq-3,Who?\n\nq-4,Why?\n', [3, 4, 6]),  # to the end of the file
        ('q-2,"What?\r\nq-3,"Who?"\r\nq-4,Why?\r\n', [3, 4]),  # to the next quote
    ],
)
def test_each_line_that_an_unclosed_quote_swallows_is_an_error(lines: str, swallowed: list[int]) -> None:
    file = read(f"custom_id,question\nq-1,Red?\n{lines}", "q.csv")
    assert [(error.line, error.code) for error in file.errors] == [(line, "invalid_csv_line") for line in swallowed]
    messages = [error.message for error in file.errors]
    assert "is each quote in it closed?" in messages[0]
    assert set(messages[1:]) == {"a quote in the record of line 3 is not closed before this line"}


def test_no_line_is_lost_where_an_unclosed_quote_makes_a_cell_too_large() -> None:
    lines = [f"q-{number},Who?" for number in range(20_000)]
    file = read("\n".join(["custom_id,question", 'q,"What?', *lines]), "q.csv")
    assert [line.line for line in file.lines] == list(range(2, 20_003))
    assert file.valid[-1].custom_id == "q-19999"


def test_a_question_may_have_its_own_filter() -> None:
    content = "\n".join(
        [
            '{"question": "a", "where": {"City": "Ansel", "year": {"from": 1950}}}',
            '{"question": "b", "where": "year>=1950"}',
            '{"question": "c", "where": null}',
            '{"question": "d", "where": {}}',
            json.dumps({"where": {"folder": "x"}} | json.loads(batch("/v1/responses", {"input": "Red?"}))),
        ]
    )
    assert [question.filter for question in read(content).valid] == [
        {"city": "Ansel", "year": {"from": 1950}},
        {"year": {"from": "1950"}},
        None,
        None,
        {"folder": "x"},
    ]


def test_a_column_of_filters_is_json_or_text() -> None:
    csv_file = 'question,where\na,"{""city"": [""A"", ""B""]}"\nb,year>=1950\nc,\n'
    expected = [{"city": ["A", "B"]}, {"year": {"from": "1950"}}, None]
    assert [question.filter for question in read(csv_file, "q.csv").valid] == expected
    parquet = parquet_bytes({"question": ["a", "b", "c"], "where": ['{"city": ["A", "B"]}', "year>=1950", None]})
    assert [question.filter for question in read(parquet, "q.parquet").valid] == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (7, "the key where is neither an object nor text"),
        (["city=A"], "the key where is neither an object nor text"),
        ({"city": {"gt": 1}}, 'the condition on "city" has an unknown operator "gt"'),
        ("city", 'the filter "city" is not a condition'),
    ],
)
def test_a_wrong_filter_makes_its_line_invalid(where: Any, message: str) -> None:
    file = read(json.dumps({"question": "a", "custom_id": "x", "where": where}) + '\n{"question": "b"}')
    [error] = file.errors
    assert (error.code, error.line, error.custom_id) == ("invalid_filter", 1, "x")
    assert error.message.startswith(message)
    assert [question.text for question in file.valid] == ["b"]


def test_parquet_rows_become_questions() -> None:
    content = parquet_bytes({"custom_id": [5, None, 6], "question": ["Red?", "Blue?", None], "more": [1, 2, 3]})
    file = read(content, "anything")
    assert file.valid == [
        Question(0, 1, "5", "Red?", given={"more": 1}),
        Question(1, 2, "line-2", "Blue?", given={"more": 2}),
    ]
    assert [(error.line, error.code, error.custom_id) for error in file.errors] == [(3, "missing_question", "6")]


def test_parquet_dictionary_text_is_text() -> None:
    content = parquet_bytes({"question": pa.array(["Red?", "Red?"]).dictionary_encode()})
    assert [question.text for question in read(content, "q.parquet").valid] == ["Red?", "Red?"]


def test_parquet_text_that_is_not_utf8_is_refused() -> None:
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xe9")]
    )
    assert refusal(parquet_bytes({"question": bad}), "q.parquet").code == "invalid_encoding"


def test_the_extension_gives_the_format_else_the_content() -> None:
    assert format_by_extension("S3/Q.NDJSON") is FileFormat.JSONL
    assert format_by_extension("q.tsv") is FileFormat.CSV
    assert format_by_extension("q.txt") is None
    assert read('\ufeff {"question": "x"}', "q.txt").valid[0].text == "x"
    assert read("question\nx", "q.txt").valid[0].text == "x"
    assert read_questions(b"question\nx", name="q.jsonl", format=FileFormat.CSV).valid[0].text == "x"


def test_a_path_reads_like_its_bytes(tmp_path: Path) -> None:
    for name, content in [
        ("q.jsonl", b'{"question": "x"}\n{'),
        ("q.csv", b"question\nx\n"),
        ("q.parquet", parquet_bytes({"question": ["x"]})),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        assert read_questions(path, name=name) == read_questions(content, name=name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^q\.csv cannot be read: No such file"):
        read_questions(tmp_path / "q.csv", name="q.csv")
    with pytest.raises(UsageError, match="directory"):
        read_questions(tmp_path, name="folder")


json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
json_record = st.dictionaries(
    st.sampled_from(["custom_id", "question", "method", "url", "body", "messages"]), json_value, max_size=4
)
some_line = st.one_of(
    json_record.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=40).map(lambda data: data.replace(b"\n", b" ")),
    st.sampled_from([b"", b"  ", b"\r", b'{"question": "x"}', b'"', b'a,"b', b"question"]),
)
some_file = st.lists(some_line, max_size=8).map(b"\n".join) | st.binary(max_size=200)


def check_numbers(file: QuestionFile) -> None:
    for number, line in enumerate(file.lines):
        assert line.line > 0
        if isinstance(line, Question):
            assert line.question_no == number
            assert 0 < len(line.text) <= 8000
            (line.text + line.custom_id).encode()  # no lone surrogates
            assert "\0" not in line.text + line.custom_id
    ids = [line.custom_id for line in file.lines if line.custom_id is not None]
    assert len(ids) == len(set(ids))


@given(content=some_file, name=st.sampled_from(["q.jsonl", "q.csv", "q.parquet", "q"]))
def test_no_bytes_raise_anything_but_invalid_input(content: bytes, name: str) -> None:
    try:
        file = read(content, name)
    except InvalidInput as refused:
        assert refused.errors[0].line == 0
    else:
        check_numbers(file)


@given(content=some_file.filter(lambda content: not content.lstrip().startswith((b"[", b"\x1f\x8b"))))
def test_every_line_of_a_jsonl_that_is_not_blank_gives_one_entry(content: bytes) -> None:
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    expected = [no for no, line in enumerate(lines, 1) if line.strip(b" \t\r\n\v\f\x1a")]
    try:
        file = read(content)
    except InvalidInput as refused:
        assert refused.errors[0].code == ("invalid_encoding" if expected else "empty_file")
    else:
        assert [line.line for line in file.lines] == expected


@given(texts=st.lists(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])), min_size=1))
def test_any_text_survives_a_csv(texts: list[str]) -> None:
    sink = io.StringIO(newline="")
    csv.writer(sink).writerows([["number", "question"], *enumerate(texts)])
    file = read(sink.getvalue(), "q.csv")
    assert [line.text if isinstance(line, Question) else "" for line in file.lines] == [t.strip() for t in texts]
