"""A backup while an ingest is in the middle of a transaction: what is restored is consistent, and goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import pytest
from sqlalchemy import Connection

from ragllava.client import Client
from ragllava.jobs import control
from ragllava.jobs.runner import ShardContext
from ragllava.jobs.states import JobState
from ragllava.settings import Settings
from ragllava.stages.ingest.stage import ingest_stage
from ragllava.stages.resources import Resources
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import ObjectStore, content_key
from tests.support.ingest_runs import changed, queue_pictures, run_broken, stored_vectors
from tests.support.saved_systems import make, problems, restore
from tests.support.workshop import Workshop, open_workshop

P = ParamSpec("P")
T = TypeVar("T")
PICTURES, PER_SHARD, PER_STEP = 12, 6, 2


class Held:
    """Holds an ingest in its second transaction, with all rows written and nothing committed, until it may go on."""

    def __init__(self) -> None:
        self.is_reached, self.may_go = threading.Event(), threading.Event()
        self.commits = 0

    def stage(self, context: ShardContext[Resources]) -> None:
        """Run as the ingest stage."""
        held = self

        class Context(ShardContext[Resources]):
            def commit(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
                held.commits += 1
                number = held.commits

                def hold(connection: Connection) -> T:
                    result = work(connection, *args, **kwargs)
                    if number == 2:
                        held.is_reached.set()
                        assert held.may_go.wait(300)
                    return result

                return super().commit(hold)

        ingest_stage(changed(context, Context))


@pytest.fixture
def small(workshop: Workshop) -> Workshop:
    return workshop.with_settings(files_per_shard=PER_SHARD, files_per_step=PER_STEP)


def test_a_backup_in_the_middle_of_an_ingest_is_consistent_and_goes_on(
    small: Workshop, empty: Settings, models: Any, tmp_path: Path
) -> None:
    pictures, vault = tmp_path / "pictures", tmp_path / "vault"
    pictures.mkdir()
    job_id, held = queue_pictures(small, pictures, PICTURES), Held()
    with ThreadPoolExecutor(1) as beside:
        running = beside.submit(run_broken, small, held.stage)
        try:
            assert held.is_reached.wait(300), running.exception(0)
            made = make(small, vault)
            assert not running.done() and len(small.images()) == PER_STEP, "the ingest has not gone on"
        finally:
            held.may_go.set()
        running.result()
    assert made.absent == () and made.pictures >= PER_STEP
    assert small.job(job_id).progress.by_status == {"stored": PER_SHARD}

    restore(empty, vault)
    with Client(empty) as client, open_workshop(empty, models) as other:
        assert other.job(job_id).progress.by_status == {"stored": PER_STEP}
        assert len(other.images()) == other.embedded() == PER_STEP
        assert problems(client) == []
        away = (pictures / "11.png").rename(tmp_path / "11.png")
        other.run()
        job = other.job(job_id)
        assert (job.state, job.progress.by_status) == (
            JobState.COMPLETED_WITH_ERRORS,
            {"stored": PICTURES - 1, "rejected": 1},
        )
        assert ("11.png", "rejected", "it disappeared since it was listed") in other.outcomes(job_id)
        away.rename(pictures / "11.png")
        assert in_transaction(other.engine, control.retry, job_id, PER_SHARD) == 1
        other.run()
        assert other.job(job_id).state is JobState.COMPLETED
        assert problems(client) == []
        small.run()
        assert contents(other) == contents(small) and len(contents(other)) == PICTURES
        assert np.allclose(vectors_by_source(other), vectors_by_source(small), atol=1e-3)
        assert all(ObjectStore(empty).exists(content_key(sha256)) for sha256 in contents(other).values())


def contents(workshop: Workshop) -> dict[str, str]:
    """The hash of each picture, by source."""
    return {source: row.sha256 for source, row in sorted(workshop.images().items())}


def vectors_by_source(workshop: Workshop) -> list[Any]:
    stored = stored_vectors(workshop)
    return [stored[row.id] for _, row in sorted(workshop.images().items())]
