"""Result files in the object store, and what the Python client makes of results."""

from __future__ import annotations

import csv
import hashlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from sqlalchemy import Engine, text

from ragllava.client import Client, SavedResults
from ragllava.errors import LineError, ServiceUnavailable, UsageError
from ragllava.jobs import control, queue
from ragllava.jobs.control import NewJob
from ragllava.jobs.kinds import kind_of
from ragllava.jobs.states import JobState
from ragllava.jobs.views import JobView
from ragllava.records import Answer, AnswerStatus, JobKind, Question, Role, TaskName
from ragllava.settings import Settings
from ragllava.source_files import SourceFile
from ragllava.stages.answer.question_files import QuestionFile
from ragllava.stages.answer.submit import Submission, submit_questions
from ragllava.stages.ingest.submit import submit_files
from ragllava.stages.maintenance.stage import submit_task
from ragllava.stages.results import finalize, results
from ragllava.stages.results.finalize import publish_missing_results, publish_result, result_lock
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction
from ragllava.stores.jobs import answers, outcomes, requests
from ragllava.stores.jobs.outcomes import Reconciliation
from ragllava.stores.maintenance.faults import list_faults, record
from ragllava.stores.objects import ObjectStore
from ragllava.stores.schema import reindexed
from ragllava.training.request import TrainingRequest, create_job
from tests.support.job_rows import Desk
from tests.support.watched_store import WatchedStore, watched_store


@pytest.fixture
def desk(engine: Engine, settings: Settings) -> Desk:
    desk = Desk(engine, settings.model_copy(update={"tick_s": 600.0}))
    desk.live_worker(slots=8)
    return desk


@pytest.fixture
def objects(settings: Settings) -> ObjectStore:
    return ObjectStore(settings)


def a_job(desk: Desk, good: int, bad: int = 0) -> int:
    """A job of good lines and then invalid ones; its questions are open."""
    with desk.engine.begin() as connection:
        archive.ensure_archive(connection, "test")
    valid = [Question(n, n + 1, f"q{n}", f"question {n}?") for n in range(good)]
    invalid = [LineError("empty_question", n + 1, "the question is empty") for n in range(good, good + bad)]
    file = QuestionFile("questions.jsonl", [*valid, *invalid])
    return in_transaction(
        desk.engine, submit_questions, desk.settings, file, Submission("test", skip_invalid=True)
    ).job_id


def answer_all(desk: Desk, failing: tuple[int, ...] = ()) -> None:
    """Do what a worker would; the questions named fail."""
    while ready := desk.ids("queued") or desk.dispatch():
        lease = desk.claim(ready[0])
        assert lease is not None
        with desk.engine.begin() as connection:
            found = answers.open_questions(connection, lease.job_id, lease.run_no, lease.lo, lease.hi)
            results = [
                Answer(q.question_no, AnswerStatus.FAILED, error_code="ScoreRejected", error="no number")
                if q.question_no in failing
                else Answer(q.question_no, AnswerStatus.ANSWERED, text=f"answer {q.question_no}", confidence=0.5)
                for q in found
            ]
            answers.insert_answers(connection, lease.job_id, lease.run_no, lease.shard_id, lease.epoch, results)
            queue.finish(connection, lease)


def retry(desk: Desk, job_id: int) -> None:
    with desk.engine.begin() as connection:
        control.retry(connection, job_id, per_shard=16)


def json_lines(objects: ObjectStore, key: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in objects.get(key).splitlines()]


def check_files(desk: Desk, objects: ObjectStore, job_id: int) -> dict[str, Any]:
    """The manifest, after checking that it is in the database too and tells the truth about the files."""
    manifest: dict[str, Any] = json.loads(objects.get(f"jobs/{job_id}/manifest.json"))
    job = desk.job(job_id)
    assert manifest == job.result
    assert (manifest["job"], manifest["state"]) == (job_id, job.state)
    assert sum(manifest["counts"].values()) == manifest["total"] == job.progress.total
    assert manifest["counts"] == job.progress.by_status
    for name, facts in manifest["files"].items():
        data = objects.get(facts["key"])
        assert facts["key"] == f"jobs/{job_id}/{name}"
        assert facts["sha256"] == hashlib.sha256(data).hexdigest()
        assert facts["lines"] == len(data.splitlines())
    return manifest


