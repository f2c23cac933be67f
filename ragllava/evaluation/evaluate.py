"""An evaluation of a data set, with figures like the paper's: the call behind `ragllava eval`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ragllava.errors import JobRefused, UsageError
from ragllava.evaluation.datasets.records import EvaluationSet
from ragllava.evaluation.pools import Pool, Workbench, archive_name, ingest_pool
from ragllava.evaluation.rankings import (
    RankedQuestion,
    Ranker,
    apply_champions,
    has_untuned,
    rank,
    rank_further,
    scored_candidates,
)
from ragllava.evaluation.run_figures import RunFigures, figures_of
from ragllava.evaluation.runs import ADAPTIVE, PAPER, RunOptions, Threshold, rank_by_all, run_arms
from ragllava.evaluation.scoring import scoring_of
from ragllava.evaluation.threshold import adaptive_threshold
from ragllava.evaluation.threshold_promise import clustered_lower_bound, promised_precision_threshold
from ragllava.prompts import ANSWER_VERSION, CAPTION_RERANK_VERSION, RERANK_VERSION
from ragllava.records import Retrieval

PROMISE_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Promise:
    """A precision that was promised on the calibration set, and what came of it on the reported one.

    The candidates count that a job would keep, the best N of each question: `hits` of `kept` are labelled. `at_least`
    is the lower bound of what was reached, by question and with the confidence of the promise.
    """

    precision: float
    threshold: Threshold
    hits: int
    kept: int
    at_least: float

    @property
    def reached(self) -> float:
        """The precision on the reported questions; 0 where nothing was kept."""
        return self.hits / self.kept if self.kept else 0.0

    def as_json(self) -> dict[str, Any]:
        """Shares with four decimals."""
        return {
            "precision": self.precision,
            "confidence": PROMISE_CONFIDENCE,
            "threshold": self.threshold.as_json(),
            "reached": round(self.reached, 4),
            "reached_at_least": round(self.at_least, 4),
            "hits": self.hits,
            "kept": self.kept,
        }


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The figures of one run, with everything that they depend on. `seconds` are by step.

    `by_style` has the figures of each style of questions that was asked, first those that `figures` are; empty for a
    set without styles. `measure` is what scores the answers. `paper_threshold`
    is fitted as in the paper, on the kept candidates of the calibration questions.
    """

    dataset: EvaluationSet
    pool: Pool
    threshold: Threshold | None
    top_k: int
    figures: RunFigures
    models: Mapping[str, str]
    seconds: Mapping[str, float]
    promise: Promise | None = None
    hybrid_threshold: Threshold | None = None
    by_style: Mapping[str, RunFigures] = field(default_factory=dict)
    measure: str | None = None
    paper_threshold: Threshold | None = None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "dataset": self.dataset.name,
            "split": self.dataset.split,
            "archive": self.pool.archive_name,
            "images": len(self.dataset.images),
            "images_left_out": list(self.pool.left_out),
            "questions": len(self.dataset.questions),
            "rows_left_out": dict(self.dataset.left_out),
            "measure": self.measure,
            "answers_from": self.dataset.answers_from,
            "top_k": self.top_k,
            "top_n": self.dataset.top_n,
            "threshold": self.threshold and self.threshold.as_json(),
            "hybrid_threshold": self.hybrid_threshold and self.hybrid_threshold.as_json(),
            "paper_threshold": self.paper_threshold and self.paper_threshold.as_json(),
            "promise": self.promise and self.promise.as_json(),
            "style": self.dataset.style,
            **self.figures.as_json(),
            "by_style": {style: figures.as_json() for style, figures in self.by_style.items()},
            "models": dict(self.models),
            "seconds": dict(self.seconds),
        }


