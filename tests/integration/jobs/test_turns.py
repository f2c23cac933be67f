"""Who is served next: jobs of equal priority take turns, slot by slot, and nobody is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

import pytest
from sqlalchemy import Connection, Engine, insert, select, text, update

from ragllava.errors import LeaseLost, ShardInterrupted
from ragllava.jobs import control, dispatch, ending, queue, views
from ragllava.jobs.queue import Lease
from ragllava.jobs.runner import ShardContext, run_shard
from ragllava.records import JobKind, Priority
from ragllava.settings import Settings
from ragllava.stages.resources import Resources
from ragllava.stores.jobs import workers
from ragllava.stores.schema import jobs, shards
from tests.support.job_rows import WORKER, Desk, without_ticks
from tests.support.plans import visited_rows
from tests.support.waiting import wait_for
from tests.support.workshop import stages_replaced


@pytest.fixture
def desk(engine: Engine, settings: Settings) -> Desk:
    desk = Desk(engine, without_ticks(settings))
    desk.live_worker()
    return desk


class Slot:
    """One slot of a worker, which runs a shard after the other in the order of the messages."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.messages: list[int] = []

    def begin(self) -> Lease:
        """Dispatch, and claim the shard of the oldest message."""
        self.messages += self.desk.dispatch()
        lease = self.desk.claim(self.messages.pop(0))
        assert lease is not None
        return lease

    def serve(self, number: int) -> Iterator[int]:
        """Run so many shards; the job of each."""
        for _ in range(number):
            lease = self.begin()
            self.desk.answer(lease)
            yield lease.job_id


def test_jobs_of_equal_priority_take_turns_slot_by_slot(desk: Desk) -> None:
    first, second, third = (desk.questions_job(10, per_shard=1) for _ in range(3))
    assert list(Slot(desk).serve(9)) == [first, second, third] * 3


def test_a_small_job_is_done_within_two_shards_of_a_large_one(desk: Desk) -> None:
    large = desk.questions_job(50, per_shard=1)
    slot = Slot(desk)
    assert list(slot.serve(5)) == [large] * 5
    running = slot.begin()
    small = desk.questions_job(1, per_shard=1)
    slot.messages += desk.dispatch()
    desk.answer(running)
    assert list(slot.serve(3)) == [large, small, large]


def test_a_job_that_was_served_for_long_is_not_held_up_until_a_new_one_has_caught_up(desk: Desk) -> None:
    first = desk.questions_job(30, per_shard=1)
    slot = Slot(desk)
    assert list(slot.serve(8)) == [first] * 8
    second = desk.questions_job(30, per_shard=1)
    served = list(slot.serve(12))
    assert served.count(first) >= 6 and served.count(second) >= 5


def test_a_stream_of_new_jobs_does_not_hold_up_an_old_one(desk: Desk) -> None:
    old = desk.questions_job(20, per_shard=1)
    slot = Slot(desk)
    served: list[int] = []
    for _ in range(10):
        for _ in range(3):
            desk.questions_job(1, per_shard=1)
        served += slot.serve(2)
    assert served.count(old) >= 4


def test_shards_that_run_count_against_the_room_of_their_slot(desk: Desk) -> None:
    """One runs and one waits behind it: what is queued longer before is a wait for jobs that come later."""
    desk.questions_job(10, per_shard=1)
    slot = Slot(desk)
    running = slot.begin()
    assert (len(desk.ids("running")), len(desk.ids("queued"))) == (1, 1)
    assert desk.dispatch() == []
    desk.answer(running)
    assert len(desk.dispatch()) == 1


def test_shards_of_a_worker_that_has_gone_take_no_room(desk: Desk) -> None:
    """Until they are reaped, they run on paper only."""
    desk.live_worker("gone@test")
    desk.questions_job(10, per_shard=1)
    for shard_id in desk.dispatch():
        desk.claim(shard_id, worker="gone@test")
    with desk.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM workers WHERE name = 'gone@test'")
    assert len(desk.dispatch()) == dispatch.MESSAGES_PER_SLOT


