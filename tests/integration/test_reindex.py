"""Reindexing on a real database and object store, with the mini models and other retrievers of their kind."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from ragllava.errors import IndexGone, JobRefused, UsageError
from ragllava.jobs import control
from ragllava.jobs.control import JobView
from ragllava.jobs.states import JobState
from ragllava.models.profiles import RetrieverSource
from ragllava.records import GapReason, ReindexStatus, Selection
from ragllava.stages import answer
from ragllava.stages.gaps import find_gaps
from ragllava.stages.reindex import ReindexRequest, submit_reindex, submit_switch
from ragllava.stores import indexes, vectors
from ragllava.stores.indexes import IndexDetails
from ragllava.stores.objects import content_key
from tests.integration.conftest import Postcards
from tests.retrievers import write_retriever
from tests.workshop import ARCHIVE, Workshop


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> RetrieverSource:
    """A retriever about as good as the shipped one, with other vectors."""
    return write_retriever(tmp_path_factory.mktemp("retrievers") / "other", noise=0.02)


@pytest.fixture(scope="session")
def blind(tmp_path_factory: pytest.TempPathFactory) -> RetrieverSource:
    """A retriever whose text tower knows nothing; its pictures are those of the shipped one."""
    return write_retriever(tmp_path_factory.mktemp("retrievers") / "blind", noise=3.0, only="transformer")


@pytest.fixture
def gallery(workshop: Workshop, postcards: Postcards) -> Workshop:
    """All postcards, and 12 questions that were answered."""
    own = workshop.with_settings(files_per_shard=16, files_per_step=8, top_k=4, gate_questions=12)
    own.ingest(postcards.written.pictures, captions=postcards.written.captions)
    own.ask([question.text for question in postcards.archive.questions[:12]], top_k=4)
    return own


def queue(workshop: Workshop, selection: Selection, source: RetrieverSource | None = None, *, switch: bool = True) -> int:
    return submit_reindex(
        workshop.engine, workshop.settings, ReindexRequest(ARCHIVE, selection, source, switch=switch)
    )


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


def vectors_of(workshop: Workshop, index_id: int) -> dict[int, np.ndarray]:
    statement = text(f"SELECT image_id, vector::text AS vector FROM embeddings_{index_id}")
    with workshop.engine.begin() as connection:
        return {row.image_id: np.array(row.vector[1:-1].split(","), float) for row in connection.execute(statement)}


def test_another_retriever_takes_over_and_answers_name_its_index(
    gallery: Workshop, other: RetrieverSource, postcards: Postcards
) -> None:
    asked = [question.text for question in postcards.archive.questions[12:16]]
    before = gallery.ask(asked, top_k=4)
    job = reindexed(gallery, Selection.ALL, other)
    assert (job.state, job.progress.by_status) == (JobState.COMPLETED, {"embedded": 60, "switched": 1})
    assert states(gallery) == [("retired", 60), ("active", 60)]
    old, new = listed(gallery)
    assert new.gate is not None and new.gate["passed"]
    assert (new.gate["images"], new.gate["vectors"], new.gate["unreadable"]) == (60, 60, 0)
    assert new.gate["answers"]["questions"] == 12
    assert old.retired_at is not None and new.index.spec == other.as_json()

    after = gallery.ask(asked, top_k=4)
    assert {row.models["index"] for row in before if row.models} == {f"{old.index.index_id}:{old.index.retriever}"}
    assert {row.models["index"] for row in after if row.models} == {f"{new.index.index_id}:{new.index.retriever}"}
    scores = [[candidate.clip_score for row in rows for candidate in row.candidates] for rows in (before, after)]
    assert scores[0] != scores[1], "both retrievers gave the same vectors: the test shows nothing"


def test_vectors_equal_those_of_a_fresh_ingest(gallery: Workshop, postcards: Postcards) -> None:
    job = reindexed(gallery, Selection.ALL)
    assert job.progress.by_status == {"embedded": 60, "switched": 1}
    old, new = (found.index.index_id for found in listed(gallery))
    fresh, again = vectors_of(gallery, old), vectors_of(gallery, new)
    assert fresh.keys() == again.keys()
    for image_id, vector in fresh.items():
        np.testing.assert_allclose(again[image_id], vector, atol=1e-3)
