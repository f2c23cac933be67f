"""The adaptive threshold η of freshly trained mini models, fitted on archives of postcards that nobody reports on."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ragllava.evaluation.threshold import adaptive_threshold
from ragllava.json_records import to_json
from ragllava.models.bundle import ModelBundle
from ragllava.models.reranker import Pair
from ragllava.postcards.archive import PostcardArchive, draw_archive
from ragllava.settings import load_settings

log = logging.getLogger(__name__)

CALIBRATION_SEEDS = (900_001, 900_002)
PROFILE = "profile.json"
_CANDIDATES = 20


def write_profile(models: Path, *, images: int = 1000, questions: int = 300) -> Path:
    """Write `profile.json` beside clip/ and llava/: with its path as RAGLLAVA_PROFILE, these models run.

    η is fitted on all candidates of `questions` questions to each of the calibration archives (docs/method.md 3).
    """
    path = models / PROFILE
    values: dict[str, Any] = {"name": "mini", "retriever": "local-dir:clip", "mllm": "./llava"}
    path.write_text(json.dumps(values))
    bundle = ModelBundle(load_settings(profile=str(path)))
    scores: list[float] = []
    correct: list[bool] = []
    for seed in CALIBRATION_SEEDS:
        archive = draw_archive(seed, images, questions)
        for relevance, is_correct in score_candidates(bundle, archive):
            scores.append(relevance)
            correct.append(is_correct)
        log.info("calibrated on the archive of seed %d", seed, extra={"action": "calibrated", "pairs": len(scores)})
    fit = adaptive_threshold(scores, correct)
    values["threshold"] = fit.value
    values["threshold_curve"] = {
        "data": f"postcards, test split, seeds {' and '.join(map(str, CALIBRATION_SEEDS))}, "
        f"{questions} questions each, top {_CANDIDATES} of CLIP",
        "fit": to_json(fit),
    }
    path.write_text(json.dumps(values))
    return path


def score_candidates(models: ModelBundle, archive: PostcardArchive) -> Sequence[tuple[float, bool]]:
    """Relevance of CLIP's best candidates of every question, and whether each is a labelled one."""
    pictures = [Image.fromarray(postcard.draw().pixels) for postcard in archive.postcards]
    vectors = models.retriever.embed_images(pictures, batch_size=64)
    queries = models.retriever.embed_texts([question.text for question in archive.questions])
    best = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :_CANDIDATES]
    pairs = [
        Pair(question.text, archive.postcards[place].caption, pictures[place])
        for question, places in zip(archive.questions, best, strict=True)
        for place in places
    ]
    relevances = models.reranker.relevance(pairs, batch_size=_CANDIDATES)
    labelled = [
        archive.postcards[place].file_name in question.relevant
        for question, places in zip(archive.questions, best, strict=True)
        for place in places
    ]
    return [(score.value, is_correct) for score, is_correct in zip(relevances, labelled, strict=True)]
