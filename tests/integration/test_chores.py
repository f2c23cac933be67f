"""Upkeep as jobs, on a real Postgres and object store: what is removed, and above all what is not."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select, text, update

from ragllava.errors import BlobSwept, UsageError
from ragllava.jobs import control
from ragllava.jobs.control import JobView
from ragllava.jobs.runner import ShardContext
from ragllava.jobs.states import JobState
from ragllava.records import (
    ChoreAction,
    ChoreStatus,
    Label,
    NoisyReason,
    NoisyState,
    Role,
    SourceFile,
    Verdict,
)
from ragllava.stages import vacuum as vacuuming_stage
from ragllava.stages.chores import submit_chore
from ragllava.stages.finalize import publish_missing_results
from ragllava.stages.resources import Resources
from ragllava.stages.submit import submit_files
from ragllava.stages.sweep import sweep
from ragllava.stages.upkeep import ChoreRequest
from ragllava.stores import archive, labels, noisy, trainings, vectors
from ragllava.stores import indexes as index_store
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import ObjectStore, content_key
from ragllava.stores.schema import blobs as blobs_table
from ragllava.stores.schema import images, indexes, jobs, noisy_cases
from ragllava.training.request import TrainingRequest, create_job
from tests.stocked import ARCHIVE, answered_job, make_index, put
from tests.workshop import Workshop


def do(workshop: Workshop, action: str, archive_name: str | None = None, **options: Any) -> JobView:
    """One chore from its beginning to its result."""
    job_id = submit_chore(workshop.engine, ChoreAction(action), archive_name, options)
    workshop.run()
    publish_missing_results(workshop.engine, workshop.resources.objects)
    return workshop.job(job_id)


def report(job: JobView) -> dict[str, Any]:
    assert job.chore is not None and job.chore.status is ChoreStatus.DONE, job
    assert job.chore.report is not None
    return job.chore.report


def execute(workshop: Workshop, statement: str) -> None:
    with workshop.engine.begin() as connection:
        connection.execute(text(statement))


# A chore is a job like any other


def test_a_chore_ends_with_a_report_and_adds_up(workshop: Workshop) -> None:
    job = do(workshop, "sweep")
    assert job.state is JobState.COMPLETED
    assert job.progress.by_status == {"done": 1}
    assert job.result is not None
    assert job.result["reconciled"] == {"inputs": 1, "outcomes": 1, "adds_up": True}
    assert job.as_json()["chore"]["action"] == "sweep"


def test_a_cancelled_chore_is_cancelled_and_can_be_retried(workshop: Workshop) -> None:
    job_id = submit_chore(workshop.engine, ChoreAction.VACUUM, None, {})
    in_transaction(workshop.engine, lambda c: control.cancel(c, job_id))
    assert workshop.job(job_id).progress.by_status == {"cancelled": 1}
    assert in_transaction(workshop.engine, lambda c: control.retry(c, job_id, 1)) == 1
    workshop.run()
    assert workshop.job(job_id).state is JobState.COMPLETED


def test_chores_wait_behind_pictures(workshop: Workshop) -> None:
    chore_id = submit_chore(workshop.engine, ChoreAction.RETENTION, None, {})
    files = [SourceFile("a.png", "file:///nowhere/a.png")]
    submitted = submit_files(workshop.engine, workshop.settings, archive_name=ARCHIVE, files=files)
    workshop.run_once()
    assert workshop.job(submitted.job_id).is_final and not workshop.job(chore_id).is_final


@pytest.mark.parametrize(
    ("action", "archive_name", "options", "message"),
    [
        ("sweep", "cards", {}, "takes no archive"),
        ("vacuum", None, {"delete": True}, "vacuum does not take the option delete; it takes none"),
        ("mine", "none-such", {}, "there is no archive"),
    ],
)
def test_a_wrong_chore_is_refused(
    workshop: Workshop, action: str, archive_name: str | None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        submit_chore(workshop.engine, ChoreAction(action), archive_name, options)


# Mining


def logged(workshop: Workshop) -> dict[int, tuple[list[str], str]]:
    with workshop.engine.begin() as connection:
        rows = connection.execute(select(noisy_cases).order_by(noisy_cases.c.question_no))
        return {row.question_no: (row.reasons, row.state) for row in rows}


def test_mining_logs_what_stored_answers_show_and_leaves_alone_what_people_have_seen(workshop: Workshop) -> None:
    sure, near, unsure = (0.99, 0.9), (0.55, 0.9), (0.99, 0.2)
    job_id = answered_job(workshop, [sure, near, unsure, near, near])
    with workshop.engine.begin() as connection:
        archive_id = archive.get_archive(connection, "test").archive_id
        labels.insert_labels(connection, [Label(job_id, 3, Verdict.RIGHT, None, (), (), "person")])
        noisy.add_reason(connection, archive_id, job_id, 4, NoisyReason.SAID_WRONG, "a person said so")
        noisy.set_state(connection, [(job_id, 4)], NoisyState.DISMISSED)
    found = report(do(workshop, "mine"))
    assert found == {
        "jobs": 1,
        "answers": 3,
        "cases": 2,
        "reasons": {"low_confidence": 1, "near_threshold": 1},
    }
    assert logged(workshop) == {
        1: (["near_threshold"], "open"),
        2: (["low_confidence"], "open"),
        4: (["said_wrong"], "dismissed"),
    }
    assert report(do(workshop, "mine", "test"))["cases"] == 0


def test_mining_after_changed_limits_finds_more(workshop: Workshop) -> None:
    answered_job(workshop, [(0.55, 0.7)])
    assert report(do(workshop, "mine"))["cases"] == 1
    stricter = workshop.with_settings(low_confidence=0.8)
    assert report(do(stricter, "mine"))["reasons"] == {"low_confidence": 1}
    assert logged(workshop) == {0: (["low_confidence", "near_threshold"], "open")}


# The sweep


@pytest.fixture
def objects(workshop: Workshop) -> ObjectStore:
    return workshop.resources.objects


def swept_now(workshop: Workshop, *, delete: bool) -> dict[str, Any]:
    """A sweep for which everything is old enough."""
    with sweeping(workshop) as context:
        return sweep(context, ChoreRequest(None, {"delete": delete}), grace_s=-60.0).figures


class sweeping:  # noqa: N801 - reads as a verb
    """The context of a sweep that runs on a lease of its own."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop

    def __enter__(self) -> ShardContext[Resources]:
        submit_chore(self._workshop.engine, ChoreAction.SWEEP, None, {})
        lease = self._workshop.claim_next(lease_s=600.0)
        shop = self._workshop
        return ShardContext(lease, shop.settings, shop.engine, shop.resources, lambda: None)

    def __exit__(self, *_: object) -> None:
        self._workshop.expire_leases()


