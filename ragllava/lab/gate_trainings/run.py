"""Retrain the reranker on a few labels of a shifted archive and let the gate decide, seed by seed.

It takes the way of a train job from the frozen data on: the same split, examples, training, threshold and gate. What
no train job can know is measured beside it: both versions on fresh postcards of the same kind, which show whether the
gate was right. A twin is trained on the same data with other random numbers: two versions of equal quality.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from ragllava.errors import UsageError
from ragllava.json_records import from_json, to_json
from ragllava.lab.gate_trainings.results import FreshScores, JudgedVersion, SeedResult
from ragllava.lab.gate_trainings.situation import (
    AskedArchive,
    SituationSize,
    ask_archive,
    fresh_archives,
    make_snapshot,
    with_feedback,
)
from ragllava.models.bundle import ModelBundle
from ragllava.models.device import plan_device
from ragllava.models.loading import load_mllm
from ragllava.records import Role
from ragllava.settings import Settings
from ragllava.training.contest import ContestRules, EvaluatedVersion, Evaluator, judge
from ragllava.training.data.snapshot import Snapshot
from ragllava.training.finetune.presets import choose_settings
from ragllava.training.finetune.run import FinetuneConfig, train
from ragllava.training.gate import WITH_CAPTIONS
from ragllava.training.scoring import EvaluationOptions, evaluate_reranker
from ragllava.training.version_scores import RerankerScores
from ragllava.whole_files import write_whole

CHAMPION, CHALLENGER, TWIN = "champion", "challenger", "twin"
_PRESET = "mini"
_QUESTIONS_AT_ONCE = 512  # as many as share the prefixes of their pictures; no score depends on it
_TRAINING_SEEDS = {CHALLENGER: 0, TWIN: 1}

ProgressHook = Callable[[str, int, int], None]  # what has ended, number of ended parts, number of all parts
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class TrainingsOptions:
    """Which seeds, archives of which size, and on how many fresh shifted archives each seed's versions are measured.

    One fresh in-domain archive, a third as large, shows what a version lost.
    """

    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    size: SituationSize = field(default_factory=SituationSize)
    fresh: int = 2
    max_steps: int | None = None


def run_trainings(
    settings: Settings, folder: Path, options: TrainingsOptions, on_progress: ProgressHook
) -> list[SeedResult]:
    """The result of each seed; what `folder` already contains is not repeated.

    First all versions are judged, then all are measured. Raises UsageError if `folder` contains results of other
    options.
    """
    _claim(folder, options)
    settings = settings.model_copy(update={"questions_per_step": _QUESTIONS_AT_ONCE})
    models = ModelBundle(settings)
    seeds = [_Seed(settings, folder / f"seed-{seed}", options, seed, models) for seed in options.seeds]
    steps: list[tuple[str, _Seed, Callable[[str], object]]]
    steps = [(f"{version} judged", seed, seed.judged) for version in _TRAINING_SEEDS for seed in seeds]
    steps += [(f"{version} measured", seed, seed.fresh) for version in (CHAMPION, *_TRAINING_SEEDS) for seed in seeds]
    for done, (step, seed, do) in enumerate(steps, start=1):
        do(step.partition(" ")[0])
        on_progress(f"seed {seed.seed}, {step}", done, len(steps))
    return [seed.result() for seed in seeds]


def _claim(folder: Path, options: TrainingsOptions) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    note, wanted = folder / "options.json", to_json(replace(options, seeds=()))
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != wanted:
        raise UsageError(f"{folder} contains the trainings of other options; choose another folder")
    write_whole(note, json.dumps(wanted))


@dataclass(frozen=True)
class _Seed:
    """The trainings of one seed. Each part is written when it is complete, and read when it is there."""

    settings: Settings
    folder: Path
    options: TrainingsOptions
    seed: int
    models: ModelBundle

    def result(self) -> SeedResult:
        """All parts together."""
        share = self._snapshot.shares[0]
        return SeedResult(
            seed=self.seed,
            labelled=share.labelled,
            trained_on=share.dataset.card.questions,
            examples=len(self._snapshot.examples),
            calibration=len(share.calibration),
            reports={version: self.judged(version).report for version in _TRAINING_SEEDS},
            fresh={version: self.fresh(version) for version in (CHAMPION, *_TRAINING_SEEDS)},
        )

    def judged(self, version: str) -> JudgedVersion:
        """The gate's decision on the held-out questions."""
        return self._part(f"judged-{version}", JudgedVersion, lambda: self._judge(version))

    def fresh(self, version: str) -> tuple[FreshScores, ...]:
        """The scores of a version on archives that nothing was learned from."""
        return self._part(f"fresh-{version}", tuple[FreshScores, ...], lambda: self._measure(version))

    @cached_property
    def _archive(self) -> AskedArchive:
        return ask_archive(
            f"shifted-{self.seed}", self.seed, self.options.size, self.models.retriever, self.settings.top_k
        )

    @cached_property
    def _snapshot(self) -> Snapshot:
        """The questions after feedback on the champion's answers, as a training's data."""
        scores = self._part("answers", RerankerScores, self._first_answers)
        labelled = with_feedback(self._archive.questions, scores, self.settings.set_aside_above)
        return make_snapshot(self._archive, labelled, self.settings)

    @property
    def _evaluator(self) -> Evaluator:
        rules = ContestRules(CHALLENGER, Role.RERANKER, None, self._snapshot.options.certain, 0, lambda: None)
        return Evaluator(self.models, self.settings, self._snapshot, self._archive.pictures.__getitem__, rules)

    def _first_answers(self) -> RerankerScores:
        self.models.apply_adapter(Role.RERANKER, None, None)
        options, questions = self._options(self.models.profile.threshold), self._archive.questions
        return evaluate_reranker(self.models, questions, self._archive.pictures.__getitem__, options, (WITH_CAPTIONS,))

    def _champion_scores(self) -> RerankerScores:
        self.models.apply_adapter(Role.RERANKER, None, None)
        return _of_reranker(self._evaluator.evaluate_all(self.models.profile.threshold)[self._archive.name])

    def _judge(self, version: str) -> JudgedVersion:
        before = self._part("held-out-champion", RerankerScores, self._champion_scores)
        self._apply(version)
        threshold = self._evaluator.fit_threshold()[0].value
        after = _of_reranker(self._evaluator.evaluate_all(threshold)[self._archive.name])
        report, _ = judge(self._snapshot, {self._archive.name: (before, after)}, 0)
        return JudgedVersion(threshold, report.as_json(), after)

    def _measure(self, version: str) -> tuple[FreshScores, ...]:
        if version == CHAMPION:
            self.models.apply_adapter(Role.RERANKER, None, None)
            threshold = self.models.profile.threshold
        else:
            threshold = self.judged(version).threshold
            self._apply(version)
        retriever, top_k, size = self.models.retriever, self.settings.top_k, self.options.size
        third = replace(size, questions=size.questions // 3)
        shifted = fresh_archives(self.seed, self.options.fresh, size, retriever, top_k)
        in_domain = fresh_archives(self.seed, 1, third, retriever, top_k, shifted=False)
        options = self._options(threshold)
        return tuple(
            FreshScores(
                archive.name,
                evaluate_reranker(self.models, archive.questions, archive.pictures.__getitem__, options),
            )
            for archive in (*shifted, *in_domain)
        )

    def _apply(self, version: str) -> None:
        """Compute with a trained version; it is trained unless it is there."""
        changes = {"seed": _TRAINING_SEEDS[version], "max_steps": self.options.max_steps}
        config = FinetuneConfig(Role.RERANKER, choose_settings(_PRESET, changes), self.folder / version)
        if not config.result.exists():
            # The base that is trained is another one than the one that is evaluated: it must have no adapter.
            base = load_mllm(self.models.profile, plan_device(self.settings), self.settings)
            train(config, self._snapshot.whole_dataset().examples, base, self._archive.pictures.__getitem__)
        self.models.apply_adapter(Role.RERANKER, version, config.result / "adapter")

    def _options(self, threshold: float) -> EvaluationOptions:
        return EvaluationOptions(self.settings, threshold=threshold, certain=self.settings.set_aside_above)

    def _part(self, name: str, form: type[Value], make: Callable[[], Value]) -> Value:
        file = self.folder / f"{name}.json"
        if not file.exists():
            made = make()
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(to_json(made)))
        return from_json(form, json.loads(file.read_text(encoding="utf-8")))


def _of_reranker(scores: EvaluatedVersion) -> RerankerScores:
    assert isinstance(scores, RerankerScores)  # noqa: S101 - a reranker was evaluated
    return scores
