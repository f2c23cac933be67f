"""One training on its way, and what each of its endings needs: the contest, and what becomes of the version."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from ragllava.errors import ObjectMissing
from ragllava.feedback import NoisyReason
from ragllava.jobs import queue
from ragllava.jobs.runner import ShardContext
from ragllava.models.profiles import Profile
from ragllava.records import TrainingStatus
from ragllava.stages.resources import Resources
from ragllava.stores.learning import noisy, registry, trainings
from ragllava.stores.learning.registry import ModelVersion
from ragllava.stores.learning.trainings import StepLoss
from ragllava.training.contest import Contest, ContestRules, hold_contest
from ragllava.training.data.datasets import question_key
from ragllava.training.data.snapshot import Snapshot
from ragllava.training.remote import store_checkpoint
from ragllava.training.request import TrainingRequest

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

CURVE_POINTS = 1_000  # of the losses that are kept in the database; the whole report is in the object store
_STEPS_NOTED_EVERY_S = 1.0


@dataclass
class Course:
    """One training on its way. `prefix` is its folder in the object store."""

    context: ShardContext[Resources]
    request: TrainingRequest
    profile: Profile
    prefix: str
    noted_at: float = field(default=0.0, init=False)  # time.monotonic()
    losses: list[StepLoss] = field(default_factory=list, init=False)  # that are not stored yet

    @property
    def job_id(self) -> int:
        """The train job."""
        return self.context.lease.job_id

    @property
    def folder(self) -> Path:
        """Where this machine works; what is here may be gone at the next attempt."""
        return self.context.settings.home / "training" / self.prefix.rpartition("/")[2]

    def enter(self, phase: str) -> None:
        """Begin the next phase, unless it is time to stop."""
        self.context.check()
        self.context.commit(trainings.set_phase, self.job_id, phase)
        log.info(phase, extra={"action": "training_phase", "job": self.job_id, "phase": phase})

    def note_step(self, done: int, total: int) -> None:
        """After each step: stop when asked to, and let people see how far it is."""
        self.context.check()
        if done in (1, total) or time.monotonic() - self.noted_at >= _STEPS_NOTED_EVERY_S:
            self.noted_at = time.monotonic()
            kept = thinned(self.losses, total)
            self.context.commit(_note, self.job_id, done, total, kept)
            self.losses.clear()

    def note_loss(self, step: int, loss: float, learning_rate: float) -> None:
        """With the loss of each step: people see the curve while it grows. It is stored with the next step noted."""
        self.losses.append(StepLoss(step, loss, learning_rate))

    def keep_checkpoint(self, checkpoint: Path) -> None:
        """After each complete checkpoint: another worker can continue from it, and the job has made progress."""
        store_checkpoint(self.context.resources.objects, checkpoint, f"{self.prefix}/checkpoints")
        self.context.commit(queue.reset_attempts, self.context.lease)

    def open_picture(self, sha256: str) -> Image:
        """A picture of an archive by its hash. Raises ObjectMissing when it cannot be read."""
        resources = self.context.resources
        picture = resources.pictures.get_many([sha256])[sha256]
        if isinstance(picture, str):
            raise ObjectMissing(picture)
        return picture


def thinned(losses: Sequence[StepLoss], total: int) -> list[StepLoss]:
    """At most about CURVE_POINTS of the losses of `total` steps: the first and the last one, and regular ones between
    them."""
    every = max(1, -(-total // CURVE_POINTS))
    return [loss for loss in losses if loss.step in (1, total) or loss.step % every == 0]


def _note(connection: Connection, job_id: int, done: int, total: int, losses: Sequence[StepLoss]) -> None:
    trainings.set_steps(connection, job_id, done, total)
    trainings.store_losses(connection, job_id, losses)


def release_memory() -> None:
    """Return the memory of networks that are no longer used to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def compare(course: Course, snapshot: Snapshot, name: str, adapter: Path) -> Contest:
    """The contest of this adapter, under this name, with the champion."""
    context, options = course.context, snapshot.options
    request = course.request
    rules = ContestRules(name, request.role, request.precision, options.certain, options.seed, context.check)
    try:
        return hold_contest(context.engine, context.settings, snapshot, adapter, course.open_picture, rules)
    finally:
        release_memory()


def ask_about_doubtful(connection: Connection, snapshot: Snapshot, contest: Contest) -> None:
    """The images that were left out of judging become noisy cases."""
    for share in snapshot.shares:
        captions = {
            (question.text, item.image): item.caption for question in share.held_out for item in question.retrieved
        }
        for text, images in sorted(contest.doubtful.get(share.archive, {}).items()):
            address = share.addresses.get(question_key(text))
            if address is not None:
                names = ", ".join(captions.get((text, image)) or image[:12] for image in images)
                sentence = (
                    f"nobody labelled these images, which version {contest.gate.champion} or "
                    f"{contest.gate.challenger} takes for relevant: {names}; say which are"
                )
                noisy.add_reason(connection, *address, NoisyReason.UNLABELLED_RELEVANT, sentence)


def end_course(
    connection: Connection, course: Course, made: ModelVersion, snapshot: Snapshot, contest: Contest, reason: str
) -> None:
    """Write the outcome of a contest of a registered version, and promote it if it is to be promoted."""
    ask_about_doubtful(connection, snapshot, contest)
    status, reason = _outcome(connection, course, made, contest, reason)
    if status is TrainingStatus.PROMOTED:
        registry.promote(connection, made.profile, made.role, made.name, f"job {course.job_id}: {reason}")
    trainings.finish(connection, course.job_id, status, reason, made.version_id)


def _outcome(
    connection: Connection, course: Course, made: ModelVersion, contest: Contest, reason: str
) -> tuple[TrainingStatus, str]:
    if not contest.passed:
        return TrainingStatus.REFUSED, reason
    if not course.request.promote:
        return TrainingStatus.CHALLENGER, reason
    champion = registry.champion(connection, made.role, made.profile)
    if champion is None or champion.version_id != contest.champion.version_id:
        return (
            TrainingStatus.CHALLENGER,
            f"{reason}; while it was evaluated, another version became champion: compare them, then "
            f"`ragllava models promote {made.name}`",
        )
    return TrainingStatus.PROMOTED, reason
