"""Question files in an inbox, and their results in the outbox, on a real database and object store."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import BinaryIO

import pytest
from pyarrow import parquet, table
from sqlalchemy import Engine, func, select

from ragllava.errors import ServiceUnavailable, UsageError
from ragllava.jobs import queue
from ragllava.jobs.states import JobState
from ragllava.records import Answer, AnswerStatus
from ragllava.settings import Settings
from ragllava.stages.buckets.binding import bind_archive
from ragllava.stages.buckets.inbox import InboxResult, submit_question_file
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stores.archives import archive
from ragllava.stores.buckets.bindings import Binding, BindingRole
from ragllava.stores.jobs import answers
from ragllava.stores.objects import ObjectStore
from ragllava.stores.schema import jobs
from tests.support.job_rows import Desk

GOOD = [{"custom_id": "a", "question": "first?"}, {"custom_id": "b", "question": "second?"}]


class Store(ObjectStore):
    """A store that becomes unavailable before the object whose name ends with `away_at` is written."""

    away_at = "no object"

    def put_external_stream(
        self, address: str, stream: BinaryIO, size_bytes: int, media_type: str = "application/octet-stream"
    ) -> None:
        if address.endswith(self.away_at):
            raise ServiceUnavailable("object store: did not answer")
        super().put_external_stream(address, stream, size_bytes, media_type)


@dataclass
class Office:
    """An inbox and an outbox in a bucket of the test's own, and a worker whose answers are the questions."""

    desk: Desk
    objects: Store
    bucket: Store
    binding: Binding

    def put(self, name: str, content: str | bytes) -> str:
        """Put a file into the inbox; returns the ETag that its event would bring."""
        self.bucket.put(f"inbox/{name}", content.encode() if isinstance(content, str) else content)
        return self.bucket.read_external(self.bucket.bucket, f"inbox/{name}").etag

    def take(self, name: str, etag: str) -> InboxResult:
        """Process the event of the file."""
        return submit_question_file(
            self.desk.engine, self.desk.settings, self.objects, self.binding, f"inbox/{name}", etag
        )

    def submit(self, name: str, content: str | bytes) -> int:
        """Put a file and take it in; the id of its job."""
        result = self.take(name, self.put(name, content))
        assert result.job_id is not None and result.reason is None
        return result.job_id

    def answer(self) -> None:
        """Answer all questions as a worker does."""
        while ready := self.desk.ids("queued") or self.desk.dispatch():
            lease = self.desk.claim(ready[0])
            assert lease is not None
            with self.desk.engine.begin() as connection:
                questions = answers.open_questions(connection, lease.job_id, lease.run_no, lease.lo, lease.hi)
                results = [Answer(q.question_no, AnswerStatus.ANSWERED, text=q.text) for q in questions]
                answers.insert_answers(connection, lease.job_id, lease.run_no, lease.shard_id, lease.epoch, results)
                queue.finish(connection, lease)

    def tick(self) -> int:
        """Publish the results of ended jobs as the maintenance worker does; returns how many."""
        return publish_missing_results(self.desk.engine, self.objects)

    def out(self) -> dict[str, bytes]:
        """Everything in the outbox."""
        return {
            info.key.removeprefix("outbox/"): self.bucket.get(info.key) for info in self.bucket.list_objects("outbox/")
        }

    def jobs(self) -> int:
        with self.desk.engine.begin() as connection:
            return connection.scalar(select(func.count()).select_from(jobs)) or 0


@pytest.fixture
def office(engine: Engine, settings: Settings) -> Office:
    desk = Desk(engine, settings.model_copy(update={"tick_s": 600.0}))
    desk.live_worker(slots=8)
    with engine.begin() as connection:
        archive_id = archive.ensure_archive(connection, "test").archive_id
    bucket = Store(settings.model_copy(update={"s3_bucket": f"{settings.s3_bucket}-post"}))
    bucket.ensure_bucket()
    options = {"outbox": f"s3://{bucket.bucket}/outbox/"}
    binding = Binding(1, archive_id, "test", BindingRole.INBOX, bucket.bucket, "inbox/", options)
    return Office(desk, Store(settings), bucket, binding)


def lines(*rows: object) -> str:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


# From the inbox to the outbox


