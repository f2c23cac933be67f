"""What `ragllava-probe` says of a worker, by the file that the worker writes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ragllava import vital_signs
from ragllava.vital_signs import ALIVE_S, QUESTIONS, READY_S, VitalSigns, file_of, problem

NAME = f"answer@{socket.gethostname()}"


def answers(home: Path) -> list[bool]:
    return [problem(home, NAME, question) is None for question in QUESTIONS]


def test_a_worker_is_alive_before_it_has_started_and_ready_while_the_database_answers(tmp_path: Path) -> None:
    signs = VitalSigns(tmp_path, NAME)
    assert answers(tmp_path) == [False, False, False]
    signs.write()
    assert answers(tmp_path) == [False, False, True], "it loads its models"
    signs.set_ready(True)
    signs.write()
    assert answers(tmp_path) == [True, True, True]
    signs.set_ready(False)
    signs.write()
    assert answers(tmp_path) == [False, False, True], "it stops"
    signs.remove()
    assert answers(tmp_path) == [False, False, False]


def test_a_database_that_is_away_makes_it_not_ready_and_does_not_end_it(tmp_path: Path) -> None:
    VitalSigns(tmp_path, NAME).write()
    file = file_of(tmp_path, NAME)
    signs = json.loads(file.read_text())
    now = time.monotonic()
    file.write_text(json.dumps(signs | {"alive_at": now, "ready_at": now - READY_S - 1}))
    assert answers(tmp_path) == [True, False, True]
    file.write_text(json.dumps(signs | {"alive_at": now - ALIVE_S - 1, "ready_at": now}))
    assert answers(tmp_path) == [True, True, False]


def test_what_a_killed_worker_left_is_not_that_of_its_successor(tmp_path: Path) -> None:
    """A container that is killed starts again with the same name and the same folder."""
    write = f"""
from pathlib import Path
from ragllava.vital_signs import VitalSigns
signs = VitalSigns(Path({str(tmp_path)!r}), {NAME!r})
signs.set_ready(True)
signs.write()
"""
    subprocess.run([sys.executable, "-c", write], check=True)
    assert answers(tmp_path) == [False, False, False]
    file = file_of(tmp_path, NAME)
    signs = json.loads(file.read_text())
    file.write_text(json.dumps(signs | {"process": [os.getpid(), signs["process"][1]]}))  # the number is given again
    assert answers(tmp_path) == [False, False, False]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["answer", "ready"], 0, "yes"),
        (["train", "alive"], 1, "has not started"),
        (["answer"], 2, "NAME started|ready|alive"),
        (["answer", "well"], 2, "NAME started|ready|alive"),
    ],
)
def test_the_program_loads_nothing_but_the_standard_library(
    words: list[str], code: int, says: str, tmp_path: Path
) -> None:
    signs = VitalSigns(tmp_path, NAME)
    signs.set_ready(True)
    signs.write()
    command = [sys.executable, "-I", "-S", str(Path(vital_signs.__file__)), *words]  # -S: without installed packages
    environment = os.environ | {"RAGLLAVA_HOME": str(tmp_path)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == code and says in run.stdout + run.stderr
