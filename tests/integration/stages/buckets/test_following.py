"""Several rooms together: question files through events, maintenance tasks and schedules."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from sqlalchemy import delete, func, select, update

from ragllava.errors import UsageError
from ragllava.jobs.states import JobState
from ragllava.jobs.views import JobView
from ragllava.records import JobKind, ScheduleAction, TaskName
from ragllava.stages.answer.slow_reads import SlowReads
from ragllava.stages.buckets import sync
from ragllava.stages.maintenance.schedules import ScheduleRequest, add_schedule, run_now
from ragllava.stages.maintenance.stage import submit_task
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stores.archives import archive
from ragllava.stores.buckets import bindings, change_events
from ragllava.stores.buckets.bindings import BindingRole
from ragllava.stores.database import in_transaction
from ragllava.stores.schema import change_events as change_event_table
from ragllava.stores.schema import embeddings, jobs
from ragllava.training.scheduled import STARTERS
from tests.integration.conftest import Postcards
from tests.support.foreign_bucket import Bucket, make_bucket
from tests.support.workshop import ARCHIVE, Workshop


@pytest.fixture
def gallery(workshop: Workshop, postcards: Postcards) -> Workshop:
    """An archive of eight postcards."""
    workshop.ingest(*sorted(postcards.written.pictures.glob("*.png"))[:8])
    return workshop


@pytest.fixture
def post(gallery: Workshop) -> Iterator[Bucket]:
    """A bucket whose `in/` is an inbox of the archive."""
    bucket = make_bucket(gallery.settings, "post")
    with gallery.engine.begin() as connection:
        archive_id = archive.get_archive(connection, ARCHIVE).archive_id
        options = {"outbox": f"s3://{bucket.name}/out/", "skip_invalid": True}
        bindings.bind(connection, archive_id, BindingRole.INBOX, bucket.name, "in/", options)
    yield bucket


def deliver(gallery: Workshop, post: Bucket, key: str, lines: bytes) -> None:
    """Put a file, record its event twice, and process everything that follows."""
    post.put(key, lines)
    for _ in range(2):
        with gallery.engine.begin() as connection:
            change_events.record(connection, [(post.name, key)])
            connection.execute(update(change_event_table).values(not_before=func.now()))
        sync.process_events(gallery.engine, gallery.settings, gallery.resources.objects, SlowReads())
    gallery.run()
    publish_missing_results(gallery.engine, gallery.resources.objects)


def written(post: Bucket) -> dict[str, bytes]:
    """The objects in the outbox, by key below it."""
    keys = [entry.object_name for entry in post.client.list_objects(post.name, "out/", recursive=True)]
    return {key.removeprefix("out/"): post.client.get_object(post.name, key).read() for key in keys}


def answer_jobs(gallery: Workshop) -> list[int]:
    with gallery.engine.begin() as connection:
        return list(connection.scalars(select(jobs.c.id).where(jobs.c.kind == JobKind.ANSWER).order_by(jobs.c.id)))


def test_a_question_file_in_the_inbox_comes_back_answered_in_the_outbox(gallery: Workshop, post: Bucket) -> None:
    good = b'{"custom_id": "a", "question": "What color is it?"}\n'
    deliver(gallery, post, "in/today/q.jsonl", good + b"no json\n")
    [job_id] = answer_jobs(gallery)
    files = written(post)
    folder = f"today/q.jsonl/{job_id}"
    assert files.keys() == {f"{folder}/{name}" for name in ("results.jsonl", "errors.jsonl", "manifest.json")}
    rows = [json.loads(line) for line in files[f"{folder}/results.jsonl"].splitlines()]
    assert [row["status"] in ("answered", "no_evidence") for row in rows] == [True, False]
    assert [json.loads(line)["code"] for line in files[f"{folder}/errors.jsonl"].splitlines()] == ["invalid_json_line"]
    assert json.loads(files[f"{folder}/manifest.json"])["reconciled"]["adds_up"] is True

    deliver(gallery, post, "in/today/q.jsonl", good + b"no json\n")  # the same bytes once more
    assert answer_jobs(gallery) == [job_id]
    deliver(gallery, post, "in/today/q.jsonl", good)
    assert len(answer_jobs(gallery)) == 2


def test_a_file_that_cannot_be_used_gets_an_error_file_once(gallery: Workshop, post: Bucket) -> None:
    deliver(gallery, post, "in/bad.jsonl", b"no json\n")
    [(name, content)] = written(post).items()
    assert name.startswith("bad.jsonl/error-")
    assert json.loads(content)["errors"][0]["code"] == "invalid_json_line"
    deliver(gallery, post, "in/bad.jsonl", b"no json\n")
    assert (answer_jobs(gallery), len(written(post))) == ([], 1)


def task(gallery: Workshop, action: TaskName, archive_name: str | None = None) -> JobView:
    job_id = in_transaction(gallery.engine, submit_task, gallery.settings, action, archive_name, {})
    gallery.run()
    return gallery.job(job_id)


def test_the_scan_task_repairs_what_events_lost(gallery: Workshop, postcards: Postcards) -> None:
    bucket = make_bucket(gallery.settings)
    with gallery.engine.begin() as connection:
        archive_id = archive.ensure_archive(connection, "bound").archive_id
        bindings.bind(connection, archive_id, BindingRole.PICTURES, bucket.name, "", {})
    picture = sorted(postcards.written.pictures.glob("*.png"))[9]
    bucket.put(picture.name, picture.read_bytes())
    result = task(gallery, TaskName.SCAN, "bound").task
    assert result is not None and result.reason == f"listed 1 object of 1 binding; repaired s3://{bucket.name}/"
    assert [image.source for image in gallery.images("bound").values()] == [picture.name]
    again = task(gallery, TaskName.SCAN).task
    assert again is not None and again.reason == "listed 1 object of 1 binding; nothing differed"


def test_a_bucket_that_is_gone_fails_the_scan_of_all_and_the_others_are_repaired(
    gallery: Workshop, postcards: Postcards
) -> None:
    lost, present = make_bucket(gallery.settings, "lost"), make_bucket(gallery.settings, "there")
    with gallery.engine.begin() as connection:
        for name, bucket in (("lost", lost), ("there", present)):
            archive_id = archive.ensure_archive(connection, name).archive_id
            bindings.bind(connection, archive_id, BindingRole.PICTURES, bucket.name, "", {})
    lost.client.remove_bucket(lost.name)
    picture = sorted(postcards.written.pictures.glob("*.png"))[9]
    present.put(picture.name, picture.read_bytes())
    job = task(gallery, TaskName.SCAN)
    assert job.state is JobState.FAILED and job.task is not None
    assert job.task.reason == (
        f"listed 1 object of 2 bindings; repaired s3://{present.name}/; s3://{lost.name}/ was not compared: "
        f"there is no bucket {lost.name}, so nothing was compared with it"
    )
    assert [image.source for image in gallery.images("there").values()] == [picture.name]


def test_the_gaps_task_names_images_without_a_vector_and_a_scheduled_reindexing_fills_them(gallery: Workshop) -> None:
    result = task(gallery, TaskName.GAPS).task
    assert result is not None and result.reason == "every image has its vector"
    lost = next(iter(gallery.images()))
    with gallery.engine.begin() as connection:
        connection.execute(delete(embeddings).where(embeddings.c.image_id == gallery.images()[lost].id))
    result = task(gallery, TaskName.GAPS, ARCHIVE).task
    assert result is not None and result.reason == f"1 image without a vector ({ARCHIVE} 1)"
    assert result.report is not None
    assert [image["source"] for image in result.report["archives"][0]["images"]] == [lost]

    in_transaction(
        gallery.engine,
        add_schedule,
        ScheduleRequest(ScheduleAction.REINDEX, "0 2 * * *", ARCHIVE, name="weekly"),
        STARTERS,
    )
    fired = in_transaction(gallery.engine, run_now, gallery.settings, "weekly", STARTERS)
    assert fired.job_id is not None
    gallery.run()
    assert gallery.job(fired.job_id).state == "completed"
    result = task(gallery, TaskName.GAPS).task
    assert result is not None and result.reason == "every image has its vector"


@pytest.mark.parametrize(
    ("archive_name", "options", "message"),
    [
        (None, {}, "reindex concerns one archive"),
        (ARCHIVE, {"only": "some"}, "reindex takes only missing, failed, stale, all, not 'some'"),
        (ARCHIVE, {"only": "stale", "retriever": "ViT-B-16/openai"}, "concerns the active index"),
    ],
)
def test_a_wrong_reindexing_is_not_scheduled(
    gallery: Workshop, archive_name: str | None, options: dict[str, object], message: str
) -> None:
    request = ScheduleRequest(ScheduleAction.REINDEX, "0 2 * * *", archive_name, options=options)
    with pytest.raises(UsageError, match=message):
        in_transaction(gallery.engine, add_schedule, request, STARTERS)
