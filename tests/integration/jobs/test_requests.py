"""Requests that somebody waits for: before all bulk work, on the same workers, and gone soon."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, Engine, func, select, text

from ragllava.jobs import control, dispatch, queue, views
from ragllava.jobs.kinds import kinds_beside
from ragllava.settings import Settings
from ragllava.stages.requests.submit import submit_request
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stores.database import in_transaction
from ragllava.stores.jobs import requests
from ragllava.stores.jobs.requests import Fault, Operation
from ragllava.stores.objects import ObjectStore
from ragllava.stores.schema import jobs
from tests.support.job_rows import Desk, without_ticks
from tests.support.plans import visited_rows

BODY = {"pairs": [{"question": "What?", "document": 0, "caption": "a secret caption"}]}


@pytest.fixture
def desk(engine: Engine, settings: Settings) -> Desk:
    desk = Desk(engine, without_ticks(settings))
    desk.live_worker()
    return desk


def submit(desk: Desk) -> int:
    return in_transaction(desk.engine, submit_request, Operation.SCORE, BODY, None)


def stored(connection: Connection) -> str:
    return str(connection.scalar(text("SELECT json_agg(requests)::text FROM requests")))


def test_a_bulk_shard_gives_way_to_a_request(desk: Desk) -> None:
    assert (
        sorted(kinds_beside("answer")) == ["answer", "request"]
        and kinds_beside("request") == kinds_beside("ingest") == []
    )
    desk.questions_job(100, 10)
    bulk = desk.claim_next()
    with desk.engine.begin() as connection:
        assert not queue.watch(connection, bulk).urgent_waits
    job_id = submit(desk)
    with desk.engine.begin() as connection:
        assert queue.watch(connection, bulk).urgent_waits
        shard_id = dispatch.take_urgent(connection, bulk.kind)
    assert shard_id is not None
    lease = desk.claim(shard_id)
    assert lease is not None and (lease.job_id, lease.kind) == (job_id, "request")


def test_nothing_of_a_body_stays_behind_an_outcome(desk: Desk) -> None:
    done, failed, cancelled = submit(desk), submit(desk), submit(desk)
    with desk.engine.begin() as connection:
        assert "a secret caption" in stored(connection)
        requests.finish_request(connection, done, {"relevances": [0.5]})
        requests.fail_request(connection, failed, "no picture")
        control.cancel(connection, cancelled)
        assert "a secret caption" not in stored(connection)
        assert requests.load_request(connection, done) is None
        outcome = requests.load_outcome(connection, failed)
        assert (outcome.reason, outcome.code) == ("no picture", Fault.OF_REQUEST)
        assert requests.load_outcome(connection, cancelled).code is None


def test_an_ended_request_is_deleted_when_its_end_was_seen_to(desk: Desk) -> None:
    job_id, still_open = submit(desk), submit(desk)
    with desk.engine.begin() as connection:
        control.cancel(connection, job_id)
    assert in_transaction(desk.engine, requests.delete_old, 0.0) == 0  # it has no result yet
    publish_missing_results(desk.engine, ObjectStore(desk.settings))
    assert in_transaction(desk.engine, requests.delete_old, 3_600.0) == 0
    assert in_transaction(desk.engine, requests.delete_old, 0.0) == 1
    with desk.engine.begin() as connection:
        assert list(connection.scalars(select(jobs.c.id))) == [still_open]
        assert connection.scalar(select(func.count()).select_from(jobs).where(jobs.c.kind == "request")) == 1


def test_requests_are_listed_only_while_they_are_open(desk: Desk) -> None:
    bulk, job_id = desk.questions_job(1, 1), submit(desk)
    with desk.engine.begin() as connection:
        assert {job.job_id for job in views.list_jobs(connection, only_open=True)} == {bulk, job_id}
        assert [job.job_id for job in views.list_jobs(connection)] == [bulk]
        assert [job.job_id for job in views.list_jobs(connection, kind="request")] == [job_id]
        assert views.latest(connection) == bulk


def test_old_requests_are_looked_for_among_requests_only(desk: Desk) -> None:
    """It is asked at each tick, and jobs of other kinds stay for months."""
    job_id = submit(desk)
    with desk.engine.begin() as connection:
        requests.finish_request(connection, job_id, {"relevances": []})
        connection.execute(
            text(
                "INSERT INTO jobs (kind, state, priority, spec, total, spec_digest, result, finished_at) "
                "SELECT 'answer', 'completed', 0, '{}', 1, 'd', '{}', now() - interval '1 day' "
                "FROM generate_series(1, 5000)"
            )
        )
        ended = text("UPDATE jobs SET finished_at = now() - interval '1 day', result = '{}' WHERE id = :id")
        connection.execute(ended, {"id": job_id})
    visited = visited_rows(desk.engine, lambda connection: requests.delete_old(connection, 3_600.0))
    assert max(each.rows for each in visited) < 100
    assert in_transaction(desk.engine, requests.delete_old, 3_600.0) == 1
