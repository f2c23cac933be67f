"""An ingest that is interrupted, refused, or taken up again; on real stores and with the real mini retriever."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import pytest
from sqlalchemy import Connection, select

from ragllava.errors import (
    DeviceOutOfMemory,
    JobRefused,
    LeaseLost,
    ServiceUnavailable,
    ShardInterrupted,
)
from ragllava.jobs import control
from ragllava.jobs.runner import ShardContext
from ragllava.jobs.states import JobState
from ragllava.jobs.views import JobView
from ragllava.source_files import SourceFile
from ragllava.stages.ingest.stage import ingest_stage
from ragllava.stages.resources import Resources
from ragllava.stores.archives import archive, blobs, indexes
from ragllava.stores.objects import ObjectStore, content_key
from ragllava.stores.schema import embeddings, shards
from tests.support.ingest_runs import (
    changed,
    draw,
    nearest,
    queue_pictures,
    run_broken,
    stopping_after,
    stored_vectors,
)
from tests.support.workshop import ARCHIVE, Workshop

P = ParamSpec("P")
T = TypeVar("T")


@pytest.mark.parametrize(
    "error",
    [
        ShardInterrupted("the worker shuts down"),
        LeaseLost("another worker has it"),
        DeviceOutOfMemory("no memory"),
        RuntimeError("a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_shard_that_stops_in_the_middle_is_finished_by_the_next_run(
    workshop: Workshop, tmp_path: Path, error: Exception
) -> None:
    small = workshop.with_settings(files_per_step=4)
    job_id = queue_pictures(small, tmp_path, 12)
    run_broken(small, lambda context: ingest_stage(changed(context, ShardContext, stop=stopping_after(1, error))))
    assert len(small.images()) == small.embedded() == 4
    assert small.job(job_id).progress.by_status == {"stored": 4}
    small.let_wait_end()
    small.expire_leases()
    small.run()
    job = small.job(job_id)
    assert (job.state, job.progress.by_status) == (JobState.COMPLETED, {"stored": 12})
    assert len(small.images()) == small.embedded() == 12


class DiesBeforeCommit(ShardContext[Resources]):
    """Writes everything and then dies, so that nothing of it is kept."""

    def commit(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        def dying(connection: Connection) -> T:
            work(connection, *args, **kwargs)
            raise RuntimeError("killed just before the commit")

        return super().commit(dying)


def test_a_crash_between_put_and_commit_leaves_only_unreferenced_bytes(workshop: Workshop, tmp_path: Path) -> None:
    job_id = queue_pictures(workshop, tmp_path, 3)
    run_broken(workshop, lambda context: ingest_stage(changed(context, DiesBeforeCommit)))
    assert workshop.images() == {}
    assert stored_vectors(workshop) == {}
    with workshop.engine.begin() as connection:
        unreferenced = blobs.unreferenced_blobs(connection, older_than_s=0)
    assert {(blob.sha256, blob.state) for blob in unreferenced} == {
        (hashlib.sha256(path.read_bytes()).hexdigest(), "uploading") for path in tmp_path.iterdir()
    }
    assert all(workshop.resources.objects.exists(content_key(blob.sha256)) for blob in unreferenced)
    workshop.run()
    assert workshop.job(job_id).progress.by_status == {"stored": 3}
    with workshop.engine.begin() as connection:
        assert blobs.unreferenced_blobs(connection, older_than_s=0) == []


class FailingStore(ObjectStore):
    """Takes `good` objects, then does not answer any more."""

    good = 0

    def put_content(self, data: bytes, media_type: str) -> str:
        if self.good == 0:
            raise ServiceUnavailable("object store: did not answer")
        self.good -= 1
        return super().put_content(data, media_type)


def test_an_object_store_that_is_away_is_waited_for(workshop: Workshop, tmp_path: Path) -> None:
    small = workshop.with_settings(files_per_step=2, retry_backoff_s=60.0)
    job_id = queue_pictures(small, tmp_path, 6)
    healthy = small.resources.objects
    failing = FailingStore(small.settings)
    failing.good = 3
    small.resources.objects = failing
    small.run_once()
    with small.engine.begin() as connection:
        [shard] = connection.execute(select(shards)).all()
    assert (shard.state, shard.error) == ("pending", "object store: did not answer")
    assert shard.not_before is not None and shard.attempts == 0
    assert small.embedded() == len(small.images()) <= 2
    assert all(healthy.exists(content_key(row.sha256)) for row in small.images().values())
    assert small.dispatch() == []  # its time has not come
    small.resources.objects = healthy
    small.let_wait_end()
    small.run()
    assert small.job(job_id).progress.by_status == {"stored": 6}


def test_a_file_that_is_gone_by_now_is_rejected(workshop: Workshop, tmp_path: Path) -> None:
    job_id = queue_pictures(workshop, tmp_path, 2)
    (tmp_path / "01.png").unlink()
    workshop.run()
    assert workshop.outcomes(job_id) == [
        ("00.png", "stored", None),
        ("01.png", "rejected", "it disappeared since it was listed"),
    ]


def test_an_archive_of_another_retriever_refuses_the_whole_job(workshop: Workshop, tmp_path: Path) -> None:
    with workshop.engine.begin() as connection:
        archive_id = archive.ensure_archive(connection, ARCHIVE).archive_id
        indexes.activate(connection, indexes.create_index(connection, archive_id, "another/clip@1", dim=8))
    small = workshop.with_settings(files_per_shard=2)
    job_id = queue_pictures(small, tmp_path, 5)
    assert small.run() == 1
    job = small.job(job_id)
    assert (job.state, job.progress.by_status) == (JobState.FAILED, {"rejected": 5})
    assert job.error is not None and "indexed by another/clip@1" in job.error
    assert {reason for _, _, reason in small.outcomes(job_id)} == {job.error}
    with small.engine.begin() as connection:
        assert connection.execute(select(embeddings)).all() == []
        indexes.activate(
            connection,
            indexes.create_index(
                connection, archive_id, small.resources.models.retriever.version, small.resources.models.retriever.dim
            ),
        )
    assert retried(small, job_id).progress.by_status == {"stored": 5}


def test_a_worker_that_lost_its_lease_refuses_nothing(workshop: Workshop, tmp_path: Path) -> None:
    job_id = queue_pictures(workshop, tmp_path, 2)

    def refuse_too_late(context: ShardContext[Resources]) -> None:
        workshop.expire_leases()
        assert workshop.claim(workshop.dispatch()[0], worker="ingest@other")
        raise JobRefused("the archive is indexed by another model")

    run_broken(workshop, refuse_too_late)
    job = workshop.job(job_id)
    assert (job.state, job.error, job.progress.by_status) == (JobState.RUNNING, None, {})
    with workshop.engine.begin() as connection:
        assert connection.scalars(select(shards.c.worker)).all() == ["ingest@other"]


def retried(workshop: Workshop, job_id: int) -> JobView:
    with workshop.engine.begin() as connection:
        control.retry(connection, job_id, workshop.settings.files_per_shard)
    workshop.run()
    return workshop.job(job_id)


def test_a_retry_takes_what_was_repaired_and_nothing_from_outside(workshop: Workshop, tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    draw(folder / "good.png", 1)
    (folder / "broken.png").write_bytes(b"")
    (folder / "link.png").symlink_to(draw(outside / "secret.png", 2))
    job = workshop.ingest(folder)
    assert job.progress.by_status == {"stored": 1, "rejected": 2}
    draw(folder / "broken.png", 3)
    job = retried(workshop, job.job_id)
    assert set(workshop.images()) == {"good.png", "broken.png"}
    assert job.progress.by_status == {"stored": 2, "rejected": 1}
    [link] = [reason for source, _, reason in workshop.outcomes(job.job_id) if source == "link.png"]
    assert link is not None and "link" in link


def test_pictures_are_read_from_any_bucket(workshop: Workshop, tmp_path: Path) -> None:
    picture = draw(tmp_path / "0.png", 0)
    objects = workshop.resources.objects
    objects.put("incoming/first picture.png", picture.read_bytes(), "image/png")
    base = f"s3://{objects.bucket}/incoming"
    job = workshop.ingest_files(
        [
            SourceFile("first picture.png", f"{base}/first%20picture.png", "From afar."),
            SourceFile("gone.png", f"{base}/gone.png"),
        ]
    )
    assert workshop.outcomes(job.job_id) == [
        ("first picture.png", "stored", None),
        ("gone.png", "rejected", "it disappeared since it was listed"),
    ]
    assert nearest(workshop, picture) == ("first picture.png", 1.0)


def test_progress_is_committed_after_each_sub_batch(workshop: Workshop, tmp_path: Path) -> None:
    """Before a sub-batch is embedded, all are committed but the one before it, whose commit may be on its way."""
    small = workshop.with_settings(files_per_step=2)
    job_id = queue_pictures(small, tmp_path, 9)
    seen: list[int] = []

    def note() -> None:
        seen.append(small.job(job_id).progress.by_status.get("stored", 0))

    run_broken(small, lambda context: ingest_stage(changed(context, ShardContext, stop=note)))
    assert len(seen) == 5
    assert all(2 * (number - 1) <= stored <= 2 * number for number, stored in enumerate(seen))
    assert small.job(job_id).progress.by_status == {"stored": 9}
