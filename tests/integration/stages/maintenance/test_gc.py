"""Garbage collection on a real Postgres and object store: what is removed, and what is not."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select

from ragllava.errors import BlobDeleted
from ragllava.jobs.runner import ShardContext
from ragllava.records import TaskName
from ragllava.stages.maintenance.gc import collect_garbage
from ragllava.stages.maintenance.stage import submit_task
from ragllava.stages.resources import Resources
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import ObjectStore, content_key, thumbnail_key
from ragllava.stores.schema import blobs as blobs_table
from ragllava.stores.schema import images
from tests.support.archive_rows import put
from tests.support.maintenance_tasks import a_training, do, execute, report
from tests.support.workshop import Workshop


@pytest.fixture
def objects(workshop: Workshop) -> ObjectStore:
    return workshop.resources.objects


def collect_now(workshop: Workshop, *, delete: bool) -> dict[str, Any]:
    """A garbage collection for which everything is old enough."""
    with GcContext(workshop) as context:
        return collect_garbage(context, delete=delete, grace_s=-60.0).figures


class GcContext:
    """The context of a garbage collection on its own lease."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop

    def __enter__(self) -> ShardContext[Resources]:
        in_transaction(self._workshop.engine, submit_task, self._workshop.settings, TaskName.GC, None, {})
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


def test_gc_reports_and_deletes_only_with_the_option(workshop: Workshop, objects: ObjectStore) -> None:
    kept = put(workshop, b"kept")
    execute(
        workshop, "INSERT INTO blobs (sha256, state, size_bytes, media_type) VALUES ('announced', 'uploading', 9, '')"
    )
    stray = objects.put_content(b"stray", "image/png")
    folder = a_training(workshop, "promoted")
    a_version(workshop, "adapter-of-a-version", folder)
    failed = a_training(workshop, None, state="failed")
    for key in (
        f"jobs/{workshop.questions_job(1, 1)}/results.jsonl",
        "jobs/999999/results.jsonl",
        "jobs/notes.txt",
        "adapters/adapter-of-a-version/manifest.json",
        "adapters/nobodys/manifest.json",
        "adapters/nobodys/adapter_model.safetensors",
        f"{folder}/snapshot/manifest.json",
        f"{folder}/checkpoints/checkpoint-3/manifest.json",
        f"{failed}/snapshot/manifest.json",
        f"{failed}/checkpoints/checkpoint-2/manifest.json",
        "training/77-20200101T000000000000/report.json",
        "uploads/file-stored",
        "uploads/file-cut",
        thumbnail_key(kept),
        thumbnail_key("0" * 64),
        "inbox/questions.jsonl",
    ):
        objects.put(key, b"12345")
    execute(
        workshop,
        """INSERT INTO uploads (id, owner, filename, purpose, size_bytes, lines, sha256, object_key)
           VALUES ('file-stored', 'x', 'x', 'batch', 5, 1, 'x', 'uploads/file-stored')""",
    )
    before = {listed.key for listed in objects.list_objects("")}

    reported = collect_now(workshop, delete=False)
    counted = {kind: (reported[kind]["found"], reported[kind]["deleted"]) for kind in reported if kind != "delete"}
    assert counted == {
        "blobs": (1, 0),
        "content_without_row": (1, 0),
        "thumbnails": (1, 0),
        "results": (1, 0),
        "uploads": (1, 0),
        "adapters": (1, 0),
        "trainings": (3, 0),
    }
    assert {listed.key for listed in objects.list_objects("")} == before

    done = collect_now(workshop, delete=True)
    assert all(done[kind]["deleted"] == done[kind]["found"] for kind in counted)
    gone = before - {listed.key for listed in objects.list_objects("")}
    assert gone == {
        content_key(stray),
        thumbnail_key("0" * 64),
        "jobs/999999/results.jsonl",
        "uploads/file-cut",
        "adapters/nobodys/manifest.json",
        "adapters/nobodys/adapter_model.safetensors",
        f"{folder}/checkpoints/checkpoint-3/manifest.json",
        f"{failed}/checkpoints/checkpoint-2/manifest.json",
        "training/77-20200101T000000000000/report.json",
    }
    assert objects.get_content(kept) == b"kept"
    again = collect_now(workshop, delete=True)
    assert all(again[kind]["found"] == 0 for kind in counted)


