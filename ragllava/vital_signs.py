"""What a worker says of itself in a small file of its machine, and `ragllava-probe`, which reads it.

A container runtime asks every few seconds, so the program imports nothing but the standard library and asks no server:
a database that is away must not end workers. Times are those of the machine's clock that only counts forward.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

ALIVE_S = 120.0
READY_S = 60.0
QUESTIONS = ("started", "ready", "alive")


class VitalSigns:
    """Writes the file of one worker."""

    def __init__(self, home: Path, name: str) -> None:
        """`name` is the worker's whole one, `answer@host`."""
        self._path = file_of(home, name)
        self._ready_at: float | None = None

    def set_ready(self, is_ready: bool) -> None:
        """What the database says now: it has answered, and the worker can take work or not."""
        self._ready_at = time.monotonic() if is_ready else None

    def write(self) -> None:
        """The worker is alive now. Raises OSError."""
        pid = os.getpid()
        signs = {"alive_at": time.monotonic(), "ready_at": self._ready_at, "process": [pid, _start_of(pid)]}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(f".{pid}")
        beside.write_text(json.dumps(signs))
        beside.replace(self._path)

    def remove(self) -> None:
        """The worker has stopped, or starts: a killed one left its file."""
        self._path.unlink(missing_ok=True)


def file_of(home: Path, name: str) -> Path:
    """The file of a worker of this machine."""
    return home / "run" / "workers" / f"{name}.json"


def problem(home: Path, name: str, question: str) -> str | None:
    """Why the answer to one of QUESTIONS is no; None for yes."""
    try:
        signs = json.loads(file_of(home, name).read_text())
        alive_at, ready_at = float(signs["alive_at"]), signs["ready_at"]
        pid, start = signs.get("process", (0, ""))  # without: of an earlier version
        is_left_over = _start_of(pid) != start  # a container that starts again keeps the folder of the killed one
    except FileNotFoundError:
        is_left_over = True
    if is_left_over:
        return f"worker {name} has not started on this machine"
    now = time.monotonic()
    if question == "alive":
        age_s = now - alive_at
        return f"worker {name} was last alive {age_s:.0f} s ago" if age_s > ALIVE_S else None
    if ready_at is None:
        return f"worker {name} has not loaded its models, or stops"
    age_s = now - float(ready_at)
    is_late = question == "ready" and age_s > READY_S
    return f"worker {name} last reached the database {age_s:.0f} s ago" if is_late else None


def _start_of(pid: int) -> str | None:
    """When a process started, in the clock of Linux; None if there is no such process, or no Linux."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]  # the name in brackets may contain spaces


def main() -> None:
    """`ragllava-probe NAME started|ready|alive`: exit code 0 for yes, 1 for no, 2 for wrong usage."""
    home = os.environ.get("RAGLLAVA_HOME")
    if len(sys.argv) != 3 or sys.argv[2] not in QUESTIONS or not home:
        print(f"ragllava-probe NAME {'|'.join(QUESTIONS)}, with RAGLLAVA_HOME set", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    no = problem(Path(home), f"{sys.argv[1]}@{socket.gethostname()}", sys.argv[2])
    print(no or "yes")  # noqa: T201
    sys.exit(0 if no is None else 1)


if __name__ == "__main__":
    main()
