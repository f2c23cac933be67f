"""Workers, reapers and people at one job at once: nobody waits in a circle, and nobody waits for a large job."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from sqlalchemy import Connection, event, select, text, update

from ragllava.errors import LeaseLost
from ragllava.jobs import closing, control, deadlines, dispatch, ending, queue, stopping, views
from ragllava.jobs.deadlines import JobLimits
from ragllava.jobs.locking import lock_job
from ragllava.jobs.retry import Limits
from ragllava.jobs.states import JobState
from ragllava.settings import Settings
from ragllava.stores.database import in_transaction, make_engine
from ragllava.stores.schema import jobs, shards
from tests.support.job_rows import Desk, without_ticks

WORKERS = 8
ROUNDS = 5


@pytest.fixture
def desk(settings: Settings) -> Iterator[Desk]:
    engine = make_engine(settings.require_database(), pool_size=WORKERS, name="locks")
    desk = Desk(engine, without_ticks(settings))
    desk.live_worker(slots=WORKERS)
    yield desk
    engine.dispose()


def at_once(desk: Desk, works: list[Callable[[Connection], object]]) -> None:
    """Each in a transaction of its own, all begun before the first statement; errors are raised."""
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[Connection], object]) -> None:
        with desk.engine.begin() as connection:
            connection.execute(text("SELECT 1"))
            barrier.wait()
            work(connection)

    with ThreadPoolExecutor(len(works)) as threads:
        list(threads.map(run, works))


def test_workers_that_fail_at_once_halve_their_shards_without_a_deadlock(desk: Desk) -> None:
    limits = Limits(max_attempts=1, max_transient_attempts=1, backoff_s=0.0)
    for _ in range(ROUNDS):
        job_id = desk.questions_job(4 * WORKERS, per_shard=4)
        leases = [desk.claim(shard_id) for shard_id in desk.dispatch()[:WORKERS]]
        at_once(desk, [partial(queue.fail, lease=lease, error="broken", limits=limits) for lease in leases if lease])
        with desk.engine.begin() as connection:
            of_job = select(shards.c.state).where(shards.c.job_id == job_id)
            states = sorted(connection.scalars(of_job.order_by(shards.c.id)))
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(state="paused"))
        assert states == ["pending"] * 2 * WORKERS + ["split"] * WORKERS


def test_the_first_claim_of_a_job_and_its_pause_do_not_wait_in_a_circle(desk: Desk) -> None:
    for _ in range(3 * ROUNDS):
        job_id = desk.questions_job(1, per_shard=1)
        [shard_id] = desk.dispatch()
        claim = partial(queue.claim, shard_id=shard_id, worker="worker", lease_s=60.0)
        at_once(desk, [claim, partial(control.pause, job_id=job_id)])
        assert desk.job(job_id).state == JobState.PAUSED


def test_a_heartbeat_that_waits_for_the_end_of_its_lease_spends_nothing(
    desk: Desk, wait_for_waiter: Callable[[], None]
) -> None:
    """What the job has used of its budget is what its shards have, also when a worker is late."""
    job_id = desk.questions_job(1, per_shard=1, limits=JobLimits(max_gpu_s=10.0))
    lease = desk.claim_next()
    with ThreadPoolExecutor(1) as threads:
        with desk.engine.begin() as connection:
            lock_job(connection, job_id)
            late = threads.submit(in_transaction, desk.engine, queue.heartbeat, lease, 60.0, 3.0)
            wait_for_waiter()
            queue.fail(connection, lease, "its lease is over", Limits.of(desk.settings))
        assert isinstance(late.result(), LeaseLost)
    assert in_transaction(desk.engine, deadlines.remaining_of, job_id).gpu_left_s == 10.0


def test_a_claim_that_waits_for_a_pause_has_locked_nothing(desk: Desk, wait_for_waiter: Callable[[], None]) -> None:
    """The order that made a circle: the pause has the job's row, and then wants the shard's."""
    job_id = desk.questions_job(1, per_shard=1)
    [shard_id] = desk.dispatch()
    with ThreadPoolExecutor(1) as threads:
        with desk.engine.begin() as connection:
            lock_job(connection, job_id)
            claimed = threads.submit(desk.claim, shard_id)
            wait_for_waiter()
            control.pause(connection, job_id)
        assert claimed.result() is None


def test_shards_are_added_to_a_job_whose_row_is_locked(desk: Desk) -> None:
    job_id = desk.questions_job(2, per_shard=2)
    with desk.engine.begin() as locking:
        lock_job(locking, job_id)
        with desk.engine.begin() as connection:
            connection.execute(text("SET LOCAL lock_timeout = 500"))
            queue.insert_shards(connection, job_id, 1, [(0, 1)])


# Large jobs


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a job of 20 inputs were large."""
    monkeypatch.setattr(stopping, "ENDED_AT_ONCE", 4)
    monkeypatch.setattr(control, "ENDED_AT_ONCE", 4)
    monkeypatch.setattr(closing, "COUNTED_AT_ONCE", 4)


