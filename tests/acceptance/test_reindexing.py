"""An archive gets another retriever while questions are being answered and a worker is killed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sqlalchemy import func, select

from ragllava.jobs.states import JobState
from ragllava.postcards.archive import draw_archive, write_archive
from ragllava.records import AnswerOptions, Selection
from ragllava.settings import Settings
from ragllava.stages.reindex.stage import ReindexRequest
from ragllava.stages.results.results import ResultRow
from ragllava.stores.schema import answers, shards
from tests.acceptance.conftest import Cluster
from tests.support.retriever_folders import write_retriever
from tests.support.waiting import wait_for
from tests.support.workshop import PAPER

pytestmark = pytest.mark.acceptance

QUESTIONS = 24
IMAGES = 80
ARCHIVE = "postcards"


@pytest.fixture
def quick_settings(quick_settings: Settings) -> Settings:
    small = {"files_per_shard": 16, "files_per_step": 4, "questions_per_shard": 4, "gate_questions": 8, "top_k": 4}
    return quick_settings.model_copy(update=small)


def ask(cluster: Cluster, questions: Path) -> int:
    return cluster.client.questions.submit(questions, ARCHIVE, AnswerOptions(top_k=4, **PAPER)).job_id


def finished(cluster: Cluster, job_id: int) -> dict[str, ResultRow]:
    job = cluster.client.jobs.wait(job_id, timeout_s=400)
    assert job.state == JobState.COMPLETED, (job.error, job.progress.by_status)
    return {str(row.custom_id): row for row in cluster.client.questions.results(job_id)}


def answered(cluster: Cluster, job_id: int) -> int:
    statement = select(func.count()).select_from(answers).where(answers.c.job_id == job_id)
    with cluster.client.engine.begin() as connection:
        return connection.scalar(statement) or 0


def index_of(row: ResultRow) -> int:
    assert row.models is not None
    return int(row.models["index"].partition(":")[0])


def essence(row: ResultRow) -> tuple[object, ...]:
    return row.status, row.answer, [found.image.source for found in row.evidence]


@pytest.mark.timeout(900)
def test_an_archive_gets_another_retriever_while_questions_run_and_a_worker_is_killed(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Every answer is that of an undisturbed run on the index that it names; nothing fails, nothing is lost."""
    drawn = draw_archive(seed=52, images=IMAGES + 1, questions=QUESTIONS)
    written = write_archive(tmp_path / "postcards", drawn)
    late = shutil.move(written.pictures / drawn.postcards[-1].file_name, tmp_path)
    other = write_retriever(tmp_path / "other", noise=0.02)
    cluster.start("maint", "maint", ticks=True)
    cluster.start("ingest", "ingest")
    cluster.start("answer", "query")
    cluster.wait_ready("ingest", "answer")
    ingested = cluster.client.archives.ingest([written.pictures], ARCHIVE, written.captions)
    assert cluster.client.jobs.wait(ingested.job_id, timeout_s=120).progress.by_status == {"stored": IMAGES}
    [old] = [found.index.index_id for found in cluster.client.archives.indexes.list()]

    asked = [ask(cluster, written.questions)]
    wait_for("the first answers", lambda: answered(cluster, asked[0]) >= 4)
    reindex_id = cluster.client.archives.reindex(ReindexRequest(ARCHIVE, Selection.ALL, other))
    wait_for("the first vectors", lambda: cluster.client.jobs.get(reindex_id).progress.done >= 4)
    cluster.kill_in_a_shard("ingest", reindex_id)
    cluster.start("ingest", "ingest")
    arrived = cluster.client.archives.ingest([Path(late)], ARCHIVE, written.captions).job_id
    while not cluster.client.jobs.get(reindex_id).is_final:  # questions run all the time
        asked.append(ask(cluster, written.questions))
        finished(cluster, asked[-1])
    asked.append(ask(cluster, written.questions))
    assert cluster.client.jobs.get(reindex_id).progress.by_status == {"embedded": IMAGES, "switched": 1}
    assert cluster.client.jobs.wait(arrived, timeout_s=60).progress.by_status == {"stored": 1}
    with cluster.client.engine.begin() as connection:
        epochs = connection.scalars(select(shards.c.epoch).where(shards.c.job_id == reindex_id)).all()
    assert max(epochs) > 1, "no shard was taken over"

    rows = [(custom_id, row) for job_id in asked for custom_id, row in finished(cluster, job_id).items()]
    retired, active = cluster.client.archives.indexes.list(ARCHIVE)
    assert (retired.index.index_id, retired.index.state, retired.images) == (old, "retired", IMAGES + 1)
    assert (active.index.state, active.images) == ("active", IMAGES + 1)
    new = active.index.index_id
    assert {index_of(row) for _, row in rows} == {old, new}

    undisturbed = {new: finished(cluster, ask(cluster, written.questions))}
    back = cluster.client.jobs.wait(cluster.client.archives.indexes.switch(old), timeout_s=120)
    assert back.progress.by_status == {"switched": 1}
    undisturbed[old] = finished(cluster, ask(cluster, written.questions))
    for index_id, baseline in undisturbed.items():
        assert {index_of(row) for row in baseline.values()} == {index_id}
    arrived_name = Path(late).name
    for custom_id, row in rows:
        wanted = undisturbed[index_of(row)][custom_id]
        if arrived_name not in {found.image.source for found in wanted.candidates}:
            assert essence(row) == essence(wanted)