def test_what_was_changed_within_a_week_stays(workshop: Workshop, objects: ObjectStore) -> None:
    put(workshop, b"kept")
    objects.put_content(b"stray", "image/png")
    objects.put("adapters/nobodys/manifest.json", b"1")
    figures = report(do(workshop, "gc", delete=True))
    assert all(figures[kind]["found"] == 0 for kind in figures if kind != "delete")
    assert len(list(objects.list_objects(""))) == 3


def test_while_a_training_is_open_its_kind_of_files_stays(workshop: Workshop, objects: ObjectStore) -> None:
    put(workshop, b"kept")
    folder = a_training(workshop, None)
    for key in ("adapters/nobodys-yet/manifest.json", f"{folder}/checkpoints/checkpoint-1/manifest.json"):
        objects.put(key, b"1")
    figures = collect_now(workshop, delete=True)
    assert figures["adapters"]["deleted"] == 0 and "an open training" in figures["adapters"]["kept"]
    assert figures["trainings"]["found"] == 0
    assert objects.exists("adapters/nobodys-yet/manifest.json")


def test_a_database_without_content_deletes_none(workshop: Workshop, objects: ObjectStore) -> None:
    stray = objects.put_content(b"of another database", "image/png")
    figures = collect_now(workshop, delete=True)["content_without_row"]
    assert (figures["found"], figures["deleted"]) == (1, 0)
    assert "check that it belongs to this bucket" in figures["kept"]
    assert objects.get_content(stray)


@pytest.mark.parametrize("seed", [1, 2])
def test_gc_beside_importers_never_deletes_what_is_referred_to(workshop: Workshop, seed: int) -> None:
    """Three importers bring the same few pictures again and again, while garbage collections without grace time
    delete every blob and object that they can. Afterwards each image has its bytes."""
    contents = [f"picture {number}".encode() for number in range(12)]
    done, has_deleted = threading.Event(), threading.Event()
    given_up_at = time.monotonic() + 120  # where nothing is deleted, the test fails instead of going on for ever
    put(workshop, b"the first")

    def bring(number: int) -> int:
        chance, deleted, turn = random.Random(seed * 10 + number), 0, 0
        while turn < 30 or not (has_deleted.is_set() or collector.done() or time.monotonic() > given_up_at):
            turn += 1
            data = chance.choice(contents)
            if chance.random() < 0.2:  # what an interrupted deletion leaves
                workshop.resources.objects.put_content(f"stray {number} {turn}".encode(), "image/png")
            try:
                put(workshop, data, f"archive-{chance.randrange(3)}")
            except BlobDeleted:
                deleted += 1  # an ingest worker would try again
        return deleted

    def clean() -> int:
        deleted = 0
        with GcContext(workshop) as context:
            while not done.is_set():
                figures = collect_garbage(context, delete=True, grace_s=-60.0).figures
                deleted += figures["blobs"]["deleted"] + figures["content_without_row"]["deleted"]
                if deleted:
                    has_deleted.set()
        return deleted

    with ThreadPoolExecutor(4) as threads:
        collector = threads.submit(clean)
        try:
            importers = [threads.submit(bring, number) for number in range(3)]
            for importer in importers:
                importer.result()
        finally:
            done.set()
        assert collector.result() > 0, "nothing was deleted: the test shows nothing"
    with workshop.engine.begin() as connection:
        named = set(connection.scalars(select(images.c.sha256)))
        live = set(connection.scalars(select(blobs_table.c.sha256).where(blobs_table.c.state == "live")))
    assert named and named <= live
    for digest in named:
        assert workshop.resources.objects.get_content(digest)
