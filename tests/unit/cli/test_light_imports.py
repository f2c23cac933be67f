"""What a glance at the package costs: no machine learning, no queue, no database driver is loaded for it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import ragllava

HEAVY = {
    "PIL",
    "alembic",
    "billiard",
    "celery",
    "huggingface_hub",
    "kombu",
    "minio",
    "numpy",
    "open_clip",
    "peft",
    "pgvector",
    "psutil",
    "psycopg",
    "pyarrow",
    "pydantic",
    "redis",
    "rich",
    "safetensors",
    "sqlalchemy",
    "torch",
    "torchvision",
    "transformers",
}

# Runs the command line as `python -m ragllava` does, then prints what has been loaded by then.
SHOW_LOADED = """
import json, runpy, sys
sys.argv = ["ragllava", *sys.argv[1:]]
try:
    runpy.run_module("ragllava", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def loaded_by(*words: str) -> set[str]:
    """The top-level packages in memory after `ragllava` with these words."""
    command = [sys.executable, "-c", SHOW_LOADED, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_ragllava_loads_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "import ragllava"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "ragllava" in imported
    assert {name.partition(".")[0] for name in imported} & HEAVY == set()


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["jobs", "--help"], ["submit", "--help"], ["train", "--help"]]
)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    loaded = loaded_by(*words)
    assert {"ragllava", "click"} <= loaded
    assert loaded & HEAVY == set()


def test_the_client_and_its_records_are_loaded_when_they_are_used() -> None:
    code = "import sys, ragllava; before = 'ragllava.client' in sys.modules; from ragllava import Client"
    code += "; print(before, 'ragllava.client' in sys.modules, Client.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False True Client\n"


@pytest.mark.parametrize("name", ragllava.__all__)
def test_every_lazy_name_leads_to_a_class(name: str) -> None:
    assert isinstance(getattr(ragllava, name), type)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(ragllava, "Clinet")


def test_help_loads_no_command_but_the_one_asked_for() -> None:
    code = "import sys; sys.argv = ['ragllava', '--help']; from ragllava.cli.main import main; main()"
    code += "; print(*(name for name in sys.modules if name.startswith('ragllava.cli.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert set(done.stdout.splitlines()[-1].split()) == {
        "ragllava.cli.main",
        "ragllava.cli.options",
        "ragllava.cli.terminal",
    }


def test_who_only_queues_or_begins_work_loads_no_torch() -> None:
    """The client and its commands, a worker's parent process, the worker with the clock: it would cost each of them
    seconds and hundreds of megabytes."""
    modules = "ragllava.client, workers.tasks, workers.schedule, workers.events"
    code = f"import sys, {modules}; print({{'torch', 'transformers', 'open_clip'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"
