"""Jobs whose workers are killed, whose broker is emptied and whose questions fail. Nothing is mocked."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path

import pytest
import redis
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.pool import NullPool

from ragllava import vital_signs
from ragllava.jobs.states import JobState
from ragllava.postcards.archive import draw_archive, write_archive
from ragllava.records import AnswerOptions, AnswerStatus
from ragllava.stages.answer.question_files import read_questions
from ragllava.stages.answer.submit import Submission, submit_questions
from ragllava.stores.archives.archive import ensure_archive
from ragllava.stores.database import in_transaction
from ragllava.stores.schema import answers, shards
from tests.acceptance.conftest import FRAGILE, Cluster
from tests.support.held_questions import held_questions, let_go
from tests.support.waiting import wait_for

pytestmark = pytest.mark.acceptance


def write_questions(path: Path, texts: list[str]) -> Path:
    lines = (json.dumps({"custom_id": f"q{number}", "question": text}) for number, text in enumerate(texts))
    path.write_text("\n".join(lines))
    return path


def submit(cluster: Cluster, tmp_path: Path, texts: list[str]) -> int:
    with cluster.client.engine.begin() as connection:
        ensure_archive(connection, "test")
    return cluster.client.questions.submit(write_questions(tmp_path / "q.jsonl", texts), "test").job_id


def count_answers(cluster: Cluster) -> int:
    with cluster.client.engine.begin() as connection:
        return connection.scalar(select(func.count()).select_from(answers)) or 0


def has_answers(cluster: Cluster, number: int) -> bool:
    return count_answers(cluster) >= number


def flush_redis(cluster: Cluster) -> None:
    with redis.Redis.from_url(cluster.settings.require_redis()) as broker:
        broker.flushdb()


def start_fragile(cluster: Cluster, *names: str) -> None:
    for name in names:
        cluster.start(name, "query", FRAGILE)
    cluster.start("maint", "maint", FRAGILE, ticks=True)
    cluster.wait_ready(*names)


@pytest.mark.timeout(600)
def test_300_questions_survive_three_killed_workers_and_two_emptied_brokers(cluster: Cluster, tmp_path: Path) -> None:
    """The real models answer; afterwards every question has exactly one answer, and the right one."""
    archive = draw_archive(seed=51, images=80, questions=300)
    written = write_archive(tmp_path / "postcards", archive)
    cluster.start("maint", "maint", ticks=True)
    cluster.start("ingest", "ingest")
    for name in ("first", "second"):
        cluster.start(name, "query")
    cluster.wait_ready("ingest", "first", "second")
    ingested = cluster.client.archives.ingest([written.pictures], "postcards", written.captions)
    assert cluster.client.jobs.wait(ingested.job_id, timeout_s=120).progress.by_status == {"stored": 80}
    cluster.terminate("ingest")

    options = AnswerOptions(top_k=2)
    job_id = cluster.client.questions.submit(written.questions, "postcards", options).job_id
    faults = [(20, "kill first"), (60, "flush"), (100, "kill second"), (150, "flush"), (200, "kill first")]
    for after, fault in faults:
        wait_for(f"{after} answers", partial(has_answers, cluster, after), 240)
        if fault == "flush":
            flush_redis(cluster)
        else:
            name = fault.removeprefix("kill ")
            cluster.kill(name)
            cluster.start(name, "query")
    job = cluster.client.jobs.wait(job_id, timeout_s=240)

    assert job.state == JobState.COMPLETED
    assert sum(job.progress.by_status.values()) == 300
    rows = list(cluster.client.questions.results(job_id))
    assert [row.custom_id for row in rows] == [line["custom_id"] for line in read_lines(written.questions)]
    with cluster.client.engine.begin() as connection:
        assert connection.scalar(select(func.count()).select_from(answers)) == 300
        assert connection.scalar(text("SELECT count(DISTINCT question_no) FROM answers")) == 300
        crashed = connection.scalar(select(func.count()).select_from(shards).where(shards.c.epoch > 1))
    assert crashed, "the faults hit no shard: the test shows nothing"

    again_id = cluster.client.questions.submit(written.questions, "postcards", options).job_id
    assert cluster.client.jobs.wait(again_id, timeout_s=240).state == JobState.COMPLETED
    undisturbed = {row.custom_id: (row.status, row.answer) for row in cluster.client.questions.results(again_id)}
    assert {row.custom_id: (row.status, row.answer) for row in rows} == undisturbed


def read_lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_poisonous_question_ends_alone_as_dead(cluster: Cluster, tmp_path: Path) -> None:
    start_fragile(cluster, "answer")
    job_id = submit(cluster, tmp_path, [f"question {n}{' POISON' if n == 5 else ''}" for n in range(16)])
    job = cluster.client.jobs.wait(job_id, timeout_s=200)
    assert job.progress.by_status == {"answered": 15, "dead": 1}
    assert job.state == JobState.COMPLETED_WITH_ERRORS
    [dead] = [row for row in cluster.client.questions.results(job_id) if row.status is AnswerStatus.DEAD]
    assert dead.custom_id == "q5"
    assert dead.error is not None and "given up after 4 attempts" in dead.error


def test_a_question_that_raises_is_dead_alone_with_the_reason(cluster: Cluster, tmp_path: Path) -> None:
    start_fragile(cluster, "answer")
    job_id = submit(cluster, tmp_path, ["one", "two BROKEN", "three", "four"])
    job = cluster.client.jobs.wait(job_id, timeout_s=120)
    assert job.progress.by_status == {"answered": 3, "dead": 1}
    [dead] = [row for row in cluster.client.questions.results(job_id) if row.status is AnswerStatus.DEAD]
    assert dead.custom_id == "q1"
    assert dead.error is not None and "a bug that only this question shows" in dead.error


def wanted(cluster: Cluster) -> int:
    """How many shards need a worker, as whatever starts and stops workers sees it."""
    engine = create_engine(cluster.settings.require_database_owner(), poolclass=NullPool)
    with engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT ragllava_scale('query')").scalar_one())


def probed(cluster: Cluster, name: str) -> list[str | None]:
    """What `ragllava-probe` says to each question; None is yes."""
    return [vital_signs.problem(cluster.settings.home, f"{name}@test", question) for question in vital_signs.QUESTIONS]


def test_workers_go_to_zero_and_come_back_without_a_lost_shard(cluster: Cluster, tmp_path: Path) -> None:
    """Each is stopped by SIGTERM: one while it works, one when nothing is left to do."""
    start_fragile(cluster)
    assert wanted(cluster) == 0
    job_id = submit(cluster, tmp_path, held_questions(6, free=2))
    assert wanted(cluster) == 1, "there is no worker yet"
    assert all(probed(cluster, "answer"))
    cluster.start("answer", "query", FRAGILE)
    cluster.wait_ready("answer")
    wait_for("the probes", lambda: probed(cluster, "answer") == [None, None, None])
    wait_for("two answers", lambda: count_answers(cluster) >= 2)
    assert wanted(cluster) == 1, "it works"
    assert cluster.terminate("answer") == 0
    assert all(probed(cluster, "answer"))
    assert count_answers(cluster) == 2
    with cluster.client.engine.begin() as connection:
        states = connection.execute(select(shards.c.state, shards.c.attempts)).all()
    assert [tuple(row) for row in states] == [("pending", 0)]
    assert wanted(cluster) == 1, "it was handed back"
    let_go(cluster.settings)
    cluster.start("next", "query", FRAGILE)
    job = cluster.client.jobs.wait(job_id, timeout_s=120)
    assert job.progress.by_status == {"answered": 6}
    assert (count_answers(cluster), wanted(cluster)) == (6, 0)
    assert cluster.terminate("next") == 0


def test_a_frozen_worker_loses_its_lease_and_writes_nothing_when_it_wakes(cluster: Cluster, tmp_path: Path) -> None:
    start_fragile(cluster, "frozen")
    job_id = submit(cluster, tmp_path, held_questions(6, free=1))
    wait_for("an answer", lambda: count_answers(cluster) >= 1)
    child = cluster.child("frozen")
    child.send_signal(signal.SIGSTOP)
    let_go(cluster.settings)
    cluster.start("other", "query", FRAGILE)
    job = cluster.client.jobs.wait(job_id, timeout_s=120)
    child.send_signal(signal.SIGCONT)
    assert job.progress.by_status == {"answered": 6}
    wait_for("the frozen worker to notice", lambda: "shard_fenced" in cluster.log("frozen"))
    assert count_answers(cluster) == 6


def test_one_question_overtakes_a_bulk_job(cluster: Cluster, tmp_path: Path) -> None:
    start_fragile(cluster, "answer")
    bulk = submit(cluster, tmp_path, held_questions(64, free=1))
    wait_for("the bulk job to begin", lambda: count_answers(cluster) >= 1)
    row = cluster.client.questions.ask("quick?", "test", timeout_s=120)
    assert row.answer == "quick?"
    with cluster.client.engine.begin() as connection:
        of_bulk = select(shards.c.state, shards.c.epoch).where(shards.c.job_id == bulk, shards.c.epoch > 0)
        begun = connection.execute(of_bulk).all()
    assert [tuple(shard) for shard in begun] == [("running", 1)], "the question waited for the end of a shard"
    assert not cluster.client.jobs.get(bulk).is_final
    cluster.client.jobs.cancel(bulk)
    job = cluster.client.jobs.wait(bulk, timeout_s=120)
    assert job.state == JobState.CANCELLED
    assert job.progress.by_status == {"answered": 1, "cancelled": 63}


def test_pause_stops_a_running_job_and_resume_finishes_it(cluster: Cluster, tmp_path: Path) -> None:
    start_fragile(cluster, "answer")
    job_id = submit(cluster, tmp_path, held_questions(6, free=1))
    wait_for("an answer", lambda: count_answers(cluster) >= 1)
    cluster.client.jobs.pause(job_id)
    wait_for("the shard to be handed back", lambda: not cluster.client.jobs.troubled_shards(job_id))
    assert count_answers(cluster) == 1
    let_go(cluster.settings)
    cluster.client.jobs.resume(job_id)
    assert cluster.client.jobs.wait(job_id, timeout_s=120).progress.by_status == {"answered": 6}


def test_a_job_whose_message_was_never_sent_is_found_by_the_tick(cluster: Cluster, tmp_path: Path) -> None:
    """The state after a submitter that died between its commit and its publish."""
    start_fragile(cluster, "answer")
    with cluster.client.engine.begin() as connection:
        ensure_archive(connection, "test")
    file = read_questions(write_questions(tmp_path / "q.jsonl", ["one", "two"]), name="q.jsonl")
    job_id = in_transaction(cluster.client.engine, submit_questions, cluster.settings, file, Submission("test")).job_id
    assert cluster.client.jobs.wait(job_id, timeout_s=120).progress.by_status == {"answered": 2}
