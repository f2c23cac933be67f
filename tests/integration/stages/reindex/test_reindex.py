"""Reindexing on a real database and object store, with the mini models and other retrievers of their kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import select

from ragllava.errors import UsageError
from ragllava.jobs import control
from ragllava.jobs.states import JobState
from ragllava.models.profiles import RetrieverSource
from ragllava.records import GapReason, Selection
from ragllava.stages.ingest.submit import submit_files
from ragllava.stages.reindex.stage import ReindexRequest, submit_reindex
from ragllava.stores import schema as tables
from ragllava.stores.archives import graphs, indexes
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import content_key
from tests.integration.conftest import Postcards
from tests.support.postcard_gallery import (
    CARDS,
    Watched,
    cards,
    gaps,
    ids,
    indexes_named,
    listed,
    queue,
    reindexed,
    states,
    stored,
    switched,
    troubles,
)
from tests.support.retriever_folders import write_retriever
from tests.support.workshop import ARCHIVE, Workshop


@pytest.fixture(scope="session")
def blind(tmp_path_factory: pytest.TempPathFactory) -> RetrieverSource:
    """A retriever whose text tower knows nothing; of pictures it knows as much as the shipped one."""
    return write_retriever(tmp_path_factory.mktemp("retrievers") / "blind", noise=3.0, only=("token_", "transformer"))


# A new index


def test_another_retriever_takes_over_and_answers_name_its_index(
    gallery: Workshop, other_retriever: RetrieverSource, asked: list[str]
) -> None:
    before = gallery.ask(asked, top_k=3)
    job = reindexed(gallery, Selection.ALL, other_retriever)
    assert (job.state, job.progress.by_status) == (JobState.COMPLETED, {"embedded": CARDS, "switched": 1})
    assert states(gallery) == [("retired", CARDS), ("active", CARDS)]
    old, new = listed(gallery)
    assert new.gate is not None and new.gate["passed"]
    assert (new.gate["images"], new.gate["vectors"], new.gate["unreadable"]) == (CARDS, CARDS, 0)
    assert new.gate["answers"]["questions"] == min(10, len({row.question for row in before if row.answer}))
    assert old.retired_at is not None and new.index.spec == asdict(other_retriever)
    assert job.reindexing is not None and job.reindexing.index_id == new.index.index_id

    after = gallery.ask(asked, top_k=3)
    assert (indexes_named(before), indexes_named(after)) == ({old.index.index_id}, {new.index.index_id})
    scores = [[candidate.retrieval_score for row in rows for candidate in row.candidates] for rows in (before, after)]
    assert scores[0] != scores[1], "both retrievers gave the same vectors: the test shows nothing"


def test_its_vectors_are_those_of_a_fresh_ingest(gallery: Workshop) -> None:
    job = reindexed(gallery, Selection.ALL)
    assert job.progress.by_status == {"embedded": CARDS, "switched": 1}
    fresh, again = (stored(gallery, index_id) for index_id in ids(gallery))
    assert fresh.keys() == again.keys()
    for image_id, vector in fresh.items():
        np.testing.assert_allclose(again[image_id], vector, atol=1e-3)


def test_new_pictures_go_to_both_indexes(
    gallery: Workshop, postcards: Postcards, other_retriever: RetrieverSource
) -> None:
    job_id = queue(gallery, Selection.ALL, other_retriever)
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
    gallery: Workshop, postcards: Postcards, other_retriever: RetrieverSource
) -> None:
    retriever = gallery.resources.models.retriever_from(other_retriever)

    def begin() -> None:
        with gallery.engine.begin() as connection:
            archive_id = gallery.archive_id()
            indexes.create_index(connection, archive_id, retriever.version, retriever.dim, asdict(other_retriever))

    busy = gallery.with_models(retriever=Watched(gallery.resources.models.retriever, begin))
    new = in_transaction(
        busy.engine, submit_files, busy.settings, archive_name=ARCHIVE, files=cards(postcards, CARDS, CARDS + 2)
    )
    busy.run_once()
    assert states(busy) == [("active", CARDS), ("building", 0)]
    [trouble] = [shard.error for shard in troubles(busy, new)]
    assert trouble is not None and "is new to the archive" in trouble
    busy.let_wait_end()
    busy.run()
    assert busy.job(new).progress.by_status == {"stored": 2}
    assert states(busy) == [("active", CARDS + 2), ("building", 2)]


def test_a_broken_new_retriever_does_not_hold_up_ingest(
    gallery: Workshop, postcards: Postcards, other_retriever: RetrieverSource
) -> None:
    sound = gallery.resources.models.retriever_from(other_retriever)
    with gallery.engine.begin() as connection:
        indexes.create_index(connection, gallery.archive_id(), sound.version, sound.dim, asdict(other_retriever))

    class Broken(Watched):
        def embed_pixels(self, pixels: Sequence[Any], batch_size: int) -> Any:
            return np.full((len(pixels), sound.dim), np.nan, np.float32)

    desk = gallery.with_models(retriever_from=lambda source: Broken(sound, lambda: None))
    assert desk.ingest_files(cards(postcards, CARDS, CARDS + 2)).progress.by_status == {"stored": 2}
    assert states(desk) == [("active", CARDS + 2), ("building", 0)]


def test_pictures_are_decoded_for_the_larger_of_two_retrievers(
    gallery: Workshop, other_retriever: RetrieverSource, tmp_path: Path
) -> None:
    own = gallery.resources.models.retriever
    Image.radial_gradient("L").resize((4_000, 3_000)).save(tmp_path / "large.png")
    seen: list[tuple[int, int]] = []

    class Larger(Watched):
        image_size = own.image_size * 4

        def prepare_image(self, picture: Image.Image) -> Any:
            seen.append(picture.size)
            return own.prepare_image(picture)

    sound = gallery.resources.models.retriever_from(other_retriever)
    with gallery.engine.begin() as connection:
        indexes.create_index(connection, gallery.archive_id(), sound.version, sound.dim, asdict(other_retriever))
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
    assert {row["question"] for row in gate["answers"]["differences"]} <= set(asked)
    assert indexes_named(gallery.ask(asked, top_k=3)) == {ids(gallery)[0]}


def test_the_gate_refuses_an_index_that_misses_many_pictures(gallery: Workshop) -> None:
    for source in list(gallery.images())[:3]:
        gallery.resources.objects.delete(content_key(gallery.images()[source].sha256))
    job = reindexed(gallery, Selection.ALL)
    assert job.state is JobState.COMPLETED_WITH_ERRORS
    assert job.progress.by_status == {"embedded": CARDS - 3, "unreadable": 3, "refused": 1}
    assert job.reindexing is not None and f"3 of {CARDS} pictures cannot be read" in str(job.reindexing.reason)
    assert states(gallery) == [("active", CARDS), ("retired", CARDS - 3)]


def test_one_lost_picture_is_reported_and_stops_nothing(gallery: Workshop) -> None:
    lost = next(iter(gallery.images()))
    gallery.resources.objects.delete(content_key(gallery.images()[lost].sha256))
    job = reindexed(gallery, Selection.ALL)
    assert job.progress.by_status == {"embedded": CARDS - 1, "unreadable": 1, "switched": 1}
    gate = listed(gallery)[1].gate
    assert gate is not None and [row["image"] for row in gate["unreadable_images"]] == [lost]
    assert gaps(gallery) == {lost: GapReason.UNREADABLE}


def test_the_recall_of_a_graph_is_measured_by_questions_that_were_asked(gallery: Workshop, asked: list[str]) -> None:
    gallery.ask([*asked[:2], asked[0]], top_k=3)
    reindexed(gallery, Selection.ALL, switch=False)
    index_id = ids(gallery)[1]
    assert graphs.build_hnsw(gallery.engine, index_id, above_rows=1)
    assert switched(gallery, index_id).progress.by_status == {"switched": 1}
    gate = listed(gallery)[1].gate
    assert gate is not None and gate["recall"] == {"value": 1.0, "at": 20, "questions": 2, "search": "graph"}


# As a job


def test_a_cancelled_reindexing_goes_on_after_retry_with_its_gate_last(
    gallery: Workshop, other_retriever: RetrieverSource, asked: list[str]
) -> None:
    job_id = queue(gallery, Selection.ALL, other_retriever)
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
    gallery: Workshop, other_retriever: RetrieverSource, asked: list[str]
) -> None:
    job_id = queue(gallery, Selection.ALL, other_retriever)
    bench = gallery.with_settings(questions_per_shard=1)
    stream = bench.submit([f"{question} ({number})" for number in range(8) for question in asked[:2]], top_k=3)
    for _ in range(CARDS // 8 + 8):
        bench.run_once()
    assert bench.job(job_id).progress.by_status == {"embedded": CARDS, "switched": 1}
    assert not bench.job(stream.job_id).is_final


def test_what_makes_no_sense_is_refused(gallery: Workshop, other_retriever: RetrieverSource) -> None:
    with pytest.raises(UsageError, match="with another retriever use --only all"):
        queue(gallery, Selection.FAILED, other_retriever)
    request = ReindexRequest("nobody", Selection.ALL)
    with pytest.raises(UsageError, match="there is no archive 'nobody'"):
        in_transaction(gallery.engine, submit_reindex, gallery.settings, request)
    gone = RetrieverSource("local-dir:/nowhere/clip")
    job = reindexed(gallery, Selection.ALL, gone)
    assert job.state is JobState.FAILED
    assert job.error is not None and "cannot load the index's retriever" in job.error
