"""The adaptive threshold η of newly trained mini models, fitted on archives of postcards used for nothing else."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ragllava.evaluation.threshold import steady_threshold
from ragllava.json_records import to_json
from ragllava.lab.candidates import nearest_pictures
from ragllava.lab.mini_recipe.familiar import write_familiar
from ragllava.lab.mini_recipe.wordings import STYLE_SHARES
from ragllava.models.bundle import ModelBundle
from ragllava.models.reranker import Pair
from ragllava.postcards.archive import KnownQuestion, PostcardArchive, draw_archive
from ragllava.postcards.questions import QuestionStyle
from ragllava.settings import load_settings

log = logging.getLogger(__name__)

CALIBRATION_SEEDS = (900_001, 900_002)
PROFILE = "profile.json"
_CANDIDATES = 20
_NAMED_CANDIDATES = 10  # for each landmark


def write_profile(models: Path, *, images: int = 1000, questions: int = 300) -> Path:
    """Write `profile.json` into the folder of clip/ and llava/; RAGLLAVA_PROFILE set to its path uses these models.
    Also write `postcards.npz`, the pictures that they know.

    η is fitted on all candidates of `questions` questions to each of the calibration archives (docs/method.md 3). The
    styles of the questions have their shares of the training.
    """
    path = models / PROFILE
    values: dict[str, Any] = {"name": "mini", "retriever": "local-dir:clip", "mllm": "./llava"}
    path.write_text(json.dumps(values))
    bundle = ModelBundle(load_settings(profile=str(path)))
    scored: list[tuple[float, bool]] = []
    for seed in CALIBRATION_SEEDS:
        scored += score_candidates(bundle, _mixed_archive(seed, images, questions))
        log.info("calibrated on the archive of seed %d", seed, extra={"action": "calibrated", "pairs": len(scored)})
    fit = steady_threshold([score for score, _ in scored], [is_labelled for _, is_labelled in scored])
    values["threshold"] = fit.value
    values["threshold_curve"] = {
        "data": f"postcards, test split, seeds {' and '.join(map(str, CALIBRATION_SEEDS))}, "
        f"{questions} questions of all styles each, top {_CANDIDATES} of CLIP and what captions name",
        "fit": to_json(fit),
    }
    path.write_text(json.dumps(values))
    write_familiar(bundle, models)
    return path


def score_candidates(models: ModelBundle, archive: PostcardArchive) -> Sequence[tuple[float, bool]]:
    """The relevance of every question's candidates, and whether each is labelled.

    Candidates are CLIP's best and, if the question names landmarks, what a search for these in captions finds.
    """
    pictures = [postcard.picture() for postcard in archive.postcards]
    nearest = nearest_pictures(models.retriever, pictures, archive.questions, _CANDIDATES)
    candidates = [
        (question, index)
        for question, row in zip(archive.questions, nearest, strict=True)
        for index in dict.fromkeys([*row, *named_in_captions(archive, question)])
    ]
    pairs = [Pair(q.text, archive.postcards[index].caption, pictures[index]) for q, index in candidates]
    relevance = models.reranker.relevance(pairs, batch_size=_CANDIDATES)
    labelled = [archive.postcards[index].file_name in q.relevant for q, index in candidates]
    return [(score.value, is_labelled) for score, is_labelled in zip(relevance, labelled, strict=True)]


def named_in_captions(archive: PostcardArchive, question: KnownQuestion) -> Sequence[int]:
    """The postcards that a search in captions could find: the right ones, then the same name, then the same city.

    At most ten for each landmark that the question names; none if it names none.
    """
    if question.style is QuestionStyle.CUES_ONLY:
        return []
    named: list[int] = []
    for right, postcard in enumerate(archive.postcards):
        if postcard.file_name in question.relevant:
            entity = postcard.landmark.entity
            entities = [card.landmark.entity for card in archive.postcards]
            name = [index for index, candidate in enumerate(entities) if candidate.name == entity.name]
            city = [index for index, candidate in enumerate(entities) if candidate.city == entity.city]
            in_both = [index for index in name if index in city]
            named += [*dict.fromkeys([right, *in_both, *name, *city])][:_NAMED_CANDIDATES]
    return named


def _mixed_archive(seed: int, images: int, questions: int) -> PostcardArchive:
    """An archive with questions in all styles."""
    drawn = [
        draw_archive(seed, images, max(1, round(questions * share)), style=style)
        for style, share in STYLE_SHARES.items()
    ]
    return replace(drawn[0], questions=tuple(question for archive in drawn for question in archive.questions))
