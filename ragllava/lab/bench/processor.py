"""Where processor time goes: what each program of the system spends on a piece of work, by a name for people."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import psutil

from ragllava.lab.bench.memory import BENCH, process_name

T = TypeVar("T")

DECODERS = "decoders"
_DECODER = "ragllava.imaging.sandbox"


@dataclass(frozen=True, slots=True)
class Spent(Generic[T]):
    """What `work` returned, its seconds, and the processor's seconds of each program, more than one core's together."""

    result: T
    seconds: float
    processor_s: Mapping[str, float]

    def figures(self, items: int) -> dict[str, float]:
        """Milliseconds of processor for each item, by program; for a row's figures."""
        return {f"processor_ms, {name}": 1000 * used / items for name, used in self.processor_s.items()}


def spend(work: Callable[[], T]) -> Spent[T]:
    """Do the work. Of a process that ends while it is done nothing is counted, and nothing is told of a program that
    took less than a tick of the system's clock, a hundredth of a second."""
    before, began = _processor_s(), time.perf_counter()
    result = work()
    seconds, after = time.perf_counter() - began, _processor_s()
    used: defaultdict[str, float] = defaultdict(float)
    for (program, pid), spent in after.items():
        used[program] += spent - before.get((program, pid), 0.0)
    return Spent(result, seconds, {program: spent for program, spent in sorted(used.items()) if spent > 0})


def _processor_s() -> dict[tuple[str, int], float]:
    """Seconds since its start of each process below this one, and of this one; by (program, process id)."""
    us, found = psutil.Process(), {}
    for process in [us, *us.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            times, pid = process.cpu_times(), process.pid
            is_decoder = _DECODER in process.cmdline()
            name = DECODERS if is_decoder else BENCH if pid == us.pid else process_name(process)
            if name is not None:
                found[name, pid] = float(times.user + times.system)
    return found
