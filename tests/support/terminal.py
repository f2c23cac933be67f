"""`ragllava` as a person types it: a process of its own, in a folder, with a home that nobody else uses."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from ragllava.cli.main import main
from ragllava.local.home import Home
from ragllava.settings import Settings, read_services
from tests.acceptance.conftest import READY_S
from tests.support.progress_lines import without_progress
from tests.support.waiting import wait_for

COMMAND_S = 120.0
# A cancel or a stop is noticed after two questions, and what has ended is written down at once.
QUICK = {
    "RAGLLAVA_TORCH_THREADS": "1",
    "RAGLLAVA_TICK_S": "0.5",
    "RAGLLAVA_QUESTIONS_PER_SHARD": "4",
    "RAGLLAVA_QUESTIONS_PER_STEP": "2",
}


@dataclass(frozen=True)
class Typed:
    """What came of one command; `err` without progress lines."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, when that is JSON."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Terminal:
    """A shell in `folder` with RAGLLAVA_HOME=`home` and no other setting of ours but quick ones."""

    home: Path
    folder: Path

    def environment(self, **more: str) -> dict[str, str]:
        """What the commands are given: our own variables are not handed on, those of the machine are."""
        plain = {name: value for name, value in os.environ.items() if not name.startswith("RAGLLAVA_")}
        return plain | QUICK | {"RAGLLAVA_HOME": str(self.home), "PYTHONUNBUFFERED": "1"} | more

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Begin a command; its output goes into pipes."""
        return subprocess.Popen(
            [sys.executable, "-m", "ragllava", *words],
            cwd=self.folder,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, **environment: str) -> Typed:
        """Run a command to its end."""
        with self.start(*words, **environment) as process:
            return ended(process, COMMAND_S)

    def do(self, *words: str) -> str:
        """Run a command that must succeed and have nothing to complain about; returns what it prints."""
        return _succeeded(self.run(*words), words)

    def call(self, *words: str) -> Typed:
        """As `run`, but in this process: one of its own computes for two seconds before it begins.

        For commands of a kind that another test has run.
        """
        out, err, code = io.StringIO(), io.StringIO(), 0
        environment = self.environment()
        with pytest.MonkeyPatch.context() as patch:
            for name in os.environ.keys() - environment.keys():
                patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["ragllava", *words])
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    main()
                except SystemExit as end:
                    code = int(end.code or 0)
        return Typed(code, out.getvalue(), without_progress(err.getvalue()))

    def call_well(self, *words: str) -> str:
        """As `do`, in this process."""
        return _succeeded(self.call(*words), words)

    def settings(self) -> Settings:
        """The settings of the system that runs in this home."""
        return Settings(home=self.home, **read_services(Home(self.home).services_file))  # type: ignore[arg-type]

    def processes(self) -> list[psutil.Process]:
        """Every process that belongs to this home: the servers, the workers, what they have started."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return (
                process.environ().get("RAGLLAVA_HOME") == str(self.home)
                or str(self.home) in " ".join(process.cmdline())
                or Path(process.cwd()).is_relative_to(self.home)
            )
        return False


def _succeeded(typed: Typed, words: Sequence[str]) -> str:
    assert (typed.code, typed.err) == (0, ""), f"ragllava {' '.join(words)}: {typed}"
    return typed.out


def ended(process: subprocess.Popen[str], timeout_s: float) -> Typed:
    """Wait for a started command; one that does not end is killed, and fails the test."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Typed(process.returncode, out, without_progress(err))


@contextmanager
def terminal() -> Iterator[Terminal]:
    """A new home and an empty folder, removed at the end with whatever still runs there."""
    root = Path(tempfile.mkdtemp(prefix="ragllava-tests-"))
    made = Terminal(root / "home", root / "folder")
    made.folder.mkdir()
    root.chmod(0o755)  # run as root, PostgreSQL has an account of its own, which must pass
    try:
        yield made
    finally:
        for process in made.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def running_system(made: Terminal) -> Iterator[subprocess.Popen[bytes]]:
    """`ragllava up` for the time of a block; afterwards it has ended well and left no process behind."""
    log = made.folder / "up.log"
    with log.open("wb") as output:
        up = subprocess.Popen(
            [sys.executable, "-m", "ragllava", "up"],
            cwd=made.folder,
            env=made.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def runs() -> bool:
        assert up.poll() is None, f"`ragllava up` ended:\n{log.read_text()}"
        return "everything runs" in log.read_text()

    try:
        wait_for("`ragllava up` to run everything", runs, READY_S)
        yield up
        if up.poll() is None:
            up.send_signal(signal.SIGINT)
        assert up.wait(COMMAND_S) == 0, log.read_text()
        assert made.processes() == []
    finally:
        up.kill()
        up.wait()
