"""Versions, trainings and labels over a desk of reviews, made of rows: what the learning pages show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from ragllava.client import Client
from ragllava.models.profiles import get_profile
from ragllava.records import Role, TrainingStatus
from ragllava.settings import Settings
from ragllava.stores.learning import registry, trainings
from ragllava.stores.learning.registry import AdapterVersion, BaseVersion
from ragllava.stores.learning.trainings import StepLoss
from ragllava.training.request import TrainingRequest, create_job
from tests.support.review_desk import RERANKER, Desk

ADAPTER = "postcards-reranker-9@77c1d2e0"


@dataclass(frozen=True)
class Learning:
    """The job of a training that made the version ADAPTER, and one that runs."""

    ended: int
    running: int


def make_learning(
    client: Client, settings: Settings, desk: Desk, adapter: str = ADAPTER, *, says: str | None = None
) -> Learning:
    """Label twenty answers, register a champion and a refused version of the reranker, and let one training run.

    `says`: why the gate refused the version, in place of a sentence of its own.
    """
    profile = get_profile(settings).name
    said = []
    names = list(desk.images)
    for number, question in enumerate(desk.questions[:20]):
        wrong = [name for name in names if name not in question.relevant]
        said.append(
            {
                "job": desk.job_id,
                "custom_id": f"q{number + 1}",
                "verdict": "wrong",
                "relevant": [desk.images[name].image_id for name in question.relevant],
                "irrelevant": [desk.images[name].image_id for name in wrong[number % 5 : number % 5 + 5]],
            }
        )
    client.reviews.feedback(said)
    with client.engine.begin() as connection:
        bases = [
            BaseVersion(Role.RERANKER, RERANKER, "prompt-3", 0.5),
            BaseVersion(Role.GENERATOR, "mini-generator@77aa01bc", "p"),
        ]
        registry.ensure_champions(connection, profile, bases)
        ended = _train(connection, desk, 240, 240)
        reason = says or _GATE["reasons"][0]
        gate = _GATE | {"reasons": [reason], "challenger": adapter}
        made = registry.register_adapter(connection, _version(profile, desk, ended, adapter, gate))
        trainings.finish(connection, ended, TrainingStatus.REFUSED, reason, made.version_id)
        running = _train(connection, desk, 96, 240)
    return Learning(ended, running)


def add_losses(connection: Connection, job_id: int, first: int, last: int, total: int) -> None:
    """What a running training has noted so far."""
    trainings.set_steps(connection, job_id, last, total)
    trainings.store_losses(connection, job_id, _losses(first, last))


def _train(connection: Connection, desk: Desk, steps: int, total: int) -> int:
    request = TrainingRequest(Role.RERANKER, (desk.archive,), "mini")
    job_id, _ = create_job(connection, request)
    trainings.set_phase(connection, job_id, "training")
    add_losses(connection, job_id, 1, steps, total)
    return job_id


def _losses(first: int, last: int) -> list[StepLoss]:
    return [
        StepLoss(
            step, 0.15 + 0.7 * math.exp(-step / 50) + 0.06 * math.sin(step * 1.7) ** 2, 1e-3 * math.cos(step / 160)
        )
        for step in range(first, last + 1)
    ]


_GATE: dict[str, Any] = {
    "passed": False,
    "champion": RERANKER,
    "challenger": ADAPTER,
    "reasons": [
        "not better, with captions: 0.812 → 0.845 on 48 questions about 41 images, a gain that equal versions show "
        "with a probability of 9.1 %; the first version tried against this champion may pass by chance with 4.2 %"
    ],
    "figures": [
        {"name": "with captions", "is_primary": True, "questions": 48, "changed": 9, "champion": 0.8123,
         "challenger": 0.8454, "difference": 0.0331, "low": -0.011, "high": 0.0772, "broken": False},
        {"name": "without captions", "is_primary": False, "questions": 48, "changed": 14, "champion": 0.6102,
         "challenger": 0.5611, "difference": -0.0491, "low": -0.0871, "high": -0.0112, "broken": True},
    ],
}  # fmt: skip


def _version(profile: str, desk: Desk, job_id: int, name: str, gate: dict[str, Any]) -> AdapterVersion:
    hashes = [image.sha256 for image in desk.images.values()]
    examples = [
        {
            "archive_id": desk.archive_id,
            "job_id": desk.job_id,
            "question_no": number,
            "champion": 0.0 if number < 6 else 1.0,
            "challenger": 1.0 if number < 6 else 0.5,
            "champion_images": hashes[number : number + 1],
            "challenger_images": hashes[number + 1 : number + 3],
        }
        for number in range(8)
    ]
    training = {
        "job": job_id,
        "archives": [desk.archive],
        "gate": gate,
        "examples": {"gained": examples[:6], "lost": [*examples[6:], examples[0] | {"job_id": 10**9}]},
        "report": {
            "examples": 384,
            "seconds": 812.0,
            "steps": [
                {"step": loss.step, "loss": loss.loss, "learning_rate": loss.learning_rate} for loss in _losses(1, 240)
            ],
        },
    }
    fit = {"value": 0.434, "method": "adaptive", "precision": 0.871, "recall": 0.904, "correct_count": 61,
           "wrong_count": 402, "reason": "the densities of 61 correct and 402 wrong candidates cross at 0.434",
           "curve": {"relevance": [0.0, 0.5, 1.0], "correct": [0.1, 0.4, 4.0], "wrong": [5.0, 0.2, 0.1]}}  # fmt: skip
    return AdapterVersion(
        role=Role.RERANKER, name=name, prompt="prompt-3", threshold=0.434, threshold_curve=fit, profile=profile,
        adapter_sha256="ab" * 32, base=RERANKER, training=training,
    )  # fmt: skip
