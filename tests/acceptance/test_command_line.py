"""One user, one terminal, one running system: the whole session, and the mistakes one makes in it."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ragllava.client import Client
from ragllava.jobs.states import JobState
from ragllava.jobs.views import JobView
from ragllava.postcards.archive import PostcardArchive, draw_archive, write_archive
from tests.support.strangers import flood, needs_namespaces, needs_root
from tests.support.terminal import COMMAND_S, Terminal, Typed, ended, running_system, terminal
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

FLOOD_S = 6.0
FEW = ("--top-k", "8")  # candidates for each question, to save time
DRAWN = draw_archive(seed=77, images=40, questions=12)


@pytest.fixture(scope="module")
def shell() -> Iterator[Terminal]:
    """A terminal beside a running system, with a folder of postcards, two bad files, and questions."""
    with terminal() as made:
        write_archive(made.folder / "cards", DRAWN)
        (made.folder / "cards" / "pictures" / "broken.png").write_bytes(b"\x89PNG\r\n and nothing more")
        (made.folder / "cards" / "pictures" / "empty.jpg").touch()
        _write_questions(made.folder, DRAWN)
        with running_system(made):
            yield made


@pytest.fixture(scope="module")
def client(shell: Terminal) -> Iterator[Client]:
    """A look behind the terminal, for waiting and counting."""
    with closing(Client(shell.settings())) as made:
        yield made


@pytest.fixture(scope="module")
def first_ingest(shell: Terminal) -> Typed:
    """The postcards are in the archive `cards`; what the command said."""
    return shell.run("ingest", "cards/pictures", "--archive", "cards", "--captions", "cards/captions.csv")


@pytest.fixture(scope="module")
def answered(shell: Terminal, first_ingest: Typed) -> int:
    """The number of a finished job: the questions as JSONL."""
    out = shell.do("submit", "questions.jsonl", "--archive", "cards", *FEW, "--wait")
    line, event = out.splitlines()
    found = re.fullmatch(r"job (\d+) completed: 12 questions: .*", line)
    assert found, out
    assert event == f"answers: ragllava results {found[1]} -o answers.jsonl"
    return int(found[1])


@pytest.fixture(scope="module")
def answers(shell: Terminal, answered: int) -> list[dict[str, Any]]:
    """The result lines of that job."""
    out = shell.do("results", str(answered), "-o", "answers.jsonl")
    assert out == f"answers.jsonl: 12 of 12 lines of job {answered} (questions.jsonl), archive cards\n"
    return _read_lines(shell.folder / "answers.jsonl")


def _write_questions(folder: Path, drawn: PostcardArchive) -> None:
    rows = [{"custom_id": question.custom_id, "question": question.text} for question in drawn.questions]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with (folder / "questions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["custom_id", "question"])
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows), folder / "questions.parquet")
    many = [{"question": f"{rows[number % len(rows)]['question']} ({number})"} for number in range(96)]
    (folder / "many.jsonl").write_text("\n".join(map(json.dumps, many)))
    invalid = ['{"question": "What?"}', "no json", '{"custom_id": "x"}', '{"question": " "}']
    (folder / "invalid.jsonl").write_text("\n".join(invalid))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _has_begun(job: JobView, older: int) -> bool:
    return job.job_id > older and job.progress.done > 0


# -- pictures


def test_ingest_says_what_was_stored_and_where_the_reasons_are(shell: Terminal, first_ingest: Typed) -> None:
    assert first_ingest == Typed(
        0,
        "job 1 completed_with_errors: 42 files: 2 rejected, 40 stored\n"
        "reasons: ragllava archive show cards --rejected\n",
        "",
    )
    summary, index, *rejected = shell.do("archive", "show", "cards", "--rejected").splitlines()
    assert summary.startswith("cards: 40 images, ") and "0 without caption" in summary
    assert "40 images, 128 dimensions, active" in index
    assert [line.partition(": ")[0] for line in rejected] == ["broken.png", "empty.jpg"]
    assert rejected[1] == "empty.jpg: the file is empty"


def test_a_second_ingest_recognises_every_picture(shell: Terminal, first_ingest: Typed) -> None:
    again = shell.call("ingest", "cards/pictures", "--archive", "cards", "--json")
    assert again.code == 0
    assert again.json["counts"] == {"duplicate": 40, "rejected": 2}
    [archive] = shell.call("archive", "list", "--json").json
    assert (archive["archive"]["name"], archive["images"], archive["without_caption"]) == ("cards", 40, 0)


# -- questions and answers


def test_the_answers_rest_on_the_pictures_that_were_asked_about(answers: list[dict[str, Any]]) -> None:
    known = {question.custom_id: question for question in DRAWN.questions}
    assert [row["custom_id"] for row in answers] == list(known)
    one_picture = [row for row in answers if len(known[row["custom_id"]].relevant) == 1]
    hits = [
        row
        for row in one_picture
        if any(shown["source"] in known[row["custom_id"]].relevant for shown in row["evidence"])
    ]
    # The shipped models reach 0.9 on a thousand pictures; ten questions leave room for two misses.
    assert len(hits) >= len(one_picture) - 2
    for row in answers:
        models = {"index", "reranker", "generator", "prompt", "threshold", "retrieval", "depth"}
        assert row["models"].keys() == models
        assert (row["models"]["retrieval"], row["models"]["depth"]) == ("hybrid-1", "need-2")
        assert all(shown["relevance"] >= row["models"]["threshold"] for shown in row["evidence"])


@pytest.mark.parametrize("name", ["questions.csv", "questions.parquet"])
def test_other_formats_of_the_same_questions_have_the_same_answers(
    name: str, shell: Terminal, answers: list[dict[str, Any]]
) -> None:
    typed = shell.call("submit", name, "--archive", "cards", *FEW, "--wait", "--json")
    assert typed.code == 0
    assert typed.json["state"] == "completed"
    shell.call_well("results", str(typed.json["job"]), "-o", f"{name}.jsonl")
    found = _read_lines(shell.folder / f"{name}.jsonl")
    assert [(row["custom_id"], row["status"], row["answer"]) for row in found] == [
        (row["custom_id"], row["status"], row["answer"]) for row in answers
    ]


def test_results_in_all_three_formats_are_the_same_rows(
    shell: Terminal, answered: int, answers: list[dict[str, Any]]
) -> None:
    for name in ("answers.csv", "answers.parquet"):
        out = shell.call_well("results", str(answered), "-o", name)
        assert out == f"{name}: 12 of 12 lines of job {answered} (questions.jsonl), archive cards\n"
    with (shell.folder / "answers.csv").open(newline="", encoding="utf-8-sig") as file:
        from_csv = [(row["custom_id"], row["status"], row["answer"] or None) for row in csv.DictReader(file)]
    table = pq.read_table(shell.folder / "answers.parquet").to_pylist()
    from_parquet = [(row["custom_id"], row["status"], row["answer"]) for row in table]
    expected = [(row["custom_id"], row["status"], row["answer"]) for row in answers]
    assert from_csv == expected
    assert from_parquet == expected
    assert not list(shell.folder.glob("answers.*.errors.jsonl"))


def test_ask_gives_the_answer_that_the_job_gave(shell: Terminal, answers: list[dict[str, Any]]) -> None:
    row = next(row for row in answers if row["status"] == "answered")
    typed = shell.run("ask", row["question"], "--archive", "cards", *FEW, "--json")
    assert typed.code == 0
    assert (typed.json["answer"], typed.json["evidence"]) == (row["answer"], row["evidence"])
    answer, *evidence = shell.call_well("ask", row["question"], "--archive", "cards", *FEW).splitlines()
    assert answer == f"{row['answer']}  (confidence {row['confidence']:.2f})"
    assert [line.split()[1] for line in evidence] == [shown["source"] for shown in row["evidence"]]


def test_ask_says_when_nothing_is_relevant_enough(shell: Terminal, answers: list[dict[str, Any]]) -> None:
    out = shell.call_well("ask", answers[0]["question"], "--archive", "cards", *FEW, "--threshold", "1")
    assert out.startswith("no_evidence: no picture is relevant enough: the best, ")


def test_the_report_is_one_page_that_holds_every_question(
    shell: Terminal, answered: int, answers: list[dict[str, Any]]
) -> None:
    out = shell.do("report", str(answered))
    assert out == f"report.html: job {answered} (questions.jsonl), archive cards; open it in a browser\n"
    page = (shell.folder / "report.html").read_text()
    assert all(row["question"] in page for row in answers)
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)


def test_an_invalid_file_is_refused_whole_and_every_line_is_named(
    shell: Terminal, client: Client, first_ingest: Typed
) -> None:
    before = len(client.jobs.list())
    typed = shell.call("submit", "invalid.jsonl", "--archive", "cards")
    assert (typed.code, typed.out) == (1, "")
    lines = typed.err.splitlines()
    assert lines[0].startswith("ragllava: invalid.jsonl, line 2: ") and "invalid_json_line" in lines[0]
    assert [line.split(":")[0].strip() for line in lines[1:3]] == ["line 3", "line 4"]
    assert "--skip-invalid" in lines[3]
    assert len(client.jobs.list()) == before


def test_with_skip_invalid_the_good_lines_go_on(shell: Terminal, first_ingest: Typed) -> None:
    typed = shell.call("submit", "invalid.jsonl", "--archive", "cards", "--skip-invalid", "--wait", "--json")
    assert typed.code == 0
    assert len(typed.err.splitlines()) == 3
    assert typed.json["state"] == "completed_with_errors"
    assert typed.json["counts"]["failed"] == 3 and typed.json["total"] == 4
    out = shell.call_well("results", str(typed.json["job"]), "-o", "partly.jsonl")
    named = f"job {typed.json['job']} (invalid.jsonl), archive cards"
    assert out == f"partly.jsonl: 4 of 4 lines of {named}\npartly.jsonl.errors.jsonl: 3 lines that failed\n"
    errors = _read_lines(shell.folder / "partly.jsonl.errors.jsonl")
    assert [error["code"] for error in errors] == ["invalid_json_line", "missing_question", "empty_question"]


def test_one_key_makes_one_job(shell: Terminal, first_ingest: Typed) -> None:
    first = shell.call("submit", "questions.csv", "--archive", "cards", "--key", "monday", "--json").json
    again = shell.call("submit", "questions.csv", "--archive", "cards", "--key", "monday", "--json").json
    assert (again["job"], first["is_new"], again["is_new"]) == (first["job"], True, False)
    other = shell.call("submit", "many.jsonl", "--archive", "cards", "--key", "monday")
    assert other.code == 1
    assert f"'monday' belongs to job {first['job']}" in other.err


# -- jobs


def test_a_job_is_paused_resumed_cancelled_and_retried(shell: Terminal, client: Client, first_ingest: Typed) -> None:
    job = str(shell.call("submit", "many.jsonl", "--archive", "cards", "--json").json["job"])
    client.jobs.pause(int(job))  # at once: on a busy machine the job could end while the next command starts
    assert shell.do("jobs", "pause", job) == f"job {job} is paused; `ragllava jobs resume {job}` continues it\n"
    assert shell.call_well("jobs", "show", job).startswith(f"job {job} paused: 96 questions: ")
    [row] = [row for row in shell.call_well("jobs", "list", "--open").splitlines() if row.split()[0] == job]
    assert row.split()[1:5] == ["many.jsonl", "answer", "cards", "paused"]
    refused = shell.call("jobs", "retry", job)
    assert refused.code == 1 and "only an ended job can be retried" in refused.err
    assert shell.call_well("jobs", "resume", job) == f"job {job} is running again\n"
    client.jobs.pause(int(job))
    shell.call_well("jobs", "cancel", job)

    counts = client.jobs.wait(int(job), timeout_s=60).progress.by_status
    assert counts.keys() <= {"answered", "no_evidence", "cancelled"}
    assert sum(counts.values()) == 96
    assert shell.call_well("jobs", "retry", job) == f"job {job}: {counts['cancelled']} inputs are tried again\n"
    client.jobs.pause(int(job))
    shell.call_well("jobs", "cancel", job)
    counts = client.jobs.wait(int(job), timeout_s=60).progress.by_status
    assert sum(counts.values()) == 96
    assert shell.call_well("jobs", "show", job).startswith(f"job {job} cancelled: 96 questions: ")


def test_ctrl_c_while_waiting_leaves_the_job_running(shell: Terminal, client: Client, first_ingest: Typed) -> None:
    newest = client.jobs.list()[0].job_id
    with shell.start("submit", "many.jsonl", "--archive", "cards", "--wait") as process:
        # By the time that a worker has answered something, the command that submitted it has long begun to wait.
        wait_for("the new job to begin", lambda: _has_begun(client.jobs.list()[0], newest))
        job = client.jobs.list()[0].job_id
        client.jobs.pause(job)  # it cannot end while the command does
        process.send_signal(signal.SIGINT)
        typed = ended(process, COMMAND_S)
    assert (typed.code, typed.out) == (130, "")
    assert typed.err == f"job {job} keeps running in the background; `ragllava jobs show {job}` shows its progress\n"
    assert client.jobs.get(job).state is JobState.PAUSED
    client.jobs.cancel(job)


def test_the_first_line_of_a_long_list_is_enough_for_head(shell: Terminal, answered: int) -> None:
    command = [sys.executable, "-m", "ragllava", "jobs", "list", "--json"]
    with subprocess.Popen(
        command, env=shell.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()  # what `head` does, only sooner
        assert process.stderr.read() == ""


# -- mistakes, while everything runs


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("archive show nowhere", "there is no archive 'nowhere'; there are: cards"),
        ("ingest nowhere --archive cards", "cannot ingest nowhere: no such file or directory"),
        ("ingest cards/pictures --archive No!", "'No!' cannot be the name of an archive"),
        ("ingest cards/pictures --archive cards --captions none.csv", "none.csv cannot be read"),
        ("submit none.jsonl --archive cards", "none.jsonl cannot be read: No such file or directory"),
        ("jobs show 9999", "there is no job 9999; `ragllava jobs list` shows all"),
        ("jobs cancel 1", "job 1 is completed_with_errors and cannot be cancelled"),
        ("results 1 -o answers.jsonl", "job 1 is an ingest job and has no answers"),
        ("up", "already run, started by process"),
    ],
)
def test_a_mistake_is_one_sentence(words: str, says: str, shell: Terminal, answers: list[dict[str, Any]]) -> None:
    typed = (shell.run if words.startswith(("up", "archive show")) else shell.call)(*words.split())
    assert (typed.code, typed.out) == (1, "")
    assert typed.err.startswith("ragllava: ") and says in typed.err
    assert len(typed.err.splitlines()) == 1


# -- the system


def test_status_and_doctor_find_nothing_wrong_and_print_no_password(shell: Terminal, answered: int) -> None:
    status = shell.run("status", "--json")
    assert (status.code, status.json["healthy"]) == (0, True)
    assert {worker["queues"][0]: worker["is_ready"] for worker in status.json["workers"]} == {
        "ingest": True,
        "query": True,
        "maint": True,
        "train": True,
    }
    doctor = shell.run("doctor", "--json")
    assert (doctor.code, doctor.json["healthy"]) == (0, True)
    printed = status.out + doctor.out + shell.call_well("status")
    settings = shell.settings()
    assert settings.s3_secret_key is not None
    for secret in (settings.require_database(), settings.require_redis(), settings.s3_secret_key.get_secret_value()):
        assert re.sub(r".*://[^:]*:(.*)@.*", r"\1", secret) not in printed


@needs_root
@needs_namespaces
def test_a_flood_of_connections_of_another_account_stops_no_job(shell: Terminal, answered: int) -> None:
    """To every port on which a process of the system listens, and to every socket of the home."""
    processes = shell.processes()
    listening = {
        connection.laddr.port
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    sockets = [path for path in shell.home.rglob("*") if path.is_socket()]
    write_archive(shell.folder / "late", draw_archive(seed=78, images=8, questions=1))
    with flood(sorted(listening), sockets):
        time.sleep(FLOOD_S)  # until it has taken what it can
        ingested = shell.run("ingest", "late/pictures", "--archive", "late")
        submitted = shell.run("submit", "questions.csv", "--archive", "cards", *FEW, "--wait")
        status = shell.run("status")
    assert ingested.code == 0, ingested
    assert submitted.code == 0 and "12 questions" in submitted.out, submitted
    assert status.code == 0, status


def test_the_demo_uses_the_system_that_runs_and_leaves_it_running(shell: Terminal) -> None:
    out = shell.do("demo", "--images", "20", "--questions", "4", "--report", "demo.html")
    assert "using the system that is running in this home" in out
    assert (shell.folder / "demo.html").exists()
    assert shell.call("status", "--json").code == 0