def test_leases_of_a_worker_that_was_killed_and_started_again_leave_room_for_a_message(desk: Desk) -> None:
    desk.questions_job(10, per_shard=1)
    for _ in range(3):
        lease = desk.claim(desk.dispatch()[0], worker=WORKER)
        assert lease is not None
        with desk.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE shards SET state = 'pending' WHERE state = 'queued'")
    assert len(desk.ids("running")) == 3
    assert len(desk.dispatch()) == 1


def test_a_job_of_high_priority_goes_before_others_and_one_of_low_priority_after_them(desk: Desk) -> None:
    desk.live_worker(slots=3)
    low, normal, high = (
        desk.questions_job(2, per_shard=1, priority=priority)
        for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH)
    )
    with desk.engine.begin() as connection:
        messages = dispatch.choose(connection, desk.settings)
        rows = connection.execute(select(shards.c.id, shards.c.job_id))
        owner = {row.id: row.job_id for row in rows}
    assert [owner[message.shard_id] for message in messages] == [high, high, normal, normal, low, low]
    assert [message.priority for message in messages] == [5, 5, 0, 0, -5, -5]


def test_an_open_job_of_an_unknown_kind_stops_nothing(desk: Desk, engine: Engine) -> None:
    """As a newer version beside this one makes it: its shards are left to that version."""
    with engine.begin() as connection:
        spec = {"kind": "dream", "state": "running", "spec": {}, "total": 1, "spec_digest": ""}
        strange = connection.execute(insert(jobs).values(spec).returning(jobs.c.id)).scalar_one()
        common = {"job_id": strange, "lo": 0, "hi": 1, "worker": "other@test"}
        expired = common | {"state": "running", "lease_until": "2020-01-01T00:00:00Z"}
        connection.execute(insert(shards), [common | {"state": "pending", "lease_until": None}, expired])
    job_id = desk.questions_job(2, per_shard=1)
    assert desk.drain() == 2
    assert desk.job(job_id).is_final
    with engine.begin() as connection:
        assert [job.job_id for job in views.list_jobs(connection)] == [job_id, strange]
    assert desk.job(strange).state == "running"


def test_a_job_that_has_not_started_says_how_many_jobs_are_before_it(desk: Desk, engine: Engine) -> None:
    first, second, urgent = (desk.questions_job(2, per_shard=1, priority=priority) for priority in (0, 0, 10))
    assert {job: desk.job(job).jobs_before for job in (first, second, urgent)} == {first: 1, second: 2, urgent: 0}
    assert desk.job(second).state_text == "waiting, 2 jobs before it"
    assert desk.job(urgent).state_text == "waiting, next in turn"
    slot = Slot(desk)
    running = slot.begin()
    assert running.job_id == urgent
    assert desk.job(urgent).jobs_before is None
    assert desk.job(urgent).state_text == "running"
    with engine.begin() as connection:
        shown = {job.job_id: job.as_json()["jobs_before"] for job in views.list_jobs(connection)}
    assert shown == {first: 1, second: 2, urgent: None}
    with engine.begin() as connection:
        control.pause(connection, first)
    assert (desk.job(first).jobs_before, desk.job(second).jobs_before) == (None, 1)


def test_the_jobs_before_a_job_are_counted_in_the_order_of_owners(desk: Desk, engine: Engine) -> None:
    """As dispatch chooses them: one job of each owner in turn, however many one has."""
    desk.live_worker(slots=1)
    of_many = [desk.questions_job(1, per_shard=1) for _ in range(3)]
    of_one = desk.questions_job(1, per_shard=1)
    with engine.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.id.in_(of_many)).values(owner="many"))
        connection.execute(update(jobs).where(jobs.c.id == of_one).values(owner="one"))
    shown = {job_id: desk.job(job_id).jobs_before for job_id in (*of_many, of_one)}
    assert shown == {of_many[0]: 0, of_one: 1, of_many[1]: 2, of_many[2]: 3}
    served: list[int] = []
    while ready := desk.ids("queued") or desk.dispatch():
        lease = desk.claim(ready[0])
        assert lease is not None
        served.append(lease.job_id)
        desk.answer(lease)
    assert served == sorted(shown, key=lambda job_id: shown[job_id] or 0)