def evaluate(
    reported: EvaluationSet,
    calibration: EvaluationSet | None,
    bench: Workbench,
    options: RunOptions,
    other_styles: Sequence[EvaluationSet] = (),
) -> Evaluation:
    """Ingest the pool if need be, rank, answer, and make the figures.

    `other_styles` ask about the same images in other styles; for these, only the ways of retrieval are compared, and
    answers from the labelled images are given, if the options ask for them. Thresholds are fitted on `calibration`;
    where it is None or no fit succeeds, the reranker's own is applied. UsageError when the two sets share their pool
    and a question (no threshold is fitted on what is reported), when the options ask for what the set cannot give, or
    when no threshold can promise the precision. JobRefused when a champion changes meanwhile.
    """
    _require_others(reported, calibration, bench)
    _require_possible(reported, calibration, options)
    measure = scoring_of(reported.name, options.metric).name  # refuses before anything is computed
    seconds: dict[str, float] = {}
    with _timed(seconds, "ingest"):
        pool = ingest_pool(reported, bench)
        calibration_pool = ingest_pool(calibration, bench) if calibration else None
    own = apply_champions(pool, bench)
    makers = _models(reported, bench, options)
    thresholds: list[Threshold] = []
    if options.rerank and calibration and calibration_pool:
        with _timed(seconds, "calibrate"):
            thresholds = _calibrated(calibration, calibration_pool, bench, options, own)
    elif options.rerank:
        thresholds = [_own_threshold(own, bench, retrieval) for retrieval in _retrievals(reported)]
    figures, rankings = _measured(reported, pool, bench, thresholds, options, seconds)
    by_style: dict[str, RunFigures] = {reported.style: figures} if reported.style else {}
    brief = replace(options, hide_captions=False, untuned=False, noise=())
    adaptive = [threshold for threshold in thresholds if threshold.name == ADAPTIVE]
    for dataset in other_styles:
        by_style[dataset.style or ""], _ = _measured(dataset, pool, bench, adaptive, brief, seconds)
    apply_champions(pool, bench)
    if _models(reported, bench, options) != makers:
        raise JobRefused("another version became champion while this was measured; measure again")
    promise = None
    if options.promised_precision is not None:
        promised = next(threshold for threshold in thresholds if threshold.name not in (ADAPTIVE, PAPER))
        ranked = rankings[Ranker.CHAMPION]
        promise = _kept_promise(options.promised_precision, promised, ranked, reported.top_n)
    by_retrieval = {threshold.retrieval: threshold for threshold in adaptive}
    return Evaluation(
        reported,
        pool,
        by_retrieval.get(Retrieval.PICTURE),
        bench.settings.top_k,
        figures,
        makers,
        seconds,
        promise,
        by_retrieval.get(Retrieval.HYBRID),
        by_style,
        None if reported.retrieval_only else measure,
        next((threshold for threshold in thresholds if threshold.name == PAPER), None),
    )


def _measured(
    dataset: EvaluationSet,
    pool: Pool,
    bench: Workbench,
    thresholds: Sequence[Threshold],
    options: RunOptions,
    seconds: dict[str, float],
) -> tuple[RunFigures, dict[Ranker, tuple[RankedQuestion, ...]]]:
    """The figures of one set of questions to the pool, and the rankings that they come from."""
    with _timed(seconds, "rank"):
        rankings = rank_by_all(dataset, pool, bench, options, thresholds)
    with _timed(seconds, "answer"):
        arms = run_arms(dataset, pool, bench, rankings, thresholds, options)
    questions = [pool.known_here(question) for question in dataset.questions]
    return figures_of(scoring_of(dataset.name, options.metric), questions, arms, dataset.top_n), rankings


def _require_others(reported: EvaluationSet, calibration: EvaluationSet | None, bench: Workbench) -> None:
    if calibration is None:
        return
    retriever = bench.resources.models.retriever.version
    asked = {question.custom_id for question in reported.questions}
    shared = next((q.custom_id for q in calibration.questions if q.custom_id in asked), None)
    if shared is not None and archive_name(reported, retriever) == archive_name(calibration, retriever):
        raise UsageError(
            f"question {shared} of {reported.name} is to be reported and to calibrate the threshold; "
            "calibrate on another split or seed"
        )


def _require_possible(reported: EvaluationSet, calibration: EvaluationSet | None, options: RunOptions) -> None:
    if options.hide_captions and all(image.caption is None for image in reported.images):
        raise UsageError(f"{reported.name} shows no captions that could be hidden; omit --no-caption")
    if options.promised_precision is not None and (calibration is None or not options.rerank):
        raise UsageError(
            "a precision is promised by a threshold that is fitted on other questions; "
            "name their split with --calibration and keep reranking on"
        )


