"""Uploads, embedding and commits of an ingest overlap, and none comes before what it needs."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ragllava.errors import (
    ImageRejected,
    LeaseLost,
    RejectionClass,
    ServiceUnavailable,
)
from ragllava.jobs.runner import ShardContext
from ragllava.settings import Settings
from ragllava.stages.ingest.embedding import in_steps
from ragllava.stages.ingest.stage import ingest_stage
from ragllava.stores.objects import ObjectStore
from tests.support.ingest_runs import (
    CountingRetriever,
    FloatArray,
    changed,
    queue_pictures,
    run_broken,
)
from tests.support.workshop import Workshop


class Held(ObjectStore):
    """Starts a put only after `go` is set."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.go = threading.Event()
        self.error: Exception | None = None
        self.hashes: list[str] = []

    def put_content(self, data: bytes, media_type: str) -> str:
        assert self.go.wait(240)
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
    replaced = workshop.with_models(retriever=retriever)
    replaced.resources.objects = workshop.resources.objects
    return replaced


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
        if embedded == 4:  # both sub-batches; the uploads of neither have started
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
    contents.insert(2, (99, ImageRejected(RejectionClass.DAMAGED, "it is empty")))
    steps = [[number for number, _ in step] for step in in_steps(iter(contents), most_files=4, most_bytes=40)]
    assert steps == [[0, 1, 99, 2], [3, 4], [5, 6, 7]]


def test_the_first_sub_batches_are_small_so_that_embedding_starts_early() -> None:
    steps = [len(step) for step in in_steps(((n, b"x") for n in range(300)), most_files=64)]
    assert steps == [8, 16, 32, 64, 64, 64, 52]
