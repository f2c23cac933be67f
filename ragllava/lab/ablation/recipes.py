"""The recipes of wrong pictures in training, compared on the model as included (docs/method.md 6, data level).

`ragllava train generator` makes its examples in the same way, from labelled questions. All recipes start from the same
base and have the same labelled questions; they differ only in what `RECIPES` says.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

from ragllava.lab.ablation.data import PicturedArchive, picture_archive, shown_evidence
from ragllava.lab.ablation.recipe_table import PLAIN, SHIPPED, RecipeRow, RecipeTable
from ragllava.lab.ablation.scores import score_generator
from ragllava.lab.ablation.table import ADDED, CLEAN, ArmScores
from ragllava.models.adapters import AdapterSet
from ragllava.models.bundle import ModelBundle
from ragllava.models.device import plan_device
from ragllava.models.generator import Generator
from ragllava.models.loading import load_mllm
from ragllava.models.mllm import Mllm
from ragllava.postcards.archive import draw_archive
from ragllava.records import Role
from ragllava.settings import Settings
from ragllava.training.data.datasets import DatasetOptions, LabelledQuestion, Retrieved, build_answer_dataset
from ragllava.training.data.examples import Evidence, Example
from ragllava.training.finetune.presets import choose_settings
from ragllava.training.finetune.run import FinetuneConfig, train

_PRESET = "mini"
_LABELLED_SEED, _HELD_OUT_SEED = 5_000, 6_000  # of the archives; the seed of the repetition is added
_ADAPTER = "recipe"

ProgressHook = Callable[[str, int, int], None]  # what has ended, number of ended parts, number of all parts


@dataclass(frozen=True, slots=True)
class Recipe:
    """How examples are made of labelled questions, and what the fine-tuning changes of its preset.

    `beside_one` and `beside_two` are the shares of the examples about one picture and about two that show a wrong one
    more; with `up_to_three`, those about one picture show one or two. Each question gives `draws` examples, each with a
    draw of its own. `length` is a multiple of the steps.
    """

    label: str
    beside_one: float = 0.0
    beside_two: float = 0.0
    draws: int = 1
    up_to_three: bool = False
    length: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)


_DRAWS = 4
_MIXED: Mapping[str, Any] = {"beside_one": 0.75, "beside_two": 0.75, "draws": _DRAWS}
RECIPES = (
    Recipe(PLAIN),
    Recipe("wrong beside one picture", beside_one=1),
    Recipe("wrong beside one and two", beside_one=1, beside_two=1),
    Recipe("… in three quarters", beside_one=0.75, beside_two=0.75),
    Recipe("… in half", beside_one=0.5, beside_two=0.5),
    Recipe("three quarters, 4 draws", **_MIXED),
    Recipe("… up to three pictures", **_MIXED, up_to_three=True),
    Recipe("… and projector", **_MIXED, settings={"projector_learning_rate": 1e-3}),
    Recipe("… and vision tower", **_MIXED, settings={"train_vision": True}),
    Recipe("… and token weights", **_MIXED, settings={"token_weighting": True}),
    Recipe("… and three times the steps", **_MIXED, length=3),
)


@dataclass(frozen=True, slots=True)
class RecipeOptions:
    """`seeds` repetitions, each with its own archives and first weights; `steps` of each recipe of length 1.

    Half of the `labelled` questions and of the `questions` asked are about two pictures. `shifted` archives have kinds
    of landmarks and drawing styles that the model as included has never seen.
    """

    seeds: int = 3
    steps: int = 200
    labelled: int = 800
    questions: int = 300
    labelled_images: int = 600
    held_out_images: int = 300
    shifted: bool = False


def compare_recipes(
    settings: Settings, folder: Path, recipes: Sequence[Recipe], options: RecipeOptions, on_progress: ProgressHook
) -> RecipeTable:
    """Train and measure all recipes; what `folder` already contains is not repeated.

    Raises UsageError if `folder` contains results of other data, settings or weights.
    """
    began = time.monotonic()
    shipped = ModelBundle(settings)
    base = load_mllm(shipped.profile, plan_device(settings), settings)
    ended, total = count(1), options.seeds * (1 + len(recipes))
    rows: dict[str, list[ArmScores]] = defaultdict(list)
    for seed in range(1, options.seeds + 1):
        measurement = _Measurement(shipped, base, settings, folder, seed, options)
        rows[SHIPPED].append(measurement.score(Generator(base)))
        on_progress(f"seed {seed}, {SHIPPED}", next(ended), total)
        for recipe in recipes:
            rows[recipe.label].append(measurement.train_and_score(recipe))
            on_progress(f"seed {seed}, {recipe.label}", next(ended), total)
    return RecipeTable(
        base=base.version,
        setup=asdict(options),
        rows=tuple(RecipeRow(label, tuple(scores)) for label, scores in rows.items()),
        seconds=time.monotonic() - began,
    )


def labelled_questions(archive: PicturedArchive, pictures: int) -> list[LabelledQuestion]:
    """The questions about so many pictures, labelled, with CLIP's candidates."""
    return [
        LabelledQuestion(
            question.text,
            question.answer,
            tuple(Evidence(name, archive.captions[name]) for name in question.relevant),
            tuple(Retrieved(name, archive.captions[name]) for name in archive.candidates[question.custom_id]),
        )
        for question in archive.questions
        if len(question.relevant) == pictures
    ]