def _calibrated(
    calibration: EvaluationSet, pool: Pool, bench: Workbench, options: RunOptions, own: float
) -> list[Threshold]:
    """The adaptive threshold, the paper's, perhaps one that promises a precision, and the adaptive one of hybrid
    candidates.

    All candidates of the calibration set are reranked, at whatever depth the reported questions are. An adaptive
    threshold is `own` where none can be fitted; the paper's, which is fitted on the best N of each question, is then
    the natural one.
    """
    where = f"fitted on {len(calibration.questions)} questions to {pool.archive_name}"

    def adaptive(relevances: Sequence[float], correct: Sequence[bool], retrieval: Retrieval) -> Threshold:
        fit = adaptive_threshold(relevances, correct)
        if fit.method == "adaptive":
            return Threshold(fit.value, f"{where}: {fit.reason}", fit, retrieval=retrieval)
        return _own_threshold(own, bench, retrieval, f", for none could be {where}: {fit.reason}")

    ranked = rank(calibration, pool, bench)
    relevances, correct, questions = scored_candidates(ranked)
    thresholds = [adaptive(relevances, correct, Retrieval.PICTURE)]
    best = scored_candidates(ranked, calibration.top_n)
    kept = adaptive_threshold(best.relevance, best.is_labelled)
    thresholds.append(
        Threshold(kept.value, f"{where}, the best {calibration.top_n} of each: {kept.reason}", kept, PAPER)
    )
    if options.promised_precision is not None:
        name = f"promised {100 * options.promised_precision:g} %"
        kept = promised_precision_threshold(
            relevances,
            correct,
            options.promised_precision,
            PROMISE_CONFIDENCE,
            question=questions,
            best=calibration.top_n,
        )
        thresholds.append(Threshold(kept.value, f"{where}: {kept.reason}", kept, name))
    if Retrieval.HYBRID in _retrievals(calibration):
        further = rank_further(calibration, pool, bench, ranked)
        scored = scored_candidates(further)
        thresholds.append(adaptive(scored.relevance, scored.is_labelled, Retrieval.HYBRID))
    return thresholds


def _own_threshold(own: float, bench: Workbench, retrieval: Retrieval, why: str = "") -> Threshold:
    return Threshold(own, f"of the reranker {bench.resources.models.reranker.version}{why}", retrieval=retrieval)


def _retrievals(dataset: EvaluationSet) -> list[Retrieval]:
    """Those whose candidates are reranked."""
    return [Retrieval.PICTURE, Retrieval.HYBRID] if dataset.has_captions else [Retrieval.PICTURE]


def _kept_promise(precision: float, threshold: Threshold, ranked: Sequence[RankedQuestion], top_n: int) -> Promise:
    scored = scored_candidates(ranked, top_n)
    kept, hits = np.zeros((2, len(ranked)), dtype=np.int64)
    for relevance, right, question in zip(*scored, strict=True):
        if relevance >= threshold.value:
            kept[question] += 1
            hits[question] += right
    at_least = clustered_lower_bound(hits, kept, top_n, PROMISE_CONFIDENCE)
    return Promise(precision, threshold, int(hits.sum()), int(kept.sum()), at_least)


def _models(dataset: EvaluationSet, bench: Workbench, options: RunOptions) -> dict[str, str]:
    """What made the figures. The champions must be applied."""
    models = bench.resources.models
    makers = {"profile": models.profile.name, "retriever": models.retriever.version}
    if options.rerank:
        makers["reranker"] = models.reranker.version
    if options.rerank and has_untuned(bench):
        makers["untuned_reranker"] = bench.untuned.models.reranker.version if bench.untuned else models.base_version
    rerank_version = CAPTION_RERANK_VERSION if dataset.by_caption else RERANK_VERSION
    return makers | {"generator": models.generator.version, "prompt": f"{rerank_version}+{ANSWER_VERSION}"}


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[step] = round(seconds.get(step, 0.0) + time.monotonic() - started, 2)
