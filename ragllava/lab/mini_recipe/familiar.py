"""What the mini retriever knows, fitted on postcards used for nothing else (models/familiarity.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ragllava.models.bundle import ModelBundle
from ragllava.models.familiarity import FAMILIAR_FILE, fit_familiar
from ragllava.postcards.archive import draw_archive

FAMILIAR_SEEDS = (700_001, 700_002, 700_003, 700_004)
_IMAGES = 400  # of each
_BATCH = 32


def write_familiar(models: ModelBundle, folder: Path) -> Path:
    """Write `postcards.npz` for the retriever of these models into a folder; returns its path."""
    vectors = [
        models.retriever.embed_images([card.picture() for card in draw_archive(seed, _IMAGES, 1).postcards], _BATCH)
        for seed in FAMILIAR_SEEDS
    ]
    path = folder / FAMILIAR_FILE
    fit_familiar(models.retriever.version, np.concatenate(vectors)).save(path)
    return path