# Result files


def test_every_line_is_in_the_files_and_the_manifest_adds_up(desk: Desk, objects: ObjectStore) -> None:
    job_id = a_job(desk, good=5, bad=2)
    answer_all(desk, failing=(3,))
    assert publish_missing_results(desk.engine, objects) == 1
    manifest = check_files(desk, objects, job_id)
    assert manifest["state"] == JobState.COMPLETED_WITH_ERRORS
    assert manifest["counts"] == {"answered": 4, "failed": 3}
    results = json_lines(objects, f"jobs/{job_id}/results.jsonl")
    assert [line["line"] for line in results] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["answer"] for line in results] == ["answer 0", "answer 1", "answer 2", None, "answer 4", None, None]
    assert json_lines(objects, f"jobs/{job_id}/errors.jsonl") == [
        {"custom_id": "q3", "line": 4, "code": "ScoreRejected", "message": "no number"},
        {"custom_id": None, "line": 6, "code": "empty_question", "message": "the question is empty"},
        {"custom_id": None, "line": 7, "code": "empty_question", "message": "the question is empty"},
    ]
    assert publish_missing_results(desk.engine, objects) == 0


def test_a_job_that_another_process_finishes_keeps_its_fault(desk: Desk, objects: ObjectStore) -> None:
    job_id = a_job(desk, good=2)
    answer_all(desk)
    in_transaction(desk.engine, record, "results", f"job {job_id}", "an earlier attempt", 60.0)
    with result_lock(desk.engine, job_id):
        assert publish_missing_results(desk.engine, objects) == 0
    assert [fault.subject for fault in in_transaction(desk.engine, list_faults)] == [f"job {job_id}"]
    assert publish_missing_results(desk.engine, objects) == 1
    assert in_transaction(desk.engine, list_faults) == []


def test_a_job_without_errors_has_an_empty_error_file(desk: Desk, objects: ObjectStore) -> None:
    job_id = a_job(desk, good=2)
    answer_all(desk)
    publish_missing_results(desk.engine, objects)
    assert check_files(desk, objects, job_id)["files"]["errors.jsonl"]["lines"] == 0


def test_only_ended_jobs_have_files(desk: Desk, objects: ObjectStore) -> None:
    running = a_job(desk, good=2)
    assert publish_missing_results(desk.engine, objects) == 0
    assert list(objects.list_objects("jobs/")) == []
    with desk.engine.begin() as connection:
        control.cancel(connection, running)
    assert publish_missing_results(desk.engine, objects) == 1
    assert check_files(desk, objects, running)["counts"] == {"cancelled": 2}


def test_a_long_job_is_written_page_by_page(desk: Desk, objects: ObjectStore) -> None:
    job_id = a_job(desk, good=1203)
    with desk.engine.begin() as connection:
        control.cancel(connection, job_id)
    publish_missing_results(desk.engine, objects)
    check_files(desk, objects, job_id)
    lines = json_lines(objects, f"jobs/{job_id}/results.jsonl")
    assert [line["custom_id"] for line in lines] == [f"q{n}" for n in range(1203)]


def test_a_retry_writes_the_files_again(desk: Desk, objects: ObjectStore) -> None:
    job_id = a_job(desk, good=3, bad=1)
    answer_all(desk, failing=(1, 2))
    publish_missing_results(desk.engine, objects)
    retry(desk, job_id)
    assert desk.job(job_id).result is None
    answer_all(desk, failing=(2,))
    assert publish_missing_results(desk.engine, objects) == 1
    assert check_files(desk, objects, job_id)["counts"] == {"answered": 2, "failed": 2}
    results = json_lines(objects, f"jobs/{job_id}/results.jsonl")
    assert [line["status"] for line in results] == ["answered", "answered", "failed", "failed"]


def watched(desk: Desk, before_put: Callable[[str], None]) -> WatchedStore:
    return watched_store(desk.settings, before_put)


