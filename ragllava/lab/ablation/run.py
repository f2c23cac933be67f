"""The noise ablation: plain fine-tuning, noise on data level, on token level, and on both, all with wrong evidence.

All arms start from the same base, take the same steps on prompts with the same numbers of pictures, and are asked the
same questions (docs/method.md 6 and 7). They differ only in what `ARMS` says.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from itertools import count
from pathlib import Path

from ragllava.lab.ablation.data import (
    PicturedArchive,
    picture_archive,
    practice_archive,
    shown_evidence,
    training_examples,
)
from ragllava.lab.ablation.naive import NaiveRecipe, make_naive
from ragllava.lab.ablation.scores import score_generator
from ragllava.lab.ablation.table import Ablation, AblationRow, ArmScores
from ragllava.lab.mini_recipe.precision import training_precision
from ragllava.models.adapters import AdapterSet
from ragllava.models.bundle import ModelBundle
from ragllava.models.device import plan_device
from ragllava.models.generator import Generator
from ragllava.models.loading import load_mllm
from ragllava.models.mllm import Mllm
from ragllava.models.profiles import find_model
from ragllava.postcards.archive import draw_archive
from ragllava.records import Role
from ragllava.settings import Settings
from ragllava.training.finetune.presets import choose_settings
from ragllava.training.finetune.run import FinetuneConfig, train

_PRESET = "mini"
_LEARNING_RATE = 2e-3  # of all arms; twice the preset's, because choosing between pictures is learned slowly
_PRACTICE_SEED, _HELD_OUT_SEED = 5_000, 6_000  # of the archives; the seed of the repetition is added
_ADAPTER = "arm"

ProgressHook = Callable[[str, int, int], None]  # what has ended, number of ended parts, number of all parts


@dataclass(frozen=True, slots=True)
class AblationArm:
    """One way to fine-tune. `wrong_pictures` is noise on data level, `token_weighting` on token level."""

    label: str
    wrong_pictures: bool
    token_weighting: bool


ARMS = (
    AblationArm("plain fine-tuning", wrong_pictures=False, token_weighting=False),
    AblationArm("data level only", wrong_pictures=True, token_weighting=False),
    AblationArm("token level only", wrong_pictures=False, token_weighting=True),
    AblationArm("both levels", wrong_pictures=True, token_weighting=True),
)


@dataclass(frozen=True, slots=True)
class AblationOptions:
    """`seeds` repetitions, each with its own data and first weights; `steps` of each arm, `questions` asked.

    `practice_images` and `held_out_images` are the sizes of the archives of a seed for training and for questions.
    """

    seeds: int = 3
    steps: int = 400
    questions: int = 150
    practice_images: int = 600
    held_out_images: int = 300
    naive: NaiveRecipe = field(default_factory=NaiveRecipe)


def run_ablation(settings: Settings, folder: Path, options: AblationOptions, on_progress: ProgressHook) -> Ablation:
    """Train and measure all arms; trainings that `folder` already contains are not repeated.

    Raises UsageError if `folder` contains results of other data, settings or weights.
    """
    began = time.monotonic()
    shipped = ModelBundle(settings)
    ended, total = count(1), 1 + options.seeds * (2 + len(ARMS))
    examples_per_step = choose_settings(_PRESET).values.global_batch
    naive = _naive_base(settings, shipped, folder, options.naive)
    on_progress("naive base", next(ended), total)
    scores: dict[str, list[ArmScores]] = defaultdict(list)
    for seed in range(1, options.seeds + 1):
        # Names that no training saw; one question in five is about two pictures.
        held_out = draw_archive(_HELD_OUT_SEED + seed, options.held_out_images, options.questions)
        asked = picture_archive(held_out, shipped.retriever)
        shown = shown_evidence(asked, seed)
        for label, generator in (("model as shipped", shipped.generator), ("base, made naive", Generator(naive))):
            scores[label].append(score_generator(generator, asked, shown, settings))
            on_progress(f"seed {seed}, {label}", next(ended), total)
        examples = options.steps * examples_per_step  # each is seen once
        drawn = practice_archive(_PRACTICE_SEED + seed, options.practice_images, examples)
        practice = picture_archive(drawn, shipped.retriever)
        for arm in ARMS:
            result = folder / f"{options.steps}-steps-seed-{seed}" / arm.label.replace(" ", "-")
            weight = _train_arm(naive, result, arm, options.steps, seed, practice)
            adapters = AdapterSet(naive, settings.home / "cache")
            adapted = Generator(naive, adapters.add(_ADAPTER, result / "adapter"))
            scores[arm.label].append(replace(score_generator(adapted, asked, shown, settings), token_weight=weight))
            adapters.remove(_ADAPTER)  # the next training needs the base without an adapter
            on_progress(f"seed {seed}, {arm.label}", next(ended), total)
    return Ablation(
        base=naive.version,
        shipped=shipped.generator.version,
        setup={
            **{field.name: getattr(options, field.name) for field in fields(options) if field.name != "naive"},
            "examples_per_step": examples_per_step,
            "learning_rate": _LEARNING_RATE,
            "naive_layers": options.naive.layers,
            "naive_steps": options.naive.steps,
        },
        rows=tuple(AblationRow(label, tuple(by_seed)) for label, by_seed in scores.items()),
        seconds=time.monotonic() - began,
    )


def _naive_base(settings: Settings, shipped: ModelBundle, folder: Path, recipe: NaiveRecipe) -> Mllm:
    start = find_model(shipped.profile.mllm, shipped.profile, settings).path
    naive = make_naive(start, folder, recipe)
    # Eager attention has the faster backward pass on a CPU; with bfloat16, where there are instructions, half the time.
    training = settings.model_copy(update={"dtype": str(training_precision()).removeprefix("torch.")})
    base = load_mllm(replace(shipped.profile, mllm=str(naive.absolute())), plan_device(training), training)
    base.network.set_attn_implementation("eager")
    return base


def _train_arm(base: Mllm, result: Path, arm: AblationArm, steps: int, seed: int, practice: PicturedArchive) -> float:
    """Train the arm's adapter into `result`/adapter; returns the mean weight of the tokens of its answers."""
    changes = {
        "max_steps": steps,
        "steps_per_checkpoint": steps,
        "learning_rate": _LEARNING_RATE,
        "token_weighting": arm.token_weighting,
        "seed": seed,
    }
    report = train(
        FinetuneConfig(Role.GENERATOR, choose_settings(_PRESET, changes), result),
        training_examples(practice, wrong_pictures=arm.wrong_pictures, seed=seed),
        base,
        practice.pictures.__getitem__,
    )
    return sum(step.token_weight for step in report.steps) / len(report.steps)
