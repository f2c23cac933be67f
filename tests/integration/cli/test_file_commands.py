"""Captions, question files and results on the command line: what is said about what is not used."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from ragllava.jobs import queue
from ragllava.records import Answer, AnswerStatus
from ragllava.settings import Settings
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction
from ragllava.stores.jobs import answers
from ragllava.stores.schema import files, jobs
from tests.support.foreign_bucket import make_bucket
from tests.support.run_command import Run
from tests.support.workshop import Workshop


def pictures(*names: str) -> None:
    for name in names:
        Path("pictures", name).parent.mkdir(parents=True, exist_ok=True)
        Path("pictures", name).write_text(name)


def stored_captions(engine: Engine) -> dict[str, str | None]:
    with engine.begin() as connection:
        return dict(connection.execute(select(files.c.source, files.c.caption)).all())


INGEST = ("ingest", "pictures", "--archive", "cards", "--no-wait")


def test_captions_that_fit_no_file_end_the_command_with_their_number(engine: Engine, run: Run) -> None:
    pictures("2020/1.jpg", "2020/2.jpg", "film.mp4", "notes.doc")
    Path("c.csv").write_text("file,caption\n2019/1.jpg,One\n2019/2.jpg,Two\n2020/2.jpg,Right\n")
    code, _, err = run(*INGEST, "--captions", "c.csv")
    assert code == 1
    assert "caption without a file: 2019/1.jpg" in err
    assert "2 of 3 captions fit no file" in err
    assert "passed over: 1 .doc, 1 .mp4" in err
    assert stored_captions(engine) == {"2020/1.jpg": None, "2020/2.jpg": "Right"}


def test_a_few_captions_without_a_file_are_said_and_no_failure(engine: Engine, run: Run) -> None:
    pictures("a.png", "b.png", "1/c.png", "2/c.png")
    Path("c.csv").write_text("file,caption\na.png,One\nB.PNG,Two\nc.png,Which?\n")
    code, out, err = run(*INGEST, "--captions", "c.csv", "--json")
    assert code == 0
    assert "caption that fits several files: c.png" in err
    body = json.loads(out)
    assert (body["captions"], body["passed_over"]) == ({"listed": 3, "without_file": 1, "cut": 0}, {})
    assert stored_captions(engine) == {"a.png": "One", "b.png": "Two", "1/c.png": None, "2/c.png": None}


def test_columns_may_be_named_on_the_command_line(engine: Engine, run: Run) -> None:
    pictures("a.png")
    Path("c.csv").write_bytes("Datei;Legende\r\na.png;Schloß\r\n".encode("cp1252"))
    columns = ("--image-column", "Datei", "--caption-column", "Legende")
    code, _, err = run(*INGEST, "--captions", "c.csv", *columns)
    assert (code, stored_captions(engine)) == (0, {"a.png": "Schloß"})
    assert "read as Windows-1252" in err
    code, _, err = run(*INGEST, *columns)
    assert code == 1
    assert "--image-column has no effect without --captions" in err


def test_caption_files_beside_the_pictures_are_used_and_their_faults_said(engine: Engine, run: Run) -> None:
    pictures("a.png", "sub/b.png")
    Path("pictures/captions.csv").write_text("file,caption\na.png,Old Mill, Wenby\nsub/b.png,The quay\n")
    code, _, err = run(*INGEST)
    assert code == 0
    assert "captions.csv: 1 rows were passed over; the first is line 2" in err
    assert stored_captions(engine) == {"a.png": None, "sub/b.png": "The quay"}


def test_a_prefix_of_a_bucket_is_ingested(engine: Engine, settings: Settings, run: Run) -> None:
    bucket = make_bucket(settings)
    bucket.put("in/2019/boat.png", b"a")
    bucket.put("in/captions.csv", b"file,caption\n2019/boat.png,The boat\n")
    address = f"s3://{bucket.name}/in/"
    assert run("ingest", address, "--archive", "cards", "--no-wait")[0] == 0
    assert stored_captions(engine) == {"2019/boat.png": "The boat"}
    code, _, err = run("ingest", address, "other", "--archive", "cards", "--no-wait")
    assert code == 1 and "one prefix of a bucket at a time" in err
    code, _, err = run("ingest", address, "--archive", "cards", "--no-wait", "--exclude", "*.pdf")
    assert code == 1 and "not for a prefix of a bucket" in err
    code, _, err = run("ingest", f"s3://{bucket.name}/nothing/", "--archive", "cards", "--no-wait")
    assert code == 1 and "no pictures below" in err


def test_a_question_with_a_picture_that_is_not_there(engine: Engine, run: Run) -> None:
    in_transaction(engine, archive.ensure_archive, "cards")
    code, _, err = run("ask", "What?", "--archive", "cards", "--picture", "missing.png")
    assert code == 1 and "there is no file missing.png" in err
    code, _, err = run("ask", "--archive", "cards")
    assert code == 1 and "a question has 1 to" in err


def test_questions_come_from_standard_input_and_results_go_to_standard_output(
    workshop: Workshop, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with workshop.engine.begin() as connection:
        archive.ensure_archive(connection, "cards")
    line = {"url": "/v1/chat/completions", "custom_id": "b", "method": "POST"}
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Blue?"}]
    content = [{"ID": "a", "Question": "Red?", "gold": "yes"}, line | {"body": {"messages": turns}}]
    typed = "\n".join(map(json.dumps, content)).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
    code, _, err = run("submit", "-", "--archive", "cards")
    assert code == 0
    assert "1 lines have system messages or earlier turns, which are not used" in err
    with workshop.engine.begin() as connection:
        [spec] = connection.scalars(select(jobs.c.spec))
    assert (spec["input"], spec["columns"]) == ("standard input", ["gold"])

    lease = workshop.claim_next()
    given = [Answer(number, AnswerStatus.NO_EVIDENCE, note=note) for number, note in ((0, None), (1, "far away"))]
    with workshop.engine.begin() as connection:
        answers.insert_answers(connection, lease.job_id, lease.run_no, lease.shard_id, lease.epoch, given)
        queue.finish(connection, lease)
    code, out, _ = run("results", lease.job_id, "-o", "-")
    first, second = map(json.loads, out.splitlines())
    assert code == 0
    assert (first["custom_id"], first["input"], first["note"]) == ("a", {"gold": "yes"}, None)
    assert (second["custom_id"], second["input"]) == ("b", {"gold": None})
    assert second["note"] == "not used: 1 system message of the batch line; far away"

    code, out, _ = run("jobs", "refresh", lease.job_id)
    with workshop.engine.begin() as connection:
        specs = list(connection.scalars(select(jobs.c.spec).order_by(jobs.c.id)))
    assert specs[-1]["columns"] == ["gold"]


def test_a_result_file_has_a_known_ending(workshop: Workshop, run: Run) -> None:
    code, _, err = run("results", workshop.questions_job(1, per_shard=1), "-o", "answers.xlsx")
    assert code == 1
    assert "must end in .jsonl, .csv or .parquet" in err