def test_the_manifest_is_written_last_and_repaired_by_the_next_tick(desk: Desk, objects: ObjectStore) -> None:
    job_id = a_job(desk, good=2)
    answer_all(desk)

    def refuse_manifest(key: str) -> None:
        if key.endswith("manifest.json"):
            raise ServiceUnavailable("object store: did not answer")

    publish_missing_results(desk.engine, watched(desk, refuse_manifest))
    assert {found.key for found in objects.list_objects("jobs/")} == {
        f"jobs/{job_id}/results.jsonl",
        f"jobs/{job_id}/errors.jsonl",
    }
    assert desk.job(job_id).result is None
    assert publish_missing_results(desk.engine, objects) == 1
    check_files(desk, objects, job_id)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("a defect"), MemoryError()], ids=repr
)
def test_one_result_that_cannot_be_made_holds_up_no_later_one(
    desk: Desk, objects: ObjectStore, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, *good = [a_job(desk, good=1) for _ in range(3)]
    answer_all(desk)
    original = results.write_results

    def full(rows: Any, path: Path, *args: Any, **kwargs: Any) -> int:
        listed = list(rows)
        if bad in made:
            raise error
        return original(iter(listed), path, *args, **kwargs)

    made: list[int] = []
    write_files = finalize.write_files

    def noted(engine: Engine, store: ObjectStore, job: JobView, counted: Reconciliation) -> dict[str, Any]:
        made[:] = [job.job_id]
        return write_files(engine, store, job, counted)

    monkeypatch.setattr(finalize, "write_results", full)
    monkeypatch.setattr(finalize, "write_files", noted)
    assert publish_missing_results(desk.engine, objects) == 2
    assert all(desk.job(job_id).result for job_id in good) and desk.job(bad).result is None
    with desk.engine.begin() as connection:
        [fault] = list_faults(connection)
    assert (fault.room, fault.subject) == ("results", f"job {bad}") and type(error).__name__ in fault.reason
    monkeypatch.undo()
    assert publish_missing_results(desk.engine, objects) == 1
    with desk.engine.begin() as connection:
        assert list_faults(connection) == []


def test_an_outbox_key_that_the_store_refuses_is_not_tried_again(desk: Desk, objects: ObjectStore) -> None:
    job_id = a_job(desk, good=1)
    address = f"s3://{objects.bucket}/" + "/".join(["f" * 200] * 6) + "/"
    outbox = {"folder": address, "source": "s3://b/in/q.jsonl", "etag": "e", "format": "jsonl"}
    objects.ensure_bucket()
    with desk.engine.begin() as connection:
        changed = text("UPDATE jobs SET spec = spec || jsonb_build_object('outbox', CAST(:outbox AS jsonb))")
        connection.execute(changed, {"outbox": json.dumps(outbox)})
    answer_all(desk)
    assert publish_missing_results(desk.engine, objects) == 1
    result = desk.job(job_id).result
    assert result is not None and "S3 allows 1,024" in result["outbox"]["error"]


def test_a_job_whose_files_cannot_be_written_holds_up_no_other(desk: Desk, objects: ObjectStore) -> None:
    first, second = a_job(desk, good=1), a_job(desk, good=1)
    answer_all(desk)

    def refuse_first(key: str) -> None:
        if key.startswith(f"jobs/{first}/"):
            raise ServiceUnavailable("object store: did not answer")

    assert publish_missing_results(desk.engine, watched(desk, refuse_first)) == 1
    assert desk.job(first).result is None
    check_files(desk, objects, second)


@pytest.mark.parametrize("at", ["results.jsonl", "manifest.json"])
def test_a_retry_while_the_files_are_written_is_not_lost(desk: Desk, objects: ObjectStore, at: str) -> None:
    """The whole second run happens between two puts of the first run's files."""
    job_id = a_job(desk, good=2)
    answer_all(desk, failing=(1,))

    def run_again(key: str) -> None:
        if key.endswith(at):
            retry(desk, job_id)
            answer_all(desk)

    publish_result(desk.engine, watched(desk, run_again), job_id)
    publish_missing_results(desk.engine, objects)
    assert check_files(desk, objects, job_id)["counts"] == {"answered": 2}


def test_a_job_that_runs_again_gets_no_result_of_before(desk: Desk, objects: ObjectStore) -> None:
    job_id = a_job(desk, good=2)
    answer_all(desk, failing=(1,))
    publish_result(desk.engine, watched(desk, lambda key: retry(desk, job_id) if "manifest" in key else None), job_id)
    assert desk.job(job_id).result is None


def test_two_ticks_at_once_write_the_same(desk: Desk, objects: ObjectStore) -> None:
    jobs = [a_job(desk, good=3, bad=1) for _ in range(3)]
    answer_all(desk)
    with ThreadPoolExecutor(2) as threads:
        for outcome in [threads.submit(publish_missing_results, desk.engine, objects) for _ in range(2)]:
            outcome.result()
    for job_id in jobs:
        assert check_files(desk, objects, job_id)["counts"] == {"answered": 3, "failed": 1}


# Reconciliation


def test_an_outcome_that_is_lost_after_the_end_fails_the_job(desk: Desk, objects: ObjectStore) -> None:
    job_id = a_job(desk, good=3)
    answer_all(desk)
    assert desk.job(job_id).state == JobState.COMPLETED
    with desk.engine.begin() as connection:
        connection.execute(text("DELETE FROM answers WHERE question_no = 1"))
    publish_missing_results(desk.engine, objects)
    manifest = json.loads(objects.get(f"jobs/{job_id}/manifest.json"))
    assert manifest["reconciled"] == {"inputs": 3, "outcomes": 2, "adds_up": False}
    assert manifest["state"] == desk.job(job_id).state == JobState.FAILED
    assert desk.job(job_id).error == "3 inputs but 2 outcomes: the job does not add up"


def one_job_of(kind: JobKind, desk: Desk) -> int:
    if kind is JobKind.ANSWER:
        return a_job(desk, good=1)
    if kind is JobKind.INGEST:
        files = [SourceFile("a.png", "file:///a.png")]
        return in_transaction(desk.engine, submit_files, desk.settings, archive_name="test", files=files)
    if kind is JobKind.MAINTENANCE:
        return in_transaction(desk.engine, submit_task, desk.settings, TaskName.VACUUM, None, {})
    with desk.engine.begin() as connection:
        found = archive.ensure_archive(connection, "test")
        if kind is JobKind.TRAIN:
            return create_job(connection, TrainingRequest(Role.RERANKER, ("test",), "mini"))[0]
        job_id, _ = control.create(
            connection, NewJob(kind, found.archive_id, {"index": None, "selection": "all"}, 1, 1)
        )
        if kind is JobKind.REQUEST:
            requests.insert_request(connection, job_id, requests.Operation.SEARCH, {})
        else:
            connection.execute(reindexed.insert().values(job_id=job_id, item_no=0))
        return job_id


@pytest.mark.parametrize("kind", list(JobKind))
def test_every_kind_of_job_is_reconciled(desk: Desk, objects: ObjectStore, kind: JobKind) -> None:
    job_id = one_job_of(kind, desk)
    with desk.engine.begin() as connection:
        assert outcomes.reconcile(connection, kind_of(kind).inputs, job_id).as_json() == {
            "inputs": 1,
            "outcomes": 0,
            "adds_up": False,
        }
        control.cancel(connection, job_id)
    publish_missing_results(desk.engine, objects)
    job = desk.job(job_id)
    assert job.state == JobState.CANCELLED
    assert job.result is not None
    assert job.result["reconciled"] == {"inputs": 1, "outcomes": 1, "adds_up": True}


# The client


@pytest.fixture
def client(desk: Desk) -> Any:
    client = Client(desk.settings)
    yield client
    client.close()


def test_results_are_saved_in_three_formats(client: Client, desk: Desk, tmp_path: Path) -> None:
    job_id = a_job(desk, good=3, bad=1)
    answer_all(desk)
    paths = [tmp_path / f"out.{ending}" for ending in ("jsonl", "csv", "parquet")]
    assert [client.questions.save_results(job_id, path) for path in paths] == [SavedResults(4, 1)] * 3
    lines = [json.loads(line) for line in paths[0].read_text().splitlines()]
    with paths[1].open(newline="", encoding="utf-8-sig") as file:
        cells = list(csv.DictReader(file))
    rows = parquet.read_table(paths[2]).to_pylist()
    expected = [("q0", "answer 0"), ("q1", "answer 1"), ("q2", "answer 2"), (None, None)]
    assert [(line["custom_id"], line["answer"]) for line in lines] == expected
    assert [(row["custom_id"], row["answer"]) for row in rows] == expected
    assert [(cell["custom_id"] or None, cell["answer"] or None) for cell in cells] == expected
    for path in paths:
        [error] = path.with_name(path.name + ".errors.jsonl").read_text().splitlines()
        assert json.loads(error)["code"] == "empty_question"


def test_without_errors_no_error_file_is_left(client: Client, desk: Desk, tmp_path: Path) -> None:
    job_id = a_job(desk, good=1)
    answer_all(desk)
    (tmp_path / "out.csv.errors.jsonl").write_text("of an earlier try")
    assert client.questions.save_results(job_id, tmp_path / "out.csv") == SavedResults(1, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_an_unknown_ending_is_refused(client: Client, desk: Desk, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in .jsonl, .csv or .parquet"):
        client.questions.save_results(a_job(desk, good=1), tmp_path / "out.xlsx")


def test_an_unknown_job_is_refused_by_number(client: Client, tmp_path: Path) -> None:
    calls: list[Callable[[], object]] = [
        lambda: client.jobs.get(77),
        lambda: client.jobs.wait(77),
        lambda: list(client.questions.results(77)),
        lambda: client.questions.save_results(77, tmp_path / "out.csv"),
        lambda: client.jobs.cancel(77),
        lambda: client.jobs.pause(77),
        lambda: client.jobs.resume(77),
        lambda: client.jobs.retry(77),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="no job 77"):
            call()


def test_an_ingest_job_has_no_answers(client: Client, desk: Desk, tmp_path: Path) -> None:
    files = [SourceFile("a.png", "file:///a.png")]
    job_id = in_transaction(desk.engine, submit_files, desk.settings, archive_name="test", files=files)
    for call in (
        lambda: list(client.questions.results(job_id)),
        lambda: client.questions.save_results(job_id, tmp_path / "out.csv"),
    ):
        with pytest.raises(UsageError, match="is an ingest job and has no answers"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_wait_gives_up_after_its_time_and_sees_the_end(client: Client, desk: Desk) -> None:
    job_id = a_job(desk, good=2)
    assert not client.jobs.wait(job_id, timeout_s=0.05, poll_s=0.01).is_final
    answer_all(desk)
    seen: list[int] = []
    job = client.jobs.wait(job_id, on_progress=lambda view: seen.append(view.progress.done), timeout_s=60)
    assert (job.state, seen) == (JobState.COMPLETED, [2])


def test_wait_tells_how_far_the_job_is_until_it_has_ended(client: Client, desk: Desk) -> None:
    job_id = a_job(desk, good=2)
    seen: list[tuple[int, bool]] = []

    def work_once_seen(view: JobView) -> None:
        seen.append((view.progress.done, view.is_final))
        answer_all(desk)

    assert client.jobs.wait(job_id, on_progress=work_once_seen, timeout_s=60, poll_s=30).state == JobState.COMPLETED
    assert seen == [(0, False), (2, True)]


def test_wait_is_told_of_the_end(client: Client, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would look again after ten minutes only."""
    monkeypatch.setattr("ragllava.client.jobs._LISTENING_PAUSE_S", 600.0)
    job_id = a_job(desk, good=2)
    worker = threading.Timer(0.3, answer_all, [desk])
    worker.start()
    assert client.jobs.wait(job_id, poll_s=600).state == JobState.COMPLETED
    worker.join()


def test_results_of_a_running_job_are_those_that_are_there(client: Client, desk: Desk) -> None:
    job_id = a_job(desk, good=3, bad=2)
    assert [(row.line, row.status) for row in client.questions.results(job_id)] == [
        (4, AnswerStatus.FAILED),
        (5, AnswerStatus.FAILED),
    ]