def lease_until(desk: Desk, lease: Lease) -> datetime:
    with desk.engine.begin() as connection:
        row = connection.execute(select(shards).where(shards.c.id == lease.shard_id)).one()
    until: datetime = row.lease_until
    return until


def test_a_look_at_a_lease_shows_what_waits_and_extends_nothing(desk: Desk, engine: Engine) -> None:
    desk.questions_job(2, per_shard=1)
    bulk = desk.claim_next()
    until = lease_until(desk, bulk)
    with engine.begin() as connection:
        assert queue.watch(connection, bulk) == queue.Watched(None, urgent_waits=False)
    first, second = (desk.questions_job(1, per_shard=1, priority=Priority.URGENT) for _ in range(2))
    with engine.begin() as connection:
        assert queue.watch(connection, bulk).urgent_waits
        shard_id = dispatch.take_urgent(connection, bulk.kind)
    assert shard_id is not None
    urgent = desk.claim(shard_id)
    assert urgent is not None and urgent.job_id == first
    with engine.begin() as connection:
        assert not queue.watch(connection, urgent).urgent_waits, "an urgent shard gives way to no other"
        assert queue.watch(connection, bulk).urgent_waits, "the second one waits still"
        control.cancel(connection, second)
    with engine.begin() as connection:
        assert not queue.watch(connection, bulk).urgent_waits
        assert dispatch.take_urgent(connection, bulk.kind) is None
        control.pause(connection, bulk.job_id)
        assert isinstance(queue.watch(connection, bulk).error, ShardInterrupted)
    assert lease_until(desk, bulk) == until
    desk.expire_leases()
    desk.dispatch()
    with engine.begin() as connection:
        assert isinstance(queue.watch(connection, bulk).error, LeaseLost)


def test_cancel_is_noticed_between_two_heartbeats(desk: Desk, engine: Engine) -> None:
    """The heartbeat extends the lease as seldom as its setting says; looks at the job are more frequent."""
    rare = desk.settings.model_copy(update={"lease_s": 4000.0, "heartbeat_s": 2000.0})
    job_id = desk.questions_job(1, per_shard=1)
    [shard_id] = desk.dispatch()
    leases: list[tuple[datetime, datetime]] = []

    def stage(context: ShardContext[Resources]) -> None:
        before = lease_until(desk, context.lease)
        with engine.begin() as connection:
            control.cancel(connection, job_id)
        wait_for("the worker to notice the cancel", lambda: context.stop() is not None)
        leases.append((before, lease_until(desk, context.lease)))
        context.check()

    with stages_replaced({JobKind.ANSWER: stage}):
        assert run_shard(shard_id, WORKER, rare, engine, None)
    assert desk.job(job_id).progress.by_status == {"cancelled": 1}
    [(before, after)] = leases
    assert before == after


