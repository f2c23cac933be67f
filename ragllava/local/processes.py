"""Start, find and stop processes.

Every process that we start leads a session of its own, so that Ctrl-C in a terminal reaches only the foreground
program, and works in a folder that belongs to it alone. The folder identifies it later. A process id from a file is
never trusted, because the system reuses the ids of dead processes.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

_LOG_LIMIT_BYTES = 20_000_000
_POLL_S = 0.02


def is_alive(process: psutil.Process) -> bool:
    """Whether this very process still runs; a zombie or another process with the same id does not count."""
    if isinstance(process, psutil.Popen):
        return bool(process.poll() is None)  # reaps our own child
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def exit_text(process: psutil.Process) -> str:
    """How a process ended, for a message: `exit code 1`, `killed by SIGKILL`; of a child only, else `ended`."""
    code = process.returncode if isinstance(process, psutil.Popen) else None
    if code is None:
        return "ended"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def wait(process: psutil.Process, timeout_s: float) -> bool:
    """True as soon as the process has ended, False after `timeout_s` seconds.

    psutil's own wait never ends for a zombie that its parent does not reap, as in a container without an init process.
    """
    deadline = time.monotonic() + timeout_s
    while is_alive(process):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def stop(processes: Iterable[psutil.Process], grace_s: float, stop_signal: int = signal.SIGTERM) -> None:
    """Ask all to end, wait `grace_s` seconds for all together, then kill the process groups that they lead."""
    stopping = list(processes)
    for process in stopping:
        _send(process, stop_signal)
    deadline = time.monotonic() + grace_s
    for process in stopping:
        wait(process, deadline - time.monotonic())
        kill_group(process)


def kill_group(process: psutil.Process) -> None:
    """Kill what is left of a process and of the group that it leads."""
    # A group outlives its leader, and its number is not reused while a member lives. Without a member the number may
    # belong to another process. So find a member of the session that the leader made before the signal is sent.
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(pid) == process.pid == os.getsid(pid):
                os.killpg(process.pid, signal.SIGKILL)
                break
    _send(process, signal.SIGKILL)
    wait(process, 5.0)


def _send(process: psutil.Process, signal_number: int) -> None:
    """Signal this process alone; nothing happens when it has ended."""
    if is_alive(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal_number)


def launch(
    command: Sequence[str],
    *,
    folder: Path,
    log: Path,
    environment: Mapping[str, str],
    account: str | None = None,
    umask: int = -1,
) -> psutil.Popen:
    """Start `command` in a session of its own, with its output appended to `log`.

    `account` names the system account to run as (root only), `umask` the permissions that its files do not get (-1: as
    ours). Raises OSError when the program cannot be started.
    """
    if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))  # one older log is kept
    with log.open("ab") as output:
        return psutil.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            umask=umask,
            **run_as(account),
        )


def run_as(account: str | None) -> dict[str, Any]:
    """The arguments of subprocess that run a program as this system account, without our supplementary groups."""
    return {"user": account, "group": pwd.getpwnam(account).pw_gid, "extra_groups": []} if account else {}


def processes_in(folder: Path, executable: str | None = None) -> list[psutil.Process]:
    """Processes whose working folder is `folder`, with this program's name if one is given."""
    return [
        process
        for process in psutil.process_iter(["name", "cwd", "status"])
        if process.info["cwd"] == str(folder.resolve())
        and process.info["status"] != psutil.STATUS_ZOMBIE
        and executable in (None, process.info["name"])
    ]


def last_lines(log: Path, count: int = 3) -> str:
    """The end of a log file as one line, for messages about a program that ended."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()[-count:]
    except OSError:
        return ""
    return " | ".join(line.strip()[:200] for line in lines)
