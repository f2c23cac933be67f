"""Messages that a worker drops: they come twice, late, or from elsewhere, and must cost next to nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, event, text

from ragllava.jobs.kinds import KINDS
from ragllava.records import JobKind
from ragllava.settings import Settings
from ragllava.stages.resources import Resources
from ragllava.stores.jobs import workers
from tests.support.job_rows import WORKER, Desk, without_ticks
from workers import runtime
from workers.app import MESSAGE_VERSION
from workers.runtime import Runtime, run_message


def statements(engine: Engine, work: Callable[[], object]) -> int:
    """How many statements `work` executes, without those that begin and end transactions."""
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        work()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return len(seen)


@pytest.fixture
def desk(engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A live worker, which this process is."""
    process = Runtime(settings, engine, Resources(settings))
    monkeypatch.setattr(runtime, "runtime", lambda: process)
    desk = Desk(engine, without_ticks(settings))
    desk.live_worker(slots=1)
    return desk


@pytest.mark.parametrize("version", [MESSAGE_VERSION, MESSAGE_VERSION + 1])
def test_a_message_that_is_dropped_dispatches_nothing(desk: Desk, version: int) -> None:
    desk.questions_job(2, per_shard=1)
    lease = desk.claim_next()
    desk.answer(lease)
    pending = desk.ids("pending")
    cost = statements(desk.engine, lambda: run_message(lease.shard_id, version, WORKER))
    assert desk.ids("pending") == pending, "nothing has changed that could be dispatched"
    assert cost <= 5


def test_a_shard_that_its_worker_cannot_do_is_dispatched_again(desk: Desk) -> None:
    job_id = desk.questions_job(2, per_shard=1)
    desk.live_worker("other@test")
    [first, second] = desk.dispatch()[:2]
    with desk.engine.begin() as connection:
        workers.note_refusal(connection, WORKER, job_id, "a test")
    run_message(first, MESSAGE_VERSION, WORKER)
    assert desk.ids("queued") == [first, second]


@pytest.mark.parametrize("newer", ["message", "kind"])
def test_what_only_newer_workers_can_do_costs_its_shard_no_attempt(
    desk: Desk, newer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old and new workers beside each other: what the old ones drop is sent again, until a new one gets it."""
    desk.questions_job(1, per_shard=1)
    [shard] = desk.dispatch()
    with monkeypatch.context() as old:
        if newer == "kind":
            old.delitem(KINDS, JobKind.ANSWER)
        run_message(shard, MESSAGE_VERSION + (newer == "message"), WORKER)
    assert desk.ids("queued") == [shard]
    with desk.engine.begin() as connection:
        connection.execute(text("UPDATE shards SET queued_at = now() - interval '1 hour'"))
    assert desk.dispatch() == [shard]
    lease = desk.claim(shard)
    assert lease is not None
    desk.answer(lease)
    with desk.engine.begin() as connection:
        assert connection.execute(text("SELECT state, attempts, error FROM shards")).one() == ("done", 1, None)
