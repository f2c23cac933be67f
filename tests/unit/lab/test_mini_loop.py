"""The loop of the mini models' recipe: its pace, and what an interruption changes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from ragllava.lab.mini_recipe.loop import Lesson, Pace, train


def test_the_rate_rises_then_falls_with_steps_or_with_the_clock() -> None:
    pace = Pace(steps=1000, peak_rate=1.0, warm_up_steps=10, limit_s=100)
    assert pace.rate(0, 0) == pytest.approx(0.1)
    assert pace.rate(9, 0) == pytest.approx(1.0, abs=1e-3)
    assert pace.rate(500, 0) == pytest.approx(0.5)
    assert pace.rate(20, 50) == pytest.approx(0.5)
    assert pace.rate(20, 75) == pytest.approx(0.5 - 0.5 * math.sqrt(0.5))
    assert pace.share_done(1000, 0) == pace.share_done(0, 100) == 1


class _Interrupted(Exception):
    pass


class _Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4))


class _TwoLayers(nn.Module):
    """Small, with one matrix for each of the two optimizers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = _Body()
        self.last = nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.last(self.body.layers(inputs))
        return outputs


def _lesson(network: _TwoLayers, interrupt_at: int | None = None) -> Lesson:
    target = torch.arange(4.0)

    def backward(step: int) -> Mapping[str, float]:
        if step == interrupt_at:
            raise _Interrupted
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        loss = ((network(inputs) - target) ** 2).mean()
        torch.autograd.backward(loss)
        return {"loss": loss.item()}

    return Lesson(backward, lambda: {"bias": float(network.last.bias.detach().sum())})


def test_an_interrupted_training_ends_as_one_that_was_not(tmp_path: Path) -> None:
    pace = Pace(steps=30, peak_rate=0.02, warm_up_steps=3, steps_per_report=10)
    whole = _TwoLayers()
    curve = train(tmp_path / "whole", whole, _lesson(whole), pace)
    assert [row["step"] for row in curve] == [10, 20, 30]
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert json.loads((tmp_path / "whole" / "curve.json").read_text()) == curve
    drawn = ElementTree.parse(tmp_path / "whole" / "curve.svg").getroot()
    assert {"loss", "bias"} <= set(drawn.itertext())
    broken = _TwoLayers()
    with pytest.raises(_Interrupted):
        train(tmp_path / "broken", broken, _lesson(broken, interrupt_at=17), pace)
    resumed = _TwoLayers()
    curve_after = train(tmp_path / "broken", resumed, _lesson(resumed), pace)
    assert [row["step"] for row in curve_after] == [10, 20, 30]
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_what_needs_no_gradient_stays(tmp_path: Path) -> None:
    network = _TwoLayers()
    network.last.weight.requires_grad = False
    frozen, learning = network.last.weight.clone(), network.last.bias.clone()
    train(tmp_path, network, _lesson(network), Pace(steps=3, peak_rate=0.02, warm_up_steps=1))
    assert torch.equal(network.last.weight, frozen)
    assert not torch.equal(network.last.bias, learning)
