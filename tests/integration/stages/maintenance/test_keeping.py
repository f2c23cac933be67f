"""Retention of what nothing else ends: retired pictures, and jobs with noisy cases that nobody labels. What stays of
every job is in the counters of the metrics."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select, text

from ragllava.client import Client
from ragllava.feedback import NoisyReason
from ragllava.jobs import control
from ragllava.settings import Settings
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stores.database import in_transaction
from ragllava.stores.learning import noisy
from ragllava.stores.maintenance import erasures
from ragllava.stores.objects import content_key
from ragllava.stores.schema import candidates, images, jobs
from tests.support.archive_rows import answered_job, make_index, put
from tests.support.maintenance_tasks import do, execute, report
from tests.support.workshop import Workshop


def test_retired_pictures_are_erased_after_their_days(workshop: Workshop) -> None:
    make_index(workshop, 3)
    long_ago, lately = put(workshop, b"long ago"), put(workshop, b"lately")
    answered_job(workshop, [(0.9, 0.8)])  # rests on the picture b"picture"
    execute(workshop, "UPDATE jobs SET archive_id = (SELECT min(id) FROM archives) WHERE kind = 'answer'")
    with workshop.engine.begin() as connection:
        evidence = connection.scalars(select(candidates.c.image_id)).one()
        sha256 = connection.scalars(select(images.c.sha256).where(images.c.id == evidence)).one()
    for digest, days in ((long_ago, 40), (lately, 20), (sha256, 40)):
        ago = f"now() - interval '{days} days'"
        execute(workshop, f"UPDATE images SET retired = true, updated_at = {ago} WHERE sha256 = '{digest}'")

    kept = report(do(workshop.with_settings(keep_retired_days=0), "retention"))
    assert kept["retired_pictures"] == 0
    job = do(workshop.with_settings(keep_retired_days=30), "retention")
    assert report(job)["retired_pictures"] == 2
    objects = workshop.resources.objects
    assert [objects.exists(content_key(digest)) for digest in (long_ago, sha256, lately)] == [False, False, True]
    with workshop.engine.begin() as connection:
        assert connection.scalars(select(candidates.c.image_id)).all() == []
        assert lately in connection.scalars(select(images.c.sha256)).all()
        line = erasures.list_erasures(connection)[0]
    assert (line.kind, line.account, line.counts["images"]) == ("retired", f"job {job.job_id}", 2)
    assert report(do(workshop.with_settings(keep_retired_days=30), "retention"))["retired_pictures"] == 0


def test_an_open_noisy_case_keeps_its_job_only_for_its_days(workshop: Workshop) -> None:
    old, young = answered_job(workshop, [(0.9, 0.8)]), answered_job(workshop, [(0.9, 0.8)])
    execute(workshop, "UPDATE jobs SET finished_at = now() - interval '100 days', result = '{}' WHERE kind = 'answer'")
    with workshop.engine.begin() as connection:
        archive_id = connection.execute(select(jobs.c.archive_id).where(jobs.c.id == old)).scalar_one()
        for job_id in (old, young):
            noisy.add_reason(connection, archive_id, job_id, 0, NoisyReason.LOW_CONFIDENCE, "unsure")
        ago = text("UPDATE noisy_cases SET created_at = now() - interval '95 days' WHERE job_id = :id")
        connection.execute(ago, {"id": old})
    for_ever = report(do(workshop.with_settings(keep_jobs_days=30, keep_noisy_days=0), "retention"))
    assert for_ever["jobs"]["dropped"] == 0
    figures = report(do(workshop.with_settings(keep_jobs_days=30), "retention"))
    assert figures["jobs"] == {"dropped": 1, "kept_for_labels_and_noisy_cases": 1, "examples": [old]}


def counters(settings: Settings) -> dict[tuple[str, tuple[str, ...]], float]:
    """What must never decrease: the counters of the metrics, and the counts and sums of their histograms."""
    numbers: dict[tuple[str, tuple[str, ...]], float] = {}
    with Client(settings, name="metrics", for_tenants=True) as client:
        for reading in client.metrics.read():
            if reading.metric.type == "counter":
                numbers |= {(reading.metric.name, sample.labels): sample.number for sample in reading.samples}
            for durations in reading.histograms:
                numbers |= {
                    (reading.metric.name, (*durations.labels, bound)): number for bound, number in durations.buckets
                }
                numbers[reading.metric.name, (*durations.labels, "sum")] = durations.sum_s
    return numbers


def of_others(numbers: Mapping[tuple[str, tuple[str, ...]], float]) -> dict[tuple[str, tuple[str, ...]], float]:
    """Those of other kinds of job than maintenance tasks."""
    return {key: number for key, number in numbers.items() if "maintenance" not in key[1]}


def test_no_counter_decreases_when_jobs_go(workshop: Workshop) -> None:
    answered_job(workshop, [(0.9, 0.8)] * 3)
    cancelled, retried = workshop.questions_job(4, 2), workshop.questions_job(4, 2)
    workshop.answer(workshop.claim_next())
    with Client(workshop.settings) as client:
        client.jobs.cancel(cancelled)
        client.jobs.cancel(retried)
        in_transaction(workshop.engine, control.retry, retried, 2)
        workshop.drain()
        publish_missing_results(workshop.engine, workshop.resources.objects)
        before = counters(workshop.settings)
        assert before["ragllava_questions_total", ("answer", "answered")] == 3 + 2 + 4
        assert before["ragllava_inputs_done_total", ("answer",)] == 3 + 4 + 4 + 4
        assert before["ragllava_jobs_total", ("answer", "cancelled")] == 2

        execute(workshop, "UPDATE jobs SET finished_at = now() - interval '100 days'")
        task = do(workshop.with_settings(keep_jobs_days=30), "retention")
        assert report(task)["jobs"]["dropped"] == 3
        after = counters(workshop.settings)
        assert of_others(after) == of_others(before)
        assert all(after[key] >= number for key, number in before.items())

        removed = workshop.questions_job(5, 5)
        workshop.drain()
        publish_missing_results(workshop.engine, workshop.resources.objects)
        with_job = counters(workshop.settings)
        client.jobs.remove(removed)
        client.archives.remove("test")
    assert counters(workshop.settings) == with_job
    assert with_job["ragllava_questions_total", ("answer", "answered")] == 3 + 2 + 4 + 5
