"""Archives, images and the files of ingest jobs on a real database."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import numpy as np
import pytest
from sqlalchemy import Connection, Engine, text

from ragllava.errors import BlobDeleted, Rejection, RejectionClass, UsageError
from ragllava.records import StoredImage
from ragllava.source_files import FileOutcome, FileStatus, SourceFile
from ragllava.stores.archives import archive, blobs, descriptions, image_changes, indexes, ingest_files, vectors
from ragllava.stores.archives.archive import StoredRow
from ragllava.stores.archives.blobs import NewBlob
from ragllava.stores.archives.descriptions import NewImage
from ragllava.stores.archives.image_changes import CaptionChange, NewName
from ragllava.stores.archives.ingest_files import PendingFile, RejectedFile
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import content_key

STORED, DUPLICATE, UPDATED = FileStatus.STORED, FileStatus.DUPLICATE, FileStatus.UPDATED


def offer(content: str, uri: str, caption: str | None = None) -> NewImage:
    """A picture whose bytes are named by a letter; the source is the uri's end."""
    return NewImage(content, f"{uri}.png", f"file:///{uri}", caption, 640, 480, "image/png")


def store(connection: Connection, archive_id: int, *offered: NewImage) -> list[StoredRow]:
    blobs.announce_blobs(connection, [NewBlob(image.sha256, 100, image.media_type) for image in offered])
    return archive.store_images(connection, archive_id, offered)


def living(connection: Connection) -> dict[str, tuple[str, str | None]]:
    """Content → (uri, caption) of the images that are not retired."""
    rows = connection.execute(text("SELECT sha256, uri, caption FROM images WHERE NOT retired"))
    return {row.sha256: (row.uri.removeprefix("file:///"), row.caption) for row in rows}


@pytest.fixture
def cards(connection: Connection) -> int:
    return archive.ensure_archive(connection, "cards").archive_id


def new_job(connection: Connection, archive_id: int, finished: bool = False) -> int:
    statement = text("""
        INSERT INTO jobs (kind, archive_id, state, spec, total, spec_digest, finished_at)
        VALUES ('ingest', :archive_id, 'running', '{}', 0, '', CASE WHEN :finished THEN now() END) RETURNING id
    """)
    return int(connection.execute(statement, {"archive_id": archive_id, "finished": finished}).scalar_one())


class TestArchives:
    @pytest.mark.parametrize("name", ["a", "7", "postcards-2026.old_1", "x" * 63])
    def test_good_names(self, connection: Connection, name: str) -> None:
        made = archive.ensure_archive(connection, name)
        assert (made.name, made.active_index_id) == (name, None)
        assert archive.ensure_archive(connection, name) == made
        assert archive.get_archive(connection, name) == made

    @pytest.mark.parametrize("name", ["", "-a", ".a", "A", "a b", "a/b", "ä", "a\n", "x" * 64])
    def test_bad_names(self, connection: Connection, name: str) -> None:
        with pytest.raises(UsageError, match="cannot be the name of an archive"):
            archive.ensure_archive(connection, name)

    def test_an_unknown_name_is_answered_with_the_known_ones(self, connection: Connection) -> None:
        with pytest.raises(UsageError, match="none at all yet"):
            archive.get_archive(connection, "cards")
        for number in range(12):
            archive.ensure_archive(connection, f"a{number:02}")
        with pytest.raises(UsageError, match=r"there are: a00, .*, a09 and 2 more$"):
            archive.get_archive(connection, "cards")
        assert [listed.name for listed in archive.list_archives(connection)] == [
            f"a{number:02}" for number in range(12)
        ]

    def test_many_may_create_it_at_once(self, engine: Engine) -> None:
        together = threading.Barrier(4)

        def create(_: int) -> int:
            with engine.begin() as connection:
                together.wait()
                return archive.ensure_archive(connection, "cards").archive_id

        with ThreadPoolExecutor(4) as threads:
            assert len(set(threads.map(create, range(4)))) == 1

    def test_summary(self, connection: Connection, cards: int) -> None:
        cards_archive = archive.get_archive(connection, "cards")
        empty = archive.archive_summary(connection, cards_archive)
        assert (empty.images, empty.without_caption, empty.size_bytes, empty.indexes) == (0, 0, 0, ())
        assert empty.last_ingest_at is None

        rows = store(connection, cards, offer("x", "a", "A bridge."), offer("y", "b"), offer("z", "c"))
        store(connection, cards, offer("w", "c"))  # retires z
        second = archive.ensure_archive(connection, "other").archive_id
        store(connection, second, offer("x", "a"))
        index_id = indexes.create_index(connection, cards, "clip@1", 4)
        vectors.insert_embeddings(connection, index_id, [rows[0].image_id], np.eye(4, dtype=np.float32)[:1])
        new_job(connection, cards, finished=True)
        new_job(connection, cards)

        summary = archive.archive_summary(connection, cards_archive)
        assert (summary.images, summary.without_caption, summary.size_bytes) == (3, 2, 300)
        assert [(size.index.retriever, size.images) for size in summary.indexes] == [("clip@1", 1)]
        assert summary.last_ingest_at is not None