def test_a_question_file_comes_back_answered(office: Office) -> None:
    etag = office.put("today/questions.jsonl", lines(*GOOD))
    job_id = office.take("today/questions.jsonl", etag).job_id
    assert office.tick() == 0 and office.out() == {}
    office.answer()
    assert office.tick() == 1
    folder = f"today/questions.jsonl/{job_id}"
    files = office.out()
    assert set(files) == {f"{folder}/{name}" for name in ("results.jsonl", "errors.jsonl", "manifest.json")}
    rows = [json.loads(line) for line in files[f"{folder}/results.jsonl"].splitlines()]
    assert [(row["custom_id"], row["status"], row["answer"]) for row in rows] == [
        ("a", "answered", "first?"),
        ("b", "answered", "second?"),
    ]
    manifest = json.loads(files[f"{folder}/manifest.json"])
    source = f"s3://{office.bucket.bucket}/inbox/today/questions.jsonl"
    assert (manifest["source"], manifest["etag"], manifest["job"]) == (source, etag, job_id)
    assert manifest["counts"] == {"answered": 2} and manifest["total"] == 2
    for name, entry in manifest["files"].items():
        content = files[f"{folder}/{name}"]
        assert entry["address"] == f"s3://{office.bucket.bucket}/outbox/{folder}/{name}"
        assert (entry["sha256"], entry["lines"]) == (hashlib.sha256(content).hexdigest(), len(content.splitlines()))
    assert office.desk.job(job_id or 0).result is not None
    assert (office.desk.job(job_id or 0).result or {})["outbox"] == {
        "folder": f"s3://{office.bucket.bucket}/outbox/{folder}/"
    }
    assert office.tick() == 0


def test_results_have_the_format_of_the_questions(office: Office) -> None:
    columns = {key: [row[key] for row in GOOD] for key in ("custom_id", "question")}
    as_parquet = io.BytesIO()
    parquet.write_table(table(columns), as_parquet)
    first = office.submit("q.csv", "custom_id,question\na,first?\nb,second?\n")
    second = office.submit("q.parquet", as_parquet.getvalue())
    body = {"messages": [{"role": "user", "content": "first?"}]}
    batch = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    third = office.submit("batch.ndjson", lines(batch))
    office.answer()
    assert office.tick() == 3
    files = office.out()
    cells = list(csv.DictReader(io.StringIO(files[f"q.csv/{first}/results.csv"].decode("utf-8-sig"), newline="")))
    rows = parquet.read_table(io.BytesIO(files[f"q.parquet/{second}/results.parquet"])).to_pylist()
    assert [cell["answer"] for cell in cells] == [row["answer"] for row in rows] == ["first?", "second?"]
    assert json.loads(files[f"batch.ndjson/{third}/results.jsonl"])["answer"] == "first?"
    for name in (f"q.csv/{first}", f"q.parquet/{second}", f"batch.ndjson/{third}"):
        for file, entry in json.loads(files[f"{name}/manifest.json"])["files"].items():
            assert hashlib.sha256(files[f"{name}/{file}"]).hexdigest() == entry["sha256"]


def test_one_bad_line_ends_failed_and_the_others_are_answered(office: Office) -> None:
    job_id = office.submit("q.jsonl", lines(GOOD[0], "no json", GOOD[1]))
    office.answer()
    office.tick()
    files = office.out()
    rows = [json.loads(line) for line in files[f"q.jsonl/{job_id}/results.jsonl"].splitlines()]
    assert [(row["line"], row["status"]) for row in rows] == [(1, "answered"), (2, "failed"), (3, "answered")]
    [error] = [json.loads(line) for line in files[f"q.jsonl/{job_id}/errors.jsonl"].splitlines()]
    assert (error["line"], error["code"]) == (2, "invalid_json_line")
    assert office.desk.job(job_id).state is JobState.COMPLETED_WITH_ERRORS


