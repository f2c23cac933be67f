"""Ends what a killed process leaves behind: `python -m ragllava.local.watchdog GRACE_S`.

The process that is watched writes `add PID` and `remove PID` lines to our standard input. The system closes that
pipe when the writer is gone, however it went; then everything still listed is asked to end, and after the grace
time its group is killed. (Linux can send a signal at a parent's death, but to the direct child alone, not on
macOS, and at the end of the parent's thread rather than of its process.)
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from ragllava.local.processes import RunningProcess


class Watchdog:
    """Our side of the pipe. The program is started with the first `add`, and again if somebody ended it."""

    def __init__(self, folder: Path, grace_s: float) -> None:
        """`folder` is where the program works; it must exist by the first `add`."""
        self._folder = folder
        self._grace_s = grace_s
        self._pids: set[int] = set()
        self._program: subprocess.Popen[bytes] | None = None

    def add(self, pid: int) -> None:
        """End this process, the leader of its group, when we are gone."""
        self._pids.add(pid)
        self._tell(f"add {pid}")

    def remove(self, pid: int) -> None:
        """This process has ended; its number may be given to a stranger."""
        self._pids.discard(pid)
        self._tell(f"remove {pid}")

    def check(self) -> None:
        """Start the program again if it has ended."""
        if self._program is not None and self._program.poll() is not None:
            self._restart()

    def close(self) -> None:
        """End the program; what it watched is left alone."""
        self._pids.clear()
        if self._program is not None:
            self._program.kill()  # polite signals it ignores
            self._program.wait()
            if self._program.stdin is not None:
                self._program.stdin.close()
            self._program = None

    def _tell(self, line: str) -> None:
        if self._program is None:
            self._restart()
            return
        try:
            self._write(line)
        except BrokenPipeError:
            self._restart()

    def _restart(self) -> None:
        pids = sorted(self._pids)
        self.close()
        self._pids.update(pids)
        self._program = subprocess.Popen(
            [sys.executable, "-m", "ragllava.local.watchdog", f"{self._grace_s:g}"],
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        for pid in pids:
            self._write(f"add {pid}")

    def _write(self, line: str) -> None:
        if self._program is not None and self._program.stdin is not None:
            self._program.stdin.write(f"{line}\n".encode())


def watch(lines: Iterable[str]) -> list[RunningProcess]:
    """Follow the writer of `lines` until its end; returns the processes that it left behind."""
    watched: dict[int, RunningProcess] = {}
    for line in lines:
        verb, number = line.split()
        pid = int(number)
        watched.pop(pid, None)
        if verb == "add":
            try:
                # Noted with its start time, so that a later process with this number is left alone.
                watched[pid] = RunningProcess(psutil.Process(pid))
            except psutil.NoSuchProcess:
                continue
    return list(watched.values())


def stop_all(processes: Iterable[RunningProcess], grace_s: float) -> None:
    """Ask all to end, wait `grace_s` seconds for all together, then kill what is left of their groups."""
    stopping = list(processes)
    for process in stopping:
        process.send(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    for process in stopping:
        process.wait(max(0.0, deadline - time.monotonic()))
        process.kill_group()


if __name__ == "__main__":
    # What ends the others must not end us first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stop_all(watch(sys.stdin), grace_s=float(sys.argv[1]))
