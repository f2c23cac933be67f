"""Champion against challenger: both are evaluated on the same held-out questions, then the gate decides.

A reranker first gets an η of its own, fitted on questions that are used neither for training nor for evaluation
(docs/method.md 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from ragllava.errors import UsageError
from ragllava.evaluation.threshold import NATURAL_THRESHOLD, ThresholdFit, steady_threshold
from ragllava.evaluation.threshold_promise import promised_precision_threshold
from ragllava.models.bundle import ModelBundle
from ragllava.records import Role
from ragllava.settings import Settings
from ragllava.stages.champions import apply_champions
from ragllava.stages.resources import Resources
from ragllava.stores.database import in_transaction
from ragllava.stores.learning import registry
from ragllava.stores.learning.registry import ModelVersion
from ragllava.training.data.snapshot import Snapshot
from ragllava.training.finetune.batches import PictureOpener
from ragllava.training.gate import WITH_CAPTIONS, decide
from ragllava.training.gate_report import GateReport
from ragllava.training.scoring import EvaluationOptions, evaluate_generator, evaluate_reranker
from ragllava.training.version_scores import GeneratorScores, RerankerScores

EvaluatedVersion = RerankerScores | GeneratorScores


@dataclass(frozen=True, slots=True)
class ContestRules:
    """What a challenger is, beside its adapter: the `name` it will have, its role, the promise that its η shall keep.

    `certain` and `seed` are those that its data was made with. `stop` is called often, and may raise.
    """

    name: str
    role: Role
    precision: float | None
    certain: float
    seed: int
    stop: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Contest:
    """How it went. `fit` is how the challenger's η was found, None for generators; `broken_promise` why it could not
    be the one asked for, which refuses the challenger whatever the gate says. `doubtful` are the unlabelled images
    that either version takes for relevant: they were left out of the scores, and need a label."""

    champion: ModelVersion
    gate: GateReport
    fit: ThresholdFit | None
    broken_promise: str | None
    scores: Mapping[str, tuple[EvaluatedVersion, EvaluatedVersion]]  # (champion, challenger) by archive
    doubtful: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)  # by archive, by question

    @property
    def passed(self) -> bool:
        """Whether the challenger may become champion."""
        return self.gate.passed and self.broken_promise is None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Sentences for people."""
        broken = () if self.broken_promise is None else (self.broken_promise,)
        return broken + self.gate.reasons

    @property
    def threshold(self) -> float | None:
        """η, of a reranker."""
        return self.fit.value if self.fit else None

    def as_json(self) -> dict[str, Any]:
        """As stored beside the challenger."""
        return {
            "gate": self.gate.as_json(),
            "scores": {
                archive: {"champion": before.as_json(), "challenger": after.as_json()}
                for archive, (before, after) in self.scores.items()
            },
        }


def hold_contest(
    engine: Engine,
    settings: Settings,
    snapshot: Snapshot,
    adapter: Path,
    open_picture: PictureOpener,
    rules: ContestRules,
) -> Contest:
    """Evaluate the adapter in this folder and the champion of its role, and compare them.

    The models are loaded for this alone. Where the profile has no champion yet, its base model becomes champion.
    Raises JobRefused when the champion cannot be used here.
    """
    bench = Resources(settings.model_copy(update={"vllm_url": None}))  # no endpoint serves a challenger
    profile = bench.models.profile.name
    bases = bench.base_versions()
    champion = in_transaction(engine, registry.ensure_champions, profile, bases)[rules.role]
    evaluator = Evaluator(bench.models, settings, snapshot, open_picture, rules)
    apply_champions(bench, {rules.role: champion})
    usual = champion.threshold if champion.threshold is not None else bench.models.profile.threshold
    before = evaluator.evaluate_all(usual)
    bench.models.apply_adapter(rules.role, rules.name, adapter)
    fit, broken = evaluator.fit_threshold() if rules.role is Role.RERANKER else (None, None)
    after = evaluator.evaluate_all(fit.value if fit else NATURAL_THRESHOLD)
    pairs = {name: (before[name], after[name]) for name in before}
    tried = in_transaction(engine, registry.count_tries, champion)
    gate, scores = judge(snapshot, pairs, tried)
    return Contest(champion, gate, fit, broken, scores, {name: _doubtful(*pair) for name, pair in pairs.items()})


