"""What tiny models are trained on in tests, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from ragllava.records import Role
from ragllava.training.data.examples import AnswerExample, Example, RankExample
from ragllava.training.finetune.presets import choose_settings
from ragllava.training.finetune.report import TrainingReport
from ragllava.training.finetune.run import FinetuneConfig
from tests.support.tiny_checkpoints import noise_pictures

PICTURES = noise_pictures()
SMALL = {"rank": 8, "alpha": 16, "global_batch": 8, "micro_batch": 4, "learning_rate": 0.02}


def open_picture(image: str) -> Image.Image:
    return PICTURES[int(image.removesuffix(".png"))]


def examples_for(role: Role, count: int = 16) -> list[Example]:
    """Pictures 0 to 2 are relevant; answers follow from the first picture."""
    if role is Role.RERANKER:
        return [RankExample(f"How many {n // 6}?", "Harlow", str(n % 6), n % 6 < 3, "labelled") for n in range(count)]
    return [
        AnswerExample(
            f"Which {n // 6}?",
            ("Harlow",) * (1 + n % 2),
            tuple(str((n + place) % 6) for place in range(1 + n % 2)),
            "red" if n % 6 < 3 else "3 windows",
        )
        for n in range(count)
    ]


def configured(role: Role, result: Path, **changes: Any) -> FinetuneConfig:
    return FinetuneConfig(role, choose_settings("mini", {**SMALL, **changes}), result)


def losses(report: TrainingReport) -> list[float]:
    return [record.loss for record in report.steps]
