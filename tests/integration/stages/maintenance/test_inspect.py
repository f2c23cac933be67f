"""What `ragllava doctor --deep` reports: nothing for a correct system, one problem for each kind of damage."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo

import pytest
import redis
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from ragllava.records import TaskName
from ragllava.stages.maintenance.inspect import Inspector, inspect
from ragllava.stages.maintenance.stage import submit_task
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stores.archives import image_changes
from ragllava.stores.database import in_transaction, outside_transaction
from ragllava.stores.objects import content_key, thumbnail_key
from tests.support.archive_rows import answered_job, make_index
from tests.support.workshop import Workshop
from workers.app import app, broker_url, waiting_messages

Damage = Callable[[Workshop], None]


@pytest.fixture
def stocked(workshop: Workshop) -> Workshop:
    """Images with vectors, a job with results, a queued maintenance task, and a schedule."""
    make_index(workshop, 5)
    answered_job(workshop, [(0.9, 0.9), (0.8, 0.8)])
    publish_missing_results(workshop.engine, workshop.resources.objects)
    in_transaction(workshop.engine, submit_task, workshop.settings, TaskName.GC, None, {})
    run("INSERT INTO schedules (name, action, options, cron, timezone) VALUES ('n', 'gc', '{}', '0 3 * * *', 'UTC')")(
        workshop
    )
    # The picture of the answered job has no vector yet.
    with workshop.engine.begin() as connection:
        query = text("SELECT archive_id, uri FROM images WHERE id NOT IN (SELECT image_id FROM embeddings)")
        for archive_id, uri in connection.execute(query).all():
            image_changes.retire_at(connection, archive_id, [uri])
    return workshop


def run(statement: str) -> Damage:
    def damage(workshop: Workshop) -> None:
        with workshop.engine.begin() as connection:
            connection.execute(text(statement))

    return damage


def delete_an_object(prefix: str) -> Damage:
    def damage(workshop: Workshop) -> None:
        objects = workshop.resources.objects
        objects.delete(next(listed.key for listed in objects.list_objects(prefix)))

    return damage


def shorten_an_object(workshop: Workshop) -> None:
    objects = workshop.resources.objects
    objects.put(next(listed.key for listed in objects.list_objects("sha256/")), b"cut")


def add_a_stray(workshop: Workshop) -> None:
    workshop.resources.objects.put(content_key("f" * 64), b"stray")


def add_a_stray_thumbnail(workshop: Workshop) -> None:
    workshop.resources.objects.put(thumbnail_key("f" * 64), b"stray")


def problems(workshop: Workshop, waiting: dict[str, int] | None = None) -> dict[str, str]:
    inspector = Inspector(
        workshop.engine, workshop.settings, workshop.resources.objects, waiting or {}, lambda name, number: None
    )
    return {checked.name: checked.problem for checked in inspect(inspector) if checked.problem is not None}


def test_a_correct_system_gives_no_problem(stocked: Workshop) -> None:
    assert problems(stocked, {"ingest": 2, "query": 0}) == {}


_A_JOB = "(SELECT min(id) FROM jobs)"


@pytest.mark.parametrize(
    ("damage", "name", "message"),
    [
        (run("UPDATE shards SET state = 'running', lease_until = now() - interval '1 day'"), "leases", "shards run on"),
        (run("UPDATE shards SET state = 'queued', queued_at = now() - interval '1 day'"), "messages", "as shard"),
        (run("UPDATE shards SET state = 'cancelled'"), "open jobs", "job 2 (maintenance, running)"),
        (run(f"DELETE FROM answers WHERE question_no = 1 AND job_id = {_A_JOB}"), "reconciliation", "job 1 (answer"),
        (run(f"DELETE FROM questions WHERE question_no = 1 AND job_id = {_A_JOB}"), "reconciliation", "job 1 (answer"),
        (
            run(f"UPDATE jobs SET result = NULL, finished_at = now() - interval '1 day' WHERE id = {_A_JOB}"),
            "results",
            "job 1 (answer)",
        ),
        (run("UPDATE schedules SET next_due = now() - interval '1 day'"), "schedules", "as n, due"),
        (run("UPDATE workers SET seen_at = now() - interval '2 hours'"), "workers", "answer@test, last seen"),
        (run("UPDATE workers SET queues = '{query}'"), "waiting work", "queue ingest"),
        (run("UPDATE blobs SET state = 'deleting'"), "blobs", "(deleting)"),
        (run("DELETE FROM embeddings WHERE image_id = (SELECT min(id) FROM images)"), "vectors of cards", "1 images"),
        (run("UPDATE images SET retired = true WHERE id = (SELECT min(id) FROM images)"), "images of cards", "image 1"),
        (run("UPDATE archives SET active_index_id = NULL"), "indexes", "as cards"),
        (
            run("UPDATE images SET caption = 'other' WHERE id = (SELECT min(id) FROM images)"),
            "words of cards",
            "image 1",
        ),
        (run("UPDATE word_counts SET images = images + 1"), "words of cards", "the word "),
        (delete_an_object("sha256/"), "pictures", "1 pictures are missing"),
        (shorten_an_object, "sizes", "another size"),
        (add_a_stray, "content", "ffff"),
        (add_a_stray_thumbnail, "thumbnails", "ffff"),
        (delete_an_object("jobs/1/results"), "result files", "jobs/1/results.jsonl of job 1"),
        (
            run(
                "INSERT INTO model_versions (role, name, profile, state, prompt, adapter_sha256, manifest) "
                "VALUES ('reranker', 'tuned', 'mini', 'champion', 'rerank-1', 'gone', '{}')"
            ),
            "adapters",
            "as tuned",
        ),
    ],
)
def test_each_damage_is_reported(stocked: Workshop, damage: Damage, name: str, message: str) -> None:
    damage(stocked)
    reported = problems(stocked)
    assert name in reported, reported
    assert message in reported[name]
    assert "\n" not in reported[name] and "; " in reported[name]


def test_an_incomplete_index_of_the_database_is_reported(stocked: Workshop) -> None:
    """All vectors have the same key, so the build fails and leaves an index that every insert updates."""
    half_built = "CREATE UNIQUE INDEX CONCURRENTLY half_built ON embeddings_1 ((index_id))"
    with pytest.raises(IntegrityError), outside_transaction(stocked.engine) as connection:
        connection.execute(text(half_built))
    assert "as half_built" in problems(stocked)["graphs"]


def test_a_wrong_clock_is_reported(stocked: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    class SlowClock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> SlowClock:
            return super().now(tz) - timedelta(minutes=2)

    monkeypatch.setattr("ragllava.stages.maintenance.inspect.datetime", SlowClock)
    [seconds] = re.findall(r"differ by (\d+) s", problems(stocked)["clock"])
    assert int(seconds) == pytest.approx(120, abs=30), "wrong by at most half of what the answer took"


def test_messages_that_no_worker_takes_are_reported(stocked: Workshop) -> None:
    assert "500 messages wait in query" in problems(stocked, {"ingest": 1, "query": 500})["queues"]


def test_messages_are_counted_in_redis_over_all_priorities(workshop: Workshop) -> None:
    assert set(waiting_messages(workshop.settings).values()) == {0}
    with app.connection_for_write(broker_url(workshop.settings)) as connection:
        for priority in (0, 6, 6):
            app.send_task("ragllava.answer", args=[1, 1], queue="query", priority=priority, connection=connection)
    counted = waiting_messages(workshop.settings)
    with redis.Redis.from_url(workshop.settings.require_redis()) as broker:
        broker.flushdb()
    assert counted == {"ingest": 0, "query": 3, "train": 0, "maint": 0}
