"""The clock of the database is set back by an hour: rows then have times that lie in the future."""

from __future__ import annotations

from sqlalchemy import Engine, text

from ragllava.jobs import dispatch
from ragllava.settings import Settings
from ragllava.stores.database import in_transaction
from ragllava.stores.maintenance import faults, ticks
from tests.support.job_rows import Desk, without_ticks

_HOUR_LATER = (
    "UPDATE ticks SET ended_at = ended_at + interval '1 hour'",
    "UPDATE workers SET seen_at = seen_at + interval '1 hour'",
    "UPDATE faults SET not_before = not_before + interval '1 hour'",
    """UPDATE shards SET queued_at = queued_at + interval '1 hour', lease_until = lease_until + interval '1 hour',
       not_before = not_before + interval '1 hour'""",
)


def test_nothing_waits_until_the_clock_has_caught_up(engine: Engine, settings: Settings) -> None:
    quick = settings.model_copy(update={"lease_s": 0.0, "queued_timeout_s": 0.0, "tick_s": 0.0})
    desk = Desk(engine, without_ticks(settings))
    desk.live_worker(slots=2)
    desk.questions_job(2, per_shard=1)
    running, queued = desk.dispatch()
    assert desk.claim(running) is not None
    with engine.begin() as connection:
        connection.execute(text("UPDATE shards SET not_before = now() WHERE id = :id"), {"id": queued})
        faults.record(connection, "results", "job 1", "a test", 60.0)
    in_transaction(engine, ticks.note_tick)
    with engine.begin() as connection:
        for statement in _HOUR_LATER:
            connection.execute(text(statement))
    with engine.begin() as connection:
        assert dispatch.live_slots(connection, quick) == {"query": 2}, "it would look alive for an hour"
    dispatch.reap(engine, quick)
    assert (desk.ids("running"), desk.ids("queued")) == ([running], [queued]), "they would wait for an hour"

    in_transaction(engine, ticks.note_tick, quick.lease_s)
    with engine.begin() as connection:
        assert dispatch.live_slots(connection, quick) == {}
        assert connection.scalar(text("SELECT max(not_before) <= now() + interval '10 min' FROM faults"))
    dispatch.reap(engine, quick)
    assert (desk.ids("running"), desk.ids("queued")) == ([], [])
    assert sorted(desk.ids("pending")) == sorted([running, queued])