def a_version(workshop: Workshop, adapter: str, objects_at: str) -> None:
    execute(
        workshop,
        f"""INSERT INTO model_versions (role, name, profile, state, prompt, adapter_sha256, manifest, training)
            VALUES ('reranker', '{adapter}', 'mini', 'candidate', 'rerank-1', '{adapter}', '{{}}',
                    '{{"objects": "{objects_at}"}}')""",
    )


def a_training(workshop: Workshop, status: str | None) -> str:
    """A train job; returns its folder in the store."""
    with workshop.engine.begin() as connection:
        archive.ensure_archive(connection, ARCHIVE)
        job_id, _ = create_job(connection, TrainingRequest(Role.RERANKER, (ARCHIVE,), "mini"))
        if status is not None:
            connection.execute(text("UPDATE trainings SET status = :status"), {"status": status})
            connection.execute(
                update(jobs).where(jobs.c.id == job_id).values(state="completed", finished_at=func.now())
            )
        created_at = control.view(connection, job_id).created_at
    return trainings.place_of(job_id, created_at)


def test_the_sweep_reports_and_deletes_only_when_told_to(workshop: Workshop, objects: ObjectStore) -> None:
    kept = put(workshop, b"kept")
    execute(
        workshop, "INSERT INTO blobs (sha256, state, size_bytes, media_type) VALUES ('announced', 'uploading', 9, '')"
    )
    stray = objects.put_content(b"stray", "image/png")
    place = a_training(workshop, "promoted")
    a_version(workshop, "adapter-of-a-version", place)
    for key in (
        f"jobs/{workshop.questions_job(1, 1)}/results.jsonl",
        "jobs/999999/results.jsonl",
        "jobs/notes.txt",
        "adapters/adapter-of-a-version/manifest.json",
        "adapters/nobodys/manifest.json",
        "adapters/nobodys/adapter_model.safetensors",
        f"{place}/snapshot/manifest.json",
        f"{place}/checkpoints/checkpoint-3/manifest.json",
        "training/77-20200101T000000000000/report.json",
        "inbox/questions.jsonl",
    ):
        objects.put(key, b"12345")
    before = {found.key for found in objects.list_objects("")}

    told = swept_now(workshop, delete=False)
    counted = {kind: (told[kind]["found"], told[kind]["deleted"]) for kind in told if kind != "delete"}
    assert counted == {
        "blobs": (1, 0),
        "content_without_row": (1, 0),
        "results": (1, 0),
        "adapters": (1, 0),
        "trainings": (2, 0),
    }
    assert {found.key for found in objects.list_objects("")} == before

    done = swept_now(workshop, delete=True)
    assert all(done[kind]["deleted"] == done[kind]["found"] for kind in counted)
    gone = before - {found.key for found in objects.list_objects("")}
    assert gone == {
        content_key(stray),
        "jobs/999999/results.jsonl",
        "adapters/nobodys/manifest.json",
        "adapters/nobodys/adapter_model.safetensors",
        f"{place}/checkpoints/checkpoint-3/manifest.json",
        "training/77-20200101T000000000000/report.json",
    }
    assert objects.get_content(kept) == b"kept"
    again = swept_now(workshop, delete=True)
    assert all(again[kind]["found"] == 0 for kind in counted)


