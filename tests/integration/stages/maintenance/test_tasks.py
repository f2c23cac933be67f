"""Maintenance tasks as jobs, on a real Postgres and object store: what is removed, and what is not."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select, text, update

from ragllava.errors import UsageError
from ragllava.feedback import Label, NoisyReason, NoisyState, Verdict
from ragllava.jobs import control
from ragllava.jobs.states import JobState
from ragllava.records import TaskName
from ragllava.source_files import SourceFile
from ragllava.stages.ingest.submit import submit_files
from ragllava.stages.maintenance import vacuum as vacuum_task
from ragllava.stages.maintenance.stage import submit_task
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stores.archives import archive, graphs, vectors
from ragllava.stores.archives import indexes as index_store
from ragllava.stores.database import in_transaction
from ragllava.stores.learning import labels, noisy
from ragllava.stores.schema import indexes, jobs, noisy_cases, word_counts
from tests.support.archive_rows import ARCHIVE, answered_job, make_index
from tests.support.maintenance_tasks import a_training, do, execute, report
from tests.support.workshop import Workshop

# A maintenance task is a job


def test_a_task_ends_with_a_report_and_adds_up(workshop: Workshop) -> None:
    job = do(workshop, "gc")
    assert job.state is JobState.COMPLETED
    assert job.progress.by_status == {"done": 1}
    assert job.result is not None
    assert job.result["reconciled"] == {"inputs": 1, "outcomes": 1, "adds_up": True}
    assert job.as_json()["maintenance"]["action"] == "gc"


def test_a_cancelled_task_is_cancelled_and_can_be_retried(workshop: Workshop) -> None:
    job_id = in_transaction(workshop.engine, submit_task, workshop.settings, TaskName.VACUUM, None, {})
    in_transaction(workshop.engine, control.cancel, job_id)
    assert workshop.job(job_id).progress.by_status == {"cancelled": 1}
    assert in_transaction(workshop.engine, control.retry, job_id, 1) == 1
    workshop.run()
    assert workshop.job(job_id).state is JobState.COMPLETED


def test_tasks_wait_behind_pictures(workshop: Workshop) -> None:
    task_job_id = in_transaction(workshop.engine, submit_task, workshop.settings, TaskName.RETENTION, None, {})
    files = [SourceFile("a.png", "file:///nowhere/a.png")]
    job_id = in_transaction(workshop.engine, submit_files, workshop.settings, archive_name=ARCHIVE, files=files)
    workshop.run_once()
    assert workshop.job(job_id).is_final and not workshop.job(task_job_id).is_final


@pytest.mark.parametrize(
    ("action", "archive_name", "options", "message"),
    [
        ("gc", "cards", {}, "takes no archive"),
        ("vacuum", None, {"delete": True}, "vacuum does not take the option delete; it takes none"),
        ("find-noisy", "none-such", {}, "there is no archive"),
    ],
)
def test_an_invalid_task_is_refused(
    workshop: Workshop, action: str, archive_name: str | None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        in_transaction(workshop.engine, submit_task, workshop.settings, TaskName(action), archive_name, options)


# Noisy cases


def logged(workshop: Workshop) -> dict[int, tuple[list[str], str]]:
    with workshop.engine.begin() as connection:
        rows = connection.execute(select(noisy_cases).order_by(noisy_cases.c.question_no))
        return {row.question_no: (row.reasons, row.state) for row in rows}


def test_find_noisy_logs_what_stored_answers_show_and_skips_what_people_have_seen(workshop: Workshop) -> None:
    sure, near, unsure = (0.99, 0.9), (0.55, 0.9), (0.99, 0.2)
    job_id = answered_job(workshop, [sure, near, unsure, near, near])
    with workshop.engine.begin() as connection:
        archive_id = archive.get_archive(connection, "test").archive_id
        labels.insert_labels(connection, [Label(job_id, 3, Verdict.RIGHT, None, (), (), "person")])
        noisy.add_reason(connection, archive_id, job_id, 4, NoisyReason.SAID_WRONG, "a person said so")
        noisy.set_state(connection, [(job_id, 4)], NoisyState.DISMISSED)
    figures = report(do(workshop, "find-noisy"))
    assert figures == {
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
    assert report(do(workshop, "find-noisy", "test"))["cases"] == 0


def test_find_noisy_after_changed_limits_finds_more(workshop: Workshop) -> None:
    answered_job(workshop, [(0.55, 0.7)])
    assert report(do(workshop, "find-noisy"))["cases"] == 1
    stricter = workshop.with_settings(low_confidence=0.8)
    assert report(do(stricter, "find-noisy"))["reasons"] == {"low_confidence": 1}
    assert logged(workshop) == {0: (["low_confidence", "near_threshold"], "open")}


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


def test_retention_keeps_recent_jobs_and_those_needed_for_learning(workshop: Workshop) -> None:
    deleted, young, labelled, doubted, dismissed = [old_job(workshop, days) for days in (40, 20, 40, 40, 40)]
    a_training(workshop, "refused")
    execute(workshop, "UPDATE jobs SET finished_at = now() - interval '99 days' WHERE kind = 'train'")
    with workshop.engine.begin() as connection:
        archive_id = archive.get_archive(connection, "test").archive_id
        labels.insert_labels(connection, [Label(labelled, 0, Verdict.RIGHT, None, (), (), "person")])
        for job_id in (doubted, dismissed):
            noisy.add_reason(connection, archive_id, job_id, 1, NoisyReason.LOW_CONFIDENCE, "unsure")
        noisy.set_state(connection, [(dismissed, 1)], NoisyState.DISMISSED)
    unlimited = report(do(workshop, "retention"))
    assert unlimited["jobs"]["dropped"] == 0

    figures = report(do(workshop.with_settings(keep_jobs_days=30), "retention"))
    assert figures["jobs"] == {
        "dropped": 2,
        "kept_for_labels_and_noisy_cases": 2,
        "examples": [deleted, dismissed],
    }
    with workshop.engine.begin() as connection:
        left = set(connection.scalars(select(jobs.c.id).where(jobs.c.kind == "answer")))
        assert connection.scalar(select(func.count()).select_from(jobs).where(jobs.c.kind == "train")) == 1
    assert left == {young, labelled, doubted}
    folders = {listed.key.split("/")[1] for listed in workshop.resources.objects.list_objects("jobs/")}
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


def test_records_of_calls_are_kept_for_a_year(workshop: Workshop) -> None:
    execute(
        workshop,
        """INSERT INTO audit (at, owner, action, target, status, request_id)
           SELECT now() - make_interval(days => n), 'key', 'POST /v1/jobs', '/v1/jobs', 201, n::text
           FROM unnest(ARRAY[1, 364, 366, 400]) n""",
    )
    assert report(do(workshop, "retention"))["audit"] == 2
    with workshop.engine.begin() as connection:
        assert set(connection.scalars(text("SELECT request_id FROM audit"))) == {"1", "364"}


def test_notices_are_kept_for_a_month_unless_they_are_not_over(workshop: Workshop) -> None:
    execute(
        workshop,
        """INSERT INTO notices (event, subject, facts, created_at, addressed_at, over_at)
           SELECT 'disk_low', 'host ' || n, '{}', now() - make_interval(days => n), now(),
                  CASE WHEN n <> 50 THEN now() END
           FROM unnest(ARRAY[29, 31, 40, 50]) n""",
    )
    assert report(do(workshop, "retention"))["notices"] == 2
    with workshop.engine.begin() as connection:
        left = connection.scalars(text("SELECT subject FROM notices WHERE event = 'disk_low'"))
        assert set(left) == {"host 29", "host 50"}


def test_the_last_run_of_a_schedule_is_kept_however_old(workshop: Workshop) -> None:
    execute(
        workshop,
        """INSERT INTO schedules (name, action, options, cron, timezone)
           VALUES ('n', 'gc', '{}', '0 3 * * *', 'UTC');
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
    assert graphs.build_hnsw(workshop.engine, index_id, above_rows=10)
    asked = workshop.submit([f"What color is house {number}?" for number in range(8)], archive_name=ARCHIVE)
    in_transaction(workshop.engine, control.cancel, asked.job_id)
    figures = report(do(workshop, "vacuum"))
    assert figures["graphs"] == [{"archive": ARCHIVE, "index": index_id, "recall": 1.0, "questions": 8}]
    assert figures["warnings"] == []
    [workers] = [table for table in figures["tables"] if table["table"] == "workers"]
    assert (workers["live_rows"], workers["dead_rows"]) == (1, 0)

    monkeypatch.setattr(vacuum_task, "NEEDED_RECALL", 1.01)
    job = do(workshop, "vacuum")
    [warning] = report(job)["warnings"]
    assert f"index {index_id} of {ARCHIVE} finds only 1.000 of the true neighbours" in warning
    assert job.task is not None and job.task.reason is not None and warning in job.task.reason


def test_vacuum_sums_up_the_counts_of_words(workshop: Workshop) -> None:
    make_index(workshop, 5)
    rows = select(func.count()).where(word_counts.c.word == ":images")
    with workshop.engine.begin() as connection:
        assert connection.scalar(rows) == 5
    figures = report(do(workshop, "vacuum"))
    with workshop.engine.begin() as connection:
        assert connection.scalar(rows) == 1
    assert {"image_words", "word_counts"} <= {table["table"] for table in figures["tables"]}


def test_a_graph_of_another_retriever_is_not_measured_and_says_so(workshop: Workshop) -> None:
    index_id = make_index(workshop, 16)
    assert graphs.build_hnsw(workshop.engine, index_id, above_rows=10)
    [graph] = report(do(workshop, "vacuum"))["graphs"]
    assert "recall" not in graph and "indexed by clip@1" in graph["not_measured"]