@pytest.mark.parametrize(
    ("name", "content", "codes"),
    [
        ("empty.jsonl", "", ["empty_file"]),
        ("other.csv", "colour,size\nred,3\n", ["missing_column"]),
        ("bytes.parquet", b"\x00\x01\x02", ["invalid_parquet"]),
        ("bad.jsonl", "no json\n[]\n", ["invalid_json_line", "invalid_json_line"]),
    ],
)
def test_a_file_that_cannot_be_used_gets_an_error_file(
    office: Office, name: str, content: str | bytes, codes: list[str]
) -> None:
    etag = office.put(name, content)
    result = office.take(name, etag)
    assert result.job_id is None and result.reason is not None
    [(key, content)] = office.out().items()
    assert PurePosixPath(key).match(f"{name}/error-*.json")
    entry = json.loads(content)
    assert (entry["address"], entry["message"]) == (f"s3://{office.bucket.bucket}/inbox/{name}", result.reason)
    assert [error["code"] for error in entry["errors"]] == codes
    assert office.take(name, etag) == result
    assert office.out() == {key: content}, "the same event again writes the same file again"
    assert office.jobs() == 0


def test_a_strict_inbox_refuses_a_file_with_a_bad_line(office: Office) -> None:
    options = office.binding.options | {"skip_invalid": False}
    office.binding = replace(office.binding, options=options)
    result = office.take("q.jsonl", office.put("q.jsonl", lines(GOOD[0], "no json")))
    [content] = office.out().values()
    assert result.job_id is None
    assert [error["line"] for error in json.loads(content)["errors"]] == [2]


def test_wrong_options_of_an_inbox_are_said_in_the_error_file(office: Office) -> None:
    office.binding = replace(office.binding, options=office.binding.options | {"answer": {"topk": 3}})
    assert office.take("q.jsonl", office.put("q.jsonl", lines(*GOOD))).job_id is None
    [content] = office.out().values()
    assert "options may contain only top_k" in json.loads(content)["message"]


def test_the_options_of_the_inbox_are_those_of_the_job(office: Office) -> None:
    office.binding = replace(office.binding, options=office.binding.options | {"answer": {"top_k": 3, "top_n": 1}})
    options = office.desk.job(office.submit("q.jsonl", lines(*GOOD))).spec["options"]
    assert (options["top_k"], options["top_n"], options["threshold"]) == (3, 1, None)


@pytest.mark.parametrize(("options", "priority"), [({}, 0), ({"priority": "low"}, -5), ({"priority": "high"}, 5)])
def test_the_priority_of_the_inbox_is_that_of_its_jobs(office: Office, options: dict[str, str], priority: int) -> None:
    office.binding = replace(office.binding, options=office.binding.options | options)
    job_id = office.submit("q.jsonl", lines(*GOOD))
    with office.desk.engine.begin() as connection:
        assert connection.scalar(select(jobs.c.priority).where(jobs.c.id == job_id)) == priority


def test_an_inbox_has_no_other_priority(office: Office) -> None:
    options = office.binding.options | {"priority": "urgent"}
    address = f"s3://{office.bucket.bucket}/inbox/"
    with pytest.raises(UsageError, match="priority must be low, normal, high, not 'urgent'"):
        bind_archive(office.desk.engine, office.objects, "test", address, BindingRole.INBOX, options)


# Late and repeated events


def test_the_same_file_makes_one_job_however_often_it_is_submitted(office: Office) -> None:
    etag = office.put("q.jsonl", lines(*GOOD))
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: office.take("q.jsonl", etag), range(8)))
    assert office.put("q.jsonl", lines(*GOOD)) == etag, "the same bytes again"
    results.append(office.take("q.jsonl", etag))
    assert len(set(results)) == office.jobs() == 1


def test_a_changed_file_makes_a_job_of_its_own(office: Office) -> None:
    first = office.submit("q.jsonl", lines(*GOOD))
    second = office.submit("q.jsonl", lines({"question": "another?"}))
    copy = office.submit("copy.jsonl", lines(*GOOD))
    office.answer()
    office.tick()
    files = {key: value for key, value in office.out().items() if key.endswith("results.jsonl")}
    folders = (f"q.jsonl/{first}", f"q.jsonl/{second}", f"copy.jsonl/{copy}")
    assert set(files) == {f"{folder}/results.jsonl" for folder in folders}
    assert json.loads(files[f"q.jsonl/{second}/results.jsonl"])["answer"] == "another?"


def test_a_file_that_changes_before_it_is_read_makes_one_job_of_what_was_read(office: Office) -> None:
    """The event of the first content comes late, then that of the second."""
    early = office.put("q.jsonl", lines(*GOOD))
    late = office.put("q.jsonl", lines({"question": "another?"}))
    results = [office.take("q.jsonl", etag) for etag in (early, late, early)]
    assert len(set(results)) == office.jobs() == 1
    assert office.desk.job(results[0].job_id or 0).progress.total == 1


