"""The ingest stage in this process, on real stores and with the real mini retriever."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import threading
import weakref
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from sqlalchemy import Connection, select, text

from ragllava.errors import (
    DeviceOutOfMemory,
    ImageRejected,
    JobRefused,
    LeaseLost,
    ServiceUnavailable,
    ShardInterrupted,
)
from ragllava.jobs import control
from ragllava.jobs.control import JobView
from ragllava.jobs.runner import ShardContext
from ragllava.jobs.states import JobState
from ragllava.records import JobKind, SourceFile
from ragllava.settings import Settings
from ragllava.stages.embedding import in_steps
from ragllava.stages.ingest import ingest_stage
from ragllava.stages.resources import Resources
from ragllava.stages.submit import submit_files
from ragllava.stages.uris import file_uri
from ragllava.stores import archive, blobs, indexes, vectors
from ragllava.stores.objects import ObjectStore, content_key
from ragllava.stores.schema import blobs as blob_table
from ragllava.stores.schema import embeddings, shards
from tests.hostile import build_corpus
from tests.integration.conftest import Postcards
from tests.pictures import Case
from tests.workshop import ARCHIVE, STAGES, Workshop

T = TypeVar("T")
FloatArray = npt.NDArray[np.float32]


def captioned(folder: Path, captions: dict[str, str]) -> list[SourceFile]:
    """The files of a folder, each listed once, with the captions given by name."""
    names = sorted(path.name for path in folder.iterdir())
    return [SourceFile(name, file_uri(folder / name), captions.get(name)) for name in names]


def draw(path: Path, seed: int, size: tuple[int, int] = (96, 96)) -> Path:
    """A picture of coarse coloured noise: no two seeds look alike."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    coarse.resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def stored_vectors(workshop: Workshop) -> dict[int, FloatArray]:
    """What the database holds, by image id."""
    with workshop.engine.begin() as connection:
        rows = connection.execute(text("SELECT image_id, vector::text AS vector FROM embeddings")).all()
    return {row.image_id: np.array(json.loads(row.vector), np.float32) for row in rows}


def nearest(workshop: Workshop, picture: Path) -> tuple[str, float]:
    """The archive's image that looks most like a picture, and their cosine to two decimals."""
    [query] = workshop.resources.models.retriever.embed_images([Image.open(picture).convert("RGB")], batch_size=1)
    with workshop.engine.begin() as connection:
        index = vectors.active_index(connection, workshop.archive_id())
        assert index is not None
        [[hit]] = vectors.search(connection, index, query[None], k=1)
        return archive.load_images(connection, [hit.image_id])[hit.image_id].source, round(hit.clip_score, 2)


class CountingRetriever:
    """The real retriever, which remembers how many pictures it was shown."""

    def __init__(self, retriever: Any) -> None:
        self._retriever = retriever
        self.seen = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._retriever, name)

    def embed_pixels(self, pixels: Sequence[Any], batch_size: int) -> FloatArray:
        self.seen += len(pixels)
        result: FloatArray = self._retriever.embed_pixels(pixels, batch_size=batch_size)
        return result


def counting(workshop: Workshop) -> tuple[Workshop, CountingRetriever]:
    retriever = CountingRetriever(workshop.resources.models.retriever)
    return workshop.with_models(retriever=retriever), retriever


# What is stored


def test_postcards_are_stored_embedded_and_found(workshop: Workshop, postcards: Postcards) -> None:
    job = workshop.ingest(postcards.written.pictures, captions=postcards.written.captions)
    assert (job.state, job.progress.by_status) == (JobState.COMPLETED, {"stored": 60})
    images = workshop.images()
    assert {source: row.caption for source, row in images.items()} == {
        card.file_name: card.caption for card in postcards.archive.postcards
    }
    for source, row in images.items():
        data = (postcards.written.pictures / source).read_bytes()
        assert row.sha256 == hashlib.sha256(data).hexdigest()
        assert workshop.resources.objects.get(content_key(row.sha256)) == data
    with workshop.engine.begin() as connection:
        assert set(connection.scalars(select(blob_table.c.state))) == {"live"}
        index = vectors.active_index(connection, workshop.archive_id())
    assert index is not None and index.retriever == workshop.resources.models.retriever.version


