"""Act as `nobody`, another account of the machine, which only root can become."""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401 - of addresses; nobody may be unable to read it later
import itertools
import os
import pickle
import pwd
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from ragllava.local.processes import run_as
from ragllava.local.secluded import why_not_secluded

T = TypeVar("T")

ACCOUNT = "nobody"
needs_namespaces = pytest.mark.skipif(why_not_secluded([]) is not None, reason="this system allows no namespaces")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason=f"only root can become {ACCOUNT}")


def _become_nobody() -> None:
    entry = pwd.getpwnam(ACCOUNT)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def as_nobody(work: Callable[[], T]) -> T:
    """The result of `work` in a child process that runs as `nobody`; what it raises is raised here."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException), os.fdopen(writer, "wb") as answers:
            try:
                _become_nobody()
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


@contextmanager
def flood(
    ports: Sequence[int], paths: Sequence[Path], processes: int = 2, kept: int = 3_000, pause_s: float = 0.05
) -> Iterator[None]:
    """`nobody` opens connections to all of these ports and sockets during the block, and new ones for the oldest: each
    of some processes keeps so many, and opens 25 between two pauses.

    By default that is slow enough to leave most of a processor to the system, which is flooded, not starved.
    """
    children = []
    try:
        for _ in range(processes):
            child = os.fork()
            if child == 0:
                with contextlib.suppress(BaseException):
                    _become_nobody()
                    _open_connections(ports, [str(path) for path in paths], kept, pause_s)
                os._exit(0)
            children.append(child)
        yield
        assert all(os.waitpid(child, os.WNOHANG)[0] == 0 for child in children), "the flood ended early"
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def _open_connections(ports: Sequence[int], paths: Sequence[str], kept: int, pause_s: float) -> None:
    addresses: list[tuple[str, int] | str] = [("127.0.0.1", port) for port in ports]
    targets = itertools.cycle([*addresses, *paths])
    opened: deque[socket.socket] = deque()
    while True:
        for target in itertools.islice(targets, 25):
            if len(opened) >= kept:
                opened.popleft().close()  # by now probably closed by the other side
            with contextlib.suppress(OSError):
                client = socket.socket(socket.AF_UNIX if isinstance(target, str) else socket.AF_INET)
                client.setblocking(False)
                opened.append(client)
                client.connect(target)
        time.sleep(pause_s)


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
