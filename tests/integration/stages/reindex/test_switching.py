"""Indexes repaired in place, switched and dropped, while questions go on."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import update

from ragllava.errors import UsageError
from ragllava.jobs import control
from ragllava.jobs.states import JobState
from ragllava.models.profiles import RetrieverSource
from ragllava.records import GapReason, Selection
from ragllava.stages.reindex.stage import submit_switch
from ragllava.stores import schema as tables
from ragllava.stores.archives import indexes, vectors
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
from tests.support.workshop import Workshop

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
    gallery: Workshop, postcards: Postcards, other_retriever: RetrieverSource, asked: list[str]
) -> None:
    reindexed(gallery, Selection.ALL, other_retriever)
    gallery.ingest_files(cards(postcards, CARDS, CARDS + 2))
    assert states(gallery) == [("retired", CARDS), ("active", CARDS + 2)]
    old, new = ids(gallery)
    job = switched(gallery, old)
    assert job.progress.by_status == {"embedded": 2, "switched": 1}
    assert states(gallery) == [("active", CARDS + 2), ("retired", CARDS + 2)]
    assert indexes_named(gallery.ask(asked[:2], top_k=3)) == {old}
    assert switched(gallery, new).progress.by_status == {"switched": 1}
    assert indexes_named(gallery.ask(asked[:2], top_k=3)) == {new}
    with pytest.raises(UsageError, match="is already the active index"):
        in_transaction(gallery.engine, submit_switch, gallery.settings, new)


def test_an_index_may_wait_for_its_switch(gallery: Workshop, other_retriever: RetrieverSource) -> None:
    job = reindexed(gallery, Selection.ALL, other_retriever, switch=False)
    assert job.progress.by_status == {"embedded": CARDS, "kept": 1}
    assert states(gallery) == [("active", CARDS), ("building", CARDS)]
    assert switched(gallery, ids(gallery)[1]).progress.by_status == {"switched": 1}


def test_a_question_whose_index_is_dropped_is_answered_from_the_next(
    gallery: Workshop, other_retriever: RetrieverSource, asked: list[str]
) -> None:
    reindexed(gallery, Selection.ALL, other_retriever, switch=False)
    old, new = ids(gallery)

    def switch_and_drop() -> None:
        with gallery.engine.begin() as connection:
            indexes.activate(connection, new)
            indexes.drop_index(connection, old)

    patient = gallery.with_settings(retry_backoff_s=60.0)
    desk = patient.with_models(retriever=Watched(gallery.resources.models.retriever, switch_and_drop))
    job_id = desk.submit(asked[:2], top_k=3).job_id
    desk.run()
    assert [shard.error for shard in troubles(desk, job_id)] == [
        f"there is no index {old} (any more): a newer one took its place; try again"
    ]
    desk.let_wait_end()
    desk.run()
    assert desk.job(job_id).state is JobState.COMPLETED
    assert indexes_named(desk.rows(job_id)) == {new}


def test_a_question_that_runs_during_the_switch_goes_on_with_the_old_index(
    gallery: Workshop, other_retriever: RetrieverSource, asked: list[str]
) -> None:
    reindexed(gallery, Selection.ALL, other_retriever, switch=False)
    old, new = ids(gallery)

    def switch() -> None:
        with gallery.engine.begin() as connection:
            indexes.activate(connection, new)

    desk = gallery.with_models(retriever=Watched(gallery.resources.models.retriever, switch))
    assert indexes_named(desk.ask(asked[:2], top_k=3)) == {old}
    assert indexes_named(desk.ask(asked[:2], top_k=3)) == {new}


def test_an_active_index_or_one_being_filled_is_not_dropped(
    gallery: Workshop, other_retriever: RetrieverSource
) -> None:
    reindexed(gallery, Selection.ALL, other_retriever)
    old, new = ids(gallery)
    with gallery.engine.begin() as connection, pytest.raises(UsageError, match="the active one"):
        indexes.drop_index(connection, new)
    job_id = in_transaction(gallery.engine, submit_switch, gallery.settings, old)
    with gallery.engine.begin() as connection:
        with pytest.raises(UsageError, match=f"job {job_id} fills index {old}"):
            indexes.drop_index(connection, old)
        control.cancel(connection, job_id)
        indexes.drop_index(connection, old)
    assert ids(gallery) == [new]
