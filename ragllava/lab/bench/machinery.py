"""Jobs of very many questions: no statement takes long, and the dispatch of other jobs never pauses for them.

Only rows are measured: answers are written by SQL, without models. Each step runs while another thread dispatches and
ends the shards of a small job, and while a third one looks how long the statements of the database have been running.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, Engine, event, text

from ragllava.jobs import control, dispatch, ending, queue, views
from ragllava.jobs.control import NewJob
from ragllava.jobs.dispatch import ShardMessage
from ragllava.json_records import to_json
from ragllava.lab.bench.rows import BenchRow, Wanted
from ragllava.lab.bench.workload import Workload
from ragllava.records import Answer, AnswerOptions, AnswerStatus, JobKind
from ragllava.settings import Settings
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction, make_engine, read_at_once
from ragllava.stores.jobs import answers, workers

ARCHIVE = "bench-machinery"
_TABLES = ("jobs", "shards", "questions", "answers")
_WORKER = "bench"
_SMALL = 5_000  # questions of the other job
_SLOTS = 4
_ANSWERED_AT_ONCE = 20_000
_LOOK_S = 0.05
_DISPATCH_S = 0.1
_LONGEST_STATEMENT_S = 1.0
_LONGEST_PAUSE_S = 2.0


def machinery_rows(workload: Workload) -> list[BenchRow]:
    """The same steps with autovacuum, and without it: then no statistics are ever updated."""
    client = workload.require_client()
    rows: list[BenchRow] = []
    owner = make_engine(client.settings.require_database_owner(), pool_size=1, name="bench owner")
    with Beside(client.engine, client.settings) as beside:
        for autovacuum in (False, True):
            in_transaction(owner, _set_autovacuum, autovacuum)
            state = "on" if autovacuum else "off"
            rows += _Bench(workload, client.engine, client.settings, state, beside).run()
    owner.dispose()
    return rows


@dataclass
class _Bench:
    """The steps of one run; `beside` measures while they run."""

    workload: Workload
    engine: Engine
    settings: Settings
    autovacuum: str
    beside: Beside
    rows: list[BenchRow] = field(default_factory=list)

    def run(self) -> list[BenchRow]:
        """A row for each step and limit."""
        size = self.workload.rows
        with self.step("submit"):
            job_id = in_transaction(self.engine, _submit, size, self.settings.questions_per_shard)
        self.cancel(job_id, 0)
        for share in (10, 90):
            job_id = self.answered(size, share)
            self.view(job_id, share)
            if share == 90:
                self.expire(job_id)
            self.cancel(job_id, share)
        job_id = self.answered(size, 100)
        with self.step("finish"):
            self.wait(job_id)
        self.view(job_id, 100)
        return self.rows

    def answered(self, size: int, share: int) -> int:
        """A new job of which a part is answered."""
        job_id = in_transaction(self.engine, _submit, size, self.settings.questions_per_shard)
        per_shard = self.settings.questions_per_shard
        done = size if share == 100 else size * share // 100 // per_shard * per_shard
        for lo in range(0, done, _ANSWERED_AT_ONCE):
            in_transaction(self.engine, _answer_by_sql, job_id, lo, min(done, lo + _ANSWERED_AT_ONCE))
        in_transaction(self.engine, _finish_by_sql, job_id, done)
        return job_id

    def view(self, job_id: int, share: int) -> None:
        """What `jobs list` and a waiting client ask."""
        with self.step(f"list at {share} %"):
            read_at_once(self.engine, views.list_jobs)
        with self.step(f"wait at {share} %"):
            read_at_once(self.engine, views.view, job_id)

    def cancel(self, job_id: int, share: int) -> None:
        """As the command does it."""
        with self.step(f"cancel at {share} %"):
            in_transaction(self.engine, control.cancel, job_id)
            ending.end_job(self.engine, job_id)
            self.wait(job_id)

    def expire(self, job_id: int) -> None:
        """A worker dies with a shard."""
        shard_id = in_transaction(self.engine, _queue_first, job_id)
        in_transaction(self.engine, queue.claim, shard_id, "dead", 0.0)
        with self.step("expire"):
            while in_transaction(self.engine, _state_of, shard_id) == "running":
                time.sleep(_LOOK_S)

    def wait(self, job_id: int) -> None:
        """End jobs as the tick does, until this one has ended."""
        while not read_at_once(self.engine, views.has_ended, job_id):
            ending.end_jobs(self.engine)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure a block."""
        name = f"{self.workload.rows:,} questions, {name}, autovacuum {self.autovacuum}"
        self.workload.progress(f"machinery: {name}")
        began = time.perf_counter()
        yield
        ended = time.perf_counter()
        for what, value, limit in (
            ("longest statement", self.beside.longest_statement_s(began, ended), _LONGEST_STATEMENT_S),
            ("longest pause of dispatch", self.beside.longest_pause_s(began, ended), _LONGEST_PAUSE_S),
        ):
            row = BenchRow("machinery", f"{name}: {what}", "the limit", "s", value, limit, Wanted(at_most=1.0))
            self.rows.append(replace(row, figures={"seconds": ended - began}))


