"""The training loop of the mini models' recipe: its schedule, and the resume after an interruption."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from ragllava.lab.mini_recipe.loop import StageSchedule, StageTask, train


def test_the_rate_rises_then_falls_with_steps_or_with_the_clock() -> None:
    schedule = StageSchedule(steps=1000, peak_rate=1.0, warm_up_steps=10, limit_s=100)
    assert schedule.rate(0, 0) == pytest.approx(0.1)
    assert schedule.rate(9, 0) == pytest.approx(1.0, abs=1e-3)
    assert schedule.rate(500, 0) == pytest.approx(0.5)
    assert schedule.rate(20, 50) == pytest.approx(0.5)
    assert schedule.rate(20, 75) == pytest.approx(0.5 - 0.5 * math.sqrt(0.5))
    assert schedule.share_done(1000, 0) == schedule.share_done(0, 100) == 1


class _Interrupted(Exception):
    pass


class _Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4))


class _TwoLayers(nn.Module):
    """A small network with one matrix for each of the two optimizers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = _Body()
        self.last = nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.last(self.body.layers(inputs))
        return outputs


def _task(network: _TwoLayers, interrupt_at: int | None = None) -> StageTask:
    target = torch.arange(4.0)

    def backward(step: int) -> Mapping[str, float]:
        if step == interrupt_at:
            raise _Interrupted
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        loss = ((network(inputs) - target) ** 2).mean()
        torch.autograd.backward(loss)
        return {"loss": loss.item()}

    return StageTask(backward, lambda: {"bias": float(network.last.bias.detach().sum())})


def test_an_interrupted_training_ends_as_one_that_was_not(tmp_path: Path) -> None:
    schedule = StageSchedule(steps=30, peak_rate=0.02, warm_up_steps=3, steps_per_report=10)
    uninterrupted = _TwoLayers()
    curve = train(tmp_path / "uninterrupted", uninterrupted, _task(uninterrupted), schedule)
    assert [row["step"] for row in curve] == [10, 20, 30]
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert json.loads((tmp_path / "uninterrupted" / "curve.json").read_text()) == curve
    drawn = ElementTree.parse(tmp_path / "uninterrupted" / "curve.svg").getroot()
    assert {"loss", "bias"} <= set(drawn.itertext())
    interrupted = _TwoLayers()
    with pytest.raises(_Interrupted):
        train(tmp_path / "resumed", interrupted, _task(interrupted, interrupt_at=17), schedule)
    resumed = _TwoLayers()
    curve_after = train(tmp_path / "resumed", resumed, _task(resumed), schedule)
    assert [row["step"] for row in curve_after] == [10, 20, 30]
    for expected, weight in zip(uninterrupted.parameters(), resumed.parameters(), strict=True):
        assert torch.allclose(weight, expected, atol=1e-6)


def test_parameters_without_gradient_do_not_change(tmp_path: Path) -> None:
    network = _TwoLayers()
    network.last.weight.requires_grad = False
    frozen, learning = network.last.weight.clone(), network.last.bias.clone()
    train(tmp_path, network, _task(network), StageSchedule(steps=3, peak_rate=0.02, warm_up_steps=1))
    assert torch.equal(network.last.weight, frozen)
    assert not torch.equal(network.last.bias, learning)
