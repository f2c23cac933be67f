"""The metrics: each changes when its cause is made, counters agree with the tables, none reads a large table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, text

from ragllava.client import ALL_METRICS, Client
from ragllava.errors import Rejection, RejectionClass
from ragllava.jobs import control, figures
from ragllava.jobs.control import NewJob
from ragllava.jobs.figures import METRICS
from ragllava.records import GapReason, JobKind
from ragllava.settings import Settings
from ragllava.source_files import FileOutcome, FileStatus, SourceFile
from ragllava.stores.access.tenancy import Scope, acting
from ragllava.stores.archives import archive, ingest_files
from ragllava.stores.database import in_transaction, make_engine
from ragllava.stores.maintenance import ticks, totals
from tests.conftest import own_settings
from tests.support.job_rows import Desk
from tests.support.many_rows import unhurried
from tests.support.plans import visited_rows

Numbers = dict[tuple[str, tuple[str, ...]], float]


@dataclass(frozen=True)
class Board(Desk):
    """A desk beside a client of the HTTP API's role, which shows the metrics."""

    client: Client

    def numbers(self) -> Numbers:
        """All samples and the counts of histograms, by name and labels."""
        numbers: Numbers = {}
        for reading in self.client.metrics.read():
            for sample in reading.samples:
                numbers[reading.metric.name, sample.labels] = sample.number
            for histogram in reading.histograms:
                numbers[reading.metric.name, histogram.labels] = histogram.buckets[-1][1]
        return numbers

    def number(self, name: str, *labels: str) -> float:
        """One number; 0 when it is absent."""
        return self.numbers().get((name, labels), 0.0)

    def worked_s(self) -> float:
        """The seconds that shards of questions took."""
        [durations] = [r.histograms for r in self.client.metrics.read() if r.metric.name == "ragllava_stage_seconds"]
        return sum(histogram.sum_s for histogram in durations if histogram.labels == ("answer",))

    def write(self, statement: str) -> None:
        """One statement, committed."""
        with self.engine.begin() as connection:
            connection.execute(text(statement))


@pytest.fixture
def board(settings: Settings, engine: Engine) -> Iterator[Board]:
    unhurried = settings.model_copy(update={"tick_s": 100.0})  # a worker of a slow machine is not silent yet
    with Client(unhurried, name="metrics", for_tenants=True) as client:
        yield Board(engine, unhurried, client)


def test_every_metric_is_read_once_in_the_order_of_the_table(board: Board) -> None:
    assert [reading.metric for reading in board.client.metrics.read()] == list(ALL_METRICS)
    assert board.number("ragllava_up") == 1


def test_a_job_from_end_to_end(board: Board) -> None:
    board.live_worker()
    job_id = board.questions_job(10, 4)
    before = board.numbers()
    assert before["ragllava_jobs_open", ("answer", "running")] == 1
    assert before["ragllava_queue_depth", ("query",)] == 3
    assert before["ragllava_queue_oldest_seconds", ("query",)] > 0
    assert before["ragllava_worker_up", ("query",)] == 1
    assert before["ragllava_inputs_done_total", ("answer",)] == 0

    board.answer(board.claim_next())
    lease = board.claim_next()
    during = board.numbers()
    assert during["ragllava_inputs_done_total", ("answer",)] == 4
    assert during["ragllava_leases", ("query", "running")] == 1
    assert during["ragllava_questions_total", ("answer", "answered")] == 0
    board.expire_leases()
    assert board.number("ragllava_leases", "query", "overdue") == 1
    board.answer(lease)
    board.drain()

    after = board.numbers()
    assert after["ragllava_questions_total", ("answer", "answered")] == 10
    assert after["ragllava_inputs_done_total", ("answer",)] == 10
    assert after["ragllava_jobs_total", ("answer", "completed")] == 1
    assert after["ragllava_job_wait_seconds", ("answer",)] == 1
    assert after["ragllava_stage_seconds", ("answer",)] == 3
    assert after["ragllava_results_waiting", ()] == 1
    assert ("ragllava_jobs_open", ("answer", "running")) not in after
    assert after["ragllava_queue_depth", ("query",)] == 0
    with board.engine.begin() as connection:  # counters stay when their job is removed
        connection.execute(text("DELETE FROM jobs WHERE id = :id"), {"id": job_id})
    assert board.number("ragllava_inputs_done_total", "answer") == 10