def test_what_was_touched_within_a_week_stays(workshop: Workshop, objects: ObjectStore) -> None:
    put(workshop, b"kept")
    objects.put_content(b"stray", "image/png")
    objects.put("adapters/nobodys/manifest.json", b"1")
    found = report(do(workshop, "sweep", delete=True))
    assert all(found[kind]["found"] == 0 for kind in found if kind != "delete")
    assert len(list(objects.list_objects(""))) == 3


def test_while_a_training_is_open_its_kind_of_files_stays(workshop: Workshop, objects: ObjectStore) -> None:
    put(workshop, b"kept")
    place = a_training(workshop, None)
    for key in ("adapters/nobodys-yet/manifest.json", f"{place}/checkpoints/checkpoint-1/manifest.json"):
        objects.put(key, b"1")
    found = swept_now(workshop, delete=True)
    assert found["adapters"]["deleted"] == 0 and "a training is open" in found["adapters"]["kept"]
    assert found["trainings"]["found"] == 0
    assert objects.exists("adapters/nobodys-yet/manifest.json")


def test_a_database_that_knows_no_content_deletes_none(workshop: Workshop, objects: ObjectStore) -> None:
    stray = objects.put_content(b"of another database", "image/png")
    found = swept_now(workshop, delete=True)["content_without_row"]
    assert (found["found"], found["deleted"]) == (1, 0)
    assert "is it the one that belongs to the bucket" in found["kept"]
    assert objects.get_content(stray)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_sweep_beside_importers_never_takes_what_is_referred_to(workshop: Workshop, seed: int) -> None:
    """Three importers bring the same few pictures again and again, while sweeps without any grace take every blob and
    object that they can. Afterwards each image has its bytes."""
    contents = [f"picture {number}".encode() for number in range(12)]
    done = threading.Event()
    put(workshop, b"the first")

    def bring(number: int) -> int:
        chance, swept = random.Random(seed * 10 + number), 0
        for turn in range(30):
            data = chance.choice(contents)
            if chance.random() < 0.2:  # what a deletion that was cut short leaves
                workshop.resources.objects.put_content(f"stray {number} {turn}".encode(), "image/png")
            try:
                put(workshop, data, f"archive-{chance.randrange(3)}")
            except BlobSwept:
                swept += 1  # an ingest worker would try again
        return swept

    def clean() -> int:
        deleted = 0
        with sweeping(workshop) as context:
            while not done.is_set():
                found = sweep(context, ChoreRequest(None, {"delete": True}), grace_s=-60.0).figures
                deleted += found["blobs"]["deleted"] + found["content_without_row"]["deleted"]
        return deleted

    with ThreadPoolExecutor(4) as threads:
        sweeper = threads.submit(clean)
        importers = [threads.submit(bring, number) for number in range(3)]
        for importer in importers:
            importer.result()
        done.set()
        assert sweeper.result() > 0, "the sweep found nothing to delete: the test shows nothing"
    with workshop.engine.begin() as connection:
        named = set(connection.scalars(select(images.c.sha256)))
        live = set(connection.scalars(select(blobs_table.c.sha256).where(blobs_table.c.state == "live")))
    assert named and named <= live
    for digest in named:
        assert workshop.resources.objects.get_content(digest)


# Retention


def old_job(workshop: Workshop, days: int = 40) -> int:
    """An ended job with result files, that long ago."""
    job_id = workshop.questions_job(2, per_shard=2)
    workshop.answer(workshop.claim_next())
    publish_missing_results(workshop.engine, workshop.resources.objects)
    with workshop.engine.begin() as connection:
        ago = text(f"now() - interval '{days} days'")
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(finished_at=ago))
    return job_id


