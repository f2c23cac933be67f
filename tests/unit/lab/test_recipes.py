"""The recipes of wrong pictures: their examples, a tiny run, and the table."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from ragllava.cli.main import cli
from ragllava.lab.ablation import recipes
from ragllava.lab.ablation.data import PicturedArchive
from ragllava.lab.ablation.recipe_table import PLAIN, SHIPPED, RecipeRow, RecipeTable
from ragllava.lab.ablation.recipes import RECIPES, Recipe, RecipeOptions, compare_recipes, recipe_examples
from ragllava.lab.ablation.table import ADDED, CLEAN, ArmScores
from ragllava.postcards.archive import draw_archive
from ragllava.settings import Settings
from ragllava.training.data.examples import AnswerExample

QUESTIONS = 80
TINY = RecipeOptions(seeds=1, steps=2, labelled=20, questions=10, labelled_images=40, held_out_images=40)


@pytest.fixture
def archive() -> PicturedArchive:
    """An archive without pixels, in which CLIP finds the right pictures first and then others."""
    drawn = draw_archive(3, 80, QUESTIONS, 0.5)
    names = [card.file_name for card in drawn.postcards]
    rng = random.Random(1)
    return PicturedArchive(
        questions=drawn.questions,
        pictures=dict.fromkeys(names, Image.new("RGB", (1, 1))),
        captions={card.file_name: card.caption for card in drawn.postcards},
        candidates={q.custom_id: [*q.relevant, *rng.sample(names, 18)] for q in drawn.questions},
    )


def forms(archive: PicturedArchive, recipe: Recipe) -> Counter[tuple[int, int]]:
    """How many examples have so many right and so many wrong pictures."""
    right = {question.text: set(question.relevant) for question in archive.questions}
    found: Counter[tuple[int, int]] = Counter()
    for example in recipe_examples(archive, recipe, 1):
        assert isinstance(example, AnswerExample)
        assert right[example.question] <= set(example.images)
        wrong = len(set(example.images) - right[example.question])
        assert example.injected == bool(wrong)
        found[len(right[example.question]), wrong] += 1
    return found


def test_a_recipe_says_beside_which_pictures_a_wrong_one_is(archive: PicturedArchive) -> None:
    half = QUESTIONS // 2
    assert forms(archive, Recipe("plain")) == {(1, 0): half, (2, 0): half}
    assert forms(archive, Recipe("one", beside_one=1)) == {(1, 1): half, (2, 0): half}
    assert forms(archive, Recipe("both", beside_one=1, beside_two=1)) == {(1, 1): half, (2, 1): half}


def test_a_share_of_the_examples_stays_without_a_wrong_picture(archive: PicturedArchive) -> None:
    counts = forms(archive, Recipe("mixed", beside_one=0.75, beside_two=0.5, draws=10))
    assert counts.total() == 10 * QUESTIONS
    assert counts[1, 1] == pytest.approx(0.75 * 5 * QUESTIONS, rel=0.2)
    assert counts[2, 1] == pytest.approx(0.5 * 5 * QUESTIONS, rel=0.2)


def test_up_to_three_pictures_are_shown(archive: PicturedArchive) -> None:
    half = QUESTIONS // 2
    counts = forms(archive, Recipe("three", beside_one=1, beside_two=1, draws=10, up_to_three=True))
    assert set(counts) == {(1, 1), (1, 2), (2, 1)}
    assert counts[2, 1] == 10 * half
    assert counts[1, 2] == pytest.approx(5 * half, rel=0.2)


@pytest.mark.timeout(1200)
def test_a_tiny_comparison_runs_and_is_not_trained_twice(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", torch_threads=1)
    compared = (Recipe(PLAIN), Recipe("both, twice as long", beside_one=1, beside_two=1, length=2))
    progress: list[tuple[int, int]] = []

    def run(options: RecipeOptions) -> RecipeTable:
        return compare_recipes(
            settings, tmp_path / "work", compared, options, lambda _, done, total: progress.append((done, total))
        )

    result = run(TINY)
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert [row.label for row in result.rows] == [SHIPPED, *(recipe.label for recipe in compared)]
    assert all(set(row.scores[0].about_two) == {CLEAN, ADDED} for row in result.rows)
    reports = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("report.json")}
    assert sorted(len(json.loads(path.read_text())["steps"]) for path in reports) == [2, 4]
    assert run(TINY).rows == result.rows
    assert all(path.stat().st_mtime_ns == written for path, written in reports.items())


def row(label: str, *scores: tuple[float, float, float, float]) -> RecipeRow:
    """One tuple for each seed: one picture, one with a wrong one, two pictures, two with a wrong one."""
    return RecipeRow(
        label,
        tuple(
            ArmScores(
                accuracy={},
                about_one={CLEAN: one, ADDED: one_added},
                about_two={CLEAN: two, ADDED: two_added},
                by_type={CLEAN: {"more": two}, ADDED: {"more": two_added / 2}},
            )
            for one, one_added, two, two_added in scores
        ),
    )


def table(plain_lost: float = 0.4) -> RecipeTable:
    rows = (
        row(SHIPPED, (0.9, 0.8, 0.9, 0.5)),
        row(PLAIN, (0.9, 0.8, 0.9, 0.9 - plain_lost), (0.9, 0.6, 0.9, 0.9 - plain_lost)),
        row("noise", (0.9, 0.9, 0.8, 0.7), (0.9, 0.9, 1.0, 0.9)),
    )
    setup = {"seeds": 2, "steps": 9, "labelled": 8, "questions": 10, "shifted": False}
    return RecipeTable("mini-llava@2", setup, rows, 119.0)


def test_table_of_hand_worked_scores() -> None:
    result = table()
    assert result.share_lost("noise") == pytest.approx(0.25)
    values = result.as_json()
    assert [entry["share_lost"] for entry in values["rows"]] == [1.0, 1.0, 0.25]
    assert values["rows"][1]["one_with_wrong_added"] == {"mean": 0.7, "spread": 0.1414, "values": [0.8, 0.6]}
    assert values["rows"][2]["two_lost"]["mean"] == 0.1
    (line,) = [line for line in result.as_text().splitlines() if line.startswith("| noise")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "noise", "90.0 ± 0.0", "90.0 ± 0.0", "90.0 ± 14.1", "80.0 ± 14.1", "10.0 ± 0.0", "0.25", "90.0 ± 14.1",
        "40.0 ± 7.1",
    ]  # fmt: skip
    assert table(plain_lost=0.0).share_lost("noise") is None


def test_the_command_prints_the_table_and_writes_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGLLAVA_HOME", str(tmp_path))
    asked: list[RecipeOptions] = []

    def compare(_settings: object, _folder: object, compared: object, options: RecipeOptions, _hook: object) -> object:
        assert compared is RECIPES
        asked.append(options)
        return table()

    monkeypatch.setattr(recipes, "compare_recipes", compare)
    arguments = ["ablation", "--recipes", "--shifted", "--seeds", "2", "--json", str(tmp_path / "figures.json")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert asked == [RecipeOptions(seeds=2, shifted=True)]
    assert "| noise " in result.output
    assert json.loads((tmp_path / "figures.json").read_text())["rows"][2]["share_lost"] == 0.25


def test_shifted_postcards_are_for_recipes_alone() -> None:
    result = CliRunner().invoke(cli, ["ablation", "--shifted"])
    assert result.exit_code == 2
    assert "--shifted needs --recipes" in result.output
