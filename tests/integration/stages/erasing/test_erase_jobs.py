"""Erasing jobs and whole archives: what goes, what stays, and what an interrupted removal leaves."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select, text

from ragllava.errors import UsageError
from ragllava.feedback import Label, NoisyReason, Verdict
from ragllava.jobs import views
from ragllava.records import Role
from ragllava.stages.erasing.remove import Remover, rename_archive
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction
from ragllava.stores.learning import labels, noisy, trainings
from ragllava.stores.maintenance import erasures
from ragllava.stores.objects import content_key
from ragllava.stores.schema import archives, blobs, images, jobs, questions
from tests.support.archive_rows import ARCHIVE, answered_job, make_index, put
from tests.support.maintenance_tasks import a_training, execute
from tests.support.stored_traces import traces
from tests.support.waiting import wait_for
from tests.support.watched_store import watched_store
from tests.support.workshop import Workshop


class Killed(BaseException):  # no border of an isolated part catches it
    """The process ends here."""


def remover(workshop: Workshop, **values: Any) -> Remover:
    return Remover(workshop.engine, workshop.settings, workshop.resources.objects, "tester", **values)


def reviewed(workshop: Workshop) -> int:
    """An ended job of two questions with a label, a noisy case and result files."""
    job_id = answered_job(workshop, [(0.9, 0.8), (0.7, 0.6)])
    with workshop.engine.begin() as connection:
        archive_id = connection.execute(select(jobs.c.archive_id).where(jobs.c.id == job_id)).scalar_one()
        labels.insert_labels(connection, [Label(job_id, 0, Verdict.RIGHT, "a secret", (), (), "person")])
        noisy.add_reason(connection, archive_id, job_id, 1, NoisyReason.LOW_CONFIDENCE, "unsure")
    for name in ("results.jsonl", "manifest.json"):
        workshop.resources.objects.put(f"jobs/{job_id}/{name}", b"a secret")
    return job_id


def count(workshop: Workshop, table: Any) -> int:
    with workshop.engine.begin() as connection:
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def test_a_removed_job_leaves_its_pictures_and_a_line(workshop: Workshop) -> None:
    job_id = reviewed(workshop)
    kept = answered_job(workshop, [(0.9, 0.8)])
    assert len(traces(workshop.engine, workshop.settings, "a secret")) == 3
    planned = remover(workshop).job(job_id, dry_run=True)
    assert planned.counts == {"inputs": 2, "answers": 2, "labels": 1, "noisy_cases": 1} and not planned.kept
    assert count(workshop, questions) == 3

    removal = remover(workshop).job(job_id)
    assert removal.counts == {"inputs": 2, "files_of_jobs": 2, "jobs": 1}
    assert traces(workshop.engine, workshop.settings, "a secret") == {}
    assert (count(workshop, questions), count(workshop, images)) == (1, 1)
    assert workshop.job(kept).is_final
    with pytest.raises(UsageError, match=f"there is no job {job_id}"):
        remover(workshop).job(job_id)


@pytest.mark.parametrize("at", ["results.jsonl", "errors.jsonl"])
def test_a_tick_writes_no_files_of_a_job_that_is_removed_meanwhile(workshop: Workshop, at: str) -> None:
    job_id = answered_job(workshop, [(0.9, 0.8)])
    execute(workshop, "UPDATE jobs SET result = NULL")
    has_read, may_write = threading.Event(), threading.Event()

    def stop(key: str) -> None:
        if key.endswith(at):
            has_read.set()
            assert may_write.wait(240)

    def is_removed_or_waits() -> bool:
        with workshop.engine.begin() as connection:
            query = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            return removal.done() or bool(connection.scalar(query))

    with ThreadPoolExecutor(2) as threads:
        tick = threads.submit(publish_missing_results, workshop.engine, watched_store(workshop.settings, stop))
        assert has_read.wait(120)
        removal = threads.submit(remover(workshop).job, job_id)
        wait_for("the removal", is_removed_or_waits)
        may_write.set()
        tick.result()
        removal.result()
    assert list(workshop.resources.objects.list_objects("jobs/")) == []


def test_an_open_job_and_one_that_made_a_version_are_kept(workshop: Workshop) -> None:
    open_job = workshop.questions_job(3, per_shard=3)
    with pytest.raises(UsageError, match="stop it first"):
        remover(workshop).job(open_job)
    folder = a_training(workshop, "promoted")
    execute(
        workshop,
        f"""INSERT INTO model_versions (role, name, profile, state, prompt, manifest, training)
            VALUES ('reranker', 'better', 'mini', 'candidate', 'rerank-1', '{{}}', '{{"objects": "{folder}"}}');
            UPDATE trainings SET version_id = (SELECT id FROM model_versions WHERE name = 'better')""",
    )
    training = int(folder.split("/")[1].split("-")[0])
    with pytest.raises(UsageError, match="made the model version better"):
        remover(workshop).job(training)
    assert workshop.job(training).training is not None


def test_a_refresh_and_an_outbox_are_named(workshop: Workshop) -> None:
    job_id = reviewed(workshop)
    spec = '{"outbox": {"folder": "s3://out/q.csv/"}}'
    execute(workshop, f"UPDATE jobs SET spec = spec || '{spec}' WHERE id = {job_id}")
    refresh = answered_job(workshop, [(0.9, 0.8)])
    execute(workshop, f"UPDATE jobs SET spec = spec || '{{\"refreshes\": {job_id}}}' WHERE id = {refresh}")
    assert remover(workshop).job(job_id, dry_run=True).kept == (
        f"job {refresh} refreshed it, and keeps its answers beside its own",
        f"the outbox keeps the results below s3://out/q.csv/{job_id}/",
    )


def test_a_failed_training_goes_with_its_folder(workshop: Workshop) -> None:
    folder = a_training(workshop, None, state="failed")
    workshop.resources.objects.put(f"{folder}/snapshot/manifest.json", b"{}")
    remover(workshop).job(int(folder.split("/")[1].split("-")[0]))
    assert list(workshop.resources.objects.list_objects("training/")) == []


def filled(workshop: Workshop) -> tuple[int, str]:
    """An archive with an index, a job, a binding, a schedule and a training, and content of which one is shared."""
    make_index(workshop, 12)
    shared = put(workshop, b"shared")
    put(workshop, b"shared", "other")
    with workshop.engine.begin() as connection:
        archive_id = archive.get_archive(connection, ARCHIVE).archive_id
        other_jobs = text("UPDATE jobs SET archive_id = :id WHERE kind = 'answer'")
        connection.execute(
            text("""
                INSERT INTO bindings (archive_id, role, bucket, prefix, options)
                VALUES (:id, 'pictures', 'b', '', '{}')
            """),
            {"id": archive_id},
        )
    reviewed(workshop)
    with workshop.engine.begin() as connection:
        connection.execute(other_jobs, {"id": archive_id})
        connection.execute(text("UPDATE labels SET archive_id = :id"), {"id": archive_id})
        connection.execute(text("UPDATE noisy_cases SET archive_id = :id"), {"id": archive_id})
    execute(
        workshop,
        f"""INSERT INTO bound_objects (binding_id, key, kind, etag, size_bytes) SELECT id, 'a.png', 'picture', 'e', 1
            FROM bindings;
            INSERT INTO schedules (name, action, archive_id, options, cron, timezone)
            VALUES ('nightly', 'scan', {archive_id}, '{{}}', '0 3 * * *', 'UTC')""",
    )
    folder = a_training(workshop, "failed", state="failed")
    workshop.resources.objects.put(f"{folder}/snapshot/manifest.json", b"{}")
    return archive_id, shared


def test_a_removed_archive_leaves_what_belongs_to_others(workshop: Workshop) -> None:
    archive_id, shared = filled(workshop)
    planned = remover(workshop).archive(ARCHIVE, dry_run=True)
    assert planned.counts["images"] == 14 and planned.counts["jobs"] == 1
    training = planned.kept[1].split()[2]
    assert planned.kept == (
        "the bucket keeps its objects below s3://b/",
        f"training job {training} keeps its snapshot",
        "the schedule nightly goes with it",
    )
    removal = remover(workshop).archive(ARCHIVE)
    assert removal.counts["images"] == 14 and removal.counts["objects"] == 13 and removal.counts["archives"] == 1
    objects = workshop.resources.objects
    assert [item.key for item in objects.list_objects("sha256/")] == [content_key(shared)]
    assert list(objects.list_objects("jobs/")) == []
    with workshop.engine.begin() as connection:
        assert list(connection.scalars(select(archives.c.name).order_by(archives.c.name))) == ["other", "test"]
        for table in ("bindings", "bound_objects", "schedules", "labels", "noisy_cases", "questions", "indexes"):
            assert connection.scalar(text(f"SELECT count(*) FROM {table}")) == 0, table
        words = connection.execute(text("SELECT DISTINCT archive_id FROM word_counts")).scalars().all()
        assert archive_id not in words
        partitions = text("SELECT count(*) FROM pg_inherits WHERE inhparent = 'embeddings'::regclass")
        assert connection.scalar(partitions) == 0
        line = erasures.list_erasures(connection)[0]
        assert line.archive_id == archive_id and line.finished_at is not None
        assert views.view(connection, int(training)).archive == "*", "trainings stay, without their archive"


def test_an_interrupted_removal_of_an_archive_is_finished_at_every_step(workshop: Workshop) -> None:
    _, shared = filled(workshop)
    killed_at: list[str] = []

    def die_once(name: str) -> None:
        if name not in killed_at:
            killed_at.append(name)
            raise Killed(name)

    with pytest.raises(Killed):
        remover(workshop, before_step=die_once).archive(ARCHIVE)
    with pytest.raises(UsageError, match="there is no archive"):
        in_transaction(workshop.engine, archive.get_archive, ARCHIVE)
    put(workshop, b"new", ARCHIVE)  # the name is free at once
    for _ in range(30):
        try:
            remover(workshop, before_step=die_once).finish_interrupted()
            break
        except Killed:
            continue
    assert {"inputs", "files", "indexes", "images", "object", "vocabulary", "archive", "finish"} <= set(killed_at)
    with workshop.engine.begin() as connection:
        assert erasures.open_erasures(connection) == []
        left = set(connection.scalars(select(blobs.c.sha256)))
        assert len(left) == 2 and shared in left
    assert len(list(workshop.resources.objects.list_objects("sha256/"))) == 2


def test_an_archive_with_an_open_job_is_not_removed(workshop: Workshop) -> None:
    job_id = workshop.questions_job(3, per_shard=3)
    with workshop.engine.begin() as connection:
        name = views.view(connection, job_id).archive
    with pytest.raises(UsageError, match=f"ragllava jobs cancel {job_id}"):
        remover(workshop).archive(name)
    with workshop.engine.begin() as connection:
        archive.get_archive(connection, name)


def test_a_renamed_archive_keeps_what_belongs_to_it(workshop: Workshop) -> None:
    put(workshop, b"one")
    a_training(workshop, "promoted")
    with workshop.engine.begin() as connection:
        rename_archive(connection, ARCHIVE, "postcards-1932")
        renamed = archive.get_archive(connection, "postcards-1932")
        assert connection.scalar(select(func.count()).where(images.c.archive_id == renamed.archive_id)) == 1
        spec = connection.execute(select(jobs.c.spec).where(jobs.c.kind == "train")).scalar_one()
        assert spec["archives"] == ["postcards-1932"]
        assert list(trainings.due_archives(connection, Role.RERANKER, 1)) == []
    put(workshop, b"two", "second")
    for new, problem in (("second", "already"), ("No Name", "cannot be the name")):
        with workshop.engine.begin() as connection, pytest.raises(UsageError, match=problem):
            rename_archive(connection, "postcards-1932", new)
