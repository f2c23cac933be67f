"""Reindexing on a real database and object store, with the mini models and other retrievers of their kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import func, select, text, update

from ragllava.errors import UsageError
from ragllava.jobs import control
from ragllava.jobs.control import JobView
from ragllava.jobs.states import JobState
from ragllava.models.profiles import RetrieverSource
from ragllava.records import GapReason, Selection, SourceFile
from ragllava.stages.gaps import find_gaps
from ragllava.stages.reindex import ReindexRequest, submit_reindex, submit_switch
from ragllava.stages.results import ResultRow
from ragllava.stages.submit import submit_files
from ragllava.stages.uris import file_uri
from ragllava.stores import indexes, vectors
from ragllava.stores import schema as tables
from ragllava.stores.indexes import IndexDetails
from ragllava.stores.objects import content_key
from tests.integration.conftest import Postcards
from tests.retrievers import write_retriever
from tests.workshop import ARCHIVE, Workshop

CARDS = 20


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> RetrieverSource:
    """A retriever about as good as the shipped one, with other vectors."""
    return write_retriever(tmp_path_factory.mktemp("retrievers") / "other", noise=0.02)


@pytest.fixture(scope="session")
def blind(tmp_path_factory: pytest.TempPathFactory) -> RetrieverSource:
    """A retriever whose text tower knows nothing; of pictures it knows as much as the shipped one."""
    return write_retriever(tmp_path_factory.mktemp("retrievers") / "blind", noise=3.0, only=("token_", "transformer"))


@pytest.fixture(scope="module")
def asked(postcards: Postcards) -> list[str]:
    """The questions about the first postcards."""
    first = {card.file_name for card in postcards.archive.postcards[:CARDS]}
    return [question.text for question in postcards.archive.questions if first.issuperset(question.relevant)]


@pytest.fixture
def gallery(workshop: Workshop, postcards: Postcards) -> Workshop:
    """The first postcards, eight to a shard."""
    own = workshop.with_settings(files_per_shard=8, files_per_step=4, top_k=3, gate_questions=10, leave_one_out=False)
    own.ingest_files(cards(postcards, 0, CARDS))
    return own


def cards(postcards: Postcards, first: int, last: int) -> list[SourceFile]:
    return [
        SourceFile(card.file_name, file_uri(postcards.written.pictures / card.file_name), card.caption)
        for card in postcards.archive.postcards[first:last]
    ]


def queue(
    workshop: Workshop, selection: Selection, source: RetrieverSource | None = None, *, switch: bool = True
) -> int:
    request = ReindexRequest(ARCHIVE, selection, source, switch=switch)
    return submit_reindex(workshop.engine, workshop.settings, request)


def reindexed(
    workshop: Workshop, selection: Selection, source: RetrieverSource | None = None, *, switch: bool = True
) -> JobView:
    job_id = queue(workshop, selection, source, switch=switch)
    workshop.run()
    return workshop.job(job_id)


def switched(workshop: Workshop, index_id: int) -> JobView:
    job_id = submit_switch(workshop.engine, workshop.settings, index_id)
    workshop.run()
    return workshop.job(job_id)


def listed(workshop: Workshop) -> list[IndexDetails]:
    with workshop.engine.begin() as connection:
        return indexes.all_indexes(connection, workshop.archive_id())


def states(workshop: Workshop) -> list[tuple[str, int]]:
    return [(found.index.state, found.images) for found in listed(workshop)]


def ids(workshop: Workshop) -> list[int]:
    return [found.index.index_id for found in listed(workshop)]


def stored(workshop: Workshop, index_id: int) -> dict[int, Any]:
    statement = text(f"SELECT image_id, vector::text AS vector FROM embeddings_{index_id}")
    with workshop.engine.begin() as connection:
        return {row.image_id: np.array(row.vector[1:-1].split(","), float) for row in connection.execute(statement)}


def indexes_named(rows: Sequence[ResultRow]) -> set[int]:
    return {int(row.models["index"].partition(":")[0]) for row in rows if row.models}


def gaps(workshop: Workshop) -> dict[str, GapReason]:
    with workshop.engine.begin() as connection:
        return {gap.source: gap.reason for gap in find_gaps(connection, workshop.archive_id())}


class Watched:
    """A retriever that does something once, before the first pictures or questions it is given."""

    def __init__(self, retriever: Any, before: Callable[[], None]) -> None:
        self._retriever = retriever
        self._before: Callable[[], None] | None = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._retriever, name)

    def embed_pixels(self, pixels: Sequence[Any], batch_size: int) -> Any:
        self._once()
        return self._retriever.embed_pixels(pixels, batch_size=batch_size)

    def embed_texts(self, texts: Sequence[str]) -> Any:
        self._once()
        return self._retriever.embed_texts(texts)

    def _once(self) -> None:
        before, self._before = self._before, None
        if before is not None:
            before()


# A new index


def test_another_retriever_takes_over_and_answers_name_its_index(
    gallery: Workshop, other: RetrieverSource, asked: list[str]
) -> None:
    before = gallery.ask(asked, top_k=3)
    job = reindexed(gallery, Selection.ALL, other)
    assert (job.state, job.progress.by_status) == (JobState.COMPLETED, {"embedded": CARDS, "switched": 1})
    assert states(gallery) == [("retired", CARDS), ("active", CARDS)]
    old, new = listed(gallery)
    assert new.gate is not None and new.gate["passed"]
    assert (new.gate["images"], new.gate["vectors"], new.gate["unreadable"]) == (CARDS, CARDS, 0)
    assert new.gate["answers"]["questions"] == min(10, len({row.question for row in before if row.answer}))
    assert old.retired_at is not None and new.index.spec == other.as_json()
    assert job.reindexing is not None and job.reindexing.index_id == new.index.index_id

    after = gallery.ask(asked, top_k=3)
    assert (indexes_named(before), indexes_named(after)) == ({old.index.index_id}, {new.index.index_id})
    scores = [[candidate.clip_score for row in rows for candidate in row.candidates] for rows in (before, after)]
    assert scores[0] != scores[1], "both retrievers gave the same vectors: the test shows nothing"


def test_its_vectors_are_those_of_a_fresh_ingest(gallery: Workshop) -> None:
    job = reindexed(gallery, Selection.ALL)
    assert job.progress.by_status == {"embedded": CARDS, "switched": 1}
    fresh, again = (stored(gallery, index_id) for index_id in ids(gallery))
    assert fresh.keys() == again.keys()
    for image_id, vector in fresh.items():
        np.testing.assert_allclose(again[image_id], vector, atol=1e-3)


def test_new_pictures_go_to_both_indexes(gallery: Workshop, postcards: Postcards, other: RetrieverSource) -> None:
    job_id = queue(gallery, Selection.ALL, other)
    gallery.run_once()
    with gallery.engine.begin() as connection:
        control.pause(connection, job_id)
    gallery.ingest_files(cards(postcards, CARDS, CARDS + 2))
    assert states(gallery) == [("active", CARDS + 2), ("building", 8 + 2)]
    with gallery.engine.begin() as connection:
        control.resume(connection, job_id)
    gallery.run()
    assert gallery.job(job_id).progress.by_status == {"embedded": CARDS, "switched": 1}
    assert states(gallery) == [("retired", CARDS + 2), ("active", CARDS + 2)]


def test_an_index_that_comes_while_pictures_are_ingested_gets_them_too(
    gallery: Workshop, postcards: Postcards, other: RetrieverSource
) -> None:
    retriever = gallery.resources.models.retriever_from(other)

    def begin() -> None:
        with gallery.engine.begin() as connection:
            archive_id = gallery.archive_id()
            indexes.create_index(connection, archive_id, retriever.version, retriever.dim, other.as_json())

    busy = gallery.with_models(retriever=Watched(gallery.resources.models.retriever, begin))
    new = submit_files(busy.engine, busy.settings, archive_name=ARCHIVE, files=cards(postcards, CARDS, CARDS + 2))
    busy.run_once()
    assert states(busy) == [("active", CARDS), ("building", 0)]
    [trouble] = [shard.error for shard in _troubles(busy, new.job_id)]
    assert trouble is not None and "is new to the archive" in trouble
    busy.let_wait_end()
    busy.run()
    assert busy.job(new.job_id).progress.by_status == {"stored": 2}
    assert states(busy) == [("active", CARDS + 2), ("building", 2)]


def _troubles(workshop: Workshop, job_id: int) -> list[control.ShardView]:
    with workshop.engine.begin() as connection:
        return control.troubled_shards(connection, job_id)


def test_a_broken_new_retriever_does_not_hold_up_ingest(
    gallery: Workshop, postcards: Postcards, other: RetrieverSource
) -> None:
    sound = gallery.resources.models.retriever_from(other)
    with gallery.engine.begin() as connection:
        indexes.create_index(connection, gallery.archive_id(), sound.version, sound.dim, other.as_json())

    class Broken(Watched):
        def embed_pixels(self, pixels: Sequence[Any], batch_size: int) -> Any:
            return np.full((len(pixels), sound.dim), np.nan, np.float32)

    desk = gallery.with_models(retriever_from=lambda source: Broken(sound, lambda: None))
    assert desk.ingest_files(cards(postcards, CARDS, CARDS + 2)).progress.by_status == {"stored": 2}
    assert states(desk) == [("active", CARDS + 2), ("building", 0)]


def test_pictures_are_decoded_for_the_larger_of_two_retrievers(
    gallery: Workshop, other: RetrieverSource, tmp_path: Path
) -> None:
    own = gallery.resources.models.retriever
    Image.radial_gradient("L").resize((4_000, 3_000)).save(tmp_path / "large.png")
    seen: list[tuple[int, int]] = []

    class Larger(Watched):
        image_size = own.image_size * 4

        def prepare_image(self, picture: Image.Image) -> Any:
            seen.append(picture.size)
            return own.prepare_image(picture)

    sound = gallery.resources.models.retriever_from(other)
    with gallery.engine.begin() as connection:
        indexes.create_index(connection, gallery.archive_id(), sound.version, sound.dim, other.as_json())
    desk = gallery.with_models(retriever_from=lambda source: Larger(sound, lambda: None))
    assert desk.ingest(tmp_path).progress.by_status == {"stored": 1}
    assert states(desk) == [("active", CARDS + 1), ("building", 1)]
    [(width, height)] = seen
    assert (width, height) == (1_334, 1_000)  # a third: 3,000 pixels hold twice 4 × 112 three times


# The gate


def test_the_gate_refuses_a_retriever_that_finds_worse_pictures(
    gallery: Workshop, blind: RetrieverSource, asked: list[str]
) -> None:
    gallery.ask(asked, top_k=3)
    job = reindexed(gallery, Selection.ALL, blind)
    assert job.progress.by_status == {"embedded": CARDS, "refused": 1}
    assert states(gallery) == [("active", CARDS), ("retired", CARDS)]
    assert job.reindexing is not None and "less relevant pictures" in str(job.reindexing.reason)
    gate = listed(gallery)[1].gate
    assert gate is not None and not gate["passed"]
    assert gate["recall"]["value"] == 1.0, "an exact search among vectors that mean nothing is exact"
    assert {one["question"] for one in gate["answers"]["differences"]} <= set(asked)
    assert indexes_named(gallery.ask(asked, top_k=3)) == {ids(gallery)[0]}


def test_the_gate_refuses_an_index_that_misses_many_pictures(gallery: Workshop) -> None:
    for source in list(gallery.images())[:3]:
        gallery.resources.objects.delete(content_key(gallery.images()[source].sha256))
    job = reindexed(gallery, Selection.ALL)
    assert job.state is JobState.COMPLETED_WITH_ERRORS
    assert job.progress.by_status == {"embedded": CARDS - 3, "unreadable": 3, "refused": 1}
    assert job.reindexing is not None and f"3 of {CARDS} pictures cannot be read" in str(job.reindexing.reason)
    assert states(gallery) == [("active", CARDS), ("retired", CARDS - 3)]


def test_one_lost_picture_is_named_and_stops_nothing(gallery: Workshop) -> None:
    lost = next(iter(gallery.images()))
    gallery.resources.objects.delete(content_key(gallery.images()[lost].sha256))
    job = reindexed(gallery, Selection.ALL)
    assert job.progress.by_status == {"embedded": CARDS - 1, "unreadable": 1, "switched": 1}
    gate = listed(gallery)[1].gate
    assert gate is not None and [one["image"] for one in gate["unreadable_images"]] == [lost]
    assert gaps(gallery) == {lost: GapReason.UNREADABLE}


def test_the_recall_of_a_graph_is_measured_by_questions_that_were_asked(gallery: Workshop, asked: list[str]) -> None:
    gallery.ask([*asked[:2], asked[0]], top_k=3)
    reindexed(gallery, Selection.ALL, switch=False)
    index_id = ids(gallery)[1]
    assert vectors.build_hnsw(gallery.engine, index_id, above_rows=1)
    assert switched(gallery, index_id).progress.by_status == {"switched": 1}
    gate = listed(gallery)[1].gate
    assert gate is not None and gate["recall"] == {"value": 1.0, "at": 20, "questions": 2, "search": "graph"}


# In place


def test_what_is_missing_is_named_and_repaired_in_place(gallery: Workshop) -> None:
    index_id = ids(gallery)[0]
    images = {source: row.id for source, row in gallery.images().items()}
    before = stored(gallery, index_id)
    missing = sorted(images)[:3]
    lost = missing[0]
    key = content_key(gallery.images()[lost].sha256)
    content = gallery.resources.objects.get(key)
    gallery.resources.objects.delete(key)
    with gallery.engine.begin() as connection:
        vectors.remove_embeddings(connection, gallery.archive_id(), [images[source] for source in missing])
    assert gaps(gallery) == dict.fromkeys(missing, GapReason.NEVER_TRIED)

    job_id = queue(gallery, Selection.MISSING)
    assert gaps(gallery) == dict.fromkeys(missing, GapReason.WAITING)
    gallery.run()
    job = gallery.job(job_id)
    assert job.progress.by_status == {"embedded": 2, "unreadable": 1, "kept": 1}
    assert job.state is JobState.COMPLETED_WITH_ERRORS
    assert gaps(gallery) == {lost: GapReason.UNREADABLE}
    assert gallery.job(queue(gallery, Selection.FAILED)).progress.total == 2

    gallery.resources.objects.put(key, content, "image/png")
    gallery.run()
    assert gaps(gallery) == {}
    after = stored(gallery, index_id)
    for image_id, vector in before.items():
        np.testing.assert_allclose(after[image_id], vector, atol=1e-3)
    assert states(gallery) == [("active", CARDS)]


def test_stale_makes_a_new_index_only_if_the_retriever_changed(gallery: Workshop, asked: list[str]) -> None:
    gallery.ask(asked, top_k=3)
    assert reindexed(gallery, Selection.STALE).progress.by_status == {"skipped": CARDS, "kept": 1}
    with gallery.engine.begin() as connection:  # as after an update of the models
        connection.execute(update(tables.indexes).values(retriever="mini-clip@00000000"))
    assert {row.status.value for row in gallery.ask(asked[:1], top_k=3)} == {"failed"}
    refused = reindexed(gallery, Selection.MISSING)
    assert refused.error is not None and "vectors of two models never mix" in refused.error

    job = reindexed(gallery, Selection.STALE)
    assert job.progress.by_status == {"embedded": CARDS, "switched": 1}
    gate = listed(gallery)[1].gate
    assert gate is not None and gate["answers"]["questions"], "compared with the answers of then"
    assert gate["answers"]["differ"] == 0
    assert indexes_named(gallery.ask(asked[:1], top_k=3)) == {ids(gallery)[1]}


# Switching


def test_switching_back_fills_what_came_since(
    gallery: Workshop, postcards: Postcards, other: RetrieverSource, asked: list[str]
) -> None:
    reindexed(gallery, Selection.ALL, other)
    gallery.ingest_files(cards(postcards, CARDS, CARDS + 2))
    assert states(gallery) == [("retired", CARDS), ("active", CARDS + 2)]
    old, new = ids(gallery)
    job = switched(gallery, old)
    assert job.progress.by_status == {"embedded": 2, "switched": 1}
    assert states(gallery) == [("active", CARDS + 2), ("retired", CARDS + 2)]
    assert indexes_named(gallery.ask(asked[:2], top_k=3)) == {old}
    assert switched(gallery, new).progress.by_status == {"switched": 1}
    assert indexes_named(gallery.ask(asked[:2], top_k=3)) == {new}
    with pytest.raises(UsageError, match="is the active one"):
        submit_switch(gallery.engine, gallery.settings, new)


def test_an_index_may_wait_for_its_switch(gallery: Workshop, other: RetrieverSource) -> None:
    job = reindexed(gallery, Selection.ALL, other, switch=False)
    assert job.progress.by_status == {"embedded": CARDS, "kept": 1}
    assert states(gallery) == [("active", CARDS), ("building", CARDS)]
    with gallery.engine.begin() as connection:
        assert indexes.droppable_indexes(connection, 0.0) == []
    assert switched(gallery, ids(gallery)[1]).progress.by_status == {"switched": 1}


def test_a_question_whose_index_is_dropped_is_answered_from_the_next(
    gallery: Workshop, other: RetrieverSource, asked: list[str]
) -> None:
    reindexed(gallery, Selection.ALL, other, switch=False)
    old, new = ids(gallery)

    def switch_and_drop() -> None:
        with gallery.engine.begin() as connection:
            indexes.activate(connection, new)
            indexes.drop_index(connection, old)

    desk = gallery.with_models(retriever=Watched(gallery.resources.models.retriever, switch_and_drop))
    job_id = desk.submit(asked[:2], top_k=3).job_id
    desk.run()
    assert [shard.error for shard in _troubles(desk, job_id)] == [
        f"there is no index {old} (any more): a newer one took its place; try again"
    ]
    desk.let_wait_end()
    desk.run()
    assert desk.job(job_id).state is JobState.COMPLETED
    assert indexes_named(desk.rows(job_id)) == {new}


def test_a_question_that_runs_during_the_switch_goes_on_with_the_old_index(
    gallery: Workshop, other: RetrieverSource, asked: list[str]
) -> None:
    reindexed(gallery, Selection.ALL, other, switch=False)
    old, new = ids(gallery)

    def switch() -> None:
        with gallery.engine.begin() as connection:
            indexes.activate(connection, new)

    desk = gallery.with_models(retriever=Watched(gallery.resources.models.retriever, switch))
    assert indexes_named(desk.ask(asked[:2], top_k=3)) == {old}
    assert indexes_named(desk.ask(asked[:2], top_k=3)) == {new}


def test_indexes_are_dropped_when_nobody_needs_them(gallery: Workshop, other: RetrieverSource) -> None:
    reindexed(gallery, Selection.ALL, other)
    old, new = ids(gallery)
    with gallery.engine.begin() as connection:
        assert indexes.droppable_indexes(connection, 3600.0) == []
        connection.execute(update(tables.indexes).values(retired_at=func.now() - text("interval '2 hours'")))
        connection.execute(update(tables.jobs).values(finished_at=func.now() - text("interval '2 hours'")))
        assert indexes.droppable_indexes(connection, 3600.0) == [old]
        with pytest.raises(UsageError, match="the active one"):
            indexes.drop_index(connection, new)
    job_id = submit_switch(gallery.engine, gallery.settings, old)
    with gallery.engine.begin() as connection:
        assert indexes.droppable_indexes(connection, 0.0) == []
        with pytest.raises(UsageError, match=f"job {job_id} fills index {old}"):
            indexes.drop_index(connection, old)
        control.cancel(connection, job_id)
        indexes.drop_index(connection, old)
    assert ids(gallery) == [new]


# As a job


def test_a_cancelled_reindexing_goes_on_after_retry_with_its_gate_last(
    gallery: Workshop, other: RetrieverSource, asked: list[str]
) -> None:
    job_id = queue(gallery, Selection.ALL, other)
    with pytest.raises(UsageError, match=f"job {job_id} builds an index of this archive already"):
        queue(gallery, Selection.ALL)
    gallery.run_once()
    with gallery.engine.begin() as connection:
        control.cancel(connection, job_id)
    assert gallery.job(job_id).progress.by_status == {"embedded": 8, "cancelled": CARDS - 8 + 1}
    refused = reindexed(gallery, Selection.ALL)
    assert refused.error is not None and "is not finished" in refused.error

    with gallery.engine.begin() as connection:
        assert control.retry(connection, job_id, per_shard=64) == CARDS - 8 + 1
        rows = connection.execute(
            select(tables.shards.c.lo, tables.shards.c.queue, tables.shards.c.is_last)
            .where(tables.shards.c.job_id == job_id, tables.shards.c.run_no == 2)
            .order_by(tables.shards.c.lo)
        ).all()
    assert [tuple(row) for row in rows] == [(8, None, False), (CARDS, "query", True)]
    gallery.run()
    assert gallery.job(job_id).progress.by_status == {"embedded": CARDS, "switched": 1}
    assert indexes_named(gallery.ask(asked[:1], top_k=3)) == {ids(gallery)[1]}


def test_the_gate_does_not_wait_behind_a_stream_of_questions(
    gallery: Workshop, other: RetrieverSource, asked: list[str]
) -> None:
    job_id = queue(gallery, Selection.ALL, other)
    bench = gallery.with_settings(questions_per_shard=1)
    stream = bench.submit([f"{question} ({number})" for number in range(8) for question in asked[:2]], top_k=3)
    for _ in range(CARDS // 8 + 8):
        bench.run_once()
    assert bench.job(job_id).progress.by_status == {"embedded": CARDS, "switched": 1}
    assert not bench.job(stream.job_id).is_final


def test_what_makes_no_sense_is_refused(gallery: Workshop, other: RetrieverSource) -> None:
    with pytest.raises(UsageError, match="with another retriever say --only all"):
        queue(gallery, Selection.FAILED, other)
    request = ReindexRequest("nobody", Selection.ALL)
    with pytest.raises(UsageError, match="there is no archive 'nobody'"):
        submit_reindex(gallery.engine, gallery.settings, request)
    gone = RetrieverSource("local-dir:/nowhere/clip")
    job = reindexed(gallery, Selection.ALL, gone)
    assert job.state is JobState.FAILED
    assert job.error is not None and "cannot load the index's retriever" in job.error
