"""Ends the processes that a killed process leaves behind: `python -m ragllava.local.watchdog GRACE_S`.

The watched process writes the ids of its children to our standard input, all of them on one line after each change.
The system closes that pipe when the writer ends, however it ends. Then every process of the last line is asked to
end, and its group is killed after the grace time. (Linux can send a signal at a parent's death, but only to the direct
child, not on macOS, and at the end of the parent's thread rather than of its process.)
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

from ragllava.local.processes import stop


class Watchdog:
    """Our side of the pipe. The program is started by the first `add`, and again when it has ended."""

    def __init__(self, folder: Path, grace_s: float) -> None:
        """`folder` is the working folder of the program; it must exist by the first `add`."""
        self._folder = folder
        self._grace_s = grace_s
        self._pids: set[int] = set()
        self._program: subprocess.Popen[bytes] | None = None

    def add(self, pid: int) -> None:
        """End this process, the leader of its group, when we have ended."""
        self._pids.add(pid)
        self._send()

    def remove(self, pid: int) -> None:
        """This process has ended; the system may reuse its id."""
        self._pids.discard(pid)
        self._send()

    def check(self) -> None:
        """Start the program again if it has ended."""
        if self._program is not None and self._program.poll() is not None:
            self._send()

    def close(self) -> None:
        """End the program and leave the watched processes alone."""
        self._pids.clear()
        self._end_program()

    def _end_program(self) -> None:
        if self._program is not None:
            with self._program as program:
                program.kill()  # it ignores SIGTERM
            self._program = None

    def _send(self) -> None:
        if self._program is None or not self._write(self._program):
            self._end_program()
            self._program = subprocess.Popen(
                [sys.executable, "-m", "ragllava.local.watchdog", f"{self._grace_s:g}"],
                cwd=self._folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,
            )
            self._write(self._program)

    def _write(self, program: subprocess.Popen[bytes]) -> bool:
        """Send all ids; False when the program has ended."""
        with contextlib.suppress(BrokenPipeError):
            if program.stdin is not None:
                program.stdin.write(f"{' '.join(map(str, self._pids))}\n".encode())
                return True
        return False


def watch(lines: Iterable[str]) -> list[psutil.Process]:
    """Read the ids of the writer until it ends; returns the processes that it left behind."""
    watched: dict[int, psutil.Process] = {}
    for line in lines:
        pids = {int(number) for number in line.split()}
        watched = {pid: process for pid, process in watched.items() if pid in pids}
        for pid in pids - watched.keys():
            with contextlib.suppress(psutil.NoSuchProcess):
                # It holds its start time, so that a later process with this id is left alone.
                watched[pid] = psutil.Process(pid)
    return list(watched.values())


if __name__ == "__main__":
    # The signals that end the other processes must not end this one first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stop(watch(sys.stdin), grace_s=float(sys.argv[1]))