def recipe_examples(archive: PicturedArchive, recipe: Recipe, seed: int) -> list[Example]:
    """The examples of a recipe, as a training makes them."""
    examples: list[Example] = []
    for pictures, share in ((1, recipe.beside_one), (2, recipe.beside_two)):
        options = DatasetOptions(
            seed=seed,
            injected_share=share,
            draws=recipe.draws,
            pictures_shown=3 if recipe.up_to_three else pictures + 1,
        )
        examples += build_answer_dataset(labelled_questions(archive, pictures), options).examples
    return examples


class _Measurement:
    """Trains and measures recipes on the archives of one seed."""

    def __init__(
        self, shipped: ModelBundle, base: Mllm, settings: Settings, folder: Path, seed: int, options: RecipeOptions
    ) -> None:
        self._base, self._settings, self._seed, self._options = base, settings, seed, options
        world = "shifted" if options.shifted else "in-domain"
        self._folder = folder / f"{world}-{options.labelled}-labelled-{options.steps}-steps-seed-{seed}"
        draw = partial(draw_archive, two_image_share=0.5, shifted=options.shifted)
        labelled = draw(_LABELLED_SEED + seed, options.labelled_images, options.labelled, split="train")
        held_out = draw(_HELD_OUT_SEED + seed, options.held_out_images, options.questions)
        self._practice = picture_archive(labelled, shipped.retriever)
        self._asked = picture_archive(held_out, shipped.retriever)
        shown = shown_evidence(self._asked, seed)
        self._shown = {condition: shown[condition] for condition in (CLEAN, ADDED)}

    def score(self, generator: Generator) -> ArmScores:
        """The scores of this generator."""
        return score_generator(generator, self._asked, self._shown, self._settings)

    def train_and_score(self, recipe: Recipe) -> ArmScores:
        """The scores of the generator that the recipe makes."""
        result = self._folder / recipe.label.replace(",", "").replace(" ", "-")
        weight = self._train(recipe, result)
        adapters = AdapterSet(self._base, self._settings.home / "cache")
        adapter = adapters.add(_ADAPTER, result / "adapter")
        scores = self.score(Generator(self._base, adapter))
        adapters.remove(_ADAPTER)  # the next training needs the base without an adapter
        return replace(scores, token_weight=weight)

    def _train(self, recipe: Recipe, result: Path) -> float:
        """Train the adapter into `result`/adapter; returns the mean weight of the tokens of its answers."""
        steps = self._options.steps * recipe.length
        changes = {"max_steps": steps, "seed": self._seed, **recipe.settings}
        report = train(
            FinetuneConfig(Role.GENERATOR, choose_settings(_PRESET, changes), result),
            recipe_examples(self._practice, recipe, self._seed),
            self._base,
            self._practice.pictures.__getitem__,
        )
        return fmean(step.token_weight for step in report.steps)
