"""The words of images agree with the images, whatever is changed and whoever else writes."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import Connection, Engine, func, select, text, update

import migrations
from ragllava.settings import Settings
from ragllava.stores import schema
from ragllava.stores.archives import archive, blobs, image_changes, indexes, spellings, texts, vectors, word_index
from ragllava.stores.archives.blobs import NewBlob
from ragllava.stores.archives.image_changes import CaptionChange, NewName
from ragllava.stores.archives.word_index import Disagreements
from ragllava.stores.database import in_transaction
from ragllava.stores.schema import archives, image_words, images, vocabulary, word_counts
from ragllava.words import WORDS_VERSION
from tests.support.shelf import DIM, Shelf, make_shelf, offer

AGREES = Disagreements((), (), (), (), ())


@pytest.fixture
def shelf(connection: Connection) -> Shelf:
    return make_shelf(connection)


def assert_agrees(shelf: Shelf) -> None:
    assert word_index.disagreements(shelf.connection, shelf.archive_id) == AGREES


def number_of_rows(connection: Connection, *tables: str) -> list[int]:
    return [connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() for table in tables]


def counts(connection: Connection, archive_id: int, *words: str) -> dict[str, int]:
    return spellings.known_words(connection, archive_id, words)


class TestChanges:
    def test_a_new_image(self, shelf: Shelf) -> None:
        [image_id] = shelf.add("Harlow barn, harlow", source="Coast/p{}.png")
        row = shelf.connection.execute(text("SELECT words::text, length FROM image_words")).one()
        assert row.words == "'1:0':1 '1:barn':1A '1:coast':1 '1:harlow':1A,2A '1:p':1"
        assert row.length == pytest.approx(3 * 1.0 + 3 * 0.2)
        assert counts(shelf.connection, shelf.archive_id, ":images", ":length", "harlow", "p") == {
            ":images": 1,
            ":length": 36,
            "harlow": 1,
            "p": 1,
        }
        assert image_id in shelf.ids("harlow")
        assert_agrees(shelf)

    def test_no_text_gives_the_words_that_stand_for_totals(self, shelf: Shelf) -> None:
        shelf.add(":images :length 1:plain", "plain")
        assert shelf.ids(":images") == shelf.ids("images") == shelf.ids("length")
        assert counts(shelf.connection, shelf.archive_id, "images", ":images") == {"images": 1, ":images": 2}
        assert_agrees(shelf)

    def test_a_caption_that_changes_goes_and_comes_back(self, shelf: Shelf) -> None:
        [image_id] = shelf.add("harlow barn")
        for caption, ids in (("undwick barn", []), (None, []), ("harlow barn", [image_id])):
            changes = [CaptionChange(image_id, "file:///p0.png", caption)]
            assert image_changes.change_captions(shelf.connection, shelf.archive_id, changes) == ["file:///p0.png"]
            assert shelf.ids("harlow") == ids
            assert_agrees(shelf)
        assert counts(shelf.connection, shelf.archive_id, "harlow", "barn", "undwick") == {"harlow": 1, "barn": 1}

    def test_an_ingest_of_the_same_file_with_another_caption(self, shelf: Shelf) -> None:
        [image_id] = shelf.add("harlow barn")
        assert shelf.store(offer(0, "undwick barn")) == [image_id]
        assert shelf.ids("harlow") == [] and shelf.ids("undwick") == [image_id]
        assert_agrees(shelf)

    def test_a_duplicate_adds_its_caption_and_not_its_name(self, shelf: Shelf) -> None:
        [image_id] = shelf.add("harlow barn")
        assert shelf.store(offer(7, None, content="picture-0", source="far/{}.png")) == [image_id]
        assert shelf.store(offer(8, "harlow barn", content="picture-0", source="far/{}.png")) == [image_id]
        known = counts(shelf.connection, shelf.archive_id, "harlow", "barn", "far", ":length")
        assert known.keys() == {"harlow", "barn", ":length"} and shelf.ids("far") == []
        assert shelf.store(offer(7, "undwick", content="picture-0", source="far/{}.png")) == [image_id]
        assert shelf.ids("undwick") == shelf.ids("harlow") == [image_id] and shelf.ids("far") == []
        assert_agrees(shelf)

    def test_other_bytes_under_the_same_name(self, shelf: Shelf) -> None:
        shelf.add("harlow barn")
        [newer] = shelf.store(offer(0, "harlow tower", content="newer"))
        assert shelf.ids("harlow") == [newer]
        assert texts.count_images(shelf.connection, shelf.archive_id) == 1
        assert_agrees(shelf)

    def test_a_retired_image_has_no_words_until_it_is_offered_again(self, shelf: Shelf) -> None:
        first, second = shelf.add("harlow barn", "harlow tower")
        image_changes.retire_at(shelf.connection, shelf.archive_id, ["file:///p0.png"])
        assert shelf.ids("harlow") == [second]
        assert counts(shelf.connection, shelf.archive_id, "harlow", "barn", ":images") == {"harlow": 1, ":images": 1}
        assert_agrees(shelf)
        assert shelf.store(offer(0, None)) == [first]
        assert set(shelf.ids("harlow")) == {first, second}
        assert_agrees(shelf)

    def test_another_file_names_the_image(self, shelf: Shelf) -> None:
        [image_id] = shelf.add(None, source="harlow-{}.png")
        names = [NewName(image_id, "undwick-0.png", "file:///undwick-0.png")]
        image_changes.rename_images(shelf.connection, shelf.archive_id, names)
        assert shelf.ids("harlow") == [] and shelf.ids("undwick") == [image_id]
        assert_agrees(shelf)

    def test_a_long_caption_and_strange_metadata(self, shelf: Shelf) -> None:
        [image_id, *_] = shelf.add(" ".join(f"w{number}{'ж' * 60}" for number in range(30_000)), "'\\ \"':1A,2B {}")
        metadata = {"a": [{"b": "undwick"}, None, True, 3], "c": "harlow\u0000".replace("\u0000", " ")}
        shelf.connection.execute(update(images).where(images.c.id == image_id).values(metadata=metadata))
        word_index.write_words(shelf.connection, shelf.archive_id, [image_id])
        assert shelf.ids("w7" + "ж" * 60) == [image_id]
        assert_agrees(shelf)

    def test_random_changes(self, shelf: Shelf) -> None:
        rng = random.Random(8)
        connection, archive_id = shelf.connection, shelf.archive_id
        words = ["harlow", "undwick", "barn", "tower", "the", "東京", "1932", None]

        def caption() -> str | None:
            chosen = [rng.choice(words) for _ in range(rng.randint(0, 5))]
            return None if None in chosen else " ".join(filter(None, chosen))

        for _ in range(40):
            number = rng.randrange(12)
            uri = f"file:///p{number}.png"
            named = image_changes.images_at(connection, archive_id, [uri])
            action = rng.randrange(4)
            if action == 0 or uri not in named:
                shelf.store(*(offer(number, caption(), content=f"picture-{rng.randrange(8)}") for _ in range(2)))
            elif action == 1:
                image_changes.retire_at(connection, archive_id, [uri])
            elif action == 2:
                change = CaptionChange(named[uri].image_id, uri, caption())
                image_changes.change_captions(connection, archive_id, [change])
            else:
                change_name = NewName(named[uri].image_id, f"p{number + 100}.png", f"file:///p{number + 100}.png")
                image_changes.rename_images(connection, archive_id, [change_name])
            assert_agrees(shelf)
            if rng.random() < 0.2:
                word_index.compact(connection, archive_id)
                assert_agrees(shelf)

    def test_nothing_is_written_where_nothing_changed(self, shelf: Shelf) -> None:
        ids = shelf.add("harlow barn", "undwick", None)

        def state() -> list[object]:
            query = text("SELECT image_id, ctid::text, words::text FROM image_words ORDER BY 1")
            return [*shelf.connection.execute(query), *number_of_rows(shelf.connection, "word_counts", "vocabulary")]

        before = state()
        word_index.write_words(shelf.connection, shelf.archive_id, ids)
        shelf.store(offer(0, "harlow barn"), offer(1, "undwick"))
        assert state() == before

    def test_reindex_rollback_and_dropped_index_change_no_words(self, shelf: Shelf) -> None:
        ids = shelf.add("harlow barn", "undwick barn")
        connection, former = shelf.connection, shelf.index
        built = indexes.create_index(connection, shelf.archive_id, "other", DIM, beside_active=True)
        vectors.insert_embeddings(connection, built, ids[:1], shelf.draw(1))
        indexes.activate(connection, built)
        shelf.index = vectors.get_index(connection, built)
        assert shelf.ids("barn") == ids[:1]
        indexes.activate(connection, former.index_id)
        shelf.index = vectors.get_index(connection, former.index_id)
        indexes.drop_index(connection, built)
        assert shelf.ids("barn") == ids
        assert_agrees(shelf)

    def test_a_deleted_archive_leaves_nothing(self, shelf: Shelf) -> None:
        other = make_shelf(shelf.connection, "others")
        [kept] = other.add("harlow barn")
        shelf.add("harlow tower", "undwick")
        shelf.connection.execute(update(archives).where(archives.c.id == shelf.archive_id).values(active_index_id=None))
        shelf.connection.execute(schema.indexes.delete().where(schema.indexes.c.archive_id == shelf.archive_id))
        shelf.connection.execute(archives.delete().where(archives.c.id == shelf.archive_id))
        word_index.compact(shelf.connection)
        left = [set(shelf.connection.scalars(select(table.c.archive_id))) for table in (image_words, word_counts)]
        assert left == [{other.archive_id}, {other.archive_id}]
        assert set(shelf.connection.scalars(select(vocabulary.c.word))) == {"harlow", "barn"}
        assert other.ids("harlow") == [kept]
        assert_agrees(other)


class TestSums:
    def test_rows_become_sums_and_words_without_images_go(self, shelf: Shelf) -> None:
        for caption in ("harlow barn", "harlow tower", "undwick"):
            shelf.add(caption)
        image_changes.retire_at(shelf.connection, shelf.archive_id, ["file:///p2.png"])
        before = counts(shelf.connection, shelf.archive_id, "harlow", "undwick", ":images", ":length", "p")
        word_index.compact(shelf.connection)
        assert counts(shelf.connection, shelf.archive_id, "harlow", "undwick", ":images", ":length", "p") == before
        words = list(shelf.connection.scalars(select(word_counts.c.word)))
        assert sorted(words) == sorted({"harlow", "barn", "tower", "p", "0", "1", ":images", ":length"})
        assert set(shelf.connection.scalars(select(vocabulary.c.word))) == {"harlow", "barn", "tower"}
        assert_agrees(shelf)

    def test_only_an_archive_that_was_written_often_is_summed_up(
        self, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(word_index, "_MANY_ROWS", 3)
        for expected in (1, 2, 3, 1):
            shelf.add("harlow")
            word_index.compact_often_written(shelf.connection, shelf.archive_id)
            rows = select(func.count()).where(word_counts.c.word == "harlow")
            assert shelf.connection.scalar(rows) == expected
        assert_agrees(shelf)

    def test_writers_and_others_that_sum_up_lose_nothing(self, engine: Engine) -> None:
        with engine.begin() as connection:
            archive_id = make_shelf(connection).archive_id
        done = threading.Event()

        def sum_up() -> None:
            while not done.is_set():
                in_transaction(engine, word_index.compact, None)

        with ThreadPoolExecutor(4) as threads:
            summing = [threads.submit(sum_up) for _ in range(2)]
            try:
                list(threads.map(lambda first: write_captions(engine, archive_id, first, retire=True), (0, 1000)))
            finally:
                done.set()
            for each in summing:
                each.result()
        with engine.begin() as connection:
            assert word_index.disagreements(connection, archive_id) == AGREES


def write_captions(engine: Engine, archive_id: int, first: int, *, retire: bool = False) -> None:
    """Store pictures with captions of the same few words, in many transactions, and retire some of them."""
    rng = random.Random(first)
    words = [f"word{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]

    def write(connection: Connection, start: int) -> None:
        offered = [offer(number, " ".join(rng.choices(words, k=6))) for number in range(start, start + 10)]
        blobs.announce_blobs(connection, [NewBlob(image.sha256, 9, "image/png") for image in offered])
        archive.store_images(connection, archive_id, offered)

    for start in range(first, first + 100, 10):
        in_transaction(engine, write, start)
        if retire:
            uris = [f"file:///p{start + rng.randrange(10)}.png"]
            in_transaction(engine, image_changes.retire_at, archive_id, uris)


class TestConcurrency:
    def test_writers_of_the_same_words(self, engine: Engine) -> None:
        with engine.begin() as connection:
            ids = [make_shelf(connection, name).archive_id for name in ("cards", "others")]
        with ThreadPoolExecutor(4) as threads:
            jobs = [(ids[number % 2], 1000 * number) for number in range(4)]
            list(threads.map(lambda job: write_captions(engine, *job), jobs))
        with engine.begin() as connection:
            for archive_id in ids:
                assert word_index.disagreements(connection, archive_id) == AGREES
                assert texts.count_images(connection, archive_id) == 200

    def test_new_words_of_an_open_transaction_are_waited_for(
        self, engine: Engine, wait_for_waiter: Callable[[], None]
    ) -> None:
        """The words are written in one order, so the second writer waits for the first, and neither fails."""
        with engine.begin() as connection:
            shelves = [make_shelf(connection, name).archive_id for name in ("cards", "others")]

        def write(number: int, caption: str) -> None:
            with engine.begin() as connection:
                blobs.announce_blobs(connection, [NewBlob(f"picture-{number}", 9, "image/png")])
                archive.store_images(connection, shelves[number], [offer(number, caption)])

        with ThreadPoolExecutor(1) as threads, engine.begin() as connection:
            blobs.announce_blobs(connection, [NewBlob("picture-0", 9, "image/png")])
            archive.store_images(connection, shelves[0], [offer(0, "undwick harlow")])
            second = threads.submit(write, 1, "harlow undwick")
            wait_for_waiter()
            connection.commit()
            second.result(timeout=60)
        with engine.begin() as connection:
            assert [word_index.disagreements(connection, each) for each in shelves] == [AGREES, AGREES]

    def test_a_word_that_is_being_written_stays_in_the_vocabulary(self, engine: Engine) -> None:
        with engine.begin() as connection:
            shelf = make_shelf(connection)
            shelf.add("harlow")
            image_changes.retire_at(connection, shelf.archive_id, ["file:///p0.png"])
        with engine.begin() as writing, engine.begin() as summing:
            blobs.announce_blobs(writing, [NewBlob("new", 9, "image/png")])
            archive.store_images(writing, shelf.archive_id, [offer(1, "harlow", content="new")])
            word_index.compact(summing)
        with engine.begin() as connection:
            assert word_index.disagreements(connection, shelf.archive_id) == AGREES
            assert "harlow" in set(connection.scalars(select(vocabulary.c.word)))

    def test_a_caption_that_changes_while_its_words_are_written(
        self, engine: Engine, wait_for_waiter: Callable[[], None]
    ) -> None:
        with engine.begin() as connection:
            shelf = make_shelf(connection)
            [image_id] = shelf.add("harlow")
            word_index.mark_outdated(connection)
        with ThreadPoolExecutor(1) as threads, engine.begin() as connection:
            change = [CaptionChange(image_id, "file:///p0.png", "undwick")]
            image_changes.change_captions(connection, shelf.archive_id, change)
            rebuilding = threads.submit(word_index.rebuild_outdated, engine)
            wait_for_waiter()
            connection.commit()
            rebuilding.result(timeout=60)
        with engine.begin() as connection:
            assert word_index.disagreements(connection, shelf.archive_id) == AGREES
            assert counts(connection, shelf.archive_id, "harlow", "undwick") == {"undwick": 1}


def damage(connection: Connection) -> None:
    """A row of each kind is wrong: missing, superfluous, different; counts and vocabulary."""
    first, second, third = sorted(connection.scalars(select(image_words.c.image_id)))[:3]
    connection.execute(image_words.delete().where(image_words.c.image_id == first))
    connection.execute(update(images).where(images.c.id == second).values(retired=True))
    connection.execute(update(images).where(images.c.id == third).values(caption="wexford"))
    connection.execute(update(word_counts).where(word_counts.c.word == "mill").values(images=17))
    connection.execute(vocabulary.delete().where(vocabulary.c.word == "mill"))


class TestRebuild:
    def test_disagreements_of_every_kind_are_named_and_repaired(self, engine: Engine, settings: Settings) -> None:
        with engine.begin() as connection:
            shelf = make_shelf(connection)
            first, second, third, _ = shelf.add("harlow barn", "undwick barn", "lone tower", "mill")
            assert_agrees(shelf)
            damage(connection)
            wrong = word_index.disagreements(connection, shelf.archive_id)
            assert wrong == Disagreements((first,), (second,), (third,), wrong.counts, ("mill",))
            assert {"mill", "harlow", ":images", ":length"} <= set(wrong.counts)
            assert not {"undwick", "lone"} & set(wrong.counts), "these agree with the rows of words"
            assert (wrong.number, wrong.example) == (4 + len(wrong.counts), f"image {first}")
        migrations.upgrade(settings.require_database_owner())
        with engine.begin() as connection:
            assert word_index.disagreements(connection, shelf.archive_id) == wrong, "this version wrote them"
        migrations.upgrade(settings.require_database_owner(), words=True)
        with engine.begin() as connection:
            assert word_index.disagreements(connection, shelf.archive_id) == AGREES
            assert connection.scalar(select(archives.c.words_version)) == WORDS_VERSION
            assert replace(shelf, connection=connection).ids("wexford") == [third]

    def test_an_archive_of_an_older_version_is_written_in_pages(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(word_index, "_ROWS_PER_PAGE", 3)
        with engine.begin() as connection:
            shelf = make_shelf(connection)
            ids = shelf.add(*["harlow barn"] * 10)
            for table in ("image_words", "word_counts", "vocabulary"):
                connection.execute(text(f"DELETE FROM {table}"))
            word_index.mark_outdated(connection)
            assert shelf.ids("harlow") == []

        def stop_after(limit: int) -> None:
            write, calls = word_index.write_words, []

            def write_or_stop(*args: object) -> None:
                calls.append(1)
                if len(calls) > limit:
                    raise KeyboardInterrupt
                write(*args)  # type: ignore[arg-type]

            monkeypatch.setattr(word_index, "write_words", write_or_stop)
            with pytest.raises(KeyboardInterrupt):
                word_index.rebuild_outdated(engine)
            monkeypatch.setattr(word_index, "write_words", write)

        stop_after(2)
        with engine.begin() as connection:
            assert number_of_rows(connection, "image_words") == [6]
            assert connection.scalar(select(archives.c.words_version)) == 0
        caplog.clear()
        with caplog.at_level("INFO"), ThreadPoolExecutor(2) as threads:
            for each in [threads.submit(word_index.rebuild_outdated, engine) for _ in range(2)]:
                each.result()
        assert {vars(record)["images"] for record in caplog.records if record.message == "words written"} == {
            3,
            6,
            9,
            10,
        }
        with engine.begin() as connection:
            shelf = replace(shelf, connection=connection)
            assert_agrees(shelf)
            assert shelf.ids("harlow") == ids
            assert connection.scalar(select(archives.c.words_version)) == WORDS_VERSION

    def test_a_new_archive_is_of_this_version(self, shelf: Shelf) -> None:
        assert shelf.connection.scalar(select(archives.c.words_version)) == WORDS_VERSION
