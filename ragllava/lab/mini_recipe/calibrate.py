"""The adaptive threshold η of newly trained mini models, fitted on archives of postcards used for nothing else."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ragllava.evaluation.threshold import adaptive_threshold
from ragllava.json_records import to_json
from ragllava.lab.candidates import nearest_pictures
from ragllava.models.bundle import ModelBundle
from ragllava.models.reranker import Pair
from ragllava.postcards.archive import PostcardArchive, draw_archive
from ragllava.settings import load_settings

log = logging.getLogger(__name__)

CALIBRATION_SEEDS = (900_001, 900_002)
PROFILE = "profile.json"
_CANDIDATES = 20


def write_profile(models: Path, *, images: int = 1000, questions: int = 300) -> Path:
    """Write `profile.json` into the folder of clip/ and llava/; RAGLLAVA_PROFILE set to its path uses these models.

    η is fitted on all candidates of `questions` questions to each of the calibration archives (docs/method.md 3).
    """
    path = models / PROFILE
    values: dict[str, Any] = {"name": "mini", "retriever": "local-dir:clip", "mllm": "./llava"}
    path.write_text(json.dumps(values))
    bundle = ModelBundle(load_settings(profile=str(path)))
    scored: list[tuple[float, bool]] = []
    for seed in CALIBRATION_SEEDS:
        scored += score_candidates(bundle, draw_archive(seed, images, questions))
        log.info("calibrated on the archive of seed %d", seed, extra={"action": "calibrated", "pairs": len(scored)})
    fit = adaptive_threshold([score for score, _ in scored], [is_labelled for _, is_labelled in scored])
    values["threshold"] = fit.value
    values["threshold_curve"] = {
        "data": f"postcards, test split, seeds {' and '.join(map(str, CALIBRATION_SEEDS))}, "
        f"{questions} questions each, top {_CANDIDATES} of CLIP",
        "fit": to_json(fit),
    }
    path.write_text(json.dumps(values))
    return path


def score_candidates(models: ModelBundle, archive: PostcardArchive) -> Sequence[tuple[float, bool]]:
    """The relevance of CLIP's best candidates of every question, and whether each is labelled."""
    pictures = [postcard.picture() for postcard in archive.postcards]
    nearest = nearest_pictures(models.retriever, pictures, archive.questions, _CANDIDATES)
    candidates = [(q, index) for q, row in zip(archive.questions, nearest, strict=True) for index in row]
    pairs = [Pair(q.text, archive.postcards[index].caption, pictures[index]) for q, index in candidates]
    relevance = models.reranker.relevance(pairs, batch_size=_CANDIDATES)
    labelled = [archive.postcards[index].file_name in q.relevant for q, index in candidates]
    return [(score.value, is_labelled) for score, is_labelled in zip(relevance, labelled, strict=True)]
