"""The noise ablation: the training examples of the arms, the naive base, and the table."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from ragllava.cli.main import cli
from ragllava.errors import UsageError
from ragllava.lab.ablation import naive, run
from ragllava.lab.ablation.data import PicturedArchive, practice_archive, shown_evidence, training_examples
from ragllava.lab.ablation.naive import (
    NaiveRecipe,
    make_naive,
    pack_about_one,
    pack_about_two,
    reinitialize_last_layers,
)
from ragllava.lab.ablation.run import ARMS, AblationOptions, run_ablation
from ragllava.lab.ablation.table import ADDED, CLEAN, Ablation, AblationRow, ArmScores
from ragllava.lab.mini_recipe.examples import PackSampler
from ragllava.postcards.names import sample_attributes
from ragllava.settings import Settings
from tests.support.tiny_checkpoints import FAMILIES, save_family

EXAMPLES = 64
TINY = AblationOptions(
    seeds=1,
    steps=1,
    questions=5,
    practice_images=40,
    held_out_images=40,
    naive=NaiveRecipe(layers=1, steps=2, pictures=40, packs_per_step=(2, 2)),
)


@pytest.fixture
def archive() -> PicturedArchive:
    """An archive without pixels, in which CLIP finds the right pictures first and then others."""
    drawn = practice_archive(3, 80, EXAMPLES)
    names = [card.file_name for card in drawn.postcards]
    candidates = {
        question.custom_id: [*question.relevant, *random.Random(question.custom_id).sample(names, 8)]
        for question in drawn.questions
    }
    grey = Image.new("RGB", (8, 8), "gray")
    captions = {card.file_name: card.caption for card in drawn.postcards}
    return PicturedArchive(drawn.questions, dict.fromkeys(names, grey), captions, candidates)


def test_arms_see_as_many_prompts_of_one_two_and_three_pictures(archive: PicturedArchive) -> None:
    for wrong_pictures in (False, True):
        examples = training_examples(archive, wrong_pictures=wrong_pictures, seed=1)
        forms = Counter(len(example.images) for example in examples)
        assert forms == {1: EXAMPLES // 4, 2: EXAMPLES // 2, 3: EXAMPLES // 4}
        assert all(
            archive.captions[image] == caption
            for example in examples
            for image, caption in zip(example.images, example.captions, strict=True)
        )


def test_with_wrong_pictures_five_eighths_of_the_prompts_have_one(archive: PicturedArchive) -> None:
    questions = {question.text: question for question in archive.questions}
    plain = training_examples(archive, wrong_pictures=False, seed=1)
    noisy = training_examples(archive, wrong_pictures=True, seed=1)
    assert all(set(example.images) == set(questions[example.question].relevant) for example in plain)
    injected = [example for example in noisy if set(example.images) != set(questions[example.question].relevant)]
    assert Counter(len(example.images) for example in injected) == {2: EXAMPLES * 3 // 8, 3: EXAMPLES // 4}
    for example in injected:
        question = questions[example.question]
        (wrong,) = set(example.images) - set(question.relevant)
        assert set(question.relevant) < set(example.images)
        assert wrong in archive.candidates[question.custom_id]
        assert example.answer == question.answer
    assert len({example.images.index(questions[example.question].relevant[0]) for example in injected}) == 3
    # Everything else is equal: the prompts with one picture, and those with two that have no wrong one.
    same = Counter((example.question, frozenset(example.images)) for example in plain)
    same &= Counter((example.question, frozenset(example.images)) for example in noisy)
    assert same.total() == EXAMPLES * 3 // 8


def test_the_conditions_are_the_same_at_every_call(archive: PicturedArchive) -> None:
    shown = shown_evidence(archive, 5)
    assert list(shown) == [CLEAN, "20% wrong", "50% wrong", ADDED]
    assert shown == shown_evidence(archive, 5)
    labelled = sum(len(question.relevant) for question in archive.questions)
    for name, share in {CLEAN: 0, "20% wrong": 0.2, "50% wrong": 0.5}.items():
        assert sum(len(evidence.wrong) for evidence in shown[name]) == round(share * labelled)
    assert all(len(evidence.wrong) == 1 for evidence in shown[ADDED])


def test_naive_packs_hold_no_wrong_picture() -> None:
    rng = random.Random(3)
    sampler = PackSampler([sample_attributes(rng) for _ in range(60)], "train")
    tasks: Counter[str] = Counter()
    for _ in range(50):
        about_one, about_two = pack_about_one(sampler, rng), pack_about_two(sampler, rng)
        assert (len(about_one.shown), len(about_two.shown)) == (1, 2)
        assert not any(ending.judges_relevance for ending in about_one.endings)
        tasks.update(ending.task for ending in about_two.endings)
    assert set(tasks) == {"samecolor", "more"}


def test_only_the_last_layers_are_reinitialized() -> None:
    llava, _ = FAMILIES["llava"]()
    before = {name: weight.clone() for name, weight in llava.named_parameters()}
    reinitialize_last_layers(llava, 1)
    last = len(llava.model.language_model.layers) - 1
    for name, weight in llava.named_parameters():
        is_last = f"language_model.layers.{last}." in name
        assert weight.requires_grad == is_last
        if weight.ndim > 1:
            assert torch.equal(weight, before[name]) != is_last


def test_another_family_cannot_be_made_naive(tmp_path: Path) -> None:
    save_family("qwen3_vl", tmp_path / "model")
    with pytest.raises(UsageError, match="only a LLaVA such as the mini model can be made naive"):
        make_naive(tmp_path / "model", tmp_path / "work", NaiveRecipe())


@pytest.mark.timeout(1200)
def test_a_tiny_ablation_runs_and_is_not_trained_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naive, "_MEASURED_PACKS", 4)
    settings = Settings(home=tmp_path / "home", torch_threads=1)
    progress: list[tuple[int, int]] = []
    result = run_ablation(settings, tmp_path / "work", TINY, lambda _, done, total: progress.append((done, total)))
    assert progress == [(done, 7) for done in range(1, 8)]
    assert [row.label for row in result.rows[2:]] == [arm.label for arm in ARMS]
    for row in result.rows:
        (scores,) = row.scores
        assert list(scores.accuracy) == [CLEAN, "20% wrong", "50% wrong", ADDED]
        assert all(0 <= share <= 1 for share in scores.accuracy.values())
    weights = {arm.label: result.row(arm.label).scores[0].token_weight for arm in ARMS}
    assert all((weights[arm.label] == 1) != arm.token_weighting for arm in ARMS)
    assert result.base != result.shipped
    reports = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("report.json")}
    again = run_ablation(settings, tmp_path / "work", TINY, lambda *_: None)
    assert (len(reports), again.rows) == (4, result.rows)
    assert all(path.stat().st_mtime_ns == written for path, written in reports.items())
    changed = replace(TINY, naive=replace(TINY.naive, steps=3))
    with pytest.raises(UsageError, match="made from other weights than"):
        run_ablation(settings, tmp_path / "work", changed, lambda *_: None)


def _row(label: str, *pairs: tuple[float, float], weight: float | None = None) -> AblationRow:
    """A row of (clean, with a wrong one added) for each seed."""
    return AblationRow(
        label,
        tuple(
            ArmScores({CLEAN: clean, ADDED: added}, {CLEAN: clean, ADDED: (clean + added) / 2}, token_weight=weight)
            for clean, added in pairs
        ),
    )


def _ablation(plain: tuple[float, float] = (0.9, 0.5)) -> Ablation:
    rows = (
        _row("model as shipped", (0.9, 0.9), (0.8, 0.7)),
        _row("base, made naive", (0.9, 0.4), (0.9, 0.4)),
        _row("plain fine-tuning", plain, plain, weight=1.0),
        _row("both levels", (0.9, 0.8), (0.8, 0.7), weight=1.5),
    )
    setup = {
        "seeds": 2, "steps": 9, "examples_per_step": 16, "learning_rate": 0.002, "questions": 10, "naive_layers": 2,
        "naive_steps": 7,
    }  # fmt: skip
    return Ablation("mini-naive@1", "mini-llava@2", setup, rows, 119.0)


def test_table_of_hand_worked_scores() -> None:
    ablation = _ablation()
    assert ablation.share_lost() == pytest.approx(0.25)
    values = ablation.as_json()
    assert values["share_lost"] == 0.25
    assert values["share_lost_about_one"] == 0.25
    shipped = values["rows"][0]
    assert shipped["accuracy"][CLEAN] == {"mean": 0.85, "spread": 0.0707, "values": [0.9, 0.8]}
    assert shipped["lost_with_wrong_added"]["mean"] == 0.05
    assert shipped["lost_with_wrong_added_about_one"]["mean"] == 0.025
    assert [row["token_weight"] for row in values["rows"]] == [[], [], [1.0, 1.0], [1.5, 1.5]]
    text = ablation.as_text()
    assert "an added wrong one costs it 50.0 points, the shipped model 5.0" in text
    assert "the last 2 layers of the language model reinitialized and trained 7 steps without wrong pictures" in text
    (line,) = [line for line in text.splitlines() if "both levels" in line and "|" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["both levels", "85.0 ± 7.1", "75.0 ± 7.1", "10.0 ± 0.0", "5.0 ± 0.0", "1.50"]
    assert "costs plain fine-tuning 40.0 points, both levels 10.0: 0.25 of it; of questions about one" in text
    assert "only, it costs 20.0 points, both levels 5.0: 0.25 of it\n" in text


def test_without_a_loss_there_is_no_share() -> None:
    ablation = _ablation(plain=(0.9, 0.9))
    assert ablation.share_lost() is None
    assert ablation.as_json()["share_lost"] is None
    assert "costs plain fine-tuning 0.0 points, both levels 10.0; of questions about one" in ablation.as_text()


def test_the_command_prints_the_table_and_writes_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGLLAVA_HOME", str(tmp_path))
    monkeypatch.setattr(run, "run_ablation", lambda *_: _ablation())
    result = CliRunner().invoke(cli, ["ablation", "--seeds", "2", "--json", str(tmp_path / "figures.json")])
    assert result.exit_code == 0, result.output
    assert "| both levels " in result.output
    assert '"share_lost": 0.25' in (tmp_path / "figures.json").read_text()
