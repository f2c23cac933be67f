"""Code blocks and tables of the pages: examples are valid, and lists of names are those of the code."""

from __future__ import annotations

import ast
import csv
import importlib
import json
import re
import tomllib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ragllava.feedback import NoisyReason
from ragllava.filters import Condition, conditions, parse_where
from ragllava.imaging import embedded
from ragllava.lab.bench.groups import GROUPS
from ragllava.models.profiles import get_profile
from ragllava.records import AnswerStatus, Change, GapReason
from ragllava.settings import Settings
from ragllava.source_files import FileStatus
from ragllava.stages import record_files
from ragllava.stages.answer import question_files, submit
from ragllava.stages.feedback.files import read_feedback
from ragllava.stages.ingest.captions import read_captions
from ragllava.stages.results import results
from ragllava.stages.results.results import Previous, ResultRow
from tests.support.pages import Page, all_pages, choices, command_of, read_page

PAGES = all_pages()
# `text` alone is not checked here; `yaml` are values of the chart, in tests/unit/infra/test_chart.py.
LANGUAGES = {"text", "sh", "json", "csv", "toml", "python", "yaml"}


def examples(*languages: str) -> list[Any]:
    """Every block in one of these languages, as a parameter of a test."""
    return [
        pytest.param(body, id=f"{page.name}-{language}-{number}")
        for page in PAGES
        for language in languages
        for number, body in enumerate(page.blocks(language))
    ]


def json_values(block: str) -> list[Any]:
    """The values of a block that is JSON, or has one JSON value on each line."""
    try:
        return [json.loads(block)]
    except ValueError:
        return [json.loads(line) for line in block.splitlines()]


def values(members: Iterable[Any]) -> list[str]:
    return [member.value for member in members]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_block_names_its_language(page: Page) -> None:
    """Each language that a page uses has a test here or in test_commands.py, or the block would not be checked."""
    assert page.languages <= LANGUAGES


@pytest.mark.parametrize("block", examples("json"))
def test_json_is_valid(block: str) -> None:
    assert json_values(block)


@pytest.mark.parametrize("block", examples("csv"))
def test_csv_has_a_cell_for_each_column(block: str) -> None:
    header, *rows = csv.reader(block.splitlines(), strict=True)
    assert rows
    assert {len(row) for row in rows} == {len(header)}


@pytest.mark.parametrize("block", examples("toml"))
def test_toml_is_valid(block: str) -> None:
    assert tomllib.loads(block)


@pytest.mark.parametrize("block", examples("python"))
def test_python_compiles_and_its_imports_exist(block: str) -> None:
    tree = ast.parse(block)
    compile(tree, "example", "exec")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "a relative import"
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_example_profiles_are_loaded(tmp_path: Path) -> None:
    blocks = read_page("docs/models.md").section("Your own models").blocks("toml")
    assert blocks
    for block in blocks:
        path = tmp_path / "museum.toml"
        path.write_text(block, encoding="utf-8")
        loaded = get_profile(Settings(home=tmp_path, profile=str(path)))
        assert loaded.mllm == tomllib.loads(block)["mllm"]


def test_the_table_of_profiles_is_right(tmp_path: Path) -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| `(\S+)` / `(\S+)` \| `(\S+)` \|", read_page("docs/models.md").prose, re.MULTILINE
    )
    profiles = [get_profile(Settings(home=tmp_path, profile=name)) for name, *_ in rows]
    assert len(rows) == 2
    assert rows == [(p.name, p.retriever.retriever, p.retriever.tag, p.mllm) for p in profiles]


def test_question_examples_are_valid() -> None:
    section = read_page("docs/questions-and-results.md").section("Questions")
    for language, name in (("json", "questions.jsonl"), ("csv", "questions.csv")):
        blocks = section.blocks(language)
        assert blocks
        for block in blocks:
            assert question_files.read_questions(block.encode(), name=name).errors == []


def test_filter_examples_are_valid() -> None:
    section = read_page("docs/questions-and-results.md").section("Filters")
    [block] = section.blocks("json")
    file = question_files.read_questions(block.encode(), name="questions.jsonl")
    assert file.errors == []
    assert all(question.filter for question in file.valid)
    rows = re.findall(r"^\| `(\{.*\})` \| (.*?) \|", section.text, re.MULTILINE)
    assert len(rows) == 9
    for as_json, as_text in rows:
        from_json = conditions(parse_where(as_json) or {})
        texts = re.findall(r"`([^`]+)`", as_text)
        if texts:  # numbers in text are compared as numbers, too
            assert without_kinds(conditions(parse_where(texts) or {})) == without_kinds(from_json)
        else:
            assert from_json[0].is_absent


