"""A workshop that trains: a labelled archive, a tiny model, and training jobs of a few steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select

from ragllava.jobs.views import JobView
from ragllava.records import Role
from ragllava.stages.resources import Resources
from ragllava.stores.database import in_transaction
from ragllava.stores.schema import model_versions, workers
from ragllava.training.request import TrainingRequest, submit_training
from tests.support.toy_questions import Classroom, tiny_profile
from tests.support.workshop import Workshop

FEW_STEPS: dict[str, Any] = {"rank": 8, "alpha": 16, "max_steps": 40, "learning_rate": 0.02, "steps_per_checkpoint": 10}
NO_STEPS = FEW_STEPS | {"max_steps": 2, "learning_rate": 1e-9}


def train_bench(workshop: Workshop, tmp_path: Path) -> Workshop:
    """A worker that also trains, with a home of its own, beside an archive that people have labelled."""
    folder = Classroom(workshop.engine, workshop.settings).draw(tmp_path / "class")
    workshop.ingest(folder, captions=folder / "captions.csv", archive_name="class")
    own = workshop.settings.model_copy(
        update={"home": tmp_path / "home", "torch_threads": 1, "profile": tiny_profile(tmp_path)}
    )
    made = replace(workshop, settings=own, resources=Resources(own), opened=workshop.opened)
    workshop.opened.append(made.resources)
    with workshop.engine.begin() as connection:
        connection.execute(delete(workers))  # nobody answers here, so answer jobs stay as they are
    made.live_worker("train@test", queues=("train",))
    return made


def classroom(bench: Workshop) -> Classroom:
    return Classroom(bench.engine, bench.settings)


def request(role: Role = Role.RERANKER, **changes: Any) -> TrainingRequest:
    return TrainingRequest(role, ("class",), "mini", **{"overrides": FEW_STEPS, **changes})


def submit(bench: Workshop, wanted: TrainingRequest) -> int:
    job_id, _ = in_transaction(bench.engine, submit_training, bench.settings, wanted)
    return job_id


def run(bench: Workshop, wanted: TrainingRequest) -> JobView:
    job_id = submit(bench, wanted)
    bench.run()
    return bench.job(job_id)


def versions(bench: Workshop) -> list[Any]:
    """The registered adapters."""
    query = select(model_versions).where(model_versions.c.adapter_sha256.is_not(None)).order_by(model_versions.c.id)
    with bench.engine.begin() as connection:
        return list(connection.execute(query))
