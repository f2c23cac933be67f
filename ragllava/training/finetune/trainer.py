"""transformers' Trainer as a training uses it: our loss, whole checkpoints, and an end where no number is left."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback

from ragllava.errors import ShardInterrupted, UsageError
from ragllava.training.finetune.batches import Batch
from ragllava.training.finetune.checkpoints import Checkpoint, last_checkpoint, seal_checkpoint
from ragllava.training.finetune.lora import is_projector
from ragllava.training.finetune.losses import noise_weighted_loss, plain_loss
from ragllava.training.finetune.presets import TrainingSettings

log = logging.getLogger(__name__)

CheckpointHook = Callable[[Path], None]
StepHook = Callable[[int, int], None]  # steps done, steps in all
LossHook = Callable[[int, float, float], None]  # the step, its loss, its learning rate


@dataclass(slots=True)
class Seal:
    """Makes a checkpoint whole, then calls the hook; knows how long was trained before this process began."""

    fingerprint: str
    hook: CheckpointHook | None
    seconds_before: float = 0.0
    began: float = 0.0

    def close(self, folder: Path, step: int, last_step: int) -> None:
        """Call when all files of a checkpoint are there."""
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing of ours reads
        seconds = self.seconds_before + time.monotonic() - self.began
        seal_checkpoint(Checkpoint(folder, self.fingerprint, step, last_step, round(seconds, 3)))
        log.info("checkpoint at step %d of %d", step, last_step, extra={"action": "checkpoint_written"})
        if self.hook is not None:
            self.hook(folder)


class EachStep(TrainerCallback):  # type: ignore[misc]
    """Calls a hook after each step; an interruption is raised after its checkpoint was written."""

    def __init__(self, hook: StepHook) -> None:
        self._hook = hook
        self._interrupted: ShardInterrupted | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_facts: Any) -> None:
        """As in TrainerCallback."""
        try:
            self._hook(state.global_step, state.max_steps)
        except ShardInterrupted as error:
            self._interrupted = error
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_facts: Any) -> None:
        """As in TrainerCallback."""
        if self._interrupted is not None:
            raise self._interrupted


class EachLoss(TrainerCallback):  # type: ignore[misc]
    """Calls a hook with the loss of each step."""

    def __init__(self, hook: LossHook) -> None:
        self._hook = hook

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_facts: Any) -> None:
        """As in TrainerCallback."""
        report_loss(self._hook, {"step": state.global_step, **(logs or {})})


def report_loss(hook: LossHook, entry: dict[str, Any]) -> None:
    """Call the hook with an entry of the trainer's log, if it is about a loss that is a number."""
    loss, rate = entry.get("loss"), entry.get("learning_rate")
    if loss is not None and rate is not None and math.isfinite(loss):
        hook(int(entry["step"]), float(loss), float(rate))


class LoraTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer with our loss, and checkpoints that are whole or do not count."""

    loss_is_scaled_for_ga = False  # our loss is a mean over the micro-batch

    def __init__(self, settings: TrainingSettings, seal: Seal, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = False
        self._settings = settings
        self._seal = seal
        self._weights: list[float] = []

    def run(self, work: Path, fingerprint: str) -> None:
        """Train from the last whole checkpoint, or from the beginning, up to a last checkpoint."""
        start = last_checkpoint(work, fingerprint)
        # Nobody may move on, and perhaps tidy up, before all have looked.
        self.accelerator.wait_for_everyone()
        self._seal.began = time.monotonic()
        if start is None or not start.finished:
            self._seal.seconds_before = start.seconds if start else 0.0
            self.train(resume_from_checkpoint=str(start.folder) if start else None)
        self.accelerator.wait_for_everyone()

    def create_optimizer(self, *arguments: Any, **keywords: Any) -> Any:
        """As in Trainer; the projector's layers form groups with a learning rate of their own, if it has one."""
        optimizer = super().create_optimizer(*arguments, **keywords)
        rate = self._settings.projector_learning_rate
        if rate is None:
            return optimizer
        projector = {id(weights) for name, weights in self.model.named_parameters() if is_projector(name)}
        for group in list(optimizer.param_groups):
            own = [weights for weights in group["params"] if id(weights) in projector]
            group["params"] = [weights for weights in group["params"] if id(weights) not in projector]
            if own:
                optimizer.add_param_group({**group, "params": own, "lr": rate})
        return optimizer

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The loss of one micro-batch."""
        network = self.accelerator.unwrap_model(model)
        dtype = network.get_base_model().dtype
        if self._settings.token_weighting:
            batch_loss = noise_weighted_loss(model, inputs, dtype, self._settings.diffusion_step, undistributed=network)
        else:
            batch_loss = plain_loss(model, inputs, dtype)
        self._weights.append(batch_loss.mean_weight)
        return batch_loss.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Each step's record, with the tokens' mean weight. Raises UsageError when no number is left to learn from."""
        if "loss" in logs:
            self._require_numbers(logs)
            logs["token_weight"] = sum(self._weights) / len(self._weights)
            self._weights.clear()
        super().log(logs, start_time)

    def _require_numbers(self, logs: dict[str, float]) -> None:
        values = [("loss", logs["loss"])]
        if not self.args.fp16:  # there, steps with too large a gradient are left out, and the first ones often are
            values.append(("gradient", logs.get("grad_norm", 0.0)))
        for name, value in values:
            if not math.isfinite(value):
                raise UsageError(
                    f"the training diverged at step {self.state.global_step}: its {name} is {value}; "
                    f"lower learning_rate={self._settings.learning_rate:g}"
                )

    def floating_point_ops(self, inputs: Batch) -> int:
        """Not counted: the estimate knows no pictures."""
        return 0

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # each process writes the state of its own random numbers
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            self._seal.close(folder, self.state.global_step, self.state.max_steps)
