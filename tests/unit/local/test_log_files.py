"""`ragllava logs`: the last lines of logs, and what is added to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ragllava.errors import UsageError
from ragllava.local.home import Home
from ragllava.local.log_files import find_logs, last_log_lines, new_log_lines


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.logs.mkdir()
    (home.logs / "postgres.log").write_text("one\ntwo\nthree\n")
    (home.logs / "worker-answer.log").write_text("a\x1b[31mred\n")
    return home


def test_logs_are_found_by_name(home: Home, tmp_path: Path) -> None:
    assert [file.stem for file in find_logs(home, [])] == ["postgres", "worker-answer"]
    assert [file.stem for file in find_logs(home, ["answer"])] == ["worker-answer"]
    with pytest.raises(UsageError, match="there is no log answers; there are postgres, worker-answer"):
        find_logs(home, ["postgres", "answers"])
    with pytest.raises(UsageError, match="has not run from this home"):
        find_logs(Home(tmp_path / "elsewhere"), [])


def test_the_last_lines_are_printable(home: Home) -> None:
    assert last_log_lines(home.logs / "postgres.log", 2) == ["two", "three"]
    assert last_log_lines(home.logs / "postgres.log", 0) == []
    assert last_log_lines(home.logs / "worker-answer.log", 5) == ["a\\x1b[31mred"]


def test_added_lines_are_followed_whole_and_from_the_beginning_of_a_new_file(home: Home) -> None:
    file = home.logs / "postgres.log"

    def changes() -> Iterator[None]:
        with file.open("a") as stream:
            stream.write("four\nfi")
        yield
        with file.open("a") as stream:
            stream.write("ve\n")
        yield
        file.write_text("again\n")
        yield

    steps = changes()
    lines = new_log_lines([file], wait=lambda: next(steps))
    assert [next(lines)[1] for _ in range(3)] == ["four", "five", "again"]
