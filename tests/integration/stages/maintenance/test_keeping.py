"""Retention of what nothing else ends: retired pictures, and jobs with noisy cases that nobody labels."""

from __future__ import annotations

from sqlalchemy import select, text

from ragllava.feedback import NoisyReason
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