def test_retention_keeps_what_is_young_and_what_is_learned_from(workshop: Workshop, objects: ObjectStore) -> None:
    forgotten, young, labelled, doubted, dismissed = [old_job(workshop, days) for days in (40, 20, 40, 40, 40)]
    a_training(workshop, "refused")
    execute(workshop, "UPDATE jobs SET finished_at = now() - interval '99 days' WHERE kind = 'train'")
    with workshop.engine.begin() as connection:
        archive_id = archive.get_archive(connection, "test").archive_id
        labels.insert_labels(connection, [Label(labelled, 0, Verdict.RIGHT, None, (), (), "person")])
        for job_id in (doubted, dismissed):
            noisy.add_reason(connection, archive_id, job_id, 1, NoisyReason.LOW_CONFIDENCE, "unsure")
        noisy.set_state(connection, [(dismissed, 1)], NoisyState.DISMISSED)
    for_ever = report(do(workshop, "retention"))
    assert for_ever["jobs"]["dropped"] == 0

    found = report(do(workshop.with_settings(keep_jobs_days=30), "retention"))
    assert found["jobs"] == {
        "dropped": 2,
        "kept_for_labels_and_noisy_cases": 2,
        "examples": [forgotten, dismissed],
    }
    with workshop.engine.begin() as connection:
        left = set(connection.scalars(select(jobs.c.id).where(jobs.c.kind == "answer")))
        assert connection.scalar(select(func.count()).select_from(jobs).where(jobs.c.kind == "train")) == 1
    assert left == {young, labelled, doubted}
    folders = {found.key.split("/")[1] for found in objects.list_objects("jobs/")}
    assert {str(job_id) for job_id in left} == folders


def test_a_replaced_index_is_dropped_after_its_hours(workshop: Workshop) -> None:
    with workshop.engine.begin() as connection:
        archive_id = archive.ensure_archive(connection, ARCHIVE).archive_id
        ids = [index_store.create_index(connection, archive_id, f"clip@{number}", 4) for number in range(3)]
        for index_id in ids:
            index_store.activate(connection, index_id)
        for index_id, hours in zip(ids, (25, 23, 99), strict=True):
            ago = text(f"now() - interval '{hours} hours'")
            connection.execute(update(indexes).where(indexes.c.id == index_id).values(retired_at=ago))
    assert report(do(workshop, "retention"))["indexes"] == ids[:1]
    with workshop.engine.begin() as connection:
        assert [index.index_id for index in vectors.list_indexes(connection, archive_id)] == ids[1:]
        assert connection.scalar(text(f"SELECT to_regclass('embeddings_{ids[0]}')")) is None


def test_the_last_run_of_a_schedule_is_kept_however_old(workshop: Workshop) -> None:
    execute(
        workshop,
        """INSERT INTO schedules (name, action, options, cron, timezone)
           VALUES ('n', 'sweep', '{}', '0 3 * * *', 'UTC');
           INSERT INTO schedule_runs (schedule_id, due_at, fired_at)
           SELECT schedules.id, now() - ago, now() - ago FROM schedules,
                  unnest(ARRAY[interval '300 days', interval '200 days']) AS ago""",
    )
    assert report(do(workshop, "retention"))["schedule_runs"] == 1
    with workshop.engine.begin() as connection:
        assert connection.scalar(text("SELECT extract(day FROM now() - fired_at) FROM schedule_runs")) == 200


# Vacuum


def test_vacuum_removes_dead_rows_and_measures_the_graphs(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        execute(workshop, "UPDATE workers SET seen_at = now()")
    retriever = workshop.resources.models.retriever
    index_id = make_index(workshop, 64, retriever.version, retriever.dim)
    assert vectors.build_hnsw(workshop.engine, index_id, above_rows=10)
    asked = workshop.submit([f"What color is house {number}?" for number in range(8)], archive_name=ARCHIVE)
    in_transaction(workshop.engine, lambda c: control.cancel(c, asked.job_id))
    found = report(do(workshop, "vacuum"))
    assert found["graphs"] == [{"archive": ARCHIVE, "index": index_id, "recall": 1.0, "questions": 8}]
    assert found["warnings"] == []
    [workers] = [table for table in found["tables"] if table["table"] == "workers"]
    assert (workers["live_rows"], workers["dead_rows"]) == (1, 0)

    monkeypatch.setattr(vacuuming_stage, "LEAST_RECALL", 1.01)
    job = do(workshop, "vacuum")
    [warning] = report(job)["warnings"]
    assert f"index {index_id} of {ARCHIVE} finds only 1.000 of the true neighbours" in warning
    assert job.chore is not None and job.chore.reason is not None and warning in job.chore.reason


def test_a_graph_of_another_retriever_is_not_measured_and_says_so(workshop: Workshop) -> None:
    index_id = make_index(workshop, 16)
    assert vectors.build_hnsw(workshop.engine, index_id, above_rows=10)
    [graph] = report(do(workshop, "vacuum"))["graphs"]
    assert "recall" not in graph and "indexed by clip@1" in graph["not_measured"]
