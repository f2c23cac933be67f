"""Training beside real workers: a killed trainer goes on, and answers keep to one version while another takes over."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from ragllava.jobs.inline import run_job
from ragllava.jobs.states import JobState
from ragllava.models.reranker import Pair
from ragllava.records import AnswerOptions, Role, TrainingStatus
from ragllava.settings import Settings
from ragllava.stages.champions import apply_champions
from ragllava.stages.ingest.captions import read_captions
from ragllava.stages.ingest.sources import list_sources
from ragllava.stages.ingest.submit import submit_files
from ragllava.stages.resources import Resources
from ragllava.stages.results.results import ResultRow
from ragllava.stores.database import in_transaction
from ragllava.stores.learning import registry, trainings
from ragllava.stores.schema import model_versions
from ragllava.training.request import TrainingRequest
from tests.acceptance.conftest import Cluster
from tests.acceptance.test_crashes import write_questions
from tests.support.toy_questions import Classroom, tiny_profile
from tests.support.waiting import wait_for
from tests.support.workshop import PAPER

pytestmark = pytest.mark.acceptance

SETTINGS: dict[str, Any] = {"rank": 8, "alpha": 16, "learning_rate": 0.02, "steps_per_checkpoint": 5}


@pytest.fixture
def quick_settings(quick_settings: Settings, tmp_path: Path) -> Settings:
    """Models that learn in seconds.

    Leases are longer here: training takes the processor from the answer worker's heartbeat.
    """
    own = {"profile": tiny_profile(tmp_path), "lease_s": 10.0, "heartbeat_s": 2.0}
    return quick_settings.model_copy(update=own)


@pytest.fixture
def resources(cluster: Cluster) -> Iterator[Resources]:
    made = Resources(cluster.settings)
    yield made
    made.close()


@pytest.fixture
def classroom(cluster: Cluster, resources: Resources, tmp_path: Path) -> Classroom:
    """The archive with its 100 labelled questions."""
    made = Classroom(cluster.client.engine, cluster.settings)
    folder = made.draw(tmp_path / "class")
    listed = list(list_sources([folder], read_captions(folder / "captions.csv")))
    job_id = in_transaction(cluster.client.engine, submit_files, cluster.settings, archive_name="class", files=listed)
    run_job(job_id, cluster.settings, cluster.client.engine, resources)
    made.label(100)
    return made


def train(cluster: Cluster, steps: int) -> int:
    overrides = SETTINGS | {"max_steps": steps}
    return cluster.client.models.train(TrainingRequest(Role.RERANKER, ("class",), "mini", overrides))


def steps_done(cluster: Cluster, job_id: int) -> int:
    with cluster.client.engine.begin() as connection:
        return trainings.views(connection, [job_id])[job_id].steps_done


def adapters(cluster: Cluster) -> list[Any]:
    with cluster.client.engine.begin() as connection:
        return list(connection.execute(select(model_versions).where(model_versions.c.adapter_sha256.is_not(None))))


def test_a_killed_train_worker_goes_on_from_its_checkpoint(cluster: Cluster, classroom: Classroom) -> None:
    cluster.start("maint", "maint", ticks=True)
    cluster.start("train", "train")
    cluster.wait_ready("train")
    assert cluster.child("train").nice() == min(19, os.nice(0) + cluster.settings.train_niceness)
    job_id = train(cluster, steps=60)
    wait_for("a checkpoint and some steps more", lambda: steps_done(cluster, job_id) >= 7)
    cluster.kill("train")
    assert not cluster.client.jobs.get(job_id).is_final
    cluster.start("train", "train")
    job = cluster.client.jobs.wait(job_id, timeout_s=240)
    assert job.state == JobState.COMPLETED, job.error
    assert job.training is not None
    assert job.training.status is TrainingStatus.PROMOTED, job.training.reason
    [version] = adapters(cluster)
    assert [record["step"] for record in version.training["report"]["steps"]] == list(range(1, 61))
    assert cluster.log("train").count("checkpoint at step 5 of 60") == 1, "it began anew"


def test_answers_keep_to_one_version_while_another_is_trained(
    cluster: Cluster, classroom: Classroom, resources: Resources, tmp_path: Path
) -> None:
    cluster.start("maint", "maint", ticks=True)
    cluster.start("answer", "query")
    cluster.start("train", "train")
    cluster.wait_ready("answer", "train")
    jobs = [submit(cluster, tmp_path, 0)]  # before the training, so that the base answers something
    training = train(cluster, steps=30)
    while not cluster.client.jobs.get(training).is_final:
        # There is always one to be answered, and never a long line of them.
        cluster.client.jobs.wait(jobs[-1], timeout_s=120)
        jobs.append(submit(cluster, tmp_path, len(jobs)))
    jobs.append(submit(cluster, tmp_path, len(jobs)))
    for job_id in jobs:
        answered = cluster.client.jobs.wait(job_id, timeout_s=120)
        errors = [row.error for row in cluster.client.questions.results(job_id) if row.error]
        assert (answered.state, errors) == (JobState.COMPLETED, [])
    done = cluster.client.jobs.get(training)
    assert done.training is not None
    assert done.training.status is TrainingStatus.PROMOTED, done.training.reason

    by_version: dict[str, list[ResultRow]] = defaultdict(list)
    for job_id in jobs:
        for row in cluster.client.questions.results(job_id):
            assert row.models is not None
            by_version[row.models["reranker"]].append(row)
    assert set(by_version) == {resources.models.base_version, done.training.version}
    with cluster.client.engine.begin() as connection:
        known = {view.version.name: view.version for view in registry.list_versions(connection, role=Role.RERANKER)}
    for name, rows in by_version.items():
        assert {row.models and row.models["threshold"] for row in rows} == {known[name].threshold}
        apply_champions(resources, {Role.RERANKER: known[name]})
        check_relevance(rows, resources)


def submit(cluster: Cluster, tmp_path: Path, number: int) -> int:
    texts = [f"Which sheet belongs to letter {chr(97 + n)}{number}?" for n in range(16)]
    questions = write_questions(tmp_path / "q.jsonl", texts)
    return cluster.client.questions.submit(questions, "class", AnswerOptions(**PAPER)).job_id


def check_relevance(rows: list[ResultRow], resources: Resources) -> None:
    """Every relevance is that of the version that the resources compute with now."""
    found = [(str(row.question), candidate) for row in rows for candidate in row.candidates]
    hashes = [candidate.image.sha256 for _, candidate in found]
    pictures = resources.pictures.get_many(hashes)
    pairs = []
    for question, candidate in found:
        picture = pictures[candidate.image.sha256]
        assert not isinstance(picture, str)
        pairs.append(Pair(question, candidate.image.caption, picture))
    scores = resources.models.reranker.relevance(pairs, batch_size=20)
    assert [score.value for score in scores] == pytest.approx([c.relevance for _, c in found], abs=1e-4)
