"""Tables as WebQA's public baseline has them: keywords for the questions of val, and answers to score."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ragllava.cli.evaluate import evaluate
from ragllava.errors import InvalidInput, UsageError
from ragllava.evaluation.datasets.load import load_dataset
from ragllava.evaluation.datasets.webqa_keywords import is_placeholder, read_table
from ragllava.evaluation.given_answers import score_given
from ragllava.evaluation.scoring import Metric
from tests.support.dataset_fixtures import copied, write_tsv

COLOR = "d5bbc7c80dba11ecb1e81171463288e9"
CHOOSE = "d5bbc8720dba11ecb1e81171463288e9"
HEAD = ("Guid", "Qcate", "Q", "A", "Keywords_A", "Output_conf", "Output")
NAME = "img_queries_TEST_val_beam5.tsv"
ROWS = (
    (COLOR, "color", "What color ?", '["The door is red."]', "red", '"[-1.5, -2.0]"', '["The door is red .", "blue"]'),
    (CHOOSE, "choose", "Which ?", '["Harlow Mill has more."]', "TBD", '"[-1.5]"', '["Harlow Mill ."]'),
)


def write_table(path: Path, rows: tuple[tuple[str, ...], ...] = ROWS, head: tuple[str, ...] = HEAD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in (head, *rows)))
    return path


@pytest.fixture
def original(tmp_path: Path) -> Path:
    folder = copied("webqa", tmp_path)
    write_tsv(folder, {30_000_000 + row: 40 * row for row in range(5)})
    return folder


@pytest.mark.parametrize("under", ["", "baseline_output_files/Baseline_prediction_files_on_Val"])
def test_answers_are_compared_with_keywords_where_there_are_any(original: Path, under: str) -> None:
    before = load_dataset("webqa", original, "val")
    assert before.questions[0].answer == "The door of the old lighthouse is red."
    assert before.answers_from == "keywords for 0 of 2 questions; the sentence for the others"
    write_table(original / under / NAME)
    data = load_dataset("webqa", original, "val")
    assert [question.answer for question in data.questions] == ["red", "Harlow Mill has more windows."]
    assert data.questions[0].references == ("The door of the old lighthouse is red.",)
    assert data.answers_from == f"keywords for 1 of 2 questions, from {NAME}; the sentence for the others"
    assert load_dataset("webqa", original, "train").answers_from == (
        "keywords for 0 of 1 questions; the sentence for the others"
    )


def test_keywords_of_the_questions_file_go_before_a_table(original: Path) -> None:
    path = original / "WebQA_train_val.json"
    content = json.loads(path.read_text())
    content[COLOR]["Keywords_A"] = "crimson"
    path.write_text(json.dumps(content))
    write_table(original / NAME)
    data = load_dataset("webqa", original, "val")
    assert data.questions[0].answer == "crimson"
    assert data.answers_from is not None
    assert data.answers_from.startswith("keywords for 1 of 2 questions")


def test_a_placeholder_is_never_an_answer(original: Path) -> None:
    path = original / "WebQA_train_val.json"
    content = json.loads(path.read_text())
    content[COLOR]["Keywords_A"] = "TBD"
    path.write_text(json.dumps(content))
    assert load_dataset("webqa", original, "val").questions[0].answer == "The door of the old lighthouse is red."
    content[COLOR]["A"] = ["TBD"]
    path.write_text(json.dumps(content))
    with pytest.raises(InvalidInput, match=f"{COLOR}: 'A' holds no answer"):
        load_dataset("webqa", original, "val")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("TBD", True), ("tbd.", True), ('"TBD"', True), ("N/A", True), ("", True), ("None", False), ("no", False)],
)
def test_placeholders(text: str, expected: bool) -> None:
    assert is_placeholder(text) is expected


def test_a_table_is_read(tmp_path: Path) -> None:
    color, choose = read_table(write_table(tmp_path / NAME))
    assert (color.reference, color.output) == ("red", "The door is red .")
    assert (choose.keywords, choose.reference) == (None, "Harlow Mill has more.")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROWS[0][:-1], "line 2: expected 7 columns between tabs, found 6"),
        ((*ROWS[0][:-1], "red"), "line 2: 'Output' must be a JSON list of texts, found 'red'"),
        ((*ROWS[0][:3], '["TBD"]', "TBD", *ROWS[0][5:]), "line 2: neither 'Keywords_A' nor 'A' holds an answer"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, row: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_table(write_table(tmp_path / NAME, (row,)))


def test_what_is_not_such_a_table(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"line 1: expected the tab-separated columns .*, Keywords_A is missing"):
        read_table(write_table(tmp_path / NAME, head=("Guid", "Qcate", "Q", "A", "K", "Output_conf", "Output")))
    with pytest.raises(UsageError, match="has no row below its head"):
        score_given(write_table(tmp_path / NAME, ()), Metric.OURS)


def test_given_answers_are_scored_by_category(tmp_path: Path) -> None:
    path = write_table(tmp_path / NAME)
    scored = score_given(path, Metric.OURS)
    assert scored.scores == {"ours": {"all": pytest.approx(0.75), "choose": pytest.approx(0.5), "color": 1.0}}
    result = CliRunner().invoke(evaluate, ["webqa", "--answers", str(path)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "1 of 2 questions have keywords" in result.output
    assert "| choose |         1 |  50.0 |" in result.output
    refused = CliRunner().invoke(evaluate, ["coco", "--answers", str(path)])
    assert refused.exit_code != 0
