"""The noise ablation: plain fine-tuning, noise on data level, on token level, on both, all under wrong evidence.

All arms start from the same base, take the same steps from as many prompts of one picture and of two, and are asked
the same questions (docs/method.md 6 and 7). What differs is written in `ARMS` and nowhere else.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ragllava.answer_text import exact_match
from ragllava.evaluation.wrong_evidence import ShownEvidence
from ragllava.lab.ablation.data import (
    PicturedArchive,
    held_out_archive,
    picture_archive,
    practice_archive,
    shown_evidence,
    training_examples,
)
from ragllava.lab.ablation.naive import NaiveRecipe, make_naive
from ragllava.lab.ablation.table import Ablation, AblationRow, Scores
from ragllava.models.adapters import AdapterSet
from ragllava.models.bundle import ModelBundle
from ragllava.models.device import plan_device
from ragllava.models.generator import AnswerRequest, Generator
from ragllava.models.loading import load_mllm
from ragllava.models.mllm import Mllm
from ragllava.models.profiles import find_model
from ragllava.records import Role
from ragllava.settings import Settings
from ragllava.training.finetune.presets import choose_settings
from ragllava.training.finetune.run import FinetuneConfig, train

_PRESET = "mini"
_LEARNING_RATE = 2e-3  # of all arms; twice the preset's, as to choose between pictures is learned slowly
_PRACTICE_SEED, _HELD_OUT_SEED = 5_000, 6_000  # plus the seed of a repetition: archives
_BATCH = 20
_ADAPTER = "arm"

ProgressHook = Callable[[str, int, int], None]  # what has ended, how many of how many


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to fine-tune. `wrong_pictures` is noise on data level, `token_weighting` on token level."""

    label: str
    wrong_pictures: bool
    token_weighting: bool


ARMS = (
    Arm("plain fine-tuning", wrong_pictures=False, token_weighting=False),
    Arm("data level only", wrong_pictures=True, token_weighting=False),
    Arm("token level only", wrong_pictures=False, token_weighting=True),
    Arm("both levels", wrong_pictures=True, token_weighting=True),
)


@dataclass(frozen=True, slots=True)
class AblationOptions:
    """`seeds` repetitions, each with data and first weights of its own; `steps` of each arm, `questions` asked.

    `practice_images` and `held_out_images` are the sizes of the archives that a seed is trained on and asked about.
    """

    seeds: int = 3
    steps: int = 400
    questions: int = 150
    practice_images: int = 600
    held_out_images: int = 300
    naive: NaiveRecipe = field(default_factory=NaiveRecipe)


def run_ablation(settings: Settings, folder: Path, options: AblationOptions, on_progress: ProgressHook) -> Ablation:
    """Train and measure all arms; what is trained already in `folder` is not trained again.

    Raises UsageError when `folder` holds results of other data, settings or weights.
    """
    began = time.monotonic()
    shipped = ModelBundle(settings)
    progress = _Progress(on_progress, 1 + options.seeds * (2 + len(ARMS)))
    naive = _naive_base(settings, shipped, folder, options.naive)
    progress.ended("naive base")
    scores: dict[str, list[Scores]] = defaultdict(list)
    for seed in range(1, options.seeds + 1):
        asked = held_out_archive(_HELD_OUT_SEED + seed, options.held_out_images, options.questions)
        exam = _Exam(picture_archive(asked, shipped.retriever), seed, settings)
        for label, generator in (("model as shipped", shipped.generator), ("base, made naive", Generator(naive))):
            scores[label].append(exam.scores(generator))
            progress.ended(f"seed {seed}, {label}")
        school = _School(naive, folder / f"{options.steps}-steps-seed-{seed}", options, seed)
        learned = practice_archive(_PRACTICE_SEED + seed, options.practice_images, school.examples)
        practice = picture_archive(learned, shipped.retriever)
        for arm in ARMS:
            adapter, weight = school.teach(arm, practice)
            scores[arm.label].append(_scores_with(naive, adapter, exam, settings, weight))
            progress.ended(f"seed {seed}, {arm.label}")
    return Ablation(
        base=naive.version,
        shipped=shipped.generator.version,
        setup=_setup(options),
        rows=tuple(AblationRow(label, tuple(found)) for label, found in scores.items()),
        seconds=time.monotonic() - began,
    )


