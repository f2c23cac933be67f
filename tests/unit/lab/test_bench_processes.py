"""Which processor time is counted: that of this process, and that of the programs below it."""

from __future__ import annotations

import time

import pytest

from ragllava.lab.bench import processes
from ragllava.lab.bench.processes import BENCH, Spent, spend


def work_for(seconds: float) -> None:
    began = time.process_time()
    while time.process_time() - began < seconds:
        pass


def test_the_time_of_this_process_is_counted_and_waiting_is_not() -> None:
    busy, idle = spend(lambda: work_for(0.3)), spend(lambda: time.sleep(0.3))
    assert 0.25 < busy.processor_s[BENCH] < 0.6
    assert idle.processor_s.get(BENCH, 0.0) < 0.2, "to look at all processes takes a part of it"
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
