"""Starting, finding and stopping processes.

Every process that we start leads a session of its own, so that Ctrl-C in a terminal reaches only the program in
the foreground, and works in a folder that belongs to it alone. The folder identifies it later: no process
id is trusted from a file, since the system gives the ids of dead processes to others.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

_LOG_LIMIT_BYTES = 20_000_000
_POLL_S = 0.02


class RunningProcess:
    """A process that we started, or that a former `ragllava up` left behind."""

    def __init__(self, process: psutil.Process, popen: subprocess.Popen[bytes] | None = None) -> None:
        """`popen` is given for our own child only: it must be reaped."""
        self.pid = process.pid
        self.started_at = process.create_time()  # seconds since 1970
        self._process = process
        self._popen = popen

    def alive(self) -> bool:
        """Whether this very process still runs; another one with the same id does not count."""
        if self._popen is not None:
            return self._popen.poll() is None
        with contextlib.suppress(psutil.NoSuchProcess):
            return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        return False

    def exit_text(self) -> str:
        """How it ended, for a message: `exit code 1`, `killed by SIGKILL`."""
        code = self._popen.returncode if self._popen is not None else None
        if code is None:
            return "ended"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def wait(self, timeout_s: float) -> bool:
        """True as soon as it has ended, False when the time is over."""
        deadline = time.monotonic() + timeout_s
        while self.alive():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def send(self, signal_number: int) -> None:
        """Signal this process alone; nothing happens when it has ended."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal_number)

    def stop(self, stop_signal: int = signal.SIGTERM, grace_s: float = 10.0) -> None:
        """Ask it to end; after `grace_s` seconds end its whole group. Returns when it is gone."""
        self.send(stop_signal)
        self.wait(grace_s)
        self.kill_group()

    def kill_group(self) -> None:
        """End what is left of the process and of the group that it leads, at once."""
        _kill_group_of(self.pid)
        self.send(signal.SIGKILL)
        self.wait(5.0)


def _kill_group_of(leader: int) -> None:
    # A group outlives its leader, and its number is not given away while a member lives; with no member left the
    # number may be a stranger's. So look for a member of the session that the leader made before the signal.
    for process in psutil.process_iter(["pid"]):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == leader and os.getsid(process.pid) == leader:
                os.killpg(leader, signal.SIGKILL)
                return


def launch(
    command: Sequence[str],
    *,
    folder: Path,
    log: Path,
    environment: Mapping[str, str],
    account: str | None = None,
) -> RunningProcess:
    """Start `command` in a session of its own, its output appended to `log`.

    `account` names the system account to run as (root only). Raises OSError when the program cannot be started.
    """
    _rotate(log)
    with log.open("ab") as output:
        popen = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            user=account,
            group=account,
            extra_groups=[] if account else None,
        )
    return RunningProcess(psutil.Process(popen.pid), popen)


def _rotate(log: Path) -> None:
    """Keep one older log beside a new one, so that logs do not grow without end."""
    if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))


def processes_in(folder: Path, executable: str | None = None) -> list[psutil.Process]:
    """Processes whose working folder is `folder`, with this program's name if one is given."""
    found = []
    wanted = str(folder.resolve())
    for process in psutil.process_iter(["name", "cwd", "status"]):
        info = process.info
        right_program = executable is None or info["name"] == executable
        if right_program and info["cwd"] == wanted and info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def last_lines(log: Path, count: int = 3) -> str:
    """The end of a log file as one line, for messages about a program that ended."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()[-count:]
    except OSError:
        return ""
    return " | ".join(line.strip()[:200] for line in lines)
