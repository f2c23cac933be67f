"""Act as `nobody`, another account of the machine, which only root can become."""

from __future__ import annotations

import contextlib
import os
import pickle
import pwd
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from ragllava.local.processes import run_as

T = TypeVar("T")

ACCOUNT = "nobody"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason=f"only root can become {ACCOUNT}")


def as_nobody(work: Callable[[], T]) -> T:
    """The result of `work` in a child process that runs as `nobody`; what it raises is raised here."""
    entry = pwd.getpwnam(ACCOUNT)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException), os.fdopen(writer, "wb") as answers:
            try:
                os.setgroups([])
                os.setgid(entry.pw_gid)
                os.setuid(entry.pw_uid)
                outcome: tuple[bool, object] = (True, work())
            except Exception as error:  # noqa: BLE001 - raised again in the test
                outcome = (False, error)
            pickle.dump(outcome, answers)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        content = answers.read()
    os.waitpid(child, 0)
    assert content, f"the child that ran as {ACCOUNT} died"
    succeeded, value = pickle.loads(content)
    if not succeeded:
        raise value
    return value  # type: ignore[no-any-return]


def run_as_nobody(command: list[str], input_text: str = "", timeout_s: float = 20.0) -> str:
    """The output of a program that runs as `nobody`, with its errors; it is killed after `timeout_s` seconds."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
        **run_as(ACCOUNT),
        text=True,
    )
    try:
        output: str = process.communicate(input_text, timeout=timeout_s)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        output = process.communicate()[0]
    return output


def openable_below(folder: Path) -> list[str]:
    """What `nobody` can read, list, write or enter of a folder and everything below it."""
    paths = [folder, *folder.rglob("*")]

    def reachable() -> list[str]:
        # For a folder, W_OK alone means nothing: without X_OK nothing can be made or removed in it.
        return [
            str(path)
            for path in paths
            if os.access(path, os.R_OK) or (os.access(path, os.W_OK) and not os.access(path, os.X_OK))
        ]

    return as_nobody(reachable)
