"""Progress where no terminal is: lines on standard error, few of them, and none of short work."""

from __future__ import annotations

import io
import threading

import pytest
from rich.progress import TaskID

from ragllava.cli import progress, progress_lines
from ragllava.cli.progress_lines import EVERY_S, QUIET_S, ProgressLines
from ragllava.cli.terminal import make_console


class Watched:
    """Progress lines by a clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.printed: list[str] = []
        self.lines = ProgressLines(self.printed.append, lambda: self.now_s)

    def at(self, now_s: float, task: int | None = None, **changes: object) -> list[str]:
        """The lines that are printed when a step is changed, or a look is taken, at this moment."""
        self.now_s = now_s
        self.printed.clear()
        if task is None:
            self.lines.look()
        else:
            self.lines.update(TaskID(task), **changes)
        return list(self.printed)


def test_a_line_when_a_step_begins_and_then_one_in_thirty_seconds() -> None:
    watched = Watched()
    task = watched.lines.add_task("embed", total=None, note="")
    assert watched.printed == []
    assert watched.at(QUIET_S - 1, task, completed=1_000, total=20_000) == []
    assert watched.at(QUIET_S) == ["embed: 1,000 of 20,000, 5 s so far"]
    assert watched.at(QUIET_S + EVERY_S - 1, task, completed=9_000) == []
    assert watched.at(QUIET_S + EVERY_S, task, note="20 rejected") == [
        "embed: 9,000 of 20,000 (20 rejected), 35 s so far"
    ]
    assert watched.at(40, task, description="search", completed=0, total=3, note="") == ["search: 0 of 3, 0 s so far"]
    assert watched.at(41, task, completed=1) == []
    assert watched.at(40 + EVERY_S) == ["search: 1 of 3, 30 s so far"], "although nothing has changed"


def test_two_steps_that_take_turns_print_no_more_than_one() -> None:
    watched = Watched()
    first = watched.lines.add_task("first", total=9, note="")
    second = watched.lines.add_task("second", total=9, note="")
    turns = [watched.at(10 + number, (first, second)[number % 2], completed=number) for number in range(8)]
    assert turns == [["first: 0 of 9, 10 s so far"], ["second: 1 of 9, 11 s so far"], *[[]] * 6]


def test_a_step_without_a_name_waits_for_one() -> None:
    watched = Watched()
    task = watched.lines.add_task("", total=None, note="")
    assert watched.at(60) == []
    assert watched.at(61, task, description="draw", completed=2, total=5) == ["draw: 2 of 5, 0 s so far"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_every_bar_has_lines_where_the_console_is_no_terminal(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_lines, "QUIET_S", 0.0)
    stream = io.StringIO()
    console = make_console(file=stream, force_terminal=is_terminal, width=100)
    with progress.bar("trainings", console) as update:
        update(completed=1, total=4, note="seed 1: done")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == ("" if is_terminal else "trainings: 0, 0 s so far\n")
    assert stream.getvalue() == "" or is_terminal
    assert ("trainings" in stream.getvalue()) is is_terminal
    assert "progress" not in {thread.name for thread in threading.enumerate()}


def test_a_step_that_reports_nothing_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looked = threading.Event()
    monkeypatch.setattr(progress_lines, "_LOOK_S", 0.0)
    monkeypatch.setattr(ProgressLines, "look", lambda lines: looked.set())
    with progress_lines.progress_lines():
        assert looked.wait(60)
