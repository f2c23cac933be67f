"""A training as a job: freeze the data, train, compare with the champion, and register the result.

Everything that must survive the process lies in the object store under `training/<job>-<time of its making>/`: the
snapshot, and the checkpoints while they are needed. The end is one transaction behind the fence, so that a job makes
exactly one version, however often it was interrupted.
"""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from ragllava.errors import ImageRejected, JobRefused, ObjectCorrupt, ObjectMissing, ScoreRejected, UsageError
from ragllava.feedback import NoisyReason
from ragllava.jobs import views
from ragllava.jobs.runner import ShardContext
from ragllava.json_records import from_json, to_json
from ragllava.models.checks import digest
from ragllava.models.profiles import get_profile
from ragllava.prompts import ANSWER_VERSION, RERANK_VERSION
from ragllava.records import Role
from ragllava.stages.champions import publish_adapter
from ragllava.stages.maintenance.gc import GRACE_S
from ragllava.stages.resources import Resources
from ragllava.stores.learning import noisy, registry, trainings
from ragllava.stores.learning.registry import AdapterVersion
from ragllava.stores.learning.trainings import StepLoss
from ragllava.training.again import judge_again
from ragllava.training.changed_examples import changed_examples
from ragllava.training.contest import Contest
from ragllava.training.course import CURVE_POINTS, Course, compare, end_course, release_memory, thinned
from ragllava.training.data.datasets import question_key
from ragllava.training.data.snapshot import Snapshot, read_snapshot, write_snapshot
from ragllava.training.data.thumbnails import make_thumbnails
from ragllava.training.finetune.checkpoints import clear_old
from ragllava.training.remote import download_folder, restore_checkpoint, upload_folder
from ragllava.training.request import TrainingRequest, plan_training
from ragllava.whole_files import folder_sha256

if TYPE_CHECKING:
    from ragllava.training.finetune.report import TrainingReport
    from ragllava.training.finetune.run import FinetuneConfig

log = logging.getLogger(__name__)

_LOST_PICTURE = (ImageRejected, ObjectMissing, ObjectCorrupt)


def train_stage(context: ShardContext[Resources]) -> None:
    """Do the training of one train job to its end, or up to an interruption; the next call continues from there.

    A job that names a version evaluates it again instead of training one.
    Raises JobRefused when the training cannot be done as asked for: the job fails with the reason.
    """
    if not context.open_inputs():
        return
    try:
        course = _begin(context)
        _clear_this_machine(course)
        snapshot = take_snapshot(course)
        if course.request.version is None:
            report = learn(course, snapshot)
            course.enter("judging")
            contest = compare(course, snapshot, _version_name(course), course.folder / "result" / "adapter")
            course.enter("publishing")
            conclude(course, snapshot, report, contest)
        else:
            judge_again(course, snapshot, course.request.version)
    except UsageError as error:
        raise JobRefused(str(error)) from error
    shutil.rmtree(course.folder, ignore_errors=True)
    context.resources.objects.remove_prefix(f"{course.prefix}/checkpoints/")


def take_snapshot(course: Course) -> Snapshot:
    """Freeze the data at the first attempt; read it back at every other one, whatever was labelled since.

    Images that were set aside as likely right become noisy cases, to be labelled.
    """
    course.enter("snapshot")
    context = course.context
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "snapshot"
        try:
            download_folder(context.resources.objects, f"{course.prefix}/snapshot", folder)
        except ObjectMissing:
            request, settings = course.request, context.settings
            top_k = request.top_k or settings.top_k
            make_thumbnails(context.engine, context.resources.pictures.get_many, request.archives, top_k, context.check)
            plan = context.read(plan_training, request, settings)
            if plan.shortage is not None:
                raise JobRefused(plan.shortage) from None
            context.commit(_ask_about_set_aside, plan.snapshot)
            write_snapshot(folder, plan.snapshot)
            upload_folder(context.resources.objects, folder, f"{course.prefix}/snapshot")
        return read_snapshot(folder)


def learn(course: Course, snapshot: Snapshot) -> TrainingReport:
    """Train an adapter, from the latest checkpoint that is on this machine or in the object store."""
    from ragllava.training.finetune.run import FinetuneConfig

    course.enter("training")
    most = course.context.settings.max_answer_tokens
    config = FinetuneConfig(course.request.role, course.request.settings, course.folder / "result", most)
    course.folder.mkdir(parents=True, exist_ok=True)
    if not config.result.exists():
        step = restore_checkpoint(course.context.resources.objects, f"{course.prefix}/checkpoints", config.work)
        if step is not None:
            log.info("checkpoint fetched", extra={"action": "checkpoint_fetched", "job": course.job_id, "step": step})
    train = _train_here if course.context.settings.train_processes == 1 else _train_in_processes
    try:
        report = train(course, config, snapshot)
        _store_curve(course, report)
        return report
    except _LOST_PICTURE as error:
        raise JobRefused(
            f"a picture to train on is lost: {error}; ingest it again, then `ragllava jobs retry {course.job_id}`"
        ) from error
    except ScoreRejected as error:
        raise JobRefused(f"an example cannot be trained on: {error}") from error
    finally:
        release_memory()


def _store_curve(course: Course, report: TrainingReport) -> None:
    """Store the thinned curve, also of steps that were trained elsewhere or whose losses were not stored."""
    every = [
        StepLoss(record.step, record.loss, record.learning_rate)
        for record in report.steps
        if math.isfinite(record.loss)
    ]
    losses = thinned(every, len(report.steps))
    course.context.commit(trainings.store_losses, course.job_id, losses)


