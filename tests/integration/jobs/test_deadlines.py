"""Deadlines and budgets: what has no outcome when a limit is reached ends as expired, and everything adds up."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, func, select, text, update

from ragllava.errors import LeaseLost, ShardInterrupted
from ragllava.jobs import control, deadlines, ending, queue, runner, views
from ragllava.jobs.deadlines import JobLimits, Remaining
from ragllava.jobs.queue import Lease
from ragllava.jobs.runner import ShardContext, run_shard
from ragllava.jobs.states import JobState
from ragllava.records import JobKind, Priority
from ragllava.settings import Settings
from ragllava.stages.resources import Resources
from ragllava.stores.database import seconds
from ragllava.stores.schema import jobs, shards
from tests.support.job_rows import WORKER, Desk, without_ticks
from tests.support.plans import visited_rows
from tests.support.waiting import wait_for
from tests.support.workshop import stages_replaced

OTHER = "other@test"
DAY = JobLimits(within_s=86_400.0)


@pytest.fixture
def desk(engine: Engine, settings: Settings) -> Desk:
    desk = Desk(engine, without_ticks(settings))
    desk.live_worker()
    return desk


def move_deadline(desk: Desk, job_id: int, by_s: float) -> None:
    with desk.engine.begin() as connection:
        later = {"deadline_at": func.now() + seconds(by_s)}
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(later))


def test_at_the_deadline_the_rest_ends_as_expired(desk: Desk) -> None:
    job_id = desk.questions_job(6, per_shard=2, limits=DAY)
    desk.answer(desk.claim_next())
    running = desk.claim_next()
    assert running.is_limited
    assert ending.expire_due_jobs(desk.engine) == 0
    move_deadline(desk, job_id, -1.0)
    assert ending.expire_due_jobs(desk.engine) == 1
    assert ending.end_jobs(desk.engine) == 0
    job = desk.job(job_id)
    assert (job.state, job.progress.by_status) == (JobState.EXPIRING, {"answered": 2, "expired": 2})
    assert desk.dispatch() == []
    with desk.engine.begin() as connection:
        assert isinstance(queue.heartbeat(connection, running, 60.0), ShardInterrupted)
        queue.hand_back(connection, running)
    job = desk.job(job_id)
    assert (job.state, job.progress.by_status) == (JobState.COMPLETED_WITH_ERRORS, {"answered": 2, "expired": 4})
    assert job.error is not None and "the deadline" in job.error

    with desk.engine.begin() as connection:
        assert control.retry(connection, job_id, per_shard=10) == 4
    desk.drain()
    job = desk.job(job_id)
    assert (job.state, job.progress.by_status, job.deadline_at) == (JobState.COMPLETED, {"answered": 6}, None)


def test_an_answer_that_comes_right_after_the_limit_was_noticed_is_no_error(desk: Desk) -> None:
    job_id = desk.questions_job(2, per_shard=2, limits=DAY)
    lease = desk.claim_next()
    move_deadline(desk, job_id, -1.0)
    assert ending.expire_due_jobs(desk.engine) == 1
    desk.answer(lease)
    job = desk.job(job_id)
    assert (job.state, job.progress.by_status, job.error) == (JobState.COMPLETED, {"answered": 2}, None)


def test_a_paused_job_and_one_of_which_nothing_was_done_expire_too(desk: Desk) -> None:
    paused = desk.questions_job(3, per_shard=2, limits=DAY)
    desk.answer(desk.claim_next())
    with desk.engine.begin() as connection:
        control.pause(connection, paused)
    untouched = desk.questions_job(3, per_shard=2, limits=DAY)
    for job_id in (paused, untouched):
        move_deadline(desk, job_id, -1.0)
    assert ending.expire_due_jobs(desk.engine) == 2
    assert desk.job(untouched).progress.by_status == {}, "the tick goes on to reap and dispatch"
    assert ending.end_jobs(desk.engine) == 2
    assert desk.job(paused).progress.by_status == {"answered": 2, "expired": 1}
    ended = desk.job(untouched)
    assert (ended.state, ended.progress.by_status) == (JobState.FAILED, {"expired": 3})


def test_a_budget_counts_what_all_workers_were_busy(desk: Desk) -> None:
    desk.live_worker(OTHER)
    job_id = desk.questions_job(6, per_shard=2, limits=JobLimits(max_gpu_s=10.0))
    leases = [desk.claim(shard_id) for shard_id in desk.dispatch()[:2]]
    for lease, busy_s in zip(leases, (4.0, 5.5), strict=True):
        assert lease is not None
        with desk.engine.begin() as connection:
            queue.heartbeat(connection, lease, 60.0, busy_s)
    assert ending.expire_due_jobs(desk.engine) == 0
    with desk.engine.begin() as connection:
        assert deadlines.room_of(connection, job_id).gpu_left_s == pytest.approx(0.5)
        assert leases[0] is not None and leases[1] is not None
        assert queue.finish(connection, leases[0], 0.75)
        assert deadlines.remaining_of(connection, job_id).gpu_left_s == pytest.approx(-0.25)
    assert desk.job(job_id).state is JobState.EXPIRING, "with the seconds that were the last ones"
    ending.end_jobs(desk.engine)
    with desk.engine.begin() as connection:
        queue.note_busy(connection, leases[1], 0.25)
        queue.hand_back(connection, leases[1])
    job = desk.job(job_id)
    assert job.timing is not None and job.timing["busy_s"] == pytest.approx(10.5)
    assert job.error == "the budget of 10 GPU seconds was used up"
    assert job.progress.by_status["expired"] >= 4
    assert spent(desk, job_id) == pytest.approx(10.5)


def spent(desk: Desk, job_id: int) -> float:
    with desk.engine.begin() as connection:
        return float(connection.execute(select(jobs.c.busy_s).where(jobs.c.id == job_id)).scalar_one())


def test_workers_that_share_a_budget_begin_no_shard_beyond_it(desk: Desk) -> None:
    """The worst case: nothing is reported before a shard ends, and nobody looks at the limits in between."""
    names, each_s, budget_s = (WORKER, OTHER), 3.0, 10.0
    desk.live_worker(OTHER)
    job_id = desk.questions_job(12, per_shard=1, limits=JobLimits(max_gpu_s=budget_s))
    running: dict[str, Lease] = {}
    begun_at = list[float]()

    def begin(name: str) -> None:
        ready = desk.ids("queued") or desk.dispatch()
        lease = desk.claim(ready[0], name)
        if lease is not None:
            running[name] = lease
            begun_at.append(spent(desk, job_id))

    for name in names:
        begin(name)
    while running:
        for name in sorted(running):
            lease = running.pop(name)
            desk.answer_some(lease, [lease.lo])
            with desk.engine.begin() as connection:
                is_stopping = queue.finish(connection, lease, each_s)
            assert is_stopping == (spent(desk, job_id) >= budget_s)
            assert spent(desk, job_id) + each_s * len(running) <= budget_s + each_s * len(names)
            begin(name)
    assert begun_at == [0.0, 0.0, 3.0, 6.0, 9.0], "none after the 10 seconds"
    assert ending.end_jobs(desk.engine) == 1
    job = desk.job(job_id)
    assert job.error == "the budget of 10 GPU seconds was used up"
    assert (job.progress.by_status, spent(desk, job_id)) == ({"answered": 5, "expired": 7}, 15.0)


def test_two_workers_stop_when_they_have_used_up_a_budget_together(desk: Desk, settings: Settings) -> None:
    """Each works until it is stopped, and the job ends without a tick."""
    desk.live_worker(OTHER)
    job_id = desk.questions_job(12, per_shard=1, limits=JobLimits(max_gpu_s=0.4))
    leases = [desk.claim(shard_id, name) for shard_id, name in zip(desk.dispatch(), (WORKER, OTHER), strict=False)]

    def stage(context: ShardContext[Resources]) -> None:
        wait_for("the end of the budget", lambda: context.stop() is not None)
        context.check()

    def work(lease: Lease | None) -> None:
        assert lease is not None
        runner._run_lease(lease, settings, desk.engine, Resources(settings))

    with stages_replaced({JobKind.ANSWER: stage}), ThreadPoolExecutor(2) as threads:
        list(threads.map(work, leases))
    job = desk.job(job_id)
    assert (job.state, job.progress.by_status) == (JobState.FAILED, {"expired": 12})
    assert job.error == "the budget of 0.4 GPU seconds was used up"
    assert job.timing is not None and job.timing["busy_s"] >= 0.4


def test_only_a_shard_that_ends_a_budget_asks_for_the_end_of_its_job(desk: Desk, settings: Settings) -> None:
    job_id = desk.questions_job(3, per_shard=1, limits=JobLimits(max_gpu_s=1_000.0))
    begun = list[Connection]()

    def note(connection: Connection) -> None:
        if threading.current_thread() is threading.main_thread():  # not the heartbeat, which begins its own
            begun.append(connection)

    def stage(context: ShardContext[Resources]) -> None:
        desk.answer_some(context.lease, [context.lease.lo])
        begun.clear()

    with stages_replaced({JobKind.ANSWER: stage}):
        event.listen(desk.engine, "begin", note)
        try:
            runner._run_lease(desk.claim_next(), settings, desk.engine, Resources(settings))
            assert len(begun) == 1, "the transaction that ends the shard"
        finally:
            event.remove(desk.engine, "begin", note)
        last = desk.claim_next()
        with desk.engine.begin() as connection:
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(busy_s=1_000.0))
        runner._run_lease(last, settings, desk.engine, Resources(settings))
    job = desk.job(job_id)
    assert (job.state, job.progress.by_status) == (JobState.COMPLETED_WITH_ERRORS, {"answered": 2, "expired": 1})


def test_a_worker_that_lost_its_lease_spends_nothing_any_more(desk: Desk) -> None:
    job_id = desk.questions_job(2, per_shard=2, limits=JobLimits(max_gpu_s=10.0))
    lost = desk.claim_next()
    desk.expire_leases()
    desk.dispatch()
    again = desk.claim_next()
    assert again.shard_id == lost.shard_id
    with desk.engine.begin() as connection:
        assert isinstance(queue.heartbeat(connection, lost, 60.0, 3.0), LeaseLost)
        queue.note_busy(connection, lost, 4.0)
        queue.heartbeat(connection, again, 60.0, 5.0)
        assert deadlines.remaining_of(connection, job_id).gpu_left_s == pytest.approx(5.0)


def test_a_look_at_a_budget_reads_few_shards_however_many_the_job_has(desk: Desk) -> None:
    job_id = desk.questions_job(4, per_shard=2, limits=JobLimits(max_gpu_s=10.0))
    lease = desk.claim_next()
    more = """
        INSERT INTO shards (job_id, lo, hi, state)
        SELECT :job_id, n, n + 1, CASE WHEN n < 2004 THEN 'done' ELSE 'pending' END FROM generate_series(4, 6003) n
    """
    with desk.engine.begin() as connection:
        connection.execute(text(more), {"job_id": job_id})

    def decide(connection: Connection) -> None:
        queue.heartbeat(connection, lease, 60.0, 1.0)
        assert not deadlines.remaining_of(connection, job_id).is_over
        assert not deadlines.expire_if_due(connection, job_id)
        assert deadlines.due_jobs(connection) == []

    visited = visited_rows(desk.engine, decide)
    assert len(visited) >= 6
    assert {look.statement: look.rows for look in visited if look.rows > 20} == {}

    def plan(connection: Connection) -> None:
        room = deadlines.room_of(connection, job_id, lease.shard_id)
        assert (room.waiting, room.beside, room.running, room.owners) == (2 + 4_000, 0, 1, 1)

    [look] = visited_rows(desk.engine, plan)
    assert look.rows <= 1_000, look.statement


def test_the_earliest_deadline_is_served_first_within_the_priority(desk: Desk) -> None:
    plain = desk.questions_job(2, per_shard=1)
    late = desk.questions_job(2, per_shard=1, limits=JobLimits(within_s=9_000.0))
    soon = desk.questions_job(2, per_shard=1, limits=JobLimits(within_s=900.0))
    urgent = desk.questions_job(1, per_shard=1, priority=Priority.HIGH)
    own = update(jobs).values(owner="somebody")
    with desk.engine.begin() as connection:
        connection.execute(own)
        before = {job.job_id: job.jobs_before for job in views.list_jobs(connection)}
    assert before == {urgent: 0, soon: 1, late: 2, plain: 3}
    served = []
    while ready := desk.ids("queued") or desk.dispatch():
        lease = desk.claim(ready[0])
        assert lease is not None
        served.append(lease.job_id)
        desk.answer(lease)
    # Two messages for each slot: one may be sent before another job outranks it, but no order is turned round.
    assert served == [urgent, soon, soon, late, late, plain, plain]


def test_other_owners_have_their_share_whatever_the_deadlines(desk: Desk) -> None:
    hasty = desk.questions_job(3, per_shard=1, limits=JobLimits(within_s=60.0))
    patient = desk.questions_job(3, per_shard=1)
    with desk.engine.begin() as connection:
        for job_id, owner in ((hasty, "a"), (patient, "b")):
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(owner=owner))
    served = []
    for _ in range(4):
        lease = desk.claim_next()
        served.append(lease.job_id)
        desk.answer(lease)
    assert sorted(served[:2]) == sorted(served[2:]) == [hasty, patient]


def test_a_worker_stops_its_shard_at_the_deadline_and_closes_the_job(
    desk: Desk, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tick is needed, the seconds that it was busy are counted, and a long batch after it is not asked all the
    time."""
    job_id = desk.questions_job(4, per_shard=2, limits=DAY)
    [shard_id, *_] = desk.dispatch()
    looks: list[Remaining] = []
    look = deadlines.remaining_of

    def count(*args: Any) -> Remaining:
        if not looks:  # the shard is claimed, and its deadline comes soon
            move_deadline(desk, job_id, 0.3)
        looks.append(look(*args))
        return looks[-1]

    monkeypatch.setattr(deadlines, "remaining_of", count)

    def stage(context: ShardContext[Resources]) -> None:
        until = time.monotonic() + 30.0
        while time.monotonic() < until and context.stop() is None:
            time.sleep(0.01)
        time.sleep(0.5)
        context.check()

    with stages_replaced({JobKind.ANSWER: stage}):
        began = time.monotonic()
        run_shard(shard_id, WORKER, settings, desk.engine, Resources(settings))
        took_s = time.monotonic() - began
    assert sum(remaining.is_over for remaining in looks) == 2, "once to see it, once to write it"
    job = desk.job(job_id)
    assert (job.state, job.progress.by_status) == (JobState.FAILED, {"expired": 4})
    assert job.timing is not None and 0.1 < job.timing["busy_s"] <= took_s


