"""The training loop of all stages of the mini models: schedule, optimizers, checkpoints, and the curve."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ragllava.json_records import rounded
from ragllava.svg import Panel, draw_panels
from ragllava.whole_files import written_whole

log = logging.getLogger(__name__)

_WEIGHT_DECAY = 0.05
_LOWEST_SHARE_OF_RATE = 0.02
_LARGEST_GRADIENT = 1.0
_STEPS_IN_MEAN = 50


@dataclass(frozen=True, slots=True)
class StageSchedule:
    """The length of a stage and its learning rate. It ends after `steps` or `limit_s` seconds, whichever comes first.

    The learning rate rises over `warm_up_steps` to `peak_rate`, then falls along a cosine that follows the nearer of
    the two limits, so that it is low at the end of a stage that the time limit ends, too.
    """

    steps: int
    peak_rate: float
    warm_up_steps: int = 50
    limit_s: float = math.inf
    steps_per_report: int = 100

    def share_done(self, step: int, seconds: float) -> float:
        """From 0 at the start to 1 at the end."""
        return min(1.0, max(step / self.steps, seconds / self.limit_s))

    def rate(self, step: int, seconds: float) -> float:
        """The learning rate of a step (counted from 0)."""
        rise = min(1.0, (step + 1) / self.warm_up_steps)
        fall = 0.5 + 0.5 * math.cos(math.pi * self.share_done(step, seconds))
        return self.peak_rate * rise * max(fall, _LOWEST_SHARE_OF_RATE)


@dataclass(frozen=True, slots=True)
class StageTask:
    """What a stage trains: `backward` leaves the gradients of a step in the parameters and returns the losses by name;
    `measure` returns figures on held-out data."""

    backward: Callable[[int], Mapping[str, float]]
    measure: Callable[[], Mapping[str, float]]


Curve = list[dict[str, float]]  # one row for each report


def train(folder: Path, network: nn.Module, task: StageTask, schedule: StageSchedule) -> Curve:
    """Train the network in place, from the checkpoint in the folder if there is one.

    Returns the curve, one row for each report. It is written to `curve.json` and drawn in `curve.svg`; only this loop
    reads `checkpoint.pt`. Parameters without `requires_grad` do not change.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizers = _optimizers(network)
    step, seconds_before, curve = _resume(folder, network, optimizers)
    started = time.monotonic()
    means: dict[str, float] = {}
    while True:
        seconds = seconds_before + time.monotonic() - started
        done = schedule.share_done(step, seconds) >= 1
        if step and (done or step % schedule.steps_per_report == 0) and (not curve or curve[-1]["step"] != step):
            network.eval()
            curve.append({"step": step, "seconds": round(seconds), **rounded({**means, **task.measure()})})
            log.info("%s: %s", folder.name, curve[-1], extra={"action": "training_measured"})
            _save(folder, network, optimizers, curve)
        if done:
            return curve
        network.train()
        for name, value in task.backward(step).items():
            mean = means.get(name, value)
            means[name] = mean + (value - mean) / _STEPS_IN_MEAN
        _update(optimizers, schedule.rate(step, seconds))
        step += 1


def _optimizers(network: nn.Module) -> list[torch.optim.Optimizer]:
    """AdamW for embeddings, vectors, the first and last layers; Muon for the matrices inside the network, if any."""
    inner: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim == 2 and (".layers." in name or ".resblocks." in name):
            inner.append(parameter)
        else:
            (matrices if parameter.ndim > 1 else vectors).append(parameter)
    groups = [{"params": matrices, "weight_decay": _WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, betas=(0.9, 0.98))]
    if inner:
        optimizers.append(torch.optim.Muon(inner, weight_decay=_WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def _update(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    """Move all parameters along their clipped gradients, and clear the gradients."""
    groups = [group for optimizer in reversed(optimizers) for group in optimizer.param_groups]
    nn.utils.clip_grad_norm_([parameter for group in groups for parameter in group["params"]], _LARGEST_GRADIENT)
    for group in groups:
        group["lr"] = rate
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def _save(folder: Path, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], curve: Curve) -> None:
    states = [optimizer.state_dict() for optimizer in optimizers]
    with written_whole(folder / "checkpoint.pt") as part:
        torch.save({"network": network.state_dict(), "optimizers": states, "curve": curve}, part)
    (folder / "curve.json").write_text(json.dumps(curve, indent=1))
    # A panel for each figure, because losses and accuracies have different scales.
    lines = {name: [(row["step"], row[name]) for row in curve if name in row] for name in curve[-1]}
    panels = [Panel(name, "step", "", {name: lines[name]}) for name in lines if name not in ("step", "seconds")]
    (folder / "curve.svg").write_text(draw_panels(panels))


def _resume(folder: Path, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> tuple[int, float, Curve]:
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0, 0.0, []
    checkpoint = torch.load(path, weights_only=True)
    network.load_state_dict(checkpoint["network"])
    for optimizer, state in zip(optimizers, checkpoint["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    last = checkpoint["curve"][-1]
    return int(last["step"]), float(last["seconds"]), checkpoint["curve"]
