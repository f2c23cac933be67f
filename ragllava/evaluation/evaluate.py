"""A data set in, figures like the paper's out: the one call behind `ragllava eval`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ragllava.errors import UsageError
from ragllava.evaluation.dataset_records import EvaluationSet
from ragllava.evaluation.pools import Pool, Workbench, archive_name, ingest_pool
from ragllava.evaluation.run_figures import RunFigures, figures_of
from ragllava.evaluation.runs import RunOptions, Threshold, calibrate, own_threshold, run_arms
from ragllava.prompts import ANSWER_VERSION, RERANK_VERSION


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The figures of one run, with everything that they depend on. `seconds` are by step."""

    dataset: EvaluationSet
    pool: Pool
    threshold: Threshold | None
    top_k: int
    top_n: int
    figures: RunFigures
    models: Mapping[str, str]
    seconds: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        threshold = self.threshold
        return {
            "dataset": self.dataset.name,
            "split": self.dataset.split,
            "archive": self.pool.archive_name,
            "images": len(self.dataset.images),
            "images_left_out": list(self.pool.left_out),
            "questions": len(self.dataset.questions),
            "rows_left_out": dict(self.dataset.left_out),
            "top_k": self.top_k,
            "top_n": self.top_n,
            "threshold": threshold
            and {
                "value": threshold.value,
                "source": threshold.source,
                "fit": threshold.fit and threshold.fit.as_json(),
            },
            **self.figures.as_json(),
            "models": dict(self.models),
            "seconds": dict(self.seconds),
        }


def evaluate(
    reported: EvaluationSet, calibration: EvaluationSet | None, bench: Workbench, options: RunOptions
) -> Evaluation:
    """Ingest the pool if need be, rank, answer, and make the figures.

    The adaptive threshold is fitted on `calibration`; None applies the reranker's own. UsageError when the two sets
    share their pool and a question: no threshold is fitted on what is reported.
    """
    _require_others(reported, calibration, bench)
    seconds: dict[str, float] = {}
    with _timed(seconds, "ingest"):
        pool = ingest_pool(reported, bench)
    threshold = None
    if options.rerank:
        with _timed(seconds, "calibrate"):
            threshold = _threshold(calibration, pool, bench)
    with _timed(seconds, "rank_and_answer"):
        arms = run_arms(reported, pool, bench, threshold, options)
    known = [pool.known_here(question) for question in reported.questions]
    top_n = options.top_n or reported.top_n
    figures = figures_of(reported.name, known, arms, top_n)
    return Evaluation(reported, pool, threshold, bench.settings.top_k, top_n, figures, _models(bench, options), seconds)


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


def _threshold(calibration: EvaluationSet | None, pool: Pool, bench: Workbench) -> Threshold:
    if calibration is None:
        return own_threshold(pool, bench)
    other = ingest_pool(calibration, bench)
    fit = calibrate(calibration, other, bench)
    source = f"fitted on {len(calibration.questions)} questions to {other.archive_name}: {fit.reason}"
    return Threshold(fit.value, source, fit)


def _models(bench: Workbench, options: RunOptions) -> dict[str, str]:
    models = bench.resources.models
    found = {"profile": models.profile.name, "retriever": models.retriever.version}
    if options.rerank:
        found["reranker"] = models.reranker.version
    return found | {"generator": models.generator.version, "prompt": f"{RERANK_VERSION}+{ANSWER_VERSION}"}


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[step] = round(time.monotonic() - started, 2)
