"""Progress as lines on standard error, where no terminal can show bars: in a log file, a pipe, a container.

A line says which step runs, how far it is and for how long it has run. It is printed when a step begins, and while a
step lasts once in EVERY_S. Work that ends within QUIET_S prints nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Event, Lock, Thread
from typing import Any, Protocol

from rich.progress import TaskID

from ragllava.cli.terminal import echo

QUIET_S = 5.0
EVERY_S = 30.0
_LOOK_S = 1.0  # between two looks whether a line is due


class Bars(Protocol):
    """What a command tells of its progress: a task is a bar on a terminal. As in `rich.progress.Progress`."""

    def add_task(self, description: str, *, total: float | None, note: str) -> TaskID:
        """A new step; `total` None: nobody knows how much there is to do."""

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change `description`, `completed`, `total` or `note`; a new description is a new step."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A step and how far it is; `began_s` by the clock."""

    description: str
    began_s: float
    total: float | None = None
    completed: float = 0
    note: str = ""
    is_new: bool = True  # no line has been about it

    def line(self, now_s: float) -> str:
        """`embed: 3,000 of 10,000 (20 rejected), 40 s so far`."""
        done = f"{self.completed:,.0f}" + (f" of {self.total:,.0f}" if self.total is not None else "")
        note = f" ({self.note})" if self.note else ""
        return f"{self.description}: {done}{note}, {duration(now_s - self.began_s)} so far"


class ProgressLines:
    """Prints the lines of the step that was changed last. Thread-safe."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` counts seconds."""
        self._write, self._clock = write, clock
        self._lock = Lock()
        self._steps: list[_Step] = []
        self._current = 0
        self._began_s = self._due_s = clock()

    def add_task(self, description: str, *, total: float | None, note: str) -> TaskID:
        """A new step; without a description it begins when it is given one."""
        with self._lock:
            self._steps.append(_Step(description, self._clock(), total, note=note))
            self._current = len(self._steps) - 1
            self._print_if_due()
            return TaskID(self._current)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """As `Bars.update`; None leaves a field as it is, as in rich."""
        given = {name: value for name, value in changes.items() if value is not None}
        with self._lock:
            before = self._steps[task_id]
            if given.get("description", before.description) != before.description:
                before = replace(before, began_s=self._clock(), is_new=True)
            self._steps[task_id] = replace(before, **given)
            self._current = task_id
            self._print_if_due()

    def look(self) -> None:
        """Print a line if one is due, although nothing has changed."""
        with self._lock:
            self._print_if_due()

    def _print_if_due(self) -> None:
        now_s = self._clock()
        step = self._steps[self._current] if self._steps else None
        if step is None or not step.description or now_s - self._began_s < QUIET_S:
            return
        if step.is_new or now_s >= self._due_s:
            self._steps[self._current], self._due_s = replace(step, is_new=False), now_s + EVERY_S
            self._write(step.line(now_s))


@contextmanager
def progress_lines() -> Iterator[ProgressLines]:
    """Progress lines on standard error during a block, also while a step reports nothing."""
    lines, ended = ProgressLines(lambda line: echo(line, err=True)), Event()

    def look() -> None:
        while not ended.wait(_LOOK_S):
            lines.look()

    thread = Thread(target=look, name="progress", daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        ended.set()
        thread.join()


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `1 h 40 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
