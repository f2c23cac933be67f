"""The program of docs/python-api.md, on real services, with a worker in a thread of this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ragllava import Client
from tests.integration.conftest import Postcards
from tests.support.pages import read_page
from tests.support.workshop import Workshop

ARCHIVE = "holidays"  # as the program names it
CARDS = 6


@contextmanager
def working(workshop: Workshop) -> Iterator[None]:
    """A worker that runs whatever is queued, for the length of a block."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.05):
            workshop.run()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        stop.set()
        worker.join()


def test_the_program_prints_the_answers_with_their_evidence(
    workshop: Workshop,
    postcards: Postcards,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cards = {card.file_name for card in postcards.archive.postcards[:CARDS]}
    pictures = [postcards.written.pictures / name for name in sorted(cards)]
    workshop.ingest(*pictures, captions=postcards.written.captions, archive_name=ARCHIVE)
    questions = [question for question in postcards.archive.questions if cards.issuperset(question.relevant)]
    assert questions
    lines = [json.dumps({"custom_id": question.custom_id, "question": question.text}) for question in questions]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    program, *_ = read_page("docs/python-api.md").blocks("python")

    with working(workshop):
        exec(compile(program, "docs/python-api.md", "exec"), {"__name__": "__main__"})

    state, *printed = capsys.readouterr().out.splitlines()
    assert state == "completed None"
    assert [line.split()[0] for line in printed] == [question.custom_id for question in questions]
    answered = [line for line in printed if line.split()[1] == "answered"]
    assert answered
    assert all(any(name in line for name in cards) for line in answered)


def test_the_report_of_a_job_has_its_questions_and_their_pictures(
    whole_gallery: Workshop, ten_questions: list[str], tmp_path: Path
) -> None:
    job_id = whole_gallery.submit(ten_questions).job_id
    whole_gallery.run()
    page = tmp_path / "report.html"
    with Client(whole_gallery.settings) as client:
        assert client.questions.save_report(job_id, page) == len(ten_questions)
    text = page.read_text()
    assert all(question in text for question in ten_questions)
    assert "data:image/jpeg;base64," in text
