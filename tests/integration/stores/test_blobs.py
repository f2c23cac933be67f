"""The inventory of the object store: concurrent ingests and the task `gc` never lose bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, Engine, text

from ragllava.errors import BlobDeleted
from ragllava.settings import Settings
from ragllava.stores.archives import archive, blobs
from ragllava.stores.archives.blobs import NewBlob
from ragllava.stores.archives.descriptions import NewImage
from ragllava.stores.objects import ObjectStore

WEEK_S = 7 * 86_400


def announced(content: str) -> NewBlob:
    return NewBlob(content, 5, "image/png")


def age(connection: Connection, days: int) -> None:
    connection.execute(text("UPDATE blobs SET updated_at = now() - make_interval(days => :days)"), {"days": days})


def test_only_old_blobs_without_a_reference_are_removed(connection: Connection) -> None:
    blobs.announce_blobs(connection, [announced(name) for name in ("picture", "adapter", "orphan", "again", "again")])
    blobs.make_live(connection, ["picture", "adapter", "again"])
    cards = archive.ensure_archive(connection, "cards").archive_id
    archive.store_images(connection, cards, [NewImage("picture", "a", "file:///a", None, 1, 1, "image/png")])
    connection.execute(
        text("""
            INSERT INTO model_versions (role, name, profile, state, prompt, adapter_sha256, manifest)
            VALUES ('reranker', 'tuned', 'mini', 'candidate', 'rerank-1', 'adapter', '{}')
        """)
    )
    age(connection, days=8)
    assert [(blob.sha256, blob.state) for blob in blobs.unreferenced_blobs(connection, WEEK_S)] == [
        ("again", "live"),
        ("orphan", "uploading"),
    ]
    assert blobs.announce_blobs(connection, [announced("again")]) == set()  # its grace time starts again
    assert [blob.sha256 for blob in blobs.unreferenced_blobs(connection, WEEK_S)] == ["orphan"]
    assert blobs.mark_deleting(connection, WEEK_S) == ["orphan"]
    assert blobs.mark_deleting(connection, WEEK_S, limit=0) == []


def test_the_object_goes_first_and_then_the_row(settings: Settings, engine: Engine) -> None:
    store = ObjectStore(settings)
    sha256 = store.put_content(b"bytes", "image/png")
    with engine.begin() as connection:
        blobs.announce_blobs(connection, [announced(sha256)])
        age(connection, days=8)
    with engine.begin() as connection:
        assert blobs.mark_deleting(connection, WEEK_S) == [sha256]

    def fails(_: str) -> None:
        raise RuntimeError("killed here")

    with pytest.raises(RuntimeError), engine.begin() as connection:
        blobs.delete_blob(connection, sha256, fails)
    with engine.begin() as connection:  # the next run of `gc` finds it again
        assert blobs.mark_deleting(connection, WEEK_S) == [sha256]
    with engine.begin() as connection:
        assert blobs.delete_blob(connection, sha256, store.delete_content)
        assert not blobs.delete_blob(connection, sha256, fails)
    assert not store.exists(f"sha256/{sha256[:2]}/{sha256[2:4]}/{sha256}")
    with engine.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM blobs")).scalar_one() == 0


def test_an_ingest_revives_a_marked_blob(engine: Engine) -> None:
    with engine.begin() as connection:
        blobs.announce_blobs(connection, [announced("x")])
        blobs.make_live(connection, ["x"])
        age(connection, days=8)
        blobs.mark_deleting(connection, WEEK_S)
    with engine.begin() as connection:
        # Its object may be gone already, so it must be put again.
        assert blobs.announce_blobs(connection, [announced("x")]) == {"x"}
    with engine.begin() as connection:
        assert not blobs.delete_blob(connection, "x", lambda _: pytest.fail("the importer's bytes were removed"))
        blobs.make_live(connection, ["x"])


def test_an_ingest_waits_for_a_running_removal_and_puts_again(
    engine: Engine, wait_for_waiter: Callable[[], None]
) -> None:
    with engine.begin() as connection:
        blobs.announce_blobs(connection, [announced("x")])
        age(connection, days=8)
        blobs.mark_deleting(connection, WEEK_S)
    events: list[str] = []
    removing = threading.Event()

    def importer() -> None:
        removing.wait(timeout=60)
        with engine.begin() as connection:
            must_put = blobs.announce_blobs(connection, [announced("x")])
            events.append(f"announced, must put {must_put}")

    def remove(_: str) -> None:
        removing.set()
        wait_for_waiter()
        events.append("removed")

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(importer)
        with engine.begin() as connection:
            assert blobs.delete_blob(connection, "x", remove)
        running.result(timeout=60)
    assert events == ["removed", "announced, must put {'x'}"]


def test_gc_skips_what_an_ingest_holds(engine: Engine) -> None:
    with engine.begin() as connection:
        blobs.announce_blobs(connection, [announced("x"), announced("y")])
        age(connection, days=8)
    with engine.begin() as importer, engine.begin() as gc:
        blobs.make_live(importer, ["x"])
        assert blobs.mark_deleting(gc, WEEK_S) == ["y"]


def test_a_reference_to_removed_bytes_is_refused(connection: Connection) -> None:
    blobs.announce_blobs(connection, [announced("x")])
    age(connection, days=8)
    blobs.mark_deleting(connection, WEEK_S)
    with pytest.raises(BlobDeleted) as raised:
        blobs.make_live(connection, ["x"])
    assert raised.value.retryable
