"""`ragllava jobs`: names, owners, filters, `latest` and `wait`."""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ragllava.client import Client
from ragllava.errors import UsageError
from ragllava.records import TaskName
from tests.integration.conftest import Postcards
from tests.support.run_command import Run
from tests.support.workshop import ARCHIVE, Workshop


@pytest.fixture
def client(workshop: Workshop, postcards: Postcards, tmp_path: Path) -> Iterator[Client]:
    """Job 1 has ingested postcards; 2 and 3 are questions, 2 answered; 4 is a single question, 5 a maintenance task."""
    with Client(workshop.settings) as client:
        client.archives.ingest([postcards.written.pictures], ARCHIVE, name="the first box")
        workshop.run()
        for name in ("one", "two"):
            (tmp_path / f"{name}.jsonl").write_text(json.dumps({"question": f"What color is it, {name}?"}))
        client.questions.submit(tmp_path / "one.jsonl", ARCHIVE, name="round one")
        workshop.run()
        client.questions.submit(tmp_path / "two.jsonl", ARCHIVE)
        with pytest.raises(UsageError, match="no answer within"):
            client.questions.ask("What?", ARCHIVE, timeout_s=0.05)
        client.schedules.run_task(TaskName.GAPS, ARCHIVE)
        yield client


def listed(run: Run, *words: object) -> list[dict[str, Any]]:
    code, out, _ = run("jobs", "list", *words, "--json")
    assert code == 0
    rows: list[dict[str, Any]] = json.loads(out)
    return rows


def test_jobs_have_a_name_a_file_an_owner_and_a_time(client: Client, run: Run, tmp_path: Path) -> None:
    owner = f"{getpass.getuser()}@{socket.gethostname()}"
    by_id = {row["job"]: row for row in listed(run)}
    assert {row["owner"] for row in by_id.values()} == {owner}
    assert (by_id[1]["name"], by_id[2]["name"], by_id[3]["name"]) == ("the first box", "round one", None)
    assert by_id[1]["file"].endswith("/pictures")
    assert by_id[3]["file"] == str(tmp_path / "two.jsonl")
    out = run("jobs", "list")[1]
    assert all(text in out for text in ("the first box", "round one", str(tmp_path / "two.jsonl"), owner, " UTC"))
    shown = run("jobs", "show", 2)[1]
    for text in ("round one", str(tmp_path / "one.jsonl"), f"archive      {ARCHIVE}", owner, "created_at"):
        assert text in shown


def test_the_list_is_filtered(client: Client, run: Run) -> None:
    def ids(*words: object) -> list[int]:
        return [row["job"] for row in listed(run, *words)]

    assert ids("--kind", "answer") == [4, 3, 2]
    assert ids("--kind", "answer", "--state", "completed") == [2]
    assert ids("--archive", ARCHIVE, "--open") == [5, 4, 3]
    assert ids("--state", "failed") == []
    assert run("jobs", "list", "--state", "failed")[1] == "no such job\n"
    code, _, err = run("jobs", "list", "--archive", "nowhere")
    assert code == 1 and "nowhere" in err


def test_latest_is_a_job_everywhere(client: Client, run: Run, tmp_path: Path) -> None:
    """Neither the single question nor the maintenance task is meant."""
    assert json.loads(run("jobs", "show", "latest", "--json")[1])["job"] == 3
    for command, states in (("pause", {"paused"}), ("resume", {"running"}), ("cancel", {"cancelling", "cancelled"})):
        code, out, err = run("jobs", command, "latest")
        assert (code, err) == (0, "") and out.startswith("job 3 is ")
        assert client.jobs.get(3).state in states
    assert run("jobs", "retry", "latest")[1].startswith("job 3: ")
    code, out, _ = run("results", "latest", "-o", tmp_path / "answers.jsonl")
    assert code == 0 and "job 3" in out
    assert run("report", "latest", "-o", tmp_path / "report.html")[0] == 0
    assert ">Job 3: two.jsonl</h1>" in (tmp_path / "report.html").read_text(), "the folder of the file is not told"
    assert run("report", 2, "-o", tmp_path / "named.html")[0] == 0
    assert ">Job 2: round one</h1>" in (tmp_path / "named.html").read_text()
    assert client.jobs.latest("ingest").job_id == 1
    code, _, err = run("noisy", "show", "latest", "nothing")
    assert code == 1 and "3" in err


def test_latest_without_a_job_says_so(workshop: Workshop, run: Run, tmp_path: Path) -> None:
    code, _, err = run("results", "latest", "-o", tmp_path / "a.jsonl")
    assert code == 1 and "there is no answer job yet" in err


def test_wait_tells_by_its_exit_code_how_the_jobs_ended(client: Client, run: Run) -> None:
    code, out, err = run("jobs", "wait", 1, 2)
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first == "job 1 completed: 60 files: 60 stored"
    assert second.startswith("job 2 completed: 1 question: 1 ")
    code, out, _ = run("jobs", "wait", 3, "--timeout", "0.05")
    assert code == 3 and out.startswith("job 3 waiting, ")
    client.jobs.cancel(3)
    assert run("jobs", "wait", 1, 3)[0] == 1
    code, out, err = run("jobs", "wait", 1, 999)
    assert (code, out) == (1, "") and "there is no job 999" in err


def test_an_estimate_submits_nothing_and_a_job_shows_its_limits(client: Client, run: Run, tmp_path: Path) -> None:
    file, archive = tmp_path / "two.jsonl", ("--archive", ARCHIVE)
    before = len(listed(run))
    code, out, err = run("submit", file, *archive, "--estimate")
    assert code == 0 and out.startswith("time: unknown\n"), (out, err)
    assert "counted: 1 valid question," in out and "workers: none is ready" in out
    estimate = json.loads(run("submit", file, *archive, "--estimate", "--json")[1])
    assert (estimate["questions"], estimate["time"], estimate["basis"]) == (1, None, "nothing")
    code, _, err = run("submit", file, *archive, "--deadline", "yesterday")
    assert code == 1 and "neither a duration" in err
    assert len(listed(run)) == before

    code, out, err = run("submit", file, *archive, "--deadline", "2h", "--max-gpu-seconds", "12.5")
    assert code == 0, err
    shown = run("jobs", "show", "latest")[1]
    assert "estimated: unknown" in shown and "budget 12.5 GPU seconds" in shown and "\ndeadline " in shown
    newest = listed(run, "--limit", 1)[0]
    assert newest["deadline_at"] is not None and newest["max_gpu_s"] == 12.5
