"""The whole gate over simulated trainings: a fixed seed and few systems; `ragllava simulate-gate` takes more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ragllava.lab.gate_simulation import HoldOut, simulate
from ragllava.training.gate import GAIN_SPREAD, provable_gain
from ragllava.training.gate_report import GateRules

SHORT = GateRules(flips=2_000)


@pytest.mark.parametrize("hold_out", [HoldOut(), HoldOut(52, 52)])
def test_equal_versions_seldom_pass_in_thirty_tries(hold_out: HoldOut) -> None:
    """At most 5 % and two standard errors; without the tries in the account, a quarter would pass."""
    rates = simulate(60, 30, hold_out, rules=SHORT, seed=1)
    assert rates.any <= 0.05 + 2 * (0.05 * 0.95 / 60) ** 0.5
    forgetful = simulate(60, 30, hold_out, rules=replace(SHORT, first_share=1.0), seed=1, forget_tries=True)
    assert forgetful.any > 2 * rates.any


def test_worse_versions_do_not_pass() -> None:
    rates = simulate(100, 5, HoldOut(), gain=-0.05, rules=SHORT, seed=2)
    assert rates.challenger == pytest.approx(rates.champion - 0.03, abs=0.015)
    assert rates.any <= 0.03


def test_a_real_improvement_passes_on_half_a_hundred_questions() -> None:
    """F1 from .80 to .87 on 52 questions about 30 pictures; the F1 alone passes in one of five."""
    rates = simulate(150, 1, HoldOut(), gain=0.1, rules=SHORT, seed=11)
    assert rates.challenger - rates.champion == pytest.approx(0.065, abs=0.015)
    assert rates.first >= 0.75
    assert simulate(150, 1, HoldOut(), gain=0.1, rules=SHORT, seed=11, f1_alone=True).first < 0.4


def test_a_hold_out_proves_the_gain_that_it_is_said_to_prove() -> None:
    hold_out = HoldOut(100, 58)
    said = provable_gain([[f"{number % 58}"] for number in range(100)], GAIN_SPREAD, GateRules(), 0.8)
    rates = simulate(150, 1, hold_out, gain=0.15, rules=SHORT, seed=5)
    assert said is not None
    assert rates.challenger - rates.champion < said
    assert rates.first >= 0.8
