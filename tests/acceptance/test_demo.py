"""`ragllava demo` as a first user meets it: interrupted while it answers, then called once more."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy.exc import ProgrammingError

from ragllava.client import Client
from ragllava.errors import RagllavaError
from ragllava.records import JobKind
from tests.support.terminal import Terminal, ended, terminal
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

DEMO = ("demo", "--images", "60", "--questions", "16", "--json", "figures.json")
STAGES = ["start", "draw", "ingest", "answer", "answer by pictures alone", "report"]


@pytest.fixture
def shell() -> Iterator[Terminal]:
    with terminal() as made:
        yield made


@contextmanager
def counting_answers(shell: Terminal) -> Iterator[Callable[[], int]]:
    """A quick look at how many questions of the demo that runs in this home have an answer: the few that it has are
    answered soon. 0 while nothing can be asked yet."""
    clients: list[Client] = []

    def count() -> int:
        try:
            if not clients:
                clients.append(Client(shell.settings()))
            return sum(job.progress.done for job in clients[0].jobs.list() if job.kind == JobKind.ANSWER)
        except (RagllavaError, ProgrammingError):  # no services, no tables
            while clients:
                clients.pop().close()
            return 0

    try:
        yield count
    finally:
        for client in clients:
            client.close()


def test_an_interrupted_demo_stops_everything_and_the_next_goes_on(shell: Terminal) -> None:
    with shell.start(*DEMO) as first:
        with counting_answers(shell) as answers_so_far:
            wait_for("the first answers", lambda: first.poll() is not None or answers_so_far() > 0, 180)
            first.send_signal(signal.SIGINT)
        stopped = ended(first, 120)
    assert stopped.code == 130, stopped
    assert stopped.out.splitlines()[-1] == "interrupted; the same command continues from here"
    assert "Traceback" not in stopped.err
    assert shell.processes() == []
    assert not (shell.folder / "figures.json").exists()

    second = shell.run(*DEMO)
    assert second.code == 0, second
    assert "Traceback" not in second.err
    assert shell.processes() == []
    going_on = re.search(r"continuing job (\d+), which was interrupted", second.out)
    assert going_on, second.out
    figures = json.loads((shell.folder / "figures.json").read_text())
    assert figures["job"] == int(going_on[1])
    check_figures(figures)
    check_output(second.out, figures)
    page = (shell.folder / "report.html").read_text()
    assert f"Job {figures['job']}" in page and "data:image/" in page


def check_figures(figures: dict[str, object]) -> None:
    """They add up, and are within what the shipped models promise for questions about one picture."""
    assert (figures["images"], figures["questions"]) == (60, 16)
    assert (figures["failed"], figures["missing"]) == (0, 0)
    assert figures["ingested"] == {"duplicate": 60}
    outcomes = [figures[name] for name in ("answered", "no_evidence", "failed")]
    assert sum(int(str(number)) for number in outcomes) == 16
    one = figures["one_image"]
    assert isinstance(one, dict)
    recall = [one[f"retrieval_recall_at_{k}"] for k in (1, 2, 5, 20)]
    assert recall == sorted(recall) and recall[-1] <= one["candidate_recall"] >= 0.9
    assert one["reranked_recall_at_1"] >= 0.8
    check_retrieval(figures)
    seconds, versions = figures["seconds"], figures["versions"]
    assert isinstance(seconds, dict) and list(seconds) == STAGES and min(seconds.values()) >= 0
    assert isinstance(versions, dict) and {"ragllava", "torch", "celery"} <= versions.keys()


def check_retrieval(figures: dict[str, object]) -> None:
    """The same questions by pictures alone and as they were asked; of so few pictures, both find nearly all."""
    ways = figures["retrieval"]
    assert isinstance(ways, list)
    picture, hybrid = ways
    assert [picture["retrieval"], hybrid["retrieval"]] == ["picture", "hybrid"]
    assert picture["questions"] == hybrid["questions"] == 16
    assert (hybrid["found"], hybrid["right"]) == (figures["candidate_recall"], figures["answer_accuracy"])
    assert 0.9 <= picture["found"] <= hybrid["found"]
    assert 1 <= hybrid["reranked"] < picture["reranked"] <= 20


def check_output(out: str, figures: dict[str, object]) -> None:
    """What a person reads agrees with what a program reads."""
    assert f"job {figures['job']} completed: 16 questions: " in out
    accuracy = re.search(r"│ right answers +│ ([\d.]+)", out)
    assert accuracy and float(accuracy[1]) == pytest.approx(figures["answer_accuracy"], abs=0.0006)
    assert "the first 16 questions, by retrieval" in out
    assert re.search(r"report: .*report\.html, open it in a browser", out)
    assert re.search(rf"console: http://127\.0\.0\.1:\d+/console/jobs/{figures['job']}\n", out)
    assert out.rstrip().endswith("figures: figures.json")
