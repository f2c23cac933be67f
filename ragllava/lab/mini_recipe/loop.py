"""The loop that all stages of the mini models' training share: pace, optimizer, checkpoints, and a log of the curve."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ragllava.svg import Panel, draw_panels
from ragllava.whole_files import written_whole

log = logging.getLogger(__name__)

_WEIGHT_DECAY = 0.05
_LOWEST_SHARE_OF_RATE = 0.02
_LARGEST_GRADIENT = 1.0
_STEPS_IN_MEAN = 50


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a stage trains. It ends after `steps` or `limit_s` seconds, whichever comes first.

    The learning rate rises over `warm_up_steps` to `peak_rate`, then falls along a cosine that follows whichever of
    the two limits is nearer, so that a stage cut short by the clock has cooled down as well.
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
class Lesson:
    """One step's work: `backward` leaves gradients in the parameters and returns the losses by name."""

    backward: Callable[[int], Mapping[str, float]]
    measure: Callable[[], Mapping[str, float]]


class Optimizers:
    """Muon for the matrices inside the network, AdamW for the rest (embeddings, vectors, the first and last layers)."""

    def __init__(self, network: nn.Module) -> None:
        """Parameters without `requires_grad` stay as they are."""
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
        groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": _WEIGHT_DECAY}]
        groups.append({"params": vectors, "weight_decay": 0.0})
        self._all: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, betas=(0.9, 0.98))]
        if inner:
            self._all.append(torch.optim.Muon(inner, weight_decay=_WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"))
        self._parameters = inner + matrices + vectors

    def step(self, rate: float) -> None:
        """Move along the gradients and clear them."""
        nn.utils.clip_grad_norm_(self._parameters, _LARGEST_GRADIENT)
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()

    def state(self) -> list[dict[str, Any]]:
        """For a checkpoint."""
        return [optimizer.state_dict() for optimizer in self._all]

    def restore(self, states: Iterable[dict[str, Any]]) -> None:
        """From a checkpoint."""
        for optimizer, state in zip(self._all, states, strict=True):
            optimizer.load_state_dict(state)


def train(folder: Path, network: nn.Module, lesson: Lesson, pace: Pace) -> list[dict[str, float]]:
    """Trains the network in place and returns its curve, one row a report; resumes from a checkpoint in the folder.

    The curve is kept in `curve.json` and drawn in `curve.svg`; `checkpoint.pt` is for this loop only, never shipped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizers = Optimizers(network)
    step, seconds_before, curve = _resume(folder, network, optimizers)
    started = time.monotonic()
    means: dict[str, float] = {}
    while True:
        seconds = seconds_before + time.monotonic() - started
        done = pace.share_done(step, seconds) >= 1
        if step and (done or step % pace.steps_per_report == 0) and (not curve or curve[-1]["step"] != step):
            network.eval()
            curve.append({"step": step, "seconds": round(seconds), **_rounded(means), **_rounded(lesson.measure())})
            log.info("%s: %s", folder.name, curve[-1], extra={"action": "training_measured"})
            _save(folder, network, optimizers, curve)
        if done:
            return curve
        network.train()
        _update(means, lesson.backward(step))
        optimizers.step(pace.rate(step, seconds))
        step += 1


def _update(means: dict[str, float], losses: Mapping[str, float]) -> None:
    for name, value in losses.items():
        means[name] = value if name not in means else means[name] + (value - means[name]) / _STEPS_IN_MEAN


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}


def _save(folder: Path, network: nn.Module, optimizers: Optimizers, curve: list[dict[str, float]]) -> None:
    checkpoint = {"network": network.state_dict(), "optimizers": optimizers.state(), "curve": curve}
    with written_whole(folder / "checkpoint.pt") as part:
        torch.save(checkpoint, part)
    (folder / "curve.json").write_text(json.dumps(curve, indent=1))
    (folder / "curve.svg").write_text(draw_panels(_panels(curve)))


def _panels(curve: list[dict[str, float]]) -> list[Panel]:
    """A panel for each figure: losses and accuracies have little to do with each other's scale."""
    names = [name for name in curve[-1] if name not in ("step", "seconds")]
    return [
        Panel(name, "step", "", {name: [(row["step"], row[name]) for row in curve if name in row]}) for name in names
    ]


def _resume(folder: Path, network: nn.Module, optimizers: Optimizers) -> tuple[int, float, list[dict[str, float]]]:
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0, 0.0, []
    checkpoint = torch.load(path, weights_only=True)
    network.load_state_dict(checkpoint["network"])
    optimizers.restore(checkpoint["optimizers"])
    last = checkpoint["curve"][-1]
    return int(last["step"]), float(last["seconds"]), checkpoint["curve"]