def conclude(course: Course, snapshot: Snapshot, report: TrainingReport, contest: Contest) -> None:
    """Publish the adapter, then register it and write the outcome in one transaction behind the fence."""
    objects = course.context.resources.objects
    result = course.folder / "result"
    files = publish_adapter(objects, result / "adapter")
    for name in ("report.json", "curves.svg"):
        objects.put(f"{course.prefix}/{name}", (result / name).read_bytes())
    request = course.request
    version = AdapterVersion(
        role=request.role,
        name=_version_name(course),
        profile=course.profile.name,
        prompt=RERANK_VERSION if request.role is Role.RERANKER else ANSWER_VERSION,
        threshold=contest.threshold,
        threshold_curve=to_json(contest.fit),
        adapter_sha256=digest(files),
        manifest=files,
        base=report.base,
        training=_story(course, snapshot, report, contest),
        state="challenger" if contest.passed else "candidate",
    )
    reasons = (*contest.reasons, *(item.sentence() for item in report.left_out))
    course.context.commit(_register, course, version, snapshot, contest, "; ".join(reasons))


def _begin(context: ShardContext[Resources]) -> Course:
    job = context.read(views.view, context.lease.job_id)
    prefix = trainings.folder_of(job.job_id, job.created_at)
    return Course(context, from_json(TrainingRequest, context.lease.spec), get_profile(context.settings), prefix)


def _clear_this_machine(course: Course) -> None:
    """Remove what trainings left here that were cancelled, failed, or went on elsewhere, a week after."""
    prefixes = course.context.read(trainings.open_folders)
    names = {prefix.rpartition("/")[2] for prefix in prefixes}
    for name in clear_old(course.folder.parent, names, time.time() - GRACE_S):
        log.info("old training removed", extra={"action": "training_removed", "place": name})


def _train_here(course: Course, config: FinetuneConfig, snapshot: Snapshot) -> TrainingReport:
    from ragllava.models.device import plan_device
    from ragllava.models.loading import load_mllm
    from ragllava.training.finetune.run import train

    settings = course.context.settings
    mllm = load_mllm(course.profile, plan_device(settings), settings)
    return train(
        config,
        snapshot.whole_dataset().examples,
        mllm,
        course.open_picture,
        on_checkpoint=course.keep_checkpoint,
        on_step=course.note_step,
        on_loss=course.note_loss,
    )


def _train_in_processes(course: Course, config: FinetuneConfig, snapshot: Snapshot) -> TrainingReport:
    from ragllava.training.finetune.launch import train_in_processes

    resources = course.context.resources

    def store_picture(sha256: str, file: Path) -> None:
        data = resources.objects.get_content(sha256)
        resources.decoder.decode(data, max_side=1)
        file.write_bytes(data)

    return train_in_processes(
        config,
        snapshot.whole_dataset(),
        store_picture,
        course.context.settings.train_processes,
        on_checkpoint=course.keep_checkpoint,
        on_step=course.note_step,
        on_loss=course.note_loss,
    )


def _version_name(course: Course) -> str:
    """As `harbour-reranker-12@1f3a9c02`: what it was trained for, its job, and its bytes."""
    bytes_of = digest(folder_sha256(course.folder / "result" / "adapter"))
    return f"{course.request.archives[0]}-{course.request.role.value}-{course.job_id}@{bytes_of[:8]}"


def _ask_about_set_aside(connection: Connection, snapshot: Snapshot) -> None:
    for share in snapshot.shares:
        by_question: dict[str, list[dict[str, Any]]] = {}
        for item in share.dataset.set_aside:
            images = by_question.setdefault(question_key(item.question), [])
            images.append({"sha256": item.image, "caption": item.caption, "relevance": round(item.relevance, 4)})
        for key, images in sorted(by_question.items(), key=lambda pair: share.addresses[pair[0]]):
            noisy.add_reason(
                connection, *share.addresses[key], NoisyReason.UNLABELLED_RELEVANT, _set_aside_text(images)
            )


def _set_aside_text(images: list[dict[str, Any]]) -> str:
    listed = ", ".join(f"{image['caption'] or image['sha256'][:12]} ({image['relevance']:.2f})" for image in images)
    return f"nobody labelled these images, which the reranker takes for relevant: {listed}; say which are"


def _story(course: Course, snapshot: Snapshot, report: TrainingReport, contest: Contest) -> dict[str, Any]:
    """What is kept beside the version."""
    curve = to_json(report)
    every = -(-len(report.steps) // CURVE_POINTS)
    curve["steps"] = curve["steps"][:: max(every, 1)]
    return {
        "job": course.job_id,
        "archives": list(course.request.archives),
        "request": course.request.as_spec(),
        "snapshot": snapshot.snapshot_id,
        "hold_out": snapshot.hold_out_id,
        "data": [share.figures() for share in snapshot.shares],
        **contest.as_json(),
        "examples": changed_examples(snapshot, contest),
        "report": curve,
        "objects": course.prefix,
    }


def _register(
    connection: Connection, course: Course, version: AdapterVersion, snapshot: Snapshot, contest: Contest, reason: str
) -> None:
    """Exactly one version, and the outcome that goes with it."""
    made = registry.register_adapter(connection, version)
    end_course(connection, course, made, snapshot, contest, reason)
