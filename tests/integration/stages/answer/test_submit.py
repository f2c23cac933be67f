"""From a question file or a list of pictures to a job, on a real database."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from ragllava.client import Client
from ragllava.errors import InvalidInput, Rejection, RejectionClass, UsageError
from ragllava.jobs import control
from ragllava.jobs.control import NewJob
from ragllava.jobs.kinds import kind_of
from ragllava.jobs.states import JobState
from ragllava.records import AnswerOptions, AnswerStatus, Depth, JobKind, Priority, Retrieval
from ragllava.settings import Settings
from ragllava.source_files import SourceFile
from ragllava.stages.answer.question_files import read_questions
from ragllava.stages.answer.submit import (
    Submission,
    Submitted,
    record_refusal,
    submit_questions,
    submit_refresh,
)
from ragllava.stages.ingest.submit import submit_files
from ragllava.stages.results.finalize import result_rows
from ragllava.stages.results.results import ResultRow
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction
from ragllava.stores.jobs import answers, refreshes
from ragllava.stores.objects import ObjectStore
from ragllava.stores.schema import files, jobs, questions, shards
from tests.support.described_images import store_described
from tests.support.job_rows import Desk


@pytest.fixture
def desk(engine: Engine, settings: Settings) -> Desk:
    desk = Desk(engine, settings.model_copy(update={"tick_s": 600.0, "questions_per_shard": 3, "files_per_shard": 3}))
    desk.live_worker()
    with engine.begin() as connection:
        archive.ensure_archive(connection, "test")
    return desk


def line(question: Any, custom_id: Any = None) -> str:
    return json.dumps({"question": question} | ({} if custom_id is None else {"custom_id": custom_id}))


def submit(desk: Desk, lines: Sequence[str], name: str = "questions.jsonl", **how: Any) -> Submitted:
    file = read_questions("\n".join(lines).encode(), name=name)
    return in_transaction(desk.engine, submit_questions, desk.settings, file, Submission(**({"archive": "test"} | how)))


def rows(desk: Desk, job_id: int) -> list[ResultRow]:
    with desk.engine.begin() as connection:
        return list(result_rows(connection, job_id))


def count(desk: Desk, table: Any) -> int:
    with desk.engine.begin() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


GOOD = [line("one?", "a"), line("two?"), line("three?", "c")]
BAD = [line("one?", "a"), "{not json", line("two?", "a"), line("  ", "empty"), line("three?")]


# Valid files


def test_every_line_becomes_a_question_of_a_shard(desk: Desk) -> None:
    texts = [f"question {number}?" for number in range(8)]
    submitted = submit(desk, [line(text) for text in texts])
    assert (submitted.is_new, submitted.total, submitted.errors) == (True, 8, [])
    with desk.engine.begin() as connection:
        stored = connection.execute(select(questions).order_by(questions.c.question_no)).all()
        bounds = connection.execute(select(shards.c.lo, shards.c.hi).order_by(shards.c.lo)).all()
    assert [(row.question_no, row.line, row.custom_id, row.text) for row in stored] == [
        (number, number + 1, f"line-{number + 1}", text) for number, text in enumerate(texts)
    ]
    assert [tuple(bound) for bound in bounds] == [(0, 3), (3, 6), (6, 8)]
    assert desk.job(submitted.job_id).state == JobState.RUNNING


def test_options_and_priority_reach_the_job(desk: Desk) -> None:
    options = AnswerOptions(top_k=7, top_n=3, threshold=0.25, captions_in_answer=False)
    job = desk.job(submit(desk, GOOD, options=options, priority=Priority.URGENT).job_id)
    assert AnswerOptions(**job.spec["options"]) == options
    assert (job.priority, job.archive) == (Priority.URGENT, "test")


def test_odd_text_comes_back_as_it_went_in(desk: Desk) -> None:
    texts = [
        "Где маяк? 🗼",
        "a\u0301\u200b\u202e",
        "tab\tand\nline",
        "x" * 8000,
        "'; DROP TABLE jobs; --",
        "\\N",
        "\\.",
    ]
    submitted = submit(desk, [line(text, f"№{number}") for number, text in enumerate(texts)])
    desk.drain()
    stored = rows(desk, submitted.job_id)
    assert [row.question for row in stored] == texts
    assert [row.custom_id for row in stored] == [f"№{number}" for number in range(len(texts))]


def test_what_postgres_cannot_store_is_replaced_or_refused(desk: Desk) -> None:
    lines = [line("a\x00b"), line("half \ud83d pair"), line("fine?", "id\x00"), line("fine?", "\udcff")]
    submitted = submit(desk, lines, skip_invalid=True)
    assert [(error.line, error.code) for error in submitted.errors] == [
        (3, "invalid_custom_id"),
        (4, "invalid_custom_id"),
    ]
    assert [row.question for row in rows(desk, submitted.job_id)] == [None, None]
    desk.drain()
    assert [row.question for row in rows(desk, submitted.job_id)][:2] == ["a\ufffdb", "half \ufffd pair"]


def test_a_file_of_any_name_can_be_submitted(desk: Desk, tmp_path: Path) -> None:
    for raw in (b"latin-\xe9.jsonl", b"new\nline.jsonl", "вопросы 🗼.jsonl".encode()):
        path = tmp_path / os.fsdecode(raw)
        path.write_text("\n".join(GOOD))
        file = read_questions(path, name=str(path))
        submitted = in_transaction(desk.engine, submit_questions, desk.settings, file, Submission("test"))
        assert desk.job(submitted.job_id).progress.total == 3


def test_options_out_of_range_are_refused_by_name(desk: Desk) -> None:
    wrong: dict[str, tuple[Any, ...]] = {
        "top_k": (0, -1, 1001, "20", 2.5, True, None),
        "top_n": (0, 21, "2", None),
        "threshold": (-0.1, 1.1, float("nan"), "auto", True),
        "captions_in_answer": ("no", 1, None),
        "retrieval": ("vectors", "HYBRID", 1, None),
        "depth": ("deep", "", True, None),
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(UsageError, match=f"{name} must be .*, not {value!r}"):
                submit(desk, GOOD, options=AnswerOptions(**{name: value}))
    assert count(desk, jobs) == 0


def test_the_ends_of_the_range_are_allowed(desk: Desk) -> None:
    for threshold in (0, 1, 0.0, 1.0, None):
        options = AnswerOptions(top_k=1000, top_n=20, threshold=threshold)
        assert desk.job(submit(desk, GOOD, options=options).job_id).spec["options"]["threshold"] == threshold


# Invalid files


def test_an_invalid_file_is_refused_whole(desk: Desk) -> None:
    with pytest.raises(InvalidInput, match=r"questions.jsonl, line 2: .*\(2 more invalid lines\)") as refused:
        submit(desk, BAD)
    assert [(error.line, error.code) for error in refused.value.errors] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
        (4, "empty_question"),
    ]
    assert [count(desk, table) for table in (jobs, shards, questions)] == [0, 0, 0]


def test_skipped_lines_end_as_failed_and_totals_add_up(desk: Desk) -> None:
    submitted = submit(desk, BAD, skip_invalid=True)
    assert (submitted.total, len(submitted.errors)) == (5, 3)
    assert desk.job(submitted.job_id).progress.by_status == {"failed": 3}
    desk.drain()
    job = desk.job(submitted.job_id)
    assert (job.state, job.progress.by_status) == (JobState.COMPLETED_WITH_ERRORS, {"answered": 2, "failed": 3})
    stored = rows(desk, submitted.job_id)
    assert [row.line for row in stored] == [1, 2, 3, 4, 5]
    assert [row.error_code for row in stored] == [
        None,
        "invalid_json_line",
        "duplicate_custom_id",
        "empty_question",
        None,
    ]
    assert all(bool(row.error) == (row.status is AnswerStatus.FAILED) for row in stored)
    assert [row.custom_id for row in stored] == ["a", None, None, "empty", "line-5"]


def test_a_file_without_one_good_line_is_refused_even_then(desk: Desk) -> None:
    with pytest.raises(InvalidInput, match="line 1"):
        submit(desk, BAD[1:2] + BAD[3:4], skip_invalid=True)
    assert count(desk, jobs) == 0


def test_an_unknown_archive_is_refused_by_name(desk: Desk) -> None:
    for name in ("nowhere", "", "Test", "a\x00b", "t\u00e9st", "\udcff", "x" * 10_000, "'; --"):
        with pytest.raises(UsageError, match=r"there is no archive .*; there are: test"):
            submit(desk, GOOD, archive=name)
    assert count(desk, jobs) == 0


# Filters


@pytest.fixture
def described(desk: Desk) -> Desk:
    """The archive `described` has images with metadata."""
    with desk.engine.begin() as connection:
        store_described(connection, [("a.png", None, {"city": "Ansel", "year": "1968"})], "described")
    return desk


def asking(text: str, where: Any) -> str:
    return json.dumps({"question": text, "where": where})


def test_filters_reach_the_job_and_its_questions(described: Desk) -> None:
    lines = [asking("one?", {"City": "Ansel"}), line("two?"), asking("three?", "year>=1950")]
    options = AnswerOptions(filter={"Year": {"to": 1970}, "folder": "x"})
    submitted = submit(described, lines, archive="described", options=options)
    assert described.job(submitted.job_id).spec["options"]["filter"] == {"year": {"to": 1970}, "folder": "x"}
    with described.engine.begin() as connection:
        opened = answers.open_questions(connection, submitted.job_id, 1, 0, 3)
    assert [question.filter for question in opened] == [{"city": "Ansel"}, None, {"year": {"from": "1950"}}]


def test_a_refresh_has_the_same_filters(described: Desk) -> None:
    lines = [asking("one?", {"city": "Ansel"}), line("two?")]
    job_id = submit(described, lines, archive="described", options=AnswerOptions(filter={"year": 1968})).job_id
    described.drain()
    refresh_id, is_new = in_transaction(described.engine, submit_refresh, described.settings, job_id)
    assert is_new
    assert described.job(refresh_id).spec["options"]["filter"] == {"year": 1968}
    with described.engine.begin() as connection:
        opened = answers.open_questions(connection, refresh_id, 1, 0, 2)
        compared = refreshes.answered_part(connection, job_id, 0, 10)
    assert [question.filter for question in opened] == [{"city": "Ansel"}, None]
    assert [question.filter for question, _ in compared] == [{"city": "Ansel"}, None]


def test_a_wrong_filter_of_a_job_is_refused(described: Desk) -> None:
    for wrong, message in (
        ({"city": {"gt": 1}}, "unknown operator"),
        ({"citty": "Ansel"}, r'no image of the archive described has the metadata "citty" .* did you mean city\?'),
    ):
        with pytest.raises(UsageError, match=message):
            submit(described, GOOD, archive="described", options=AnswerOptions(filter=wrong))
    assert count(described, jobs) == 0


def test_a_line_with_a_key_that_no_image_has_is_invalid(described: Desk) -> None:
    lines = [asking("one?", {"city": "Ansel", "yaer": 1968}), line("two?"), asking("three?", {"city": "x"})]
    with pytest.raises(InvalidInput, match=r'line 1: no image .* "yaer" .* did you mean year\?'):
        submit(described, lines, archive="described")
    submitted = submit(described, lines, archive="described", skip_invalid=True)
    assert [(error.line, error.code, error.custom_id) for error in submitted.errors] == [
        (1, "unknown_filter_key", "line-1")
    ]
    described.drain()
    assert [row.status for row in rows(described, submitted.job_id)] == ["failed", "answered", "answered"]
    with pytest.raises(InvalidInput, match="line 1"):
        submit(described, lines[:1], archive="described", skip_invalid=True)


def test_a_key_is_of_the_filters_too_and_matches_what_was_submitted_without_them(described: Desk) -> None:
    how: dict[str, Any] = {"archive": "described", "idempotency_key": "monday"}
    job_id = submit(described, GOOD, **how).job_id
    for changed in (
        {"options": AnswerOptions(filter={"city": "Ansel"})},
        {"lines": [asking("one?", {"city": "Ansel"}), *GOOD[1:]]},
    ):
        with pytest.raises(UsageError, match=f"'monday' belongs to job {job_id}"):
            submit(described, **({"lines": GOOD} | how | changed))
    assert submit(described, GOOD, **how, options=AnswerOptions(filter={})).job_id == job_id


# The same again


def test_the_same_key_makes_one_job(desk: Desk) -> None:
    first = submit(desk, BAD, idempotency_key="monday", skip_invalid=True)
    second = submit(desk, BAD, idempotency_key="monday", skip_invalid=True)
    assert (second.job_id, second.is_new, second.total) == (first.job_id, False, 5)
    assert second.errors == first.errors
    assert [count(desk, table) for table in (jobs, questions, shards)] == [1, 5, 2]


def test_the_same_file_under_another_path_is_the_same_content(desk: Desk) -> None:
    first = submit(desk, GOOD, name="/home/one/questions.jsonl", idempotency_key="monday")
    second = submit(desk, GOOD, name="questions.jsonl", idempotency_key="monday")
    assert (second.job_id, second.is_new) == (first.job_id, False)


def test_the_same_key_with_another_content_is_refused(desk: Desk) -> None:
    with desk.engine.begin() as connection:
        archive.ensure_archive(connection, "other")
    job_id = submit(desk, GOOD, idempotency_key="monday").job_id
    changes: dict[str, dict[str, Any]] = {
        "text": {"lines": [*GOOD[:2], line("other?", "c")]},
        "fewer lines": {"lines": GOOD[:2]},
        "custom_id": {"lines": [*GOOD[:2], line("three?", "d")]},
        "order": {"lines": [GOOD[1], GOOD[0], GOOD[2]]},
        "archive": {"archive": "other"},
        "options": {"options": AnswerOptions(top_k=3)},
        "retrieval": {"options": AnswerOptions(retrieval=Retrieval.PICTURE)},
        "depth": {"options": AnswerOptions(depth=Depth.FIXED)},
    }
    for change in changes.values():
        with pytest.raises(UsageError, match=f"'monday' belongs to job {job_id}"):
            submit(desk, **({"lines": GOOD, "idempotency_key": "monday"} | change))
    assert [count(desk, table) for table in (jobs, questions)] == [1, 3]


def test_a_key_of_a_version_without_retrieval_and_depth_still_fits(desk: Desk) -> None:
    """The digest as version 0.2 computed it, from the options that it had."""
    options = {"top_k": 20, "top_n": 2, "threshold": None, "captions_in_answer": True}
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for custom_id, text in (("a", "one?"), ("line-2", "two?"), ("c", "three?")):
        digest.update(json.dumps([custom_id, text]).encode())
    with desk.engine.begin() as connection:
        new = NewJob(
            kind=JobKind.ANSWER,
            archive_id=archive.get_archive(connection, "test").archive_id,
            spec={"options": options, "input": "questions.jsonl"},
            total=3,
            per_shard=3,
            idempotency_key="monday",
            content_digest=digest.hexdigest(),
        )
        earlier, _ = control.create(connection, new)
    again = submit(desk, GOOD, idempotency_key="monday")
    assert (again.job_id, again.is_new) == (earlier, False)


def test_submits_at_once_with_one_key_make_one_whole_job(desk: Desk) -> None:
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: submit(desk, BAD, idempotency_key="same", skip_invalid=True), range(4)))
    assert len({submitted.job_id for submitted in made}) == 1
    assert sorted(submitted.is_new for submitted in made) == [False, False, False, True]
    assert [count(desk, table) for table in (jobs, questions)] == [1, 5]


def test_a_key_that_cannot_be_stored_is_refused(desk: Desk) -> None:
    for key in ("", "a\x00b", "\udcff", "x" * 2001):
        with pytest.raises(UsageError, match="an idempotency key is text of 1 to 2,000 bytes"):
            submit(desk, GOOD, idempotency_key=key)
    assert submit(desk, GOOD, idempotency_key="x" * 2000).is_new


def test_without_a_key_each_submit_is_a_job(desk: Desk) -> None:
    assert submit(desk, GOOD).job_id != submit(desk, GOOD).job_id


# Pictures


def test_files_are_queued_and_refused_ones_have_their_outcome(desk: Desk) -> None:
    empty = Rejection(RejectionClass.DAMAGED, "it is empty")
    listed = [SourceFile(f"{n}.png", f"file:///{n}.png", rejected=empty if n % 2 else None) for n in range(5)]
    job_id = in_transaction(desk.engine, submit_files, desk.settings, archive_name="new", files=listed)
    job = desk.job(job_id)
    assert (job.archive, job.progress.total, job.progress.by_status) == ("new", 5, {"rejected": 2})
    with desk.engine.begin() as connection:
        assert kind_of(job.kind).inputs.open_numbers(connection, job.job_id, 1, 0, 5) == [0, 2, 4]
        bounds = connection.execute(select(shards.c.lo, shards.c.hi).order_by(shards.c.lo)).all()
    assert [tuple(bound) for bound in bounds] == [(0, 3), (3, 5)]


def test_a_wrong_archive_name_creates_nothing(desk: Desk) -> None:
    for name in ("", "Big", "a/b", "a\x00b", "-x", "x" * 64):
        with pytest.raises(UsageError, match="cannot be the name of an archive"):
            in_transaction(
                desk.engine,
                submit_files,
                desk.settings,
                archive_name=name,
                files=[SourceFile("a.png", "file:///a.png")],
            )
    assert [count(desk, table) for table in (jobs, files)] == [0, 0]


# The client, with no worker in reach


@pytest.fixture
def client(settings: Settings, desk: Desk) -> Iterator[Client]:
    client = Client(settings)
    yield client
    client.close()


def test_the_client_submits_a_file(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(GOOD))
    submitted = client.questions.submit(path, "test")
    assert client.jobs.get(submitted.job_id).progress.total == 3
    with pytest.raises(UsageError, match="cannot be read"):
        client.questions.submit(tmp_path / "gone.jsonl", "test")


def test_the_client_lists_pictures_and_unused_captions(client: Client, tmp_path: Path) -> None:
    folder, captions = tmp_path / "pictures", tmp_path / "captions.csv"
    folder.mkdir()
    captions.write_text("file,caption\na.png,A tower.\nb.png,Of no file.\n")
    with pytest.raises(UsageError, match="no pictures in"):
        client.archives.ingest([folder], "test", captions)
    (folder / "a.png").write_bytes(b"")
    ingested = client.archives.ingest([folder], "test", captions)
    assert (ingested.total, ingested.unused_captions) == (1, ("b.png",))


def test_the_client_asks_what_can_be_asked(client: Client) -> None:
    for question in ("", "  ", "x" * 8001):
        with pytest.raises(UsageError, match="1 to 8000 characters"):
            client.questions.ask(question, "test")
    assert client.jobs.list() == []
    with pytest.raises(UsageError, match=r"no answer within 0\.01 s") as late:
        client.questions.ask("What color is it?", "test", timeout_s=0.01)
    [job] = client.jobs.list()
    assert f"job {job.job_id}" in str(late.value)
    assert (job.priority, job.is_final) == (Priority.URGENT, False)


# The refusal of a file that came by message


def test_a_refusal_is_written_beside_the_file(settings: Settings) -> None:
    objects = ObjectStore(settings)
    objects.ensure_bucket()
    address = f"s3://{objects.bucket}/in/monday.jsonl"
    with pytest.raises(InvalidInput) as refused:
        read_questions("\n".join(BAD).encode(), name="in/monday.jsonl").require_valid()
    record_refusal(objects, f"{address}.error.json", address, refused.value)
    body = json.loads(objects.get("in/monday.jsonl.error.json"))
    assert body["address"] == address and body["message"] == str(refused.value)
    assert [(error["line"], error["code"]) for error in body["errors"]] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
        (4, "empty_question"),
    ]


def test_a_refusal_that_cannot_be_written_disturbs_nobody(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    objects = ObjectStore(settings)
    record_refusal(objects, "monday.jsonl.error.json", "monday.jsonl", UsageError("it is no good"))
    assert [record.message for record in caplog.records] == [
        "it is no good",
        "'monday.jsonl.error.json' is not an address of the form s3://bucket/key",
    ]