def test_a_stage_that_runs_an_urgent_shard_is_not_busy_meanwhile(desk: Desk, settings: Settings) -> None:
    bulk = desk.questions_job(2, per_shard=2)
    [shard_id] = desk.dispatch()
    single: list[int] = []

    def stage(context: ShardContext[Resources]) -> None:
        until = time.monotonic() + (0.5 if context.lease.job_id != bulk else 30.0)
        if context.lease.job_id == bulk:
            single.append(desk.questions_job(1, per_shard=1, priority=Priority.URGENT))
            while time.monotonic() < until and not context.give_way():
                time.sleep(0.01)
        else:
            while time.monotonic() < until:
                time.sleep(0.01)

    with stages_replaced({JobKind.ANSWER: stage}):
        began = time.monotonic()
        run_shard(shard_id, WORKER, settings, desk.engine, Resources(settings))
        took_s = time.monotonic() - began
    with desk.engine.begin() as connection:
        busy: dict[Any, float] = dict(connection.execute(select(shards.c.job_id, shards.c.busy_s)).all())
    assert busy[single[0]] >= 0.5
    assert sum(busy.values()) <= took_s


@pytest.mark.parametrize(
    ("deadline", "within_s"),
    [("90s", 90.0), ("2h", 7_200.0), ("1h30m", 5_400.0), ("3d", 259_200.0), (" 1 H ", 3_600.0)],
)
def test_durations(deadline: str, within_s: float) -> None:
    assert deadlines.parse_limits(deadline, None) == JobLimits(within_s=within_s)
