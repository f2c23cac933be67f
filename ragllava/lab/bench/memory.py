"""The peak of memory of every process of the system, watched while it works."""

from __future__ import annotations

import contextlib
import re
import threading
from pathlib import Path
from types import TracebackType

import psutil

_EVERY_S = 2.0
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)
BENCH = "the bench itself"
_PROGRAMS = {"postgres": "PostgreSQL", "redis-server": "Redis", "weed": "SeaweedFS"}

_OF_SEVERAL = {_PROGRAMS["postgres"]: f"{_PROGRAMS['postgres']}, its largest process"}


class MemoryWatch:
    """Notes in a thread of its own how much memory each process below this one took at most, by a name for people."""

    def __init__(self) -> None:
        """Watching begins with `with`."""
        self._peaks: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join()

    def peaks_mib(self) -> dict[str, float]:
        """The peaks until now, in MiB."""
        self._look()
        return dict(self._peaks)

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._look()

    def _look(self) -> None:
        us = psutil.Process()
        for process in [us, *us.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
                name = BENCH if process.pid == us.pid else process_name(process)
                if name is not None:
                    name = _OF_SEVERAL.get(name, name)
                    self._peaks[name] = max(self._peaks.get(name, 0.0), peak_mib(process))


def peak_mib(process: psutil.Process) -> float:
    """The largest resident size that a process ever had, as Linux counts it; elsewhere its size now."""
    status = Path(f"/proc/{process.pid}/status")
    found = _PEAK.search(status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else float(process.memory_info().rss) / 2**20


def process_name(process: psutil.Process) -> str | None:
    """What a process of the system is to people; None for helpers that hold nothing."""
    if process.name() in _PROGRAMS:
        return _PROGRAMS[process.name()]
    command = process.cmdline()
    if worker := _worker(command):
        return f"worker {worker}"
    parent = process.parent()
    worker = _worker(parent.cmdline()) if parent else None
    return f"worker {worker}, its child" if worker and "spawn_main" in " ".join(command) else None


def _worker(command: list[str]) -> str | None:
    """The name of the Celery worker that was started so."""
    if "celery" not in command or "-n" not in command:
        return None
    return command[command.index("-n") + 1].partition("@")[0]