def test_a_stored_vector_is_that_of_the_original_picture(
    workshop: Workshop, postcards: Postcards, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(postcards.written.pictures, tmp_path / "pictures"))
    draw(folder / "wide.png", seed=1, size=(2600, 900))  # reduced before the retriever sees it
    draw(folder / "tall.jpg", seed=2, size=(700, 3100))
    workshop.ingest(folder)
    found = stored_vectors(workshop)
    assert len(found) == 62
    images = workshop.images()
    originals = [Image.open(folder / source).convert("RGB") for source in images]
    expected = workshop.resources.models.retriever.embed_images(originals, batch_size=64)
    for (source, row), vector in zip(images.items(), expected, strict=True):
        assert float(found[row.id] @ vector) > 0.999, source


def test_zip_and_tar_files_give_their_members(workshop: Workshop, tmp_path: Path) -> None:
    for number in range(4):
        draw(tmp_path / f"{number}.png", number)
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as package:
        package.write(tmp_path / "0.png", "in/0.png")
        package.write(tmp_path / "1.png", "in/1.png")
        package.writestr("in/1.txt", "The second.")
    with tarfile.open(tmp_path / "more.tar.gz", "w:gz") as tar:
        for number in (1, 2, 3):
            tar.add(tmp_path / f"{number}.png", f"{number}.png")
    job = workshop.ingest(tmp_path / "some.zip", tmp_path / "more.tar.gz")
    assert job.progress.by_status == {"stored": 4, "duplicate": 1}
    assert {source: row.caption for source, row in workshop.images().items()} == {
        "some.zip/in/0.png": None,
        "some.zip/in/1.png": "The second.",
        "more.tar.gz/2.png": None,
        "more.tar.gz/3.png": None,
    }
    assert workshop.outcomes(job.job_id)[2] == (
        "more.tar.gz/1.png",
        "duplicate",
        "the same picture as some.zip/in/1.png",
    )
    assert nearest(workshop, tmp_path / "3.png") == ("more.tar.gz/3.png", 1.0)


def test_every_hostile_file_ends_with_its_outcome(workshop: Workshop, tmp_path: Path) -> None:
    cases = build_corpus(tmp_path / "archive")
    job = workshop.ingest(tmp_path / "archive")
    outcomes = workshop.outcomes(job.job_id)
    assert Counter(source for source, _, _ in outcomes) == Counter(case.source for case in cases)
    assert sum(job.progress.by_status.values()) == job.progress.total == len(cases)
    assert job.state == JobState.COMPLETED_WITH_ERRORS
    waiting = list(cases)
    for source, status, reason in outcomes:
        fitting = [case for case in waiting if case.source == source and fits(case, status, reason)]
        assert fitting, f"{source}: {status} ({reason})"
        waiting.remove(fitting[0])
    assert workshop.embedded() == len(workshop.images())
    with workshop.engine.begin() as connection:
        shown = {file.source: file.reason for file in archive.rejected_files(connection, workshop.archive_id())}
    assert all(shown.values())
    # Of several members with one name the latest outcome counts; all other sources are offered once.
    once = [case for case in cases if [other.source for other in cases].count(case.source) == 1]
    assert {case.source for case in once if case.source in shown} == {case.source for case in once if case.rejected}


def fits(case: Case, status: str | None, reason: str | None) -> bool:
    """Whether a file's outcome is what its case promises."""
    if case.rejected is None:
        return status in ("stored", "duplicate")
    return status == "rejected" and case.rejected in (reason or "")


def test_a_link_that_the_user_names_is_followed(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "latest.png").symlink_to(draw(tmp_path / "0.png", 0))
    assert workshop.ingest(tmp_path / "latest.png").progress.by_status == {"stored": 1}
    assert set(workshop.images()) == {"latest.png"}


# What is there already


def test_a_second_run_finds_only_duplicates_and_embeds_nothing(workshop: Workshop, postcards: Postcards) -> None:
    workshop.ingest(postcards.written.pictures, captions=postcards.written.captions)
    before = stored_vectors(workshop)
    second, retriever = counting(workshop)
    job = second.ingest(postcards.written.pictures, captions=postcards.written.captions)
    assert (job.state, job.progress.by_status) == (JobState.COMPLETED, {"duplicate": 60})
    assert retriever.seen == 0
    assert stored_vectors(workshop).keys() == before.keys()


