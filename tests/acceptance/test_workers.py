"""Workers that look alive: they get work, or they end and say why. And the tick, which no clock can stop."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from ragllava.jobs.states import JobState
from ragllava.local.service import http_get
from ragllava.stores.archives.archive import ensure_archive
from ragllava.stores.schema import REVISION
from ragllava.stores.schema_revision import stated_floor
from tests.acceptance.conftest import FRAGILE, Cluster
from tests.acceptance.test_crashes import write_questions
from tests.support.held_questions import held_questions, let_go
from tests.support.prometheus_server import free_port, kept_port
from tests.support.waiting import wait_for

pytestmark = pytest.mark.acceptance

WATCHFUL = "tests.support.watchful_worker"
UNFIT = "tests.support.unfit_worker"
REFUSED = "this worker cannot do it"


def figures(port: int) -> dict[tuple[str, tuple[str, ...]], float]:
    """What the process of a worker serves, by name and the values of labels."""
    families = text_string_to_metric_families(http_get(f"http://127.0.0.1:{port}/metrics").data.decode())
    return {
        (sample.name, tuple(sample.labels.values())): sample.value for family in families for sample in family.samples
    }


def exit_code(cluster: Cluster, name: str) -> int:
    process = cluster.processes.pop(name)
    wait_for("the worker to end", lambda: process.poll() is not None, 120)
    assert process.returncode is not None
    return process.returncode


def refusals(cluster: Cluster) -> dict[str, str]:
    """What the unfit worker has refused, by job."""
    return next(row.refused for row in cluster.client.system.workers() if row.name == "unfit@test")


@pytest.mark.parametrize("queue", ["query", "maint"])
def test_a_worker_that_meets_no_database_at_its_start_ends_with_the_reason(cluster: Cluster, queue: str) -> None:
    address = f"postgresql://nobody:none@127.0.0.1:{free_port()}/none"
    cluster.settings = cluster.settings.model_copy(update={"database_url": address})
    cluster.start("lonely", queue, FRAGILE, ticks=queue == "maint")
    assert exit_code(cluster, "lonely") == 1
    assert "database: connection failed" in cluster.log("lonely")


def test_a_worker_whose_models_cannot_be_loaded_ends_with_the_reason(cluster: Cluster) -> None:
    cluster.settings = cluster.settings.model_copy(update={"profile": "/no/such/profile.toml"})
    cluster.start("poor", "query")
    assert exit_code(cluster, "poor") == 1
    assert "/no/such/profile.toml" in cluster.log("poor")


def test_a_worker_works_on_tables_that_only_grew_and_ends_on_others(cluster: Cluster) -> None:
    """A newer version has migrated the database, once so that programs of this one can go on, and once not."""
    owner = create_engine(cluster.settings.require_database_owner(), poolclass=NullPool)

    def migrate_beyond(revision: str, oldest: str) -> None:
        with owner.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :number"), {"number": revision})
            connection.execute(text(f"COMMENT ON TABLE alembic_version IS '{stated_floor(oldest)}'"))

    migrate_beyond("0998", oldest=REVISION)
    cluster.start("maint", "maint", WATCHFUL, ticks=True)
    cluster.wait_ready("maint")
    migrate_beyond("0999", oldest="0999")
    assert exit_code(cluster, "maint") == 1
    cluster.start("late", "maint", ticks=True)
    assert exit_code(cluster, "late") == 1
    for name in ("maint", "late"):
        assert "the database is at revision 0999, newer than this version" in cluster.log(name)


def test_a_worker_whose_row_was_removed_gets_work_again(cluster: Cluster) -> None:
    cluster.start("answer", "query", FRAGILE)
    cluster.wait_ready("answer")
    before = cluster.client.system.workers()[0].versions
    with cluster.client.engine.begin() as connection:
        connection.execute(text("DELETE FROM workers"))
    cluster.wait_ready("answer")
    [row] = cluster.client.system.workers()
    assert (row.versions, row.queues, row.slots) == (before, ["query"], 1)


def test_a_job_that_one_worker_cannot_do_is_done_by_the_others(cluster: Cluster, tmp_path: Path) -> None:
    """The unfit worker is there first, and idle."""
    cluster.start("maint", "maint", FRAGILE, ticks=True)
    cluster.start("unfit", "query", UNFIT)
    with kept_port() as port:
        cluster.settings = cluster.settings.model_copy(update={"worker_metrics_port": port})
        cluster.start("fit", "query", FRAGILE)
        cluster.wait_ready("unfit", "fit")
        with cluster.client.engine.begin() as connection:
            ensure_archive(connection, "test")
        path = write_questions(tmp_path / "q.jsonl", held_questions(60, free=0))
        job_id = cluster.client.questions.submit(path, "test").job_id
        wait_for("the unfit worker to refuse the job", lambda: refusals(cluster) == {str(job_id): REFUSED})
        let_go(cluster.settings)
        job = cluster.client.jobs.wait(job_id, timeout_s=120)
        assert (job.state, job.progress.by_status) == (JobState.COMPLETED, {"answered": 60})
        wait_for("the figures of its process", lambda: figures(port)["ragllava_worker_shard_seconds_count", ()] >= 8)
    assert figures(port)["ragllava_worker_info", ("fit@test",)] == 1
    assert figures(port)["process_resident_memory_bytes", ()] > 2**20
    cluster.kill("fit")
    alone = cluster.client.questions.submit(path, "test", idempotency_key="alone").job_id
    job = cluster.client.jobs.wait(alone, timeout_s=120)
    assert (job.state, job.error) == (JobState.FAILED, REFUSED)


def test_ticks_go_on_when_the_clock_of_the_machine_is_set_back(cluster: Cluster) -> None:
    cluster.start("maint", "maint", "tests.support.stepping_clock", ticks=True)

    def ticked() -> list[object]:
        with cluster.client.engine.begin() as connection:
            return list(connection.scalars(text("SELECT ended_at FROM ticks")))

    def has_changed(before: list[object]) -> bool:
        return ticked() != before

    wait_for("the first tick", lambda: ticked() != [], 120)
    cluster.processes["maint"].send_signal(signal.SIGRTMIN)
    wait_for("the step of the clock", lambda: "the clock is set back" in cluster.log("maint"), 60)
    for number in ("the tick that may have begun before", "a tick begun afterwards"):
        before = ticked()
        wait_for(number, partial(has_changed, before), 60)