def test_no_counter_decreases_when_a_job_is_cancelled_and_retried(board: Board) -> None:
    board.live_worker()
    job_id = board.questions_job(6, 2)
    board.answer(board.claim_next())
    done = [board.number("ragllava_inputs_done_total", "answer")]
    with Client(board.settings) as plain:
        plain.jobs.cancel(job_id)
        done.append(board.number("ragllava_inputs_done_total", "answer"))
        assert board.number("ragllava_questions_total", "answer", "cancelled") == 4
        in_transaction(board.engine, control.retry, job_id, 2)
    done.append(board.number("ragllava_inputs_done_total", "answer"))
    assert board.drain() == 2
    done.append(board.number("ragllava_inputs_done_total", "answer"))
    assert done == [2, 6, 6, 10]
    assert board.number("ragllava_questions_total", "answer", "answered") == 6
    assert board.number("ragllava_questions_total", "answer", "cancelled") == 4
    assert board.number("ragllava_jobs_total", "answer", "cancelled") == 1
    assert board.number("ragllava_jobs_total", "answer", "completed") == 1


def test_counters_agree_with_the_tables_and_with_their_sums(board: Board) -> None:
    board.live_worker()
    for size in range(1, 40):
        board.questions_job(size, 7)
    board.drain()
    before = board.numbers()
    counted = "SELECT status, count(*) FROM answers GROUP BY status"
    with board.engine.begin() as connection:
        by_status: dict[str, int] = dict(connection.execute(text(counted)).all())
        jobs = connection.scalar(text("SELECT count(*) FROM jobs WHERE finished_at IS NOT NULL"))
    assert by_status == {"answered": before["ragllava_questions_total", ("answer", "answered")]}
    assert jobs == before["ragllava_jobs_total", ("answer", "completed")] == 39
    for never in ("ragllava_jobs_total", ("train", "failed")), ("ragllava_questions_total", ("answer", "missing")):
        assert before[never] == 0  # Prometheus sees no increase in a counter that begins with 1

    with board.engine.begin() as connection:  # the sums replace some of the rows
        totals.add(connection, [(totals.JOBS, "ingest", "failed", 1.0)] * 600)
        lengths = [totals.observed(totals.SHARD_SECONDS, "answer", 0.1 + 0.7 * number) for number in range(50)]
        totals.add(connection, itertools.chain(*lengths))
    before |= {key: n for key, n in board.numbers().items() if key[0] == "ragllava_stage_seconds"}
    worked_s = board.worked_s()
    board.write("""
        WITH taken AS (DELETE FROM totals RETURNING *) INSERT INTO totals (measure, kind, result, number)
        SELECT measure, kind, result, number FROM taken ORDER BY number DESC
    """)
    assert board.worked_s() == worked_s, "in another order; Prometheus takes the smallest decrease for a restart"
    assert in_transaction(board.engine, totals.compact) > 600
    assert board.worked_s() == worked_s
    assert in_transaction(board.engine, totals.compact) == 0
    after = board.numbers()
    assert after.pop(("ragllava_jobs_total", ("ingest", "failed"))) == 600
    assert before.pop(("ragllava_jobs_total", ("ingest", "failed"))) == 0
    same = [key for key in after if key[0].endswith(("_total", "wait_seconds", "stage_seconds"))]
    assert {key: after[key] for key in same} == {key: before[key] for key in same}


_CAUSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "INSERT INTO faults (room, subject, reason, attempts) VALUES ('events', 'x', 'x', 1)": (
        "ragllava_faults",
        ("events", "no"),
    ),
    "INSERT INTO faults (room, subject, reason, attempts) VALUES ('results', 'x', 'x', 3)": (
        "ragllava_faults",
        ("results", "yes"),
    ),
    "INSERT INTO change_events (bucket, key) VALUES ('b', 'k')": ("ragllava_change_events_waiting", ()),
    """
    INSERT INTO schedules (name, action, options, cron, timezone, next_due)
    VALUES ('s', 'scan', '{}', '0 3 * * *', 'UTC', now() - interval '1 hour')
    """: ("ragllava_schedule_lateness_seconds", ()),
    """
    INSERT INTO model_versions (role, name, profile, state, prompt, manifest)
    VALUES ('reranker', 'x', 'x', 'champion', '', '{}')
    """: ("ragllava_champions", ("reranker",)),
    """
    WITH job AS (
        INSERT INTO jobs (kind, state, spec, total, spec_digest) VALUES ('train', 'running', '{}', 1, '') RETURNING id
    ) INSERT INTO trainings (job_id, role, phase) SELECT id, 'reranker', 'training' FROM job
    """: ("ragllava_trainings", ("training",)),
    "INSERT INTO totals (measure, kind, result, number) VALUES ('inputs', 'train', 'refused', 1)": (
        "ragllava_gate_total",
        ("train", "refused"),
    ),
    "INSERT INTO totals (measure, kind, result, number) VALUES ('inputs', 'ingest', 'rejected', 1)": (
        "ragllava_inputs_total",
        ("ingest", "rejected"),
    ),
    """
    WITH archive AS (INSERT INTO archives (name) VALUES ('a') RETURNING id),
    job AS (
        INSERT INTO jobs (kind, archive_id, state, spec, total, spec_digest)
        SELECT 'answer', id, 'running', '{}', 1, '' FROM archive RETURNING id
    ), question AS (
        INSERT INTO questions (job_id, question_no, place, line) SELECT id, 0, 0, 1 FROM job RETURNING job_id
    ) INSERT INTO noisy_cases (job_id, question_no, archive_id, reasons, details, state)
    SELECT job_id, 0, archive.id, '{}', '{}', 'open' FROM question, archive
    """: ("ragllava_noisy_cases_open", ()),
    """INSERT INTO archives (name, gaps) VALUES ('g', '{"lost": 2}'), ('h', '{"lost": 1, "waiting": 1}')""": (
        "ragllava_gaps",
        ("lost",),
    ),
    """
    WITH archive AS (INSERT INTO archives (name) VALUES ('a') RETURNING id)
    INSERT INTO held_removals (archive_id, origin, gone, pictures) SELECT id, 'x', 1, 1 FROM archive
    """: ("ragllava_removals_held", ()),
    "INSERT INTO totals (measure, kind, result, number) VALUES ('mailings', '', 'given_up', 1)": (
        "ragllava_mailings_given_up_total",
        (),
    ),
    "INSERT INTO totals (measure, kind, result, number) VALUES ('webhooks', '', 'given_up', 1)": (
        "ragllava_webhooks_given_up_total",
        (),
    ),
    "INSERT INTO erasures (kind, account) VALUES ('retired', 'x')": ("ragllava_erasures_open", ()),
    """
    WITH hook AS (
        INSERT INTO webhooks (owner, url, kinds, secret) VALUES ('x', 'x', '{answer}', 'x') RETURNING id
    ), job AS (
        INSERT INTO jobs (kind, state, spec, total, spec_digest) VALUES ('train', 'running', '{}', 1, '') RETURNING id
    ) INSERT INTO deliveries (webhook_id, job_id, finished_at) SELECT hook.id, job.id, now() FROM hook, job
    """: ("ragllava_deliveries_waiting", ()),
}


def test_each_metric_changes_with_its_cause(board: Board) -> None:
    before = board.numbers()
    for cause in _CAUSES:
        board.write(cause.replace("'a'", "'b'" if "held" in cause else "'a'"))
    after = board.numbers()
    for name, labels in _CAUSES.values():
        assert after[name, labels] > before.get((name, labels), 0), name
    assert after["ragllava_schedule_lateness_seconds", ()] >= 3_600
    gaps = {labels[0]: number for (name, labels), number in after.items() if name == "ragllava_gaps"}
    assert gaps == dict.fromkeys(GapReason, 0) | {"lost": 3, "waiting": 1}


def test_rejected_files_are_counted_once_by_their_class_whatever_the_reason_says(board: Board) -> None:
    def submit(connection: Connection) -> int:
        new = NewJob(JobKind.INGEST, archive.ensure_archive(connection, "cards").archive_id, {}, 4, 4)
        job_id, _ = control.create(connection, new)
        listed = [SourceFile("a", "file:///a", rejected=Rejection(RejectionClass.PACKED, "damaged, in these words"))]
        ingest_files.insert_files(connection, job_id, listed + [SourceFile(name, f"file:///{name}") for name in "bcd"])
        return job_id

    def finish(connection: Connection) -> int:
        why = Rejection(RejectionClass.DAMAGED, "not a picture, in these words")
        outcomes = [FileOutcome.of_rejected(number, why) for number in (1, 2)]
        return ingest_files.finish_files(connection, job_id, [*outcomes, FileOutcome(3, FileStatus.STORED, "2 pages")])

    assert board.number("ragllava_decode_rejected_total", "damaged") == 0
    job_id = in_transaction(board.engine, submit)
    assert in_transaction(board.engine, finish) == 3
    assert in_transaction(board.engine, finish) == 0
    numbers = {
        labels[0]: n for (name, labels), n in board.numbers().items() if name == "ragllava_decode_rejected_total"
    }
    assert numbers == dict.fromkeys(RejectionClass, 0) | {"packed": 1, "damaged": 2}


