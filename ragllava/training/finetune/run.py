"""LoRA fine-tuning of an MLLM for one role, resumable, on one device or several (docs/method.md 5 and 6).

    python -m ragllava.training.finetune.run RUN.json
    accelerate launch --multi_gpu --num_processes 2 -m ragllava.training.finetune.run RUN.json

(Without GPUs the second starts two processes on the processor; accelerate's own `--cpu` would start only one.)
Checkpoints are beside the result, in `<result>.work`; the complete result appears by a rename. A training that was
killed continues from its last complete checkpoint when it is started again with the same data, settings and base.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image
from transformers import TrainingArguments

from ragllava.errors import RagllavaError, ScoreRejected, SettingsError, UsageError
from ragllava.imaging.sandbox import make_decoder
from ragllava.json_records import from_json
from ragllava.logs import configure_logging
from ragllava.models.device import plan_device
from ragllava.models.loading import load_mllm
from ragllava.models.mllm import Mllm
from ragllava.models.profiles import get_profile
from ragllava.records import Role
from ragllava.settings import load_settings
from ragllava.training.data.datasets import read_dataset, snapshot_id
from ragllava.training.data.examples import Example, RankExample
from ragllava.training.finetune.batches import BatchMaker, PictureOpener
from ragllava.training.finetune.checkpoints import Checkpoint, last_checkpoint
from ragllava.training.finetune.lora import save_adapter, trainable_lora
from ragllava.training.finetune.presets import (
    THRIFT_SETTINGS,
    ChosenSettings,
    accumulation_steps,
    choose_settings,
)
from ragllava.training.finetune.report import StepRecord, TrainingReport, read_report, write_report
from ragllava.training.finetune.selection import LearnableExamples, with_answers_to_learn, with_room
from ragllava.training.finetune.trainer import (
    CheckpointHook,
    EachLoss,
    EachStep,
    LoraTrainer,
    LossHook,
    Seal,
    StepHook,
)
from ragllava.whole_files import folder_written_whole, read_sealed, seal_folder, write_first

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FinetuneConfig:
    """What to train, how, and where the result goes: a folder that does not exist yet.

    Answers of more than `max_answer_tokens` are not learned, as they are never written; None: of any length.
    """

    role: Role
    settings: ChosenSettings
    result: Path
    max_answer_tokens: int | None = None

    @property
    def work(self) -> Path:
        """Where checkpoints are until the result is complete."""
        return self.result.with_name(f"{self.result.name}.work")


def train(
    config: FinetuneConfig,
    examples: Sequence[Example],
    mllm: Mllm,
    open_picture: PictureOpener,
    *,
    on_checkpoint: CheckpointHook | None = None,
    on_step: StepHook | None = None,
    on_loss: LossHook | None = None,
) -> TrainingReport:
    """Train an adapter on the examples and leave it in `config.result/adapter`, beside report, curves and manifest.

    `mllm` must have no adapter, and has none afterwards. `on_checkpoint` is called with the folder of each whole
    checkpoint, by one process of all. `on_loss` is called with the loss of each step, and `on_step` after each step.
    What `on_step` raises ends the training. When it is ShardInterrupted, a checkpoint is written first, so that no step
    is lost. A training that has its result already is not repeated. Examples that the model cannot learn from are left
    out, and the report tells how many; before the first step, `on_step` is called with zeros from time to time. Raises
    UsageError or SettingsError when it cannot be done as said, and where it diverges; ScoreRejected when an example
    does not fit after all.
    """
    _check_examples(config, examples)
    make_batch = BatchMaker(mllm, open_picture, with_captions=config.settings.values.with_captions)
    chosen = with_answers_to_learn(examples, make_batch.answer_tokens, config.max_answer_tokens)
    # Which of these have room follows from the base and from themselves.
    fingerprint = _fingerprint(config, snapshot_id(chosen.examples), mllm.version)
    if config.result.exists():
        return _finished_report(config.result, fingerprint)
    for name, value in config.settings.as_json().items():
        log.info("training setting %s=%s (%s)", name, value["value"], value["origin"])
    arguments = _arguments(config, mllm)  # wrong settings are reported before the pictures are opened
    chosen = with_room(chosen, mllm, make_batch, open_picture, partial(on_step, 0, 0) if on_step else None)
    with trainable_lora(mllm, config.settings.values) as network:
        trainer = LoraTrainer(
            config.settings.values,
            Seal(fingerprint, on_checkpoint),
            model=network,
            args=arguments,
            train_dataset=list(chosen.examples),
            data_collator=make_batch,
            callbacks=[*([EachStep(on_step)] if on_step else []), *([EachLoss(on_loss)] if on_loss else [])],
        )
        trainer.run(config.work, fingerprint)
    if trainer.is_world_process_zero():
        checkpoint = last_checkpoint(config.work, fingerprint)
        if checkpoint is None or not checkpoint.finished:
            raise UsageError(f"{config.work}: the checkpoints there were changed while training; start it again")
        report = _report(config, checkpoint, snapshot_id(examples), mllm.version, chosen)
        _publish(config, checkpoint, report, fingerprint)
    trainer.accelerator.wait_for_everyone()
    return read_report(config.result)


def _arguments(config: FinetuneConfig, mllm: Mllm) -> TrainingArguments:
    settings = config.settings.values
    device = mllm.network.device
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    arguments = TrainingArguments(
        output_dir=str(config.work),
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=accumulation_steps(settings, processes),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_gradient_norm,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_share,
        bf16=mllm.network.dtype is torch.bfloat16,
        fp16=mllm.network.dtype is torch.float16,
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        seed=settings.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not finite must be seen
        save_strategy="steps",
        save_steps=settings.steps_per_checkpoint,
        save_total_limit=2,  # the one before stays until the next is whole
        use_cpu=device.type == "cpu",
        # Processes forward as often as their batches have parts, so none may wait for the others there.
        ddp_broadcast_buffers=False,
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )
    if arguments.device.type != device.type or (arguments.device.index or 0) != (device.index or 0):
        raise SettingsError(
            f"the model is on {device}, but training runs on {arguments.device}; set CUDA_VISIBLE_DEVICES"
        )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs in one process would be torch's DataParallel
    return arguments


def _check_examples(config: FinetuneConfig, examples: Sequence[Example]) -> None:
    if not examples:
        raise UsageError(f"no examples to train the {config.role} on")
    ranks = sum(isinstance(example, RankExample) for example in examples)
    if ranks != (len(examples) if config.role is Role.RERANKER else 0):
        raise UsageError(f"some examples are not made for the {config.role}; build the data set for this role")


def _fingerprint(config: FinetuneConfig, snapshot: str, base: str) -> str:
    """One name for all that decides the weights; what only saves memory or time may change between two attempts."""
    decisive = {name: value for name, value in asdict(config.settings.values).items() if name not in THRIFT_SETTINGS}
    content = json.dumps([config.role, snapshot, base, decisive], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _report(
    config: FinetuneConfig, checkpoint: Checkpoint, snapshot: str, base: str, chosen: LearnableExamples
) -> TrainingReport:
    history = json.loads((checkpoint.folder / "trainer_state.json").read_text())["log_history"]
    steps = tuple(
        from_json(StepRecord, entry | {"gradient_norm": entry["grad_norm"]}) for entry in history if "loss" in entry
    )
    return TrainingReport(
        role=config.role,
        base=base,
        snapshot=snapshot,
        examples=len(chosen.examples),
        seconds=checkpoint.seconds,
        settings=config.settings.as_json(),
        steps=steps,
        left_out=chosen.left_out,
    )


def _publish(config: FinetuneConfig, checkpoint: Checkpoint, report: TrainingReport, fingerprint: str) -> None:
    """Put the result together under another name, its manifest last, and rename it."""
    with folder_written_whole(config.result) as part:
        save_adapter(checkpoint.folder, part / "adapter", report.base)
        write_report(report, part)
        seal_folder(part, {"fingerprint": fingerprint})
    shutil.rmtree(config.work)
    log.info("adapter written to %s", config.result, extra={"action": "adapter_written", "steps": len(report.steps)})


def _finished_report(result: Path, fingerprint: str) -> TrainingReport:
    if read_sealed(result) != {"fingerprint": fingerprint}:
        raise UsageError(f"{result} exists and is not the result of this training; choose another folder")
    return read_report(result)


@dataclass(frozen=True, slots=True)
class RunFile:
    """A training as a JSON file: the fields of this record, its paths relative to the file.

    `dataset` is a folder of `write_dataset`; `pictures` the folder that its images are named in; `profile` one of
    RAGLLAVA_PROFILE's values, None for that of the environment. `settings` changes some of the preset's. `owner` is a
    process without which the training has no purpose: it ends when that one is gone.
    """

    dataset: Path
    pictures: Path
    result: Path
    preset: str
    settings: dict[str, Any] = field(default_factory=dict)
    profile: str | None = None
    owner: int | None = None


def read_run_file(path: Path) -> RunFile:
    """Raises UsageError when the file cannot be read as a RunFile."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        for name in ("dataset", "pictures", "result"):
            values[name] = (path.parent / values[name]).absolute()
        return RunFile(**values)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path}: not a training run ({error}); see ragllava.training.finetune.RunFile") from None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run ended without a result; `hopeless`: the same run again would end the same way."""

    sentence: str
    hopeless: bool