def test_other_options_ask_no_old_file_again(office: Office) -> None:
    job_id = office.submit("q.jsonl", lines(*GOOD))
    office.binding = replace(office.binding, binding_id=2, options=office.binding.options | {"answer": {"top_k": 7}})
    assert office.submit("q.jsonl", lines(*GOOD)) == job_id
    assert office.out() == {}


@pytest.mark.parametrize("name", ["notes.txt", "questions", "picture.png", "q.jsonl.part", "folder/"])
def test_a_file_that_is_not_a_question_file_is_ignored(office: Office, name: str) -> None:
    result = office.take(name, "0" * 32)
    assert result.reason is not None and result.reason.startswith("it is not a question file: its name does not end in")
    assert (result.job_id, office.out(), office.jobs()) == (None, {}, 0)


def test_a_missing_file_is_ignored(office: Office) -> None:
    assert office.take("gone.jsonl", "0" * 32) == InboxResult(None, "it was removed before it was read")
    assert office.out() == {}


def test_results_in_an_outbox_inside_the_inbox_are_not_submitted(office: Office) -> None:
    outbox = f"s3://{office.bucket.bucket}/inbox/answers"
    office.binding = replace(office.binding, options={"outbox": outbox})
    job_id = office.submit("q.jsonl", lines(*GOOD))
    office.answer()
    office.tick()
    assert office.bucket.exists(f"inbox/answers/q.jsonl/{job_id}/manifest.json")
    for name in ("results.jsonl", "errors.jsonl"):
        assert office.take(f"answers/q.jsonl/{job_id}/{name}", "0" * 32) == InboxResult(None, "it is in the outbox")


def test_two_inboxes_may_share_an_outbox(office: Office) -> None:
    first = office.submit("q.jsonl", lines(*GOOD))
    office.binding = replace(office.binding, binding_id=2, prefix="inbox/second/")
    second = office.submit("second/q.jsonl", lines(*GOOD))
    office.answer()
    office.tick()
    assert {key for key in office.out() if key.endswith("manifest.json")} == {
        f"q.jsonl/{job_id}/manifest.json" for job_id in (first, second)
    }


# Services that go away


@pytest.mark.parametrize("point", ["results.jsonl", "errors.jsonl", "manifest.json"])
def test_a_crash_before_the_manifest_is_repaired_by_the_next_tick(office: Office, point: str) -> None:
    job_id = office.submit("q.jsonl", lines(*GOOD))
    office.answer()
    office.objects.away_at = point
    assert office.tick() == 0
    before = office.out()
    assert f"q.jsonl/{job_id}/manifest.json" not in before
    assert office.desk.job(job_id).result is None
    office.objects.away_at = "no object"
    assert office.tick() == 1
    after = office.out()
    assert len(after) == 3
    assert all(after[key] == content for key, content in before.items()), "the same bytes again"
    assert office.tick() == 0


def test_an_outbox_that_is_not_there_costs_no_result(office: Office) -> None:
    office.binding = replace(office.binding, options={"outbox": "s3://no-such-bucket/outbox/"})
    job_id = office.submit("q.jsonl", lines(*GOOD))
    office.answer()
    assert office.tick() == 1
    result = office.desk.job(job_id).result or {}
    assert "there is no bucket no-such-bucket" in result["outbox"]["error"]
    assert office.objects.exists(f"jobs/{job_id}/results.jsonl")
    assert office.tick() == 0
    assert office.take("bad.jsonl", office.put("bad.jsonl", "")).job_id is None


def test_a_store_that_is_away_is_worth_a_retry(office: Office, settings: Settings) -> None:
    etag = office.put("q.jsonl", lines(*GOOD))
    healthy = office.objects
    office.objects = Store(settings.model_copy(update={"s3_endpoint": "127.0.0.1:9", "s3_socket": None}))
    with pytest.raises(ServiceUnavailable):
        office.take("q.jsonl", etag)
    office.objects = Store(settings.model_copy(update={"s3_access_key": "stranger"}))
    with pytest.raises(ServiceUnavailable, match="check RAGLLAVA_S3_ACCESS_KEY"):
        office.take("q.jsonl", etag)
    office.objects = healthy
    assert office.take("q.jsonl", etag).job_id is not None
