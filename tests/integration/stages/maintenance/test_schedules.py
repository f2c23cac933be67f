"""Schedules on a real Postgres: each due time fires once, however many look, and whatever the clock does."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection, Engine, func, select, text, update

from ragllava.errors import ServiceUnavailable, UsageError
from ragllava.jobs import control, views
from ragllava.records import JobKind, ScheduleAction
from ragllava.settings import Settings
from ragllava.stages.maintenance import schedules as firing
from ragllava.stages.maintenance.schedules import Fired, ScheduleRequest, Starter, add_schedule, fire_due, run_now
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction
from ragllava.stores.maintenance import schedules
from ragllava.stores.maintenance.faults import list_faults, record
from ragllava.stores.maintenance.schedules import ScheduleView
from ragllava.stores.schema import jobs, maintenance_tasks, schedule_runs
from ragllava.stores.schema import schedules as table
from ragllava.training.scheduled import STARTERS

NIGHTLY = f"0 {(datetime.now(UTC).hour + 12) % 24} * * *"  # no such time comes while a test runs


@pytest.fixture
def fire(engine: Engine, settings: Settings) -> Callable[[], list[Fired]]:
    return lambda: fire_due(engine, settings, STARTERS)


def add(engine: Engine, action: str = "gc", cron: str = NIGHTLY, **more: object) -> ScheduleView:
    request = ScheduleRequest(ScheduleAction(action), cron, **more)  # type: ignore[arg-type]
    return in_transaction(engine, add_schedule, request, STARTERS)


def make_due(engine: Engine, name: str, ago: str = "1 second") -> None:
    """What a clock that jumps over a due time leaves."""
    with engine.begin() as connection:
        due = text(f"now() - interval '{ago}'")
        connection.execute(update(table).where(table.c.name == name).values(next_due=due))


def end_jobs(engine: Engine) -> None:
    with engine.begin() as connection:
        for job_id in connection.scalars(select(jobs.c.id).where(jobs.c.finished_at.is_(None))).all():
            control.cancel(connection, job_id)


def runs(engine: Engine) -> int:
    with engine.begin() as connection:
        return connection.scalar(select(func.count()).select_from(schedule_runs)) or 0


def number_of_jobs(engine: Engine) -> int:
    with engine.begin() as connection:
        return connection.scalar(select(func.count()).select_from(jobs)) or 0


def look(engine: Engine, name: str) -> ScheduleView:
    [schedule] = [view for view in in_transaction(engine, schedules.list_schedules) if view.name == name]
    return schedule


# Firing


def test_a_due_schedule_makes_its_job_and_is_due_again_after_now(
    engine: Engine, fire: Callable[[], list[Fired]]
) -> None:
    made = add(engine, options={"delete": True})
    assert fire() == []
    make_due(engine, "gc")
    [fired] = fire()
    assert fire() == []
    job = in_transaction(engine, views.view, fired.job_id or 0)
    assert (job.kind, job.archive, job.progress.total) == (JobKind.MAINTENANCE, "*", 1)
    assert job.spec == {"action": "gc", "options": {"delete": True}}
    after = look(engine, "gc")
    assert after.next_due == made.next_due
    assert after.last_run is not None and after.last_run.job_id == job.job_id


def test_times_that_passed_while_nobody_looked_fire_once(engine: Engine, fire: Callable[[], list[Fired]]) -> None:
    add(engine)
    make_due(engine, "gc", ago="40 days")
    assert len(fire()) == 1
    end_jobs(engine)
    assert fire() == []
    assert (runs(engine), number_of_jobs(engine)) == (1, 1)
    assert look(engine, "gc").next_due > datetime.now(UTC) - timedelta(seconds=60)


def test_a_clock_that_goes_back_does_not_fire_a_time_again(engine: Engine, fire: Callable[[], list[Fired]]) -> None:
    """After the firing the next time lies after the fired one, so an earlier now finds nothing due."""
    add(engine)
    make_due(engine, "gc")
    [fired] = fire()
    assert look(engine, "gc").next_due > fired.due_at
    with pytest.raises(Exception, match="pk_schedule_runs"), engine.begin() as connection:
        schedules.insert_run(connection, look(engine, "gc").schedule_id, fired.due_at, None, None)


def test_many_ticks_at_once_fire_each_schedule_once(engine: Engine, settings: Settings) -> None:
    names = [f"gc-{number}" for number in range(12)]
    for name in names:
        add(engine, name=name)
        make_due(engine, name)
    with ThreadPoolExecutor(6) as threads:
        ticks = threads.map(lambda _: fire_due(engine, settings, STARTERS), range(6))
        fired = [schedule for tick in ticks for schedule in tick]
    assert sorted(schedule.name for schedule in fired) == sorted(names)
    assert (runs(engine), number_of_jobs(engine)) == (12, 12)
    with engine.begin() as connection:
        assert connection.scalar(select(func.count()).select_from(maintenance_tasks)) == 12


def test_a_schedule_waits_for_the_job_that_it_started_before(engine: Engine, fire: Callable[[], list[Fired]]) -> None:
    add(engine)
    make_due(engine, "gc", ago="2 seconds")
    [first] = fire()
    for ago in ("1 second", "0 seconds"):
        make_due(engine, "gc", ago)
        [skipped] = fire()
        assert skipped.job_id is None and skipped.note is not None and f"job {first.job_id}" in skipped.note
    assert number_of_jobs(engine) == 1
    end_jobs(engine)
    make_due(engine, "gc", ago="0 seconds")
    [third] = fire()
    assert third.job_id is not None


def test_a_schedule_that_cannot_start_stores_the_reason_and_nothing_else(engine: Engine, settings: Settings) -> None:
    def half(connection: Connection, settings: Settings, schedule: ScheduleView) -> int:
        archive.ensure_archive(connection, "half-made")
        raise UsageError("there is nothing to do")

    add(engine)
    make_due(engine, "gc")
    [fired] = fire_due(engine, settings, {ScheduleAction.GC: Starter(half, lambda archive, options: None)})
    assert (fired.job_id, fired.note) == (None, "there is nothing to do")
    with engine.begin() as connection:
        assert archive.list_archives(connection) == []
    last = look(engine, "gc").last_run
    assert last is not None and last.note == "there is nothing to do"


def test_a_schedule_whose_service_is_away_holds_up_no_other_and_is_due_again(
    engine: Engine, settings: Settings, fire: Callable[[], list[Fired]]
) -> None:
    def away(connection: Connection, settings: Settings, schedule: ScheduleView) -> int:
        raise ServiceUnavailable("the store did not answer")

    for action, ago in (("gc", "2 seconds"), ("vacuum", "1 second")):
        add(engine, action)
        make_due(engine, action, ago)
    broken = {**STARTERS, ScheduleAction.GC: Starter(away, lambda archive, options: None)}
    assert [schedule.name for schedule in fire_due(engine, settings, broken)] == ["vacuum"]
    assert [schedule.name for schedule in fire()] == ["gc"]


def test_a_schedule_that_another_process_fires_keeps_its_fault(engine: Engine, fire: Callable[[], list[Fired]]) -> None:
    add(engine)
    make_due(engine, "gc")
    in_transaction(engine, record, "schedules", "gc", "an earlier attempt", 60.0)
    with engine.begin() as another:
        schedules.lock_schedule(another, "gc")
        assert fire() == []
    assert [fault.subject for fault in in_transaction(engine, list_faults)] == ["gc"]
    assert [schedule.name for schedule in fire()] == ["gc"]
    assert in_transaction(engine, list_faults) == []


# Pause, resume, remove


def test_a_schedule_of_another_version_holds_up_no_other(engine: Engine, settings: Settings) -> None:
    for name, action in (("first", ScheduleAction.GC), ("second", ScheduleAction.VACUUM)):
        in_transaction(engine, add_schedule, ScheduleRequest(action, "0 3 * * *", name=name), STARTERS)
    with engine.begin() as connection:
        connection.execute(text("UPDATE schedules SET action = 'of the future' WHERE name = 'first'"))
        connection.execute(text("UPDATE schedules SET next_due = now() - interval '1 hour'"))
    assert [fired.name for fired in fire_due(engine, settings, STARTERS)] == ["second"]
    with engine.begin() as connection:
        [fault] = list_faults(connection)
    assert (fault.room, fault.subject, fault.attempts) == ("schedules", "first", 1)


def test_a_paused_schedule_lets_its_times_pass_and_resumes_with_the_next(
    engine: Engine, fire: Callable[[], list[Fired]]
) -> None:
    add(engine)
    in_transaction(engine, firing.pause, "gc")
    make_due(engine, "gc")
    assert fire() == []
    resumed = in_transaction(engine, firing.resume, "gc")
    assert not resumed.paused and resumed.next_due > datetime.now(UTC)
    assert fire() == []
    make_due(engine, "gc")
    assert len(fire()) == 1


def test_a_removed_schedule_never_fires_and_its_job_stays(engine: Engine, fire: Callable[[], list[Fired]]) -> None:
    add(engine)
    make_due(engine, "gc")
    [fired] = fire()
    make_due(engine, "gc")
    in_transaction(engine, firing.remove, "gc")
    assert fire() == []
    assert in_transaction(engine, schedules.list_schedules) == []
    assert in_transaction(engine, views.view, fired.job_id or 0).kind == JobKind.MAINTENANCE


def test_run_begins_now_and_leaves_the_next_time(engine: Engine, settings: Settings) -> None:
    made = add(engine)
    in_transaction(engine, firing.pause, "gc")
    fired = in_transaction(engine, run_now, settings, "gc", STARTERS)
    assert fired.job_id is not None
    assert look(engine, "gc").next_due == made.next_due


def test_training_is_begun_only_when_enough_was_labelled(engine: Engine, fire: Callable[[], list[Fired]]) -> None:
    with engine.begin() as connection:
        archive.ensure_archive(connection, "cards")
    add(engine, "retrain", archive="cards", options={"role": "reranker", "labels": 7})
    make_due(engine, "retrain-cards")
    [fired] = fire()
    assert fired.job_id is None
    assert fired.note is not None and "cards has 0 newly labelled questions for the reranker, and needs 7" in fired.note
    add(engine, "retrain", options={"role": "reranker"})
    make_due(engine, "retrain")
    [fired] = fire()
    assert fired.note == "no archive has newly labelled questions for the reranker, and one needs 100"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"cron": "every day"}, "not a cron line"),
        ({"timezone": "Berlin"}, "not a time zone"),
        ({"archive": "none-such"}, "takes no archive"),
        ({"action": "find-noisy", "archive": "none-such"}, "there is no archive 'none-such'"),
        ({"options": {"delete": "yes"}}, "must be of type bool"),
        ({"options": {"role": "reranker"}}, "gc does not take the option role; it takes delete"),
        ({"action": "retrain"}, "retrain needs a role: reranker or generator"),
        ({"name": "Nightly gc"}, "cannot be the name of a schedule"),
    ],
)
def test_a_wrong_schedule_is_refused_in_one_sentence(engine: Engine, request_: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"action": "gc", "cron": NIGHTLY} | request_
    with pytest.raises(UsageError, match=message):
        add(engine, **given)  # type: ignore[arg-type]
    assert in_transaction(engine, schedules.list_schedules) == []


def test_a_taken_name_and_an_unknown_one_are_refused(engine: Engine) -> None:
    with pytest.raises(UsageError, match="nor any other yet"):
        in_transaction(engine, firing.pause, "gc")
    add(engine)
    with pytest.raises(UsageError, match="there is already a schedule gc"):
        add(engine)
    with pytest.raises(UsageError, match="there is no schedule 'cg'; there are: gc"):
        in_transaction(engine, firing.remove, "cg")


def test_every_action_can_be_begun() -> None:
    assert set(STARTERS) == set(ScheduleAction)