class TestStoreImages:
    def test_new_pictures_are_stored_in_the_order_given(self, connection: Connection, cards: int) -> None:
        rows = store(connection, cards, offer("z", "b", "Two."), offer("y", "a"))
        assert [(row.status, row.source, row.caption_updated) for row in rows] == [
            (STORED, "b.png", False),
            (STORED, "a.png", False),
        ]
        assert archive.load_images(connection, [row.image_id for row in rows]) == {
            rows[0].image_id: StoredImage(rows[0].image_id, "z", "b.png", "Two."),
            rows[1].image_id: StoredImage(rows[1].image_id, "y", "a.png", None),
        }
        assert archive.store_images(connection, cards, []) == []

    def test_the_blob_becomes_live_with_its_first_reference(self, connection: Connection, cards: int) -> None:
        assert blobs.announce_blobs(connection, [NewBlob("x", 9, "image/png")]) == {"x"}
        archive.store_images(connection, cards, [offer("x", "a")])
        assert blobs.announce_blobs(connection, [NewBlob("x", 9, "image/png"), NewBlob("y", 9, "image/png")]) == {"y"}

    def test_unannounced_bytes_are_refused(self, connection: Connection, cards: int) -> None:
        with pytest.raises(BlobDeleted, match="1 uploaded files"):
            archive.store_images(connection, cards, [offer("x", "a")])
        assert living(connection) == {}

    def test_a_second_run_finds_duplicates(self, connection: Connection, cards: int) -> None:
        first = store(connection, cards, offer("x", "a", "One."), offer("y", "b"))
        again = store(connection, cards, offer("x", "a", "One."), offer("y", "b"))
        assert again == [replace(row, status=DUPLICATE) for row in first]

    def test_the_same_bytes_twice_in_a_batch(self, connection: Connection, cards: int) -> None:
        rows = store(connection, cards, offer("x", "a", "One."), offer("x", "b", "Two."), offer("x", "c"))
        assert [(row.status, row.source) for row in rows] == [
            (STORED, "a.png"),
            (UPDATED, "a.png"),
            (DUPLICATE, "a.png"),
        ]
        assert len({row.image_id for row in rows}) == 1
        assert living(connection) == {"x": ("a", "One. Two.")}

    def test_archives_share_bytes_but_not_images(self, connection: Connection, cards: int) -> None:
        second = archive.ensure_archive(connection, "other").archive_id
        (first_row,) = store(connection, cards, offer("x", "a", "One."))
        (second_row,) = store(connection, second, offer("x", "a", "Two."))
        assert second_row.status == STORED
        assert first_row.image_id != second_row.image_id
        assert set(archive.existing_images(connection, second, ["x"])) == {"x"}

    def test_captions(self, connection: Connection, cards: int) -> None:
        def again(uri: str, caption: str | None) -> tuple[bool, str | None]:
            (row,) = store(connection, cards, offer("x", uri, caption))
            assert row.status == (UPDATED if row.caption_updated else DUPLICATE)
            return row.caption_updated, living(connection)["x"][1]

        store(connection, cards, offer("x", "a", "Old."))
        assert again("a", "Its own.") == (True, "Its own.")
        assert again("b", "Elsewhere.") == (True, "Its own. Elsewhere.")  # equal bytes under two names keep both
        assert again("b", "Once more.") == (True, "Its own. Once more.")
        assert again("c", "Its own.") == (False, "Its own. Once more.")
        assert again("a", None) == (False, "Its own. Once more.")
        assert again("b", "") == (True, "Its own.")
        assert again("c", "") == (False, "Its own.")
        assert again("a", "") == (True, None)

    def test_uploaded_files_of_the_same_bytes_keep_their_captions(self, connection: Connection, cards: int) -> None:
        uri = f"s3://ragllava/{content_key('x' * 64)}"
        uploaded = replace(offer("x" * 64, "a"), uri=uri)
        for source, caption in (("a.png", "One."), ("b.png", "Two."), ("b.png", "New.")):
            store(connection, cards, replace(uploaded, source=source, caption=caption))
        (image,) = archive.existing_images(connection, cards, ["x" * 64]).values()
        assert image.caption == "One. New."

    def test_an_emptied_caption_leaves_that_inside_the_picture(self, connection: Connection, cards: int) -> None:
        inside = replace(offer("x", "a", "Beside."), embedded={"caption": "Inside."})
        store(connection, cards, inside)
        assert living(connection) == {"x": ("a", "Beside.")}
        (row,) = store(connection, cards, replace(inside, caption=""))
        assert (row.status, living(connection)) == (UPDATED, {"x": ("a", "Inside.")})

    def test_a_renamed_image_keeps_the_captions_of_its_files(self, connection: Connection, cards: int) -> None:
        (row, _) = store(connection, cards, offer("x", "a", "A."), offer("x", "b", "B."))
        change = CaptionChange(row.image_id, "file:///b", "New.")
        assert image_changes.change_captions(connection, cards, [change]) == ["file:///b"]
        assert living(connection) == {"x": ("a", "A. New.")}
        image_changes.rename_images(connection, cards, [NewName(row.image_id, "b.png", "file:///b")])
        assert living(connection) == {"x": ("b", "New.")}
        image_changes.rename_images(connection, cards, [NewName(row.image_id, "c.png", "file:///c")])
        assert living(connection) == {"x": ("c", "New.")}
        gone = CaptionChange(row.image_id, "file:///c", None)
        assert image_changes.change_captions(connection, cards, [gone], may_remove=False) == []
        assert image_changes.change_captions(connection, cards, [gone]) == ["file:///c"]
        assert living(connection) == {"x": ("c", None)}

    def test_other_bytes_under_the_same_uri_retire_the_former_image(self, connection: Connection, cards: int) -> None:
        rows = store(connection, cards, offer("x", "a", "Old."), offer("y", "b"))
        index_id = indexes.create_index(connection, cards, "clip@1", 4)
        ids = [row.image_id for row in rows]
        vectors.insert_embeddings(connection, index_id, ids, np.eye(4, dtype=np.float32)[:2])
        (new,) = store(connection, cards, offer("z", "a", "New."))
        assert (new.status, new.source) == (STORED, "a.png")
        assert living(connection) == {"z": ("a", "New."), "y": ("b", None)}
        assert vectors.missing_embeddings(connection, index_id, ids) == ids[:1]
        assert set(archive.existing_images(connection, cards, ["x", "y", "z"])) == {"y", "z"}
        assert set(archive.load_images(connection, ids)) == set(ids)  # old answers still show their pictures

    def test_the_former_bytes_come_back(self, connection: Connection, cards: int) -> None:
        (first,) = store(connection, cards, offer("x", "a", "Old."))
        store(connection, cards, offer("z", "a", "New."))
        (back,) = store(connection, cards, offer("x", "a"))
        assert (back.image_id, back.status) == (first.image_id, STORED)
        assert living(connection) == {"x": ("a", "Old.")}

    def test_two_files_exchange_their_names(self, connection: Connection, cards: int) -> None:
        first = store(connection, cards, offer("x", "a", "X."), offer("y", "b", "Y."))
        rows = store(connection, cards, offer("y", "a"), offer("x", "b"))
        assert [row.image_id for row in rows] == [first[1].image_id, first[0].image_id]
        assert living(connection) == {"x": ("b", "X."), "y": ("a", "Y.")}

    def test_a_copy_keeps_the_image_when_the_first_file_changes(self, connection: Connection, cards: int) -> None:
        (first, _) = store(connection, cards, offer("x", "a", "X."), offer("x", "b"))
        rows = store(connection, cards, offer("x", "b"), offer("y", "a"))
        assert (rows[0].image_id, rows[0].source) == (first.image_id, "b.png")
        assert living(connection) == {"x": ("b", "X."), "y": ("a", None)}

    def test_existing_images_knows_what_a_duplicate_needs(self, connection: Connection, cards: int) -> None:
        (row,) = store(connection, cards, offer("x", "a", "One."))
        image = descriptions.ArchiveImage(**asdict(offer("x", "a", "One.")), image_id=row.image_id, retired=False)
        assert archive.existing_images(connection, cards, ["x", "y"]) == {"x": image}

    @pytest.mark.parametrize("seed", range(5))
    def test_any_history_ends_with_what_was_offered_last(self, connection: Connection, cards: int, seed: int) -> None:
        chance = random.Random(seed)
        ids: dict[str, int] = {}
        for _ in range(40):
            uris = chance.sample("abcdef", chance.randint(1, 4))
            offered = [offer(chance.choice("uvwxyz"), uri, chance.choice([None, "One.", "Two."])) for uri in uris]
            before = living(connection)
            rows = store(connection, cards, *offered)
            after = living(connection)
            seen: set[str] = set()
            for image, row in zip(offered, rows, strict=True):
                assert ids.setdefault(image.sha256, row.image_id) == row.image_id
                assert image.sha256 in after
                assert (row.status != STORED) == (image.sha256 in before or image.sha256 in seen)
                seen.add(image.sha256)
            contents = {image.uri.removeprefix("file:///"): image.sha256 for image in offered}
            for sha256, (uri, _) in after.items():
                assert contents.get(uri, sha256) == sha256, "a uri names an image whose bytes it no longer holds"

    def test_workers_may_store_the_same_pictures_at_once(self, engine: Engine) -> None:
        offered = [offer(f"x{row}", f"{row}") for row in range(60)]
        with engine.begin() as connection:
            cards = archive.ensure_archive(connection, "cards").archive_id
            blobs.announce_blobs(connection, [NewBlob(image.sha256, 100, "image/png") for image in offered])
        together = threading.Barrier(4)

        def work(number: int) -> list[StoredRow]:
            mine = random.Random(number).sample(offered, len(offered))
            with engine.begin() as connection:
                together.wait()
                rows = archive.store_images(connection, cards, mine)
            return sorted(rows, key=lambda row: row.source)

        with ThreadPoolExecutor(4) as threads:
            results = list(threads.map(work, range(4)))
        for rows in zip(*results, strict=True):
            assert len({row.image_id for row in rows}) == 1
            assert sorted(row.status for row in rows) == [DUPLICATE] * 3 + [STORED]

    def test_a_picture_that_another_worker_is_retiring_comes_back(
        self, engine: Engine, wait_for_waiter: Callable[[], None]
    ) -> None:
        with engine.begin() as connection:
            cards = archive.ensure_archive(connection, "cards").archive_id
            store(connection, cards, offer("x", "a", "Old."))

        def find_it_elsewhere() -> list[StoredRow]:
            with engine.begin() as connection:
                return store(connection, cards, offer("x", "b"))

        with ThreadPoolExecutor(1) as threads:
            with engine.begin() as connection:
                store(connection, cards, offer("y", "a"))
                running = threads.submit(find_it_elsewhere)
                wait_for_waiter()
            assert [row.status for row in running.result(timeout=60)] == [STORED]
        with engine.begin() as connection:
            assert living(connection) == {"x": ("b", "Old."), "y": ("a", None)}