def test_a_lost_object_is_put_back_when_its_file_is_ingested_again(workshop: Workshop, tmp_path: Path) -> None:
    path = draw(tmp_path / "a.png", 1)
    workshop.ingest(tmp_path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    objects = workshop.resources.objects
    objects.delete_content(sha256)
    assert workshop.ingest(tmp_path).progress.by_status == {"duplicate": 1}
    assert objects.get_content(sha256) == path.read_bytes()


def test_only_what_is_new_is_embedded(workshop: Workshop, tmp_path: Path) -> None:
    for number in range(5):
        draw(tmp_path / f"{number}.png", number)
    workshop.ingest(tmp_path)
    draw(tmp_path / "5.png", 5)
    second, retriever = counting(workshop)
    assert second.ingest(tmp_path).progress.by_status == {"duplicate": 5, "stored": 1}
    assert retriever.seen == 1


def test_a_changed_caption_is_updated_and_says_so(workshop: Workshop, tmp_path: Path) -> None:
    for number in range(3):
        draw(tmp_path / f"{number}.png", number)
    workshop.ingest_files(captioned(tmp_path, {"0.png": "old", "1.png": "same"}))
    job = workshop.ingest_files(captioned(tmp_path, {"0.png": "new", "1.png": "same", "2.png": "first"}))
    assert [(status, reason) for _, status, reason in workshop.outcomes(job.job_id)] == [
        ("duplicate", "caption updated"),
        ("duplicate", "the same picture as 1.png"),
        ("duplicate", "caption updated"),
    ]
    assert [workshop.images()[f"{n}.png"].caption for n in range(3)] == ["new", "same", "first"]


def test_no_caption_erases_none(workshop: Workshop, tmp_path: Path) -> None:
    draw(tmp_path / "0.png", 0)
    workshop.ingest_files(captioned(tmp_path, {"0.png": "The lighthouse."}))
    workshop.ingest_files(captioned(tmp_path, {}))
    assert workshop.images()["0.png"].caption == "The lighthouse."


def test_an_overwritten_file_takes_the_place_of_the_old_picture(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        draw(folder / f"{number}.png", number)
    workshop.ingest(folder)
    old = workshop.images()["2.png"]
    shutil.copy(folder / "2.png", tmp_path / "old.png")
    draw(folder / "2.png", 99)
    assert workshop.ingest(folder).progress.by_status == {"duplicate": 3, "stored": 1}
    assert workshop.images()["2.png"].id != old.id
    assert nearest(workshop, folder / "2.png") == ("2.png", 1.0)
    assert nearest(workshop, tmp_path / "old.png")[1] < 0.99
    assert workshop.embedded() == 4
    shutil.copy(tmp_path / "old.png", folder / "2.png")
    workshop.ingest(folder)
    assert workshop.images()["2.png"].id == old.id
    assert nearest(workshop, tmp_path / "old.png") == ("2.png", 1.0)


@pytest.mark.parametrize("step", [1, 2, 8])
def test_files_with_the_same_bytes_make_one_image(workshop: Workshop, tmp_path: Path, step: int) -> None:
    """In one sub-batch or in two of them, of which the second is read before the first is committed."""
    for number in (0, 1):
        draw(tmp_path / f"a{number}.png", number)
        shutil.copy(tmp_path / f"a{number}.png", tmp_path / f"b{number}.png")
    job = workshop.with_settings(files_per_step=step).ingest(tmp_path)
    assert workshop.outcomes(job.job_id) == [
        ("a0.png", "stored", None),
        ("a1.png", "stored", None),
        ("b0.png", "duplicate", "the same picture as a0.png"),
        ("b1.png", "duplicate", "the same picture as a1.png"),
    ]
    assert workshop.embedded() == 2


def test_two_archives_share_the_bytes_and_nothing_else(workshop: Workshop, tmp_path: Path) -> None:
    draw(tmp_path / "0.png", 0)
    workshop.ingest_files(captioned(tmp_path, {"0.png": "one"}), "first")
    workshop.ingest_files(captioned(tmp_path, {"0.png": "two"}), "second")
    assert workshop.images("first")["0.png"].caption == "one"
    assert workshop.images("second")["0.png"].caption == "two"
    assert (workshop.embedded("first"), workshop.embedded("second")) == (1, 1)
    assert len(list(workshop.resources.objects.list_objects("sha256/"))) == 1


# What goes wrong in the middle


def stopping_after(checks: int, error: Exception) -> Callable[[], Exception | None]:
    """What a heartbeat would say: nothing, `checks` times; then the error."""
    left = iter([None] * checks)
    return lambda: next(left, error)


def changed(
    context: ShardContext[Resources], kind: type[ShardContext[Resources]], **values: Any
) -> ShardContext[Resources]:
    same = {field.name: getattr(context, field.name) for field in fields(context)}
    return kind(**(same | values))


def run_broken(workshop: Workshop, stage: Callable[[ShardContext[Resources]], None]) -> None:
    """Run the first shard with another ingest stage."""
    broken = Workshop(workshop.engine, workshop.settings, workshop.resources, {**STAGES, JobKind.INGEST: stage})
    broken.run_once()


def queue_pictures(workshop: Workshop, folder: Path, number: int) -> int:
    for seed in range(number):
        draw(folder / f"{seed:02}.png", seed)
    listed = captioned(folder, {})
    return submit_files(workshop.engine, workshop.settings, archive_name=ARCHIVE, files=listed).job_id


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

    def commit(self, work: Callable[[Connection], T]) -> T:
        def dying(connection: Connection) -> T:
            work(connection)
            raise RuntimeError("killed just before the commit")

        return super().commit(dying)


def test_a_crash_between_put_and_commit_leaves_only_unreferenced_bytes(workshop: Workshop, tmp_path: Path) -> None:
    job_id = queue_pictures(workshop, tmp_path, 3)
    run_broken(workshop, lambda context: ingest_stage(changed(context, DiesBeforeCommit)))
    assert workshop.images() == {}
    assert stored_vectors(workshop) == {}
    with workshop.engine.begin() as connection:
        left = blobs.sweepable_blobs(connection, older_than_s=0)
    assert {(blob.sha256, blob.state) for blob in left} == {
        (hashlib.sha256(path.read_bytes()).hexdigest(), "uploading") for path in tmp_path.iterdir()
    }
    assert all(workshop.resources.objects.exists(content_key(blob.sha256)) for blob in left)
    workshop.run()
    assert workshop.job(job_id).progress.by_status == {"stored": 3}
    with workshop.engine.begin() as connection:
        assert blobs.sweepable_blobs(connection, older_than_s=0) == []


class FailingStore(ObjectStore):
    """Takes `good` objects, then does not answer any more."""

    good = 0

    def put_content(self, data: bytes, media_type: str) -> str:
        if self.good == 0:
            raise ServiceUnavailable("object store: did not answer")
        self.good -= 1
        return super().put_content(data, media_type)


def test_an_object_store_that_is_away_is_waited_for(workshop: Workshop, tmp_path: Path) -> None:
    small = workshop.with_settings(files_per_step=2)
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


class Held(ObjectStore):
    """Begins a put only when it is told to."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.go = threading.Event()
        self.error: Exception | None = None
        self.hashes: list[str] = []

    def put_content(self, data: bytes, media_type: str) -> str:
        assert self.go.wait(30)
        if self.error is not None:
            raise self.error
        sha256 = super().put_content(data, media_type)
        self.hashes.append(sha256)
        return sha256


def with_held_store(workshop: Workshop, **values: Any) -> tuple[Workshop, Held]:
    small = workshop.with_settings(**values)
    small.resources.objects = held = Held(small.settings)
    return small, held


def with_retriever(workshop: Workshop, retriever: Any) -> Workshop:
    """The same desk and store with another retriever."""
    other = workshop.with_models(retriever=retriever)
    other.resources.objects = workshop.resources.objects
    return other


class NotedRetriever(CountingRetriever):
    """Calls `note` with the number of pictures that it has embedded so far."""

    def __init__(self, retriever: Any, note: Callable[[int], None]) -> None:
        super().__init__(retriever)
        self._note = note

    def embed_pixels(self, pixels: Sequence[Any], batch_size: int) -> FloatArray:
        result = super().embed_pixels(pixels, batch_size)
        self._note(self.seen)
        return result


def test_a_sub_batch_is_embedded_while_its_uploads_wait_and_no_row_is_written_before_them(
    workshop: Workshop, tmp_path: Path
) -> None:
    small, held = with_held_store(workshop, files_per_step=2)
    seen: list[tuple[int, int]] = []

    def note(embedded: int) -> None:
        seen.append((embedded, len(small.images())))
        if embedded == 4:  # both sub-batches; the uploads of neither have begun
            held.go.set()

    small = with_retriever(small, NotedRetriever(small.resources.models.retriever, note))
    job_id = queue_pictures(small, tmp_path, 4)
    small.run_once()
    assert seen == [(2, 0), (4, 0)]
    assert (len(held.hashes), small.job(job_id).progress.by_status) == (4, {"stored": 4})


def test_an_upload_that_fails_late_leaves_no_row_of_its_sub_batch_or_of_a_later_one(
    workshop: Workshop, tmp_path: Path
) -> None:
    small, held = with_held_store(workshop, files_per_step=2)
    held.error = ServiceUnavailable("object store: did not answer")

    def note(embedded: int) -> None:
        held.go.set()

    small = with_retriever(small, NotedRetriever(small.resources.models.retriever, note))
    job_id = queue_pictures(small, tmp_path, 6)
    small.run_once()
    assert (small.images(), small.embedded(), small.job(job_id).progress.by_status) == ({}, 0, {})
    held.error = None
    small.let_wait_end()
    small.run()
    assert small.job(job_id).progress.by_status == {"stored": 6}


def test_a_lease_that_is_lost_while_uploads_wait_writes_nothing_and_uploads_no_more(
    workshop: Workshop, tmp_path: Path
) -> None:
    small, held = with_held_store(workshop, files_per_step=4)
    job_id = queue_pictures(small, tmp_path, 60)

    def lose() -> Exception | None:
        workshop.expire_leases()
        assert workshop.claim(workshop.dispatch()[0], worker="ingest@other")
        held.go.set()
        return LeaseLost("another worker has it")

    run_broken(small, lambda context: ingest_stage(changed(context, ShardContext, stop=lose)))
    put = len(held.hashes)
    assert put <= 8  # of the two sub-batches that were prepared by then
    assert (small.images(), small.embedded(), small.job(job_id).progress.by_status) == ({}, 0, {})
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith(("prepare", "finish"))] == []
    small.resources.threads.submit(int).result()
    assert len(held.hashes) == put


def test_prepared_pictures_of_two_sub_batches_are_in_memory_and_no_more(workshop: Workshop, tmp_path: Path) -> None:
    most = 0
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Remembering(CountingRetriever):
        def prepare_image(self, picture: Image.Image) -> Any:
            pixels = self._retriever.prepare_image(picture)
            alive.add(pixels)
            return pixels

        def embed_pixels(self, pixels: Sequence[Any], batch_size: int) -> FloatArray:
            nonlocal most
            result = super().embed_pixels(pixels, batch_size)
            most = max(most, len(alive))
            return result

    small = workshop.with_settings(files_per_step=3)
    small = small.with_models(retriever=Remembering(small.resources.models.retriever))
    queue_pictures(small, tmp_path, 30)
    small.run_once()
    assert small.embedded() == 30
    assert 3 <= most <= 6  # the one that is embedded and the one that is prepared


def test_large_files_make_small_sub_batches() -> None:
    sizes = [10, 10, 10, 35, 200, 1, 1, 1]
    contents: list[tuple[int, bytes | ImageRejected]] = [(n, bytes(size)) for n, size in enumerate(sizes)]
    contents.insert(2, (99, ImageRejected("it is empty")))
    steps = [[number for number, _ in step] for step in in_steps(iter(contents), most_files=4, most_bytes=40)]
    assert steps == [[0, 1, 99, 2], [3, 4], [5, 6, 7]]


def test_the_first_sub_batches_are_small_so_that_embedding_begins_early() -> None:
    steps = [len(step) for step in in_steps(((n, b"x") for n in range(300)), most_files=64)]
    assert steps == [8, 16, 32, 64, 64, 64, 52]