class Beside:
    """What runs beside the steps: the dispatch of a small job, and a look at the statements that the server executes.

    A context manager. Times are those of time.perf_counter().
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        """Starts with the block."""
        self._engine, self._settings = engine, settings
        self._stop = threading.Event()
        self._dispatched: list[float] = []  # when a shard of the small job had ended
        self._statements: list[tuple[float, float]] = []  # when, and how long it had been running
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._dispatch, self._look)]

    def __enter__(self) -> Self:
        in_transaction(self._engine, workers.register, _WORKER, ["query"], _SLOTS)
        event.listen(self._engine, "before_cursor_execute", self._before)
        event.listen(self._engine, "after_cursor_execute", self._after)
        for thread in self._threads:
            thread.start()
        while not self._dispatched:
            time.sleep(_LOOK_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        event.remove(self._engine, "before_cursor_execute", self._before)
        event.remove(self._engine, "after_cursor_execute", self._after)

    def longest_statement_s(self, began: float, ended: float) -> float:
        """The longest that a statement had been running between two moments."""
        return max((seconds for at, seconds in self._statements if began <= at <= ended), default=0.0) or 1e-4

    def longest_pause_s(self, began: float, ended: float) -> float:
        """The longest time without a shard of the small job; a pause counts as far as it is between the moments."""
        within = [began, *(at for at in self._dispatched if began < at < ended), ended]
        return max(later - earlier for earlier, later in pairwise(within))

    def _before(self, connection: Connection, *_facts: object) -> None:
        connection.info["began"] = time.perf_counter()

    def _after(self, connection: Connection, *_facts: object) -> None:
        now = time.perf_counter()
        self._statements.append((now, now - connection.info["began"]))

    def _look(self) -> None:
        """COPY is a statement too."""
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not self._stop.wait(_LOOK_S):
                seconds = float(connection.scalar(_RUNNING) or 0.0)
                self._statements.append((time.perf_counter(), seconds))

    def _dispatch(self) -> None:
        """Dispatch, and end every shard of the small job that is sent."""
        small = in_transaction(self._engine, _submit, _SMALL, 1)
        while not self._stop.wait(_DISPATCH_S):
            in_transaction(self._engine, workers.report_ready, _WORKER, {"bench": "1"})
            messages: list[ShardMessage] = []
            dispatch.reap_and_dispatch(self._engine, self._settings, messages.extend)
            for message in messages:
                if in_transaction(self._engine, self._end_shard, message, small):
                    self._dispatched.append(time.perf_counter())
            if read_at_once(self._engine, views.has_ended, small):
                small = in_transaction(self._engine, _submit, _SMALL, 1)

    def _end_shard(self, connection: Connection, message: ShardMessage, job_id: int) -> bool:
        """Whether it was one of the small job's; those of the large job go back."""
        lease = queue.claim(connection, message.shard_id, _WORKER, self._settings.lease_s)
        if lease is None or lease.job_id != job_id:
            if lease is not None:
                queue.hand_back(connection, lease)
            return False
        open_questions = answers.open_questions(connection, job_id, lease.run_no, lease.lo, lease.hi)
        results = [Answer(question.question_no, AnswerStatus.ANSWERED, text="yes") for question in open_questions]
        answers.insert_answers(connection, job_id, lease.run_no, lease.shard_id, lease.epoch, results)
        queue.finish(connection, lease)
        return True


_RUNNING = text("""
    SELECT max(extract(epoch FROM clock_timestamp() - query_start)) FROM pg_stat_activity
    WHERE datname = current_database() AND state = 'active' AND backend_type = 'client backend'
    AND pid <> pg_backend_pid()
""")


def _set_autovacuum(connection: Connection, enabled: bool) -> None:
    for table in _TABLES:
        connection.execute(text(f"ALTER TABLE {table} SET (autovacuum_enabled = {str(enabled).lower()})"))


def _submit(connection: Connection, questions: int, per_shard: int) -> int:
    archive_id = archive.ensure_archive(connection, ARCHIVE).archive_id
    spec = {"options": to_json(AnswerOptions())}
    job_id, _ = control.create(connection, NewJob(JobKind.ANSWER, archive_id, spec, questions, per_shard))
    rows = ((number, number + 1, f"q{number}", f"question {number}?") for number in range(questions))
    answers.insert_questions(connection, job_id, rows)
    return job_id


def _answer_by_sql(connection: Connection, job_id: int, lo: int, hi: int) -> None:
    statement = """
        INSERT INTO answers (job_id, question_no, run_no, status, text)
        SELECT :job_id, number, 1, 'answered', 'yes' FROM generate_series(CAST(:lo AS bigint), :hi - 1) number
    """
    connection.execute(text(statement), {"job_id": job_id, "lo": lo, "hi": hi})


def _finish_by_sql(connection: Connection, job_id: int, done: int) -> None:
    statement = "UPDATE shards SET state = 'done', finished_at = now() WHERE job_id = :job_id AND hi <= :done"
    connection.execute(text(statement), {"job_id": job_id, "done": done})


def _queue_first(connection: Connection, job_id: int) -> int:
    statement = """
        UPDATE shards SET state = 'queued', queued_at = now() WHERE id = (
            SELECT id FROM shards WHERE job_id = :job_id AND state = 'pending' ORDER BY lo LIMIT 1)
        RETURNING id
    """
    return int(connection.execute(text(statement), {"job_id": job_id}).scalar_one())


def _state_of(connection: Connection, shard_id: int) -> str:
    return str(connection.execute(text("SELECT state FROM shards WHERE id = :id"), {"id": shard_id}).scalar_one())