class TestFiles:
    def test_in_and_out_again(self, connection: Connection, cards: int) -> None:
        job_id = new_job(connection, cards)
        sources = [
            SourceFile("a.png", "file:///a.png", "A tab\there, a line\nthere, a \\ and a \\N."),
            SourceFile("b.png", "file:///b.png", rejected=Rejection(RejectionClass.UNREADABLE, "it is a link out")),
            SourceFile("c\udcff\x00.png", "file:///c%FF.png", ""),
            SourceFile("d.png", "file:///d.png"),
        ]
        assert ingest_files.insert_files(connection, job_id, iter(sources)) == 4
        assert ingest_files.load_files(connection, job_id, 0, 4) == [
            PendingFile(0, "a.png", "file:///a.png", "A tab\there, a line\nthere, a \\ and a \\N."),
            PendingFile(2, "c\\udcff\ufffd.png", "file:///c%FF.png", ""),
            PendingFile(3, "d.png", "file:///d.png", None),
        ]
        assert [file.file_no for file in ingest_files.load_files(connection, job_id, 1, 3)] == [2]
        assert ingest_files.load_files(connection, new_job(connection, cards), 0, 4) == []

    def test_many_files_keep_their_numbers(self, connection: Connection, cards: int) -> None:
        job_id = new_job(connection, cards)
        count = 25_000  # more than one COPY
        sources = (SourceFile(f"{number}", f"file:///{number}") for number in range(count))
        assert ingest_files.insert_files(connection, job_id, sources) == count
        loaded = ingest_files.load_files(connection, job_id, 0, count)
        assert [(file.file_no, file.source) for file in loaded] == [(number, str(number)) for number in range(count)]

    def test_a_connection_that_breaks_during_the_copy_is_tried_again(self, engine: Engine) -> None:
        with engine.begin() as connection:
            job_id = new_job(connection, archive.ensure_archive(connection, "cards").archive_id)
        attempts: list[int] = []

        def work(connection: Connection) -> int:
            attempts.append(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
            return ingest_files.insert_files(connection, job_id, sources())

        def sources() -> Iterator[SourceFile]:
            yield SourceFile("a", "file:///a")
            if len(attempts) == 1:
                with engine.begin() as terminator:
                    terminator.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": attempts[0]})
            yield SourceFile("b", "file:///b")

        assert in_transaction(engine, work) == 2
        assert len(attempts) == 2
        with engine.begin() as connection:
            assert [file.source for file in ingest_files.load_files(connection, job_id, 0, 9)] == ["a", "b"]

    def test_a_lock_timeout_during_the_copy_is_tried_again(self, engine: Engine) -> None:
        with engine.begin() as connection:
            job_id = new_job(connection, archive.ensure_archive(connection, "cards").archive_id)
        blocker = engine.connect()
        blocker.execute(text("LOCK TABLE files IN ACCESS EXCLUSIVE MODE"))
        attempts = 0

        def work(connection: Connection) -> int:
            nonlocal attempts
            attempts += 1
            if attempts == 2:
                blocker.close()
            connection.execute(text("SET LOCAL lock_timeout = '50ms'"))
            return ingest_files.insert_files(connection, job_id, [SourceFile("a", "file:///a")])

        assert in_transaction(engine, work) == 1
        assert attempts == 2

    def test_the_first_outcome_stays(self, connection: Connection, cards: int) -> None:
        job_id = new_job(connection, cards)
        ingest_files.insert_files(connection, job_id, [SourceFile(name, f"file:///{name}") for name in "abc"])
        (row,) = store(connection, cards, offer("x", "a"))
        outcomes = [
            FileOutcome(0, FileStatus.STORED, image_id=row.image_id),
            FileOutcome(2, FileStatus.REJECTED, "cut off after 12 bytes"),
        ]
        assert ingest_files.finish_files(connection, job_id, outcomes) == 2
        assert ingest_files.finish_files(connection, job_id, [FileOutcome(0, FileStatus.REJECTED, "late")]) == 0
        assert ingest_files.finish_files(connection, job_id, []) == 0
        assert [file.file_no for file in ingest_files.load_files(connection, job_id, 0, 3)] == [1]
        rows = connection.execute(text("SELECT status, reason, image_id FROM files ORDER BY file_no")).all()
        assert [tuple(outcome) for outcome in rows] == [
            ("stored", None, row.image_id),
            (None, None, None),
            ("rejected", "cut off after 12 bytes", None),
        ]

    def test_rejected_is_what_the_latest_job_says(self, connection: Connection, cards: int) -> None:
        second = archive.ensure_archive(connection, "other").archive_id
        names = ["bad", "mended", "spoilt", "stopped", "deadly"]

        def job(archive_id: int, outcomes: Sequence[tuple[str, FileStatus, str | None]]) -> int:
            job_id = new_job(connection, archive_id)
            ingest_files.insert_files(connection, job_id, [SourceFile(name, f"file:///{name}") for name in names])
            ingest_files.finish_files(
                connection, job_id, [FileOutcome(names.index(name), status, why) for name, status, why in outcomes]
            )
            return job_id

        first = job(
            cards,
            [
                ("bad", FileStatus.REJECTED, "empty"),
                ("mended", FileStatus.REJECTED, "cut off"),
                ("spoilt", FileStatus.STORED, None),
                ("stopped", FileStatus.REJECTED, "no picture"),
                ("deadly", FileStatus.DEAD, "it killed its worker"),
            ],
        )
        second = job(
            cards,
            [
                ("bad", FileStatus.REJECTED, "still empty"),
                ("mended", FileStatus.STORED, None),
                ("spoilt", FileStatus.REJECTED, "no picture any more"),
                ("stopped", FileStatus.CANCELLED, None),
            ],
        )
        job(second, [("mended", FileStatus.REJECTED, "not of this archive")])
        assert ingest_files.rejected_files(connection, cards) == [
            RejectedFile(second, "bad", "file:///bad", FileStatus.REJECTED, "still empty"),
            RejectedFile(first, "deadly", "file:///deadly", FileStatus.DEAD, "it killed its worker"),
            RejectedFile(second, "spoilt", "file:///spoilt", FileStatus.REJECTED, "no picture any more"),
            RejectedFile(first, "stopped", "file:///stopped", FileStatus.REJECTED, "no picture"),
        ]