def test_the_age_of_the_tick(board: Board) -> None:
    assert ("ragllava_tick_age_seconds", ()) not in board.numbers()
    in_transaction(board.engine, ticks.note_tick)
    board.write("UPDATE ticks SET ended_at = now() - interval '90 s'")
    assert 90 <= board.number("ragllava_tick_age_seconds") < 150


def test_silent_and_draining_workers_are_not_up(board: Board) -> None:
    board.live_worker("a")
    board.live_worker("b", queues=("query", "ingest"))
    assert board.number("ragllava_worker_up", "query") == 2
    board.write("UPDATE workers SET seen_at = now() - interval '10 minutes' WHERE name = 'a'")
    assert board.number("ragllava_worker_up", "query") == 1
    board.write("UPDATE workers SET state = 'draining'")
    assert board.number("ragllava_worker_up", "query") == 0


def test_paused_jobs_do_not_wait(board: Board) -> None:
    job_id = board.questions_job(4, 2)
    assert board.number("ragllava_queue_depth", "query") == 2
    in_transaction(board.engine, control.pause, job_id)
    assert board.number("ragllava_queue_depth", "query") == 0
    assert board.number("ragllava_jobs_open", "answer", "paused") == 1


def test_a_database_that_is_away_is_told_and_not_raised(settings: Settings) -> None:
    away = settings.model_copy(
        update={"api_database_url": SecretStr("postgresql://nobody:x@127.0.0.1:9/nothing"), "home": settings.home}
    )
    with Client(away, for_tenants=True) as client:
        numbers = {reading.metric.name: reading.samples[0].number for reading in client.metrics.read()}
    assert numbers["ragllava_up"] == 0
    assert numbers["ragllava_disk_free_bytes"] > 0
    assert "ragllava_jobs_open" not in numbers


def test_tenants_add_to_the_counters_and_do_not_see_them(board: Board) -> None:
    count = text("SELECT count(*) FROM totals")
    with acting(Scope(frozenset([1]), "x")):
        in_transaction(board.client.engine, totals.add, [(totals.JOBS, "answer", "cancelled", 1.0)])
        assert in_transaction(board.client.engine, lambda connection: connection.scalar(count)) == 0
    assert board.number("ragllava_jobs_total", "answer", "cancelled") == 1


_LARGE = """
    INSERT INTO archives (id, name) OVERRIDING SYSTEM VALUE VALUES (1, 'large');
    INSERT INTO jobs (id, kind, archive_id, state, spec, total, spec_digest, finished_at, counts, result)
        OVERRIDING SYSTEM VALUE
        SELECT n, 'answer', 1, 'completed', '{}', 100, '', now(), '{"answered": 100}', '{}'
        FROM generate_series(1, 2000) n;
    INSERT INTO shards (job_id, lo, hi, state) SELECT n, 0, 100, 'done' FROM generate_series(1, 2000) n;
    INSERT INTO jobs (id, kind, archive_id, state, spec, total, spec_digest) OVERRIDING SYSTEM VALUE
        VALUES (9999, 'answer', 1, 'running', '{}', 20000, '');
    INSERT INTO shards (job_id, lo, hi, state)
        SELECT 9999, n * 100, n * 100 + 100, CASE WHEN n < 190 THEN 'done' ELSE 'pending' END
        FROM generate_series(0, 199) n;
    INSERT INTO questions (job_id, question_no, place, line) SELECT 9999, n, n, n FROM generate_series(0, 19999) n;
    INSERT INTO noisy_cases (job_id, question_no, archive_id, reasons, details, state)
        SELECT 9999, n, 1, '{}', '{}', CASE WHEN n < 10 THEN 'open' ELSE 'labelled' END
        FROM generate_series(0, 19999) n;
    ANALYZE jobs, shards, questions, noisy_cases
"""


@pytest.fixture(scope="module")
def large(services: Settings, template_database: str) -> Iterator[Settings]:
    """A database with many ended jobs, and one large job of which a few shards are left."""
    with own_settings(services, template_database) as own:
        owner = make_engine(own.require_database_owner(), name="large owner")
        with unhurried(owner) as connection:
            for statement in _LARGE.split(";\n"):
                connection.exec_driver_sql(statement)
        owner.dispose()
        yield own


@pytest.mark.parametrize("for_tenants", [False, True], ids=["plain role", "role of the HTTP API"])
def test_no_statement_reads_what_grows(large: Settings, for_tenants: bool) -> None:
    with Client(large, for_tenants=for_tenants) as client, acting(Scope(None, "metrics")):
        visited = visited_rows(client.engine, lambda connection: figures.read(connection, large))
    assert len(visited) == len(METRICS)
    assert {look.statement: look.rows for look in visited if look.rows > 500} == {}
