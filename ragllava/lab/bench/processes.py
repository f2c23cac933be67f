"""The processes of the system by name: their peaks of memory, and the processor time of a piece of work."""

from __future__ import annotations

import contextlib
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from ragllava.lab.bench.rows import timed

BENCH = "the benchmark itself"
DECODERS = "decoders"
_EVERY_S = 2.0
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)
_PROGRAMS = {"postgres": "PostgreSQL", "redis-server": "Redis", "weed": "SeaweedFS"}
_DECODER = "ragllava.imaging.decoding"


@contextlib.contextmanager
def watched_memory() -> Iterator[Callable[[], dict[str, float]]]:
    """Watch all processes in a background thread; the function returns each one's peak until now, in MiB by name."""
    peaks: dict[str, float] = {}
    stop = threading.Event()

    def read_peaks() -> dict[str, float]:
        for (name, _), mib in measure_processes(peak_mib).items():
            if name != DECODERS:
                label = f"{name}, its largest process" if name == _PROGRAMS["postgres"] else name
                peaks[label] = max(peaks.get(label, 0.0), mib)
        return dict(peaks)

    def watch() -> None:
        while not stop.wait(_EVERY_S):
            read_peaks()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield read_peaks
    finally:
        stop.set()
        thread.join()


def measure_processes(measure: Callable[[psutil.Process], float]) -> dict[tuple[str, int], float]:
    """`measure` of this process and of each one below it that has a name, by (name, process id).

    A process that ends meanwhile is left out.
    """
    this, values = psutil.Process(), {}
    for process in [this, *this.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            name = BENCH if process.pid == this.pid else process_name(process)
            if name is not None:
                values[name, process.pid] = measure(process)
    return values


def peak_mib(process: psutil.Process) -> float:
    """The largest resident size that a process ever had, where Linux reports it; elsewhere its current size."""
    status = Path(f"/proc/{process.pid}/status")
    peak = _PEAK.search(status.read_text()) if status.exists() else None
    return int(peak[1]) / 1024 if peak else float(process.memory_info().rss) / 2**20


def process_name(process: psutil.Process) -> str | None:
    """The name that rows use for a process of the system; None for helper processes that hold nothing."""
    if process.name() in _PROGRAMS:
        return _PROGRAMS[process.name()]
    command = process.cmdline()
    if _DECODER in command:
        return DECODERS
    if worker := _worker(command):
        return f"worker {worker}"
    parent = process.parent()
    worker = _worker(parent.cmdline()) if parent else None
    return f"worker {worker}, its child" if worker and "spawn_main" in " ".join(command) else None


def _worker(command: list[str]) -> str | None:
    """The name of the Celery worker with this command line."""
    if "celery" not in command or "-n" not in command:
        return None
    return command[command.index("-n") + 1].partition("@")[0]


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