def _naive_base(settings: Settings, shipped: ModelBundle, folder: Path, recipe: NaiveRecipe) -> Mllm:
    start = find_model(shipped.profile.mllm, shipped.profile, settings).path
    made = make_naive(start, folder, recipe)
    # In bfloat16 and with written-out attention, whose backward pass is the faster one on a CPU: half the time.
    training = settings.model_copy(update={"dtype": "bfloat16"})
    base = load_mllm(replace(shipped.profile, mllm=str(made.absolute())), plan_device(training), training)
    base.network.set_attn_implementation("eager")
    return base


@dataclass(frozen=True, slots=True)
class _School:
    """Trains the arms of one seed on the same base, each into a folder of its own."""

    base: Mllm
    folder: Path
    options: AblationOptions
    seed: int

    @property
    def examples(self) -> int:
        """So many that each is seen once."""
        return self.options.steps * choose_settings(_PRESET).values.global_batch

    def teach(self, arm: Arm, practice: PicturedArchive) -> tuple[Path, float]:
        """The folder of the arm's adapter, and the mean weight of its answers' tokens."""
        changes = {
            "max_steps": self.options.steps,
            "steps_per_checkpoint": self.options.steps,
            "learning_rate": _LEARNING_RATE,
            "token_weighting": arm.token_weighting,
            "seed": self.seed,
        }
        result = self.folder / arm.label.replace(" ", "-")
        report = train(
            FinetuneConfig(Role.GENERATOR, choose_settings(_PRESET, changes), result),
            training_examples(practice, wrong_pictures=arm.wrong_pictures, seed=self.seed),
            self.base,
            practice.open_picture,
        )
        return result / "adapter", sum(step.token_weight for step in report.steps) / len(report.steps)


class _Exam:
    """The questions of one seed under every condition, the same for whoever is asked."""

    def __init__(self, archive: PicturedArchive, seed: int, settings: Settings) -> None:
        self._archive = archive
        self._shown = shown_evidence(archive, seed)
        self._max_tokens = settings.max_answer_tokens

    def scores(self, generator: Generator) -> Scores:
        """Shares of right answers, over all questions and over those about one picture."""
        right = {condition: self._right(generator, shown) for condition, shown in self._shown.items()}
        about_one = [len(question.relevant) == 1 for question in self._archive.questions]
        return Scores(
            accuracy={condition: _share(marks) for condition, marks in right.items()},
            about_one={
                condition: _share([mark for mark, counts in zip(marks, about_one, strict=True) if counts])
                for condition, marks in right.items()
            },
            by_type={condition: self._by_type(marks) for condition, marks in right.items()},
        )

    def _right(self, generator: Generator, shown: Sequence[ShownEvidence]) -> list[bool]:
        archive = self._archive
        requests = [
            AnswerRequest(
                question.text,
                tuple(archive.captions[name] for name in evidence.images),
                tuple(archive.pictures[name] for name in evidence.images),
            )
            for question, evidence in zip(archive.questions, shown, strict=True)
        ]
        answers = generator.answer(requests, max_tokens=self._max_tokens, with_captions=True, batch_size=_BATCH)
        return [exact_match(found.text, known.answer) for found, known in zip(answers, archive.questions, strict=True)]

    def _by_type(self, marks: Sequence[bool]) -> Mapping[str, float]:
        found: dict[str, list[bool]] = defaultdict(list)
        for question, mark in zip(self._archive.questions, marks, strict=True):
            found[question.type].append(mark)
        return {name: _share(of_type) for name, of_type in sorted(found.items())}


def _scores_with(base: Mllm, adapter: Path, exam: _Exam, settings: Settings, weight: float) -> Scores:
    """What the base scores with an adapter on it; afterwards it is bare again, as training needs it."""
    adapters = AdapterSet(base, settings.home / "cache")
    scores = exam.scores(Generator(base, adapters.add(_ADAPTER, adapter)))
    adapters.remove(_ADAPTER)
    return replace(scores, token_weight=weight)


class _Progress:
    """Counts what has ended."""

    def __init__(self, hook: ProgressHook, total: int) -> None:
        self._hook = hook
        self._total = total
        self._done = 0

    def ended(self, what: str) -> None:
        self._done += 1
        self._hook(what, self._done, self._total)


def _setup(options: AblationOptions) -> dict[str, float]:
    return {
        "seeds": options.seeds,
        "steps": options.steps,
        "examples_per_step": choose_settings(_PRESET).values.global_batch,
        "learning_rate": _LEARNING_RATE,
        "practice_images": options.practice_images,
        "held_out_images": options.held_out_images,
        "questions": options.questions,
        "naive_layers": options.naive.layers,
        "naive_steps": options.naive.steps,
    }


def _share(marks: Sequence[bool]) -> float:
    return sum(marks) / len(marks) if marks else 0.0
