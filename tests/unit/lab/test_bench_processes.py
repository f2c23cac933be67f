"""Which processor time is counted: that of this process, and that of the programs below it."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from ragllava.lab.bench import processes
from ragllava.lab.bench.processes import BENCH, Spent, spend

TICKS_S = 0.05  # processes are timed by a clock of hundredths of a second


def work_for(seconds: float) -> None:
    began = time.process_time()
    while time.process_time() - began < seconds:
        pass


def measured(work: Callable[[], object]) -> tuple[Spent, float]:
    """What it spent, and all that this process needed meanwhile: to look at the processes takes a part of it."""
    began = time.process_time()
    return spend(work), time.process_time() - began


def test_the_time_of_this_process_is_counted_and_waiting_is_not() -> None:
    (busy, busy_s), (idle, idle_s) = measured(lambda: work_for(0.3)), measured(lambda: time.sleep(0.3))
    assert 0.3 - TICKS_S < busy.processor_s[BENCH] < busy_s + TICKS_S
    assert idle.processor_s.get(BENCH, 0.0) < idle_s + TICKS_S
    assert min(busy.seconds, idle.seconds) > 0.29


def test_processes_of_one_program_are_added_up_without_their_earlier_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [
        {("PostgreSQL", 7): 5.0, ("Redis", 9): 1.0},
        {("PostgreSQL", 7): 5.5, ("PostgreSQL", 8): 0.25, ("Redis", 9): 1.0},
    ]
    monkeypatch.setattr(processes, "_processor_s", lambda: seen.pop(0))
    assert spend(lambda: None).processor_s == {"PostgreSQL": 0.75}


def test_figures_are_milliseconds_per_item() -> None:
    assert Spent(2.0, {"Redis": 0.5}).figures(100) == {"processor_ms, Redis": 5.0}
