"""Processor time: how much each program of the system spends on a piece of work."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psutil

from ragllava.lab.bench.memory import measure_processes
from ragllava.lab.bench.rows import timed


@dataclass(frozen=True, slots=True)
class Spent:
    """The wall time of some work, and the processor time of each program on all cores; both in seconds."""

    seconds: float
    processor_s: Mapping[str, float]

    def figures(self, items: int) -> dict[str, float]:
        """Milliseconds of processor time for each item, by program; for a row's figures."""
        return {f"processor_ms, {name}": 1000 * used / items for name, used in self.processor_s.items()}


def spend(work: Callable[[], object]) -> Spent:
    """Do the work and measure it.

    A process that ends meanwhile is not counted. A program that used less than one tick of the system's clock, a
    hundredth of a second, is left out.
    """
    before = _processor_s()
    seconds, _ = timed(work)
    used: defaultdict[str, float] = defaultdict(float)
    for (program, pid), spent_s in _processor_s().items():
        used[program] += spent_s - before.get((program, pid), 0.0)
    return Spent(seconds, {program: spent_s for program, spent_s in sorted(used.items()) if spent_s > 0})


def _processor_s() -> dict[tuple[str, int], float]:
    """Seconds of processor time since its start of each process, by (program, process id)."""

    def user_and_system(process: psutil.Process) -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    return measure_processes(user_and_system)