def without_kinds(compared: list[Condition]) -> list[Condition]:
    """Conditions in which all of one value is written as any of one value, which is the same."""
    return [replace(c, any_of=c.all_of, all_of=()) if len(c.all_of) == 1 else c for c in compared]


@pytest.mark.parametrize("section_name", ["Captions", "Metadata"])
def test_caption_examples_are_valid(tmp_path: Path, section_name: str) -> None:
    section = read_page("docs/ingest.md").section(section_name)
    for language, name in (("json", "captions.jsonl"), ("csv", "captions.csv")):
        [block] = section.blocks(language)
        (tmp_path / name).write_text(block, encoding="utf-8")
        described = dict(read_captions(tmp_path / name).items()).values()
        assert "Harlow Lighthouse, Port Ansel, 1932" in [description.caption for description in described]
        if section_name == "Metadata":
            assert all(description.metadata and "photo_year" in description.metadata for description in described)


def test_the_table_of_embedded_metadata_names_every_key() -> None:
    section = read_page("docs/ingest.md").section("Metadata")
    documented = set(re.findall(r"^\| `(\w+)`", str(embedded.__doc__), re.MULTILINE)) - {"caption"}
    shown = {
        key for row in re.findall(r"^\| (`.*?) \|", section.text, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)
    }
    assert documented <= shown


def test_the_feedback_example_is_valid() -> None:
    [block] = read_page("docs/feedback-and-training.md").section("Give feedback").blocks("csv")
    feedback = read_feedback(block.encode(), name="feedback.csv", job_id=7)
    assert feedback.errors == []
    assert feedback.valid


def test_every_validation_code_is_explained() -> None:
    files = [Path(str(module.__file__)) for module in (question_files, submit)]
    files += Path(str(record_files.__file__)).parent.glob("*.py")
    source = "".join(map(Path.read_text, files))
    raised = set(re.findall(r'(?:Rejected|LineError)\(\s*"(\w+)"', source))
    section = read_page("docs/questions-and-results.md").section("Questions")
    assert raised
    assert {name for name in section.first_column() if not name.startswith("--")} == raised


def test_the_output_line_has_all_keys() -> None:
    section = read_page("docs/questions-and-results.md").section("Results")
    shown = next(value for block in section.blocks("json") for value in json_values(block) if "evidence" in value)
    row = ResultRow(1, "q", "?", AnswerStatus.ANSWERED, models={}).as_json()
    assert list(shown) == list(row)
    assert list(shown["models"]) == list(row["models"])
    assert [list(image) for image in shown["evidence"]] == [list(results._EVIDENCE_KEYS)]


def test_the_line_of_a_refresh_has_all_keys() -> None:
    section = read_page("docs/questions-and-results.md").section("Refresh an old job")
    [block] = section.blocks("json")
    row = ResultRow(1, "q", "?", AnswerStatus.ANSWERED, previous=Previous(12, AnswerStatus.ANSWERED, "red", ()))
    shown = json.loads(block)["previous"]
    assert list(shown) == list(row.as_json()["previous"])
    assert [list(image) for image in shown["evidence"]] == [list(results._PREVIOUS_EVIDENCE_KEYS)]


def test_every_status_of_an_answer_is_explained() -> None:
    explained = read_page("docs/questions-and-results.md").section("Results").first_column()
    assert [name for name in explained if name in values(AnswerStatus)] == values(AnswerStatus)


def test_every_reason_of_a_refresh_is_explained() -> None:
    section = read_page("docs/questions-and-results.md").section("Refresh an old job")
    assert section.first_column() == values(Change)


def test_every_end_of_a_file_is_explained() -> None:
    section = read_page("docs/ingest.md").section("Pictures")
    assert {status for status in values(FileStatus) if status not in section.mentions} == set()
    assert set(section.first_column()) <= set(values(FileStatus))


def test_every_reason_of_a_gap_is_explained() -> None:
    section = read_page("docs/indexes.md").section("Repair an index")
    assert section.first_column()[: len(GapReason)] == values(GapReason)


def test_every_reason_of_a_noisy_case_is_explained() -> None:
    section = read_page("docs/feedback-and-training.md").section("Noisy cases")
    assert section.first_column() == values(NoisyReason)


def test_every_maintenance_task_is_explained() -> None:
    command, _ = command_of(["maintenance"])
    assert read_page("docs/automation.md").section("Maintenance tasks").first_column() == choices(command)


def test_every_data_set_is_explained() -> None:
    command, _ = command_of(["eval"])
    assert read_page("docs/evaluation.md").section("Data sets").first_column() == choices(command)


def test_every_group_of_benchmarks_is_explained() -> None:
    assert read_page("docs/benchmarks.md").first_column() == [group.name for group in GROUPS]
