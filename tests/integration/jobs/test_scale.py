"""The query by which KEDA scales workers, as the Helm chart writes it, by its own role and in each state of a queue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.pool import NullPool

import migrations
from ragllava.jobs import control, queue
from ragllava.jobs.kinds import queues_by_kind
from ragllava.jobs.queues import list_queues
from ragllava.settings import Settings
from ragllava.stores.archives.archive import ensure_archive
from ragllava.stores.database import make_engine
from ragllava.stores.schema import metadata
from tests.conftest import own_settings
from tests.support.chart import scale_query
from tests.support.job_rows import Desk, without_ticks

ROLE = "ragllava_scale_of_tests"
QUEUES = ("ingest", "query", "train")


@dataclass(frozen=True)
class Scaler(Desk):
    """A desk, and the connections of what starts and stops workers."""

    scaler: Engine

    def asked(self, queue_name: str) -> object:
        """What KEDA gets: the only value of the only row."""
        with self.scaler.connect() as connection:
            [[number]] = connection.exec_driver_sql(scale_query(queue_name)).all()
            return number

    def write(self, statement: str, **values: object) -> None:
        with self.engine.begin() as connection:
            connection.execute(text(statement), values)


@pytest.fixture(scope="module")
def scaled(services: Settings, template_database: str) -> Iterator[tuple[Settings, str]]:
    """A database with the role, as `ragllava migrate` makes it, and the role's address."""
    with own_settings(services, template_database) as own:
        url = make_url(own.require_database_owner()).set(username=ROLE, password="s3:c/r%t")
        address = url.render_as_string(hide_password=False)
        for _ in range(2):  # the second time finds the role
            migrations.upgrade(own.require_database_owner(), application_url=own.require_database(), scale_url=address)
        yield own, address
        with create_engine(own.require_database_owner(), poolclass=NullPool).begin() as connection:
            connection.execute(text(f"DROP OWNED BY {ROLE}"))  # its rights
            connection.execute(text(f"DROP ROLE {ROLE}"))


@pytest.fixture
def desk(scaled: tuple[Settings, str]) -> Iterator[Scaler]:
    settings, address = scaled
    engine, scaler = (
        make_engine(settings.require_database()),
        create_engine(address, poolclass=NullPool, isolation_level="AUTOCOMMIT"),
    )
    desk = Scaler(engine, without_ticks(settings), scaler)
    desk.live_worker(slots=4)
    yield desk
    desk.write("DELETE FROM jobs")
    engine.dispose()


def test_the_number_is_that_of_the_shards_that_need_a_worker_in_each_state(desk: Scaler) -> None:
    assert [desk.asked(name) for name in QUEUES] == [0, 0, 0], "empty"
    job_id = desk.questions_job(6, 2)
    assert [desk.asked(name) for name in QUEUES] == [0, 3, 0], "waiting"
    assert len(desk.dispatch()) == 3
    assert desk.asked("query") == 3, "queued"
    lease = desk.claim_next()
    assert desk.asked("query") == 3, "one runs: without it, its worker would be removed"
    with desk.engine.begin() as connection:
        control.pause(connection, job_id)
    assert desk.asked("query") == 1, "paused: only what still runs"
    desk.expire_leases()
    assert desk.asked("query") == 1, "overdue: its worker may be alive"
    with desk.engine.begin() as connection:
        control.resume(connection, job_id)
    assert desk.asked("query") == 3
    desk.dispatch()  # reaps the shard
    assert desk.asked("query") == 3
    with desk.engine.begin() as connection:
        assert {view.name: view.waiting + view.running for view in list_queues(connection)}["query"] == 3
    assert desk.claim(lease.shard_id) is not None
    with desk.engine.begin() as connection:
        queue.expire(connection, "answer@test")
    desk.drain()
    assert desk.asked("query") == 0, "ended"


