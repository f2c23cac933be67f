"""A client on a machine without the model libraries: everything but searches and measurements works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ragllava.models.profiles import MODEL_PACKAGES
from tests.conftest import environment_of
from tests.integration.conftest import Postcards
from tests.support.pages import ROOT
from tests.support.workshop import ARCHIVE, Workshop

# What `pip install 'ragllava[client]'` leaves out; an import of it fails as if it were not installed.
BLOCK = f"""
import sys

class Hidden:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {(*MODEL_PACKAGES, "huggingface_hub", "tokenizers")!r}:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):  # importlib.metadata asks a finder for distributions
        return getattr(self.finder, name)

sys.meta_path[:] = map(Hidden, sys.meta_path)
"""

USE = """
from pathlib import Path
import sys
from ragllava import Client

folder, archive, pictures = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
with Client() as client:
    client.archives.ingest(pictures, archive)
    job = client.questions.submit(["What color is it?", {"custom_id": "b", "question": "What?"}], archive, name="rows")
    client.questions.submit(str(folder / "questions.jsonl"), archive)
    print([view.name for view in client.jobs.list(limit=2)], client.jobs.get(job.job_id).file)
    print(client.questions.save_results(2, str(folder / "answers.csv")).lines)
    print(client.questions.save_report(2, str(folder / "report.html")))
    print(client.archives.cautions(archive)[:0], client.system.profile_problem())
"""


def run_blocked(code: str, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCK + code, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def here(environment: dict[str, str]) -> dict[str, str]:
    return dict(os.environ) | environment


def test_the_client_submits_watches_and_reads(
    workshop: Workshop, postcards: Postcards, here: dict[str, str], tmp_path: Path
) -> None:
    workshop.ingest(postcards.written.pictures)
    workshop.ask([postcards.archive.questions[0].text])
    (tmp_path / "questions.jsonl").write_text('{"question": "What?"}')
    done = run_blocked(USE, here, str(tmp_path), ARCHIVE, str(postcards.written.pictures))
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["[None, 'rows'] rows.jsonl", "1", "1", "[] None"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["jobs", "list"], 0, ""),
        (["status"], 1, ""),  # the test has no workers' home, and its services are given by address
        (["archive", "search", ARCHIVE, "tower"], 1, "run `pip install 'ragllava[models]'`"),
        (["up"], 1, "the models need torch"),
        (["doctor"], None, "for a client only: torch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_command_that_needs_models_says_what_to_install(
    words: list[str], code: int | None, says: str, whole_gallery: Workshop
) -> None:
    environment = dict(os.environ) | environment_of(whole_gallery.settings)
    done = run_blocked("from ragllava.cli.main import main; main()", environment, *words)
    assert code is None or done.returncode in (code, 0)
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_model_libraries_are_an_extra_and_all_of_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[^\w-]", line)[0].lower().replace("_", "-") for line in project["dependencies"]}
    extra = {re.split(r"[^\w-]", line)[0] for line in project["optional-dependencies"]["models"]}
    assert extra == {"open_clip_torch" if name == "open_clip" else name for name in MODEL_PACKAGES}
    assert not names & {name.replace("_", "-") for name in extra}
    assert "client" in project["optional-dependencies"]


def test_the_types_are_shipped() -> None:
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "py.typed" in package_data["ragllava"]
    assert (ROOT / "ragllava" / "py.typed").is_file()