@pytest.mark.usefixtures("small_parts")
def test_a_large_job_is_cancelled_in_parts_while_its_row_is_free(desk: Desk) -> None:
    job_id = desk.questions_job(20, per_shard=2)
    desk.answer(desk.claim_next())
    running = desk.claim_next()
    with desk.engine.begin() as connection:
        control.cancel(connection, job_id)
    with desk.engine.begin() as connection:
        assert stopping.stop_waiting_shards(connection, job_id)
        with desk.engine.begin() as elsewhere:
            elsewhere.execute(text("SET LOCAL lock_timeout = 500"))
            assert lock_job(elsewhere, job_id) is not None
    assert desk.job(job_id).progress.by_status == {"answered": 2, "cancelled": 4}
    assert not ending.end_job(desk.engine, job_id)  # a shard is running
    with desk.engine.begin() as connection:
        queue.hand_back(connection, running)
    assert ending.end_jobs(desk.engine) == 1
    job = desk.job(job_id)
    assert (job.state, job.progress.by_status) == (JobState.CANCELLED, {"answered": 2, "cancelled": 18})


@pytest.mark.usefixtures("small_parts")
def test_a_large_job_is_closed_by_the_next_tick(desk: Desk) -> None:
    job_id = desk.questions_job(6, per_shard=2)
    desk.drain()
    assert desk.job(job_id).state == JobState.RUNNING
    assert ending.end_jobs(desk.engine) == 1
    assert ending.end_jobs(desk.engine) == 0
    job = desk.job(job_id)
    assert (job.state, job.progress.by_status) == (JobState.COMPLETED, {"answered": 6})


@pytest.mark.usefixtures("small_parts")
def test_a_refused_large_job_ends_with_the_reason_of_the_refusal(desk: Desk) -> None:
    job_id = desk.questions_job(20, per_shard=2)
    lease = desk.claim_next()
    with desk.engine.begin() as connection:
        assert control.refuse(connection, lease, "wrong retriever", desk.settings)
    ending.end_refused(desk.engine, lease.job_id, lease.kind, "wrong retriever")
    job = desk.job(job_id)
    assert (job.state, job.error) == (JobState.FAILED, "wrong retriever")
    assert job.progress.by_status == {"failed": 20}


def test_an_ended_job_is_not_counted_again(desk: Desk) -> None:
    job_id = desk.questions_job(3, per_shard=3)
    desk.drain()
    statements: list[str] = []

    def record(_connection: Connection, _cursor: object, statement: str, *_facts: object) -> None:
        statements.append(statement)

    event.listen(desk.engine, "before_cursor_execute", record)
    with desk.engine.begin() as connection:
        assert views.view(connection, job_id).progress.by_status == {"answered": 3}
        assert [job.progress.done for job in views.list_jobs(connection)] == [3]
    assert statements and not [statement for statement in statements if "answers" in statement]


# A part that fails holds up nothing else


def test_a_shard_that_cannot_be_reaped_stops_neither_the_others_nor_dispatch(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_REAPING_S", 60.0)
    broken = desk.questions_job(2, per_shard=2)
    other = desk.questions_job(2, per_shard=2)
    leases = {lease.job_id: lease for lease in map(desk.claim, desk.dispatch()) if lease}
    desk.expire_leases()
    real = queue.settle

    def settle(connection: Connection, row: object, *args: object, **kwargs: object) -> None:
        if row.job_id == broken:  # type: ignore[attr-defined]
            connection.execute(text("SET LOCAL statement_timeout = 10"))
            connection.execute(text("SELECT pg_sleep(5)"))
        real(connection, row, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(dispatch, "settle", settle)
    waiting = desk.questions_job(1, per_shard=1)
    published: list[int] = []
    dispatch.reap_and_dispatch(
        desk.engine, desk.settings, lambda messages: published.extend(message.shard_id for message in messages)
    )
    assert leases[other].shard_id in published
    assert len(published) == 2 and leases[broken].shard_id not in published
    with desk.engine.begin() as connection:
        [trouble] = views.troubled_shards(connection, broken)
        assert trouble.error is not None and "statement timeout" in trouble.error
        assert connection.scalar(select(shards.c.state).where(shards.c.job_id == waiting)) == "queued"
    monkeypatch.undo()
    desk.expire_leases()
    assert desk.dispatch() == [leases[broken].shard_id]


def test_reaping_takes_back_a_shard_however_slow_the_database_is(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.questions_job(2, per_shard=1)
    for shard_id in desk.dispatch():
        desk.claim(shard_id)
    desk.expire_leases()
    monkeypatch.setattr(dispatch, "_REAPING_S", 0.0)
    assert [dispatch.reap(desk.engine, desk.settings) for _ in range(3)] == [1, 1, 0]


def test_a_job_that_cannot_be_ended_does_not_hold_up_the_others(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "COUNTED_AT_ONCE", 0)
    first, second = desk.questions_job(1, per_shard=1), desk.questions_job(1, per_shard=1)
    desk.drain()
    with desk.engine.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.id == first).values(kind="of a later version"))
    assert ending.end_jobs(desk.engine) == 1
    assert desk.job(second).state == JobState.COMPLETED
