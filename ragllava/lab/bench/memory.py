"""The processes of the system by name, and the peak of memory of each while it works."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

BENCH = "the benchmark itself"
DECODERS = "decoders"
_EVERY_S = 2.0
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)
_PROGRAMS = {"postgres": "PostgreSQL", "redis-server": "Redis", "weed": "SeaweedFS"}
_DECODER = "ragllava.imaging.sandbox"


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