def test_each_kind_of_job_has_the_queue_that_the_code_says(desk: Scaler) -> None:
    with desk.engine.begin() as connection:
        archive_id = ensure_archive(connection, "test").archive_id
    for kind, name in (queues_by_kind() | {"of a later version": ""}).items():
        desk.write(
            "WITH job AS (INSERT INTO jobs (kind, archive_id, state, spec, spec_digest, total) "
            "VALUES (:kind, :archive, 'running', '{}', '', 1) RETURNING id) "
            "INSERT INTO shards (job_id, run_no, lo, hi, state) SELECT id, 1, 0, 1, 'pending' FROM job",
            kind=kind,
            archive=archive_id,
        )
        assert {each: desk.asked(each) for each in QUEUES} == {each: int(each == name) for each in QUEUES}, kind
        desk.write("UPDATE shards SET queue = 'train'")
        assert desk.asked("train") == 1, "a shard may name another queue"
        desk.write("DELETE FROM jobs")


def test_a_last_shard_needs_no_worker_before_the_others_have_ended(desk: Scaler) -> None:
    desk.questions_job(4, 2)
    desk.write("UPDATE shards SET is_last = true WHERE lo = 2")
    assert desk.asked("query") == 1
    desk.write("UPDATE shards SET state = 'done' WHERE lo = 0")
    assert desk.asked("query") == 1


@pytest.mark.parametrize("name", ["'maint'", "''", "NULL"])
def test_a_queue_that_does_not_exist_is_an_error_and_not_zero(desk: Scaler, name: str) -> None:
    with desk.scaler.connect() as connection, pytest.raises(DBAPIError, match="there is no queue"):
        connection.exec_driver_sql(f"SELECT ragllava_scale({name})")


def test_its_role_can_do_nothing_else(desk: Scaler, scaled: tuple[Settings, str]) -> None:
    with desk.scaler.connect() as connection:
        for table in metadata.tables:
            rights = connection.scalar(
                text("SELECT has_table_privilege(:table, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES')"),
                {"table": table},
            )
            assert rights is False, table
        assert connection.scalar(text("SHOW default_transaction_read_only")) == "on"
    for statement in ("SELECT count(*) FROM jobs", "SELECT * FROM alembic_version", "CREATE TABLE mine (n int)"):
        with desk.scaler.connect() as connection, pytest.raises(DBAPIError):
            connection.execute(text("SET default_transaction_read_only = off"))
            connection.execute(text(statement))
    own, _ = scaled
    for address in filter(None, (own.require_database(), own.api_database())):
        if address == own.require_database_owner():
            continue
        with create_engine(address, poolclass=NullPool).connect() as connection, pytest.raises(ProgrammingError):
            connection.exec_driver_sql(scale_query("query"))


def test_names_of_a_caller_do_not_change_what_the_function_reads(desk: Scaler) -> None:
    """It has the rights of its owner."""
    desk.questions_job(2, 2)
    with desk.scaler.connect() as connection:
        connection.exec_driver_sql("SET default_transaction_read_only = off")
        connection.exec_driver_sql("CREATE TEMPORARY TABLE shards (job_id bigint)")
        [[number]] = connection.exec_driver_sql(scale_query("query")).all()
    assert number == 1


def test_shards_that_have_ended_are_not_read(desk: Scaler) -> None:
    """It is asked for each queue every few seconds, and ended shards are many."""
    job_id = desk.questions_job(2, 1)
    desk.write(
        "INSERT INTO shards (job_id, run_no, lo, hi, state) "
        "SELECT :job, 1, number, number + 1, 'done' FROM generate_series(2, 5000) number",
        job=job_id,
    )
    desk.write("ANALYZE shards")
    read = text("SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'shards'")
    with desk.scaler.connect().execution_options(isolation_level="READ COMMITTED") as connection:
        [[number]] = connection.exec_driver_sql(scale_query("query")).all()
        assert number == 2
        assert 0 < connection.scalar(read) < 20