def test_the_leases_of_a_child_that_died_end_together(
    desk: Desk, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that gave way and the urgent one beside it."""
    monkeypatch.setattr(dispatch, "_REAPING_S", 60.0)
    desk.live_worker("other@test")
    desk.questions_job(4, per_shard=1)
    first, second, third = desk.dispatch()[:3]
    for shard_id, worker in ((first, WORKER), (second, WORKER), (third, "other@test")):
        assert desk.claim(shard_id, worker)
    with engine.begin() as connection:
        queue.expire(connection, WORKER)
    assert dispatch.reap(engine, desk.settings) == 2
    assert desk.ids("running") == [third]


def test_a_job_ends_only_when_no_live_worker_is_left_for_it(desk: Desk, engine: Engine) -> None:
    desk.live_worker("fit@test")
    job_id = desk.questions_job(3, per_shard=1)
    lease = desk.claim_next()
    with engine.begin() as connection:
        assert not control.refuse(connection, lease, "another profile", desk.settings)
    assert not desk.job(job_id).is_final
    [shard_id, *_] = desk.ids("queued")
    assert desk.claim(shard_id) is None, "this worker has refused the job"
    assert ending.pass_on(engine, shard_id, WORKER, desk.settings)
    assert shard_id in desk.ids("pending")
    assert not ending.pass_on(engine, shard_id, "fit@test", desk.settings)
    [shard_id, *_] = desk.dispatch()
    assert desk.claim(shard_id, "fit@test") is not None
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE workers SET seen_at = now() - interval '1 hour' WHERE name = 'fit@test'")
    [shard_id, *_] = desk.ids("queued")
    assert ending.pass_on(engine, shard_id, WORKER, desk.settings)
    assert desk.ids("pending") == desk.ids("queued") == []
    desk.expire_leases()  # that of the worker that went away
    for shard_id in desk.dispatch():
        assert ending.pass_on(engine, shard_id, WORKER, desk.settings)
    job = desk.job(job_id)
    assert (job.state, job.error) == ("failed", "another profile")


def test_owners_take_turns_however_many_jobs_they_have(desk: Desk, engine: Engine) -> None:
    many = [desk.questions_job(10, per_shard=1) for _ in range(4)]
    one = desk.questions_job(10, per_shard=1)
    with engine.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.id.in_(many)).values(owner="key a"))
        connection.execute(update(jobs).where(jobs.c.id == one).values(owner="key b"))
    served = list(Slot(desk).serve(16))
    assert served.count(one) == 8
    assert {served.count(job_id) for job_id in many} == {2}


@pytest.mark.parametrize("analyzed", [True, False])
def test_no_statement_of_the_machinery_reads_the_shards_of_large_jobs(
    desk: Desk, engine: Engine, owner_engine: Engine, analyzed: bool
) -> None:
    """Neither those that have ended nor those that wait, so a tick costs the same however large the jobs are."""
    made = [desk.questions_job(400, per_shard=1) for _ in range(20)]
    lease = desk.claim_next()
    with engine.begin() as connection:
        ended = update(shards).where(shards.c.job_id.in_(made), shards.c.lo < 200, shards.c.state == "pending")
        connection.execute(ended.values(state="done", queued_at=text("now()"), finished_at=text("now()")))
    with owner_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in ("shards", "jobs"):
            connection.execute(text(f"ALTER TABLE {table} SET (autovacuum_enabled = off)"))
            connection.execute(text(f"VACUUM {'(ANALYZE)' if analyzed else ''} {table}"))
    works: dict[str, Callable[[Connection], object]] = {
        "choose": lambda connection: dispatch.choose(connection, desk.settings),
        "expired": dispatch._expired_shards,
        "watch": lambda connection: queue.watch(connection, lease),
        "heartbeat": lambda connection: queue.heartbeat(connection, lease, 60.0),
        "finish": lambda connection: queue.finish(connection, lease),
        "ending": ending._ending_jobs,
    }
    rows = {name: sum(each.rows for each in visited_rows(engine, work)) for name, work in works.items()}
    assert all(0 < number < 2_000 for name, number in rows.items() if name != "expired"), rows
    assert rows["expired"] < 2_000, rows


def test_a_look_for_lost_messages_reads_a_running_shard_once_however_many_workers_there_are(
    desk: Desk, engine: Engine
) -> None:
    number = 60
    desk.questions_job(2 * number, per_shard=1)
    with engine.begin() as connection:
        for name in (f"busy-{each}" for each in range(number)):
            workers.register(connection, name, ["query"], 1)
            workers.report_ready(connection, name, {"tests": "1"})
        connection.execute(
            text("""
                UPDATE shards SET lease_until = now() + interval '1 h', queued_at = now() - interval '1 h',
                    worker = CASE WHEN lo < :number THEN 'busy-' || lo END,
                    state = CASE WHEN lo < :number THEN 'running' ELSE 'queued' END
            """),
            {"number": number},
        )
    looks = visited_rows(engine, lambda connection: dispatch._unqueue_lost(connection, desk.settings))
    rows = [look.rows for look in looks if look.statement.startswith("SELECT")]
    assert 2 * number < sum(rows) < 20 * number, rows