def failure_file(run_file: Path) -> Path:
    """Where a run leaves its Failure, for who started it: a launcher between them tells a status alone."""
    return run_file.with_name("failed.json")


def read_failure(run_file: Path) -> Failure | None:
    """Why the run failed; None when it ended before it could write the reason."""
    try:
        return from_json(Failure, json.loads(failure_file(run_file).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def run(path: Path) -> TrainingReport:
    """Do the training that the file describes."""
    described = read_run_file(path)
    dataset = read_dataset(described.dataset)
    overrides: dict[str, Any] = {} if described.profile is None else {"profile": described.profile}
    settings = load_settings(**overrides)
    if settings.device == "auto" and torch.cuda.is_available():
        # `accelerate launch` starts one process for each device; each loads the base onto its own.
        settings = load_settings(**overrides, device=f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    mllm = load_mllm(get_profile(settings), plan_device(settings), settings)
    chosen = choose_settings(described.preset, described.settings)
    config = FinetuneConfig(dataset.card.role, chosen, described.result, settings.max_answer_tokens)

    with make_decoder(settings, processes=1) as decoder:

        def open_picture(name: str) -> Image.Image:
            return decoder.decode_for_model((described.pictures / name).read_bytes())  # as the version will be served

        return train(config, dataset.examples, mllm, open_picture, on_step=partial(_require_owner, described.owner))


class _OwnerGone(UsageError):
    """Nobody is left to be told why."""


def _require_owner(owner: int | None, _step: int, _last_step: int) -> None:
    if owner is not None and not psutil.pid_exists(owner):
        raise _OwnerGone(f"process {owner}, which asked for this training, is gone")


def main(arguments: Sequence[str]) -> int:
    """Train as the file says; the exit status is 0, or 2 with one sentence when it cannot be done.

    Why it failed, whatever it was, stands in the `failure_file` as well; of several processes, what failed first.
    """
    if len(arguments) != 1:
        log.error("usage: python -m ragllava.training.finetune.run RUN.json")
        return 2
    path = Path(arguments[0])
    try:
        report = run(path)
    except RagllavaError as error:
        log.error("%s", error)
        if not isinstance(error, _OwnerGone):  # the place may be another run's by now
            _leave(path, Failure(str(error), hopeless=isinstance(error, UsageError | ScoreRejected)))
        return 2
    except Exception as error:
        _leave(path, Failure(f"{type(error).__name__}: {error}", hopeless=False))
        raise
    log.info("trained %d steps in %.0f s", len(report.steps), report.seconds, extra={"action": "trained"})
    return 0


def _leave(path: Path, failure: Failure) -> None:
    # The others fail because of the first, so what it left stays; and the log has it all. It is there at once or not at
    # all: the launcher ends the first one, which may still be writing, as soon as another one has ended.
    with suppress(OSError):
        write_first(failure_file(path), json.dumps(asdict(failure)))


if __name__ == "__main__":
    configure_logging()
    sys.exit(main(sys.argv[1:]))
