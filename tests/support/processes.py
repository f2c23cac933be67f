"""Processes that tests start: where, and how to end them."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


def start_program(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Run Python code in a process of its own; returns when it has printed `ready`."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def command_of(process: psutil.Process) -> list[str]:
    """The words that started a process; none of one that has ended."""
    with suppress(psutil.NoSuchProcess):  # a zombie is such a process, too
        return list(process.cmdline())
    return []


def decoders() -> list[psutil.Process]:
    """The processes that decode pictures for this one; below it are services of the session and a browser as well."""
    return [child for child in psutil.Process().children() if "ragllava.imaging.decoding" in command_of(child)]


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