def judge(
    snapshot: Snapshot, pairs: Mapping[str, tuple[EvaluatedVersion, EvaluatedVersion]], tried: int
) -> tuple[GateReport, dict[str, tuple[EvaluatedVersion, EvaluatedVersion]]]:
    """The gate's decision on the scores (champion, challenger) of each archive, and the scores that it compared."""
    scores = {name: leave_out_doubtful(*pair) for name, pair in pairs.items()}
    first, *others = snapshot.shares
    others_by_name = {f"in archive {share.archive}": scores[share.archive] for share in others}
    gate = decide(*scores[first.archive], others=others_by_name, tried=tried, groups=snapshot.groups)
    return gate, scores


def leave_out_doubtful(
    champion: EvaluatedVersion, challenger: EvaluatedVersion
) -> tuple[EvaluatedVersion, EvaluatedVersion]:
    """Both without the unlabelled images that either takes for relevant: nobody knows whether they are wrong."""
    if not isinstance(champion, RerankerScores) or not isinstance(challenger, RerankerScores):
        return champion, challenger
    either = [a | b for a, b in zip(champion.doubtful(), challenger.doubtful(), strict=True)]
    return champion.without(either), challenger.without(either)


def _doubtful(champion: EvaluatedVersion, challenger: EvaluatedVersion) -> dict[str, tuple[str, ...]]:
    """The images that were left out of each question's score."""
    if not isinstance(champion, RerankerScores) or not isinstance(challenger, RerankerScores):
        return {}
    pairs = zip(champion.questions, champion.doubtful(), challenger.doubtful(), strict=True)
    return {text: tuple(sorted(ours | theirs)) for text, ours, theirs in pairs if ours | theirs}


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Evaluates the versions that the models compute with now."""

    models: ModelBundle
    settings: Settings
    snapshot: Snapshot
    open_picture: PictureOpener
    rules: ContestRules

    def evaluate_all(self, threshold: float) -> dict[str, EvaluatedVersion]:
        """Scores on the hold-out of each archive."""
        options = self._options(threshold)
        evaluate = evaluate_reranker if self.rules.role is Role.RERANKER else evaluate_generator
        return {
            share.archive: evaluate(self.models, share.held_out, self.open_picture, options)
            for share in self.snapshot.shares
        }

    def fit_threshold(self) -> tuple[ThresholdFit, str | None]:
        """η on the calibration questions of all archives; with why it cannot promise what was asked for, if so."""
        questions = [question for share in self.snapshot.shares for question in share.calibration]
        options = self._options(NATURAL_THRESHOLD)
        scores = evaluate_reranker(self.models, questions, self.open_picture, options, (WITH_CAPTIONS,))
        relevance, correct = scores.calibration(with_doubtful=False)
        if self.rules.precision is None:
            return steady_threshold(relevance, correct), None
        # A promise must hold even if every image without a label is wrong.
        relevance, correct = scores.calibration()
        try:
            questions_of = scores.calibration_questions
            fit = promised_precision_threshold(
                relevance, correct, self.rules.precision, question=questions_of, best=scores.top_n
            )
            return fit, None
        except UsageError as error:
            return steady_threshold(relevance, correct), f"the precision cannot be promised: {error}"

    def _options(self, threshold: float) -> EvaluationOptions:
        return EvaluationOptions(
            self.settings,
            threshold=threshold,
            seed=self.rules.seed,
            certain=self.rules.certain,
            progress=lambda step, done, total: self.rules.stop(),
        )
