"""`python -m tests.fleet`: jobs of very many questions on many workers that sleep; prints what the machinery costs."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import redis
from sqlalchemy import Connection, Engine, text

import migrations
from ragllava.jobs import control, dispatch, ending
from ragllava.jobs.control import NewJob
from ragllava.jobs.dispatch import ShardMessage
from ragllava.json_records import to_json
from ragllava.local.services import running_services
from ragllava.records import AnswerOptions, JobKind
from ragllava.settings import Settings
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction, make_engine, outside_transaction, read_at_once
from ragllava.stores.jobs import answers
from ragllava.stores.maintenance import ticks, totals
from tests.fleet import retention
from tests.fleet.measures import Processor, Statement, Statements, TableLook, look, quantile, timed
from tests.fleet.worker import FIGURES, MESSAGES, STOP
from tests.support.many_rows import unhurried

_LOOK_S = 5.0
_ROWS_AT_ONCE = 200_000
_STATEMENTS = 14
_LIMIT_S = 0.1  # of a tick
_OWNERS = 5


@dataclass
class Fleet:
    """One run. `size` are the arguments of the command."""

    size: argparse.Namespace
    settings: Settings
    engine: Engine
    messages: Any  # a client of Redis
    statements: Statements = field(default_factory=Statements)
    ticks: dict[str, list[float]] = field(default_factory=lambda: {"dispatch": [], "others": []})
    tick_ms: dict[str, float] = field(default_factory=dict)  # of processor time, a tick on average
    looks: list[tuple[float, dict[str, TableLook]]] = field(default_factory=list)
    server: Processor = field(default_factory=Processor)
    memory: dict[str, list[int]] = field(default_factory=dict)

    def run(self) -> None:
        """Fill the tables, start the workers, tick until all jobs have ended, print."""
        with _said("images"):
            self._fill_images()
        with _said("jobs"):
            jobs = [self._submit(number) for number in range(self.size.jobs)]
        self.statements.watch(self.engine)
        with outside_transaction(self.engine) as connection:
            for table in ("images", "blobs", "questions", "shards", "jobs"):
                connection.execute(text(f"ANALYZE {table}"))
        processes = [self._start(number) for number in range(self.size.processes)]
        began = time.monotonic()
        backend = psutil.Process(read_at_once(self.engine, lambda connection: connection.scalar(_BACKEND)))
        used = backend.cpu_times(), psutil.Process().cpu_times()
        stop = threading.Event()
        looker = threading.Thread(target=self._look, args=(stop, began, processes))
        looker.start()
        while not self._have_ended(jobs) and time.monotonic() - began < self.size.most_s:
            started = time.monotonic()
            self._tick()
            time.sleep(max(0.0, self.settings.tick_s - (time.monotonic() - started)))
        seconds = time.monotonic() - began
        for name, used_by, before in (("Postgres", backend, used[0]), ("Python", psutil.Process(), used[1])):
            after = used_by.cpu_times()
            used_s = after.user + after.system - before.user - before.system
            self.tick_ms[name] = 1000 * used_s / len(self.ticks["others"])
        stop.set()
        self.messages.set(STOP, 1)
        looker.join()
        for process in processes:
            process.wait(120)
        self._print(jobs, seconds)

    def measure_retention(self) -> None:
        """Answer all questions by SQL, and remove half of the jobs."""
        with _said("images"):
            self._fill_images()
        with _said("jobs"):
            jobs = [self._submit(number) for number in range(self.size.jobs)]
        with _said("answers"):
            questions = self.size.questions // self.size.jobs
            retention.answer(self.engine, jobs, questions, self.size.images, self.size.candidates)
        owner = make_engine(self.settings.require_database_owner(), pool_size=1, name="fleet owner")
        server = [process for process in psutil.process_iter() if _is_postmaster(process, self.settings.home)]
        print(f"half of the jobs, with {questions * (len(jobs) // 2):,} questions, are removed")
        retention.remove(self.engine, owner, self.settings, jobs[: len(jobs) // 2], server)
        owner.dispose()

    def _fill_images(self) -> None:
        archive_id = in_transaction(self.engine, archive.ensure_archive, "fleet").archive_id
        for lo in range(0, self.size.images, _ROWS_AT_ONCE):
            values = {"archive": archive_id, "lo": lo, "hi": min(self.size.images, lo + _ROWS_AT_ONCE) - 1}
            with unhurried(self.engine) as connection:
                for statement in _IMAGES:
                    connection.execute(text(statement), values)

    def _submit(self, number: int) -> int:
        questions = self.size.questions // self.size.jobs

        def work(connection: Connection) -> int:
            archive_id = archive.get_archive(connection, "fleet").archive_id
            spec = {"options": to_json(AnswerOptions())}
            new = NewJob(JobKind.ANSWER, archive_id, spec, questions, self.size.per_shard)
            job_id, _ = control.create(connection, new)
            rows = ((line, line + 1, f"q{line}", f"question {line}?") for line in range(questions))
            answers.insert_questions(connection, job_id, rows)
            connection.execute(
                text("UPDATE jobs SET owner = :owner WHERE id = :id"), {"owner": f"o{number % 5}", "id": job_id}
            )
            return job_id

        return in_transaction(self.engine, work)

    def _start(self, process: int) -> subprocess.Popen[bytes]:
        named = ("database_url", "redis_url")
        own = {name: getattr(self.settings, name).get_secret_value() for name in named}
        own |= {"home": str(self.settings.home), "tick_s": self.settings.tick_s}
        order = {
            "settings": json.dumps(own),
            "process": process,
            "workers": self.size.workers // self.size.processes,
            "connections": self.size.connections // self.size.processes,
            "images": self.size.images,
            "candidates": self.size.candidates,
            "shard_s": self.size.shard_s,
        }
        # A session of its own: Linux shares the processors out by session, so hundreds of workers on one machine get no
        # more of them than the server, or the ticks that are measured.
        command = [sys.executable, "-m", "tests.fleet.worker", json.dumps(order)]
        return subprocess.Popen(command, start_new_session=True)

    def _tick(self) -> None:
        """What a maintenance worker does; the second part runs beside the next tick there."""

        def publish(messages: list[ShardMessage]) -> None:
            self.messages.lpush(MESSAGES, *(message.shard_id for message in messages))

        with timed(self.ticks["dispatch"]):
            dispatch.reap_and_dispatch(self.engine, self.settings, publish)
            in_transaction(self.engine, ticks.note_tick, self.settings.lease_s)
        with timed(self.ticks["others"]):
            ending.end_jobs(self.engine)
            in_transaction(self.engine, totals.compact)

    def _have_ended(self, jobs: list[int]) -> bool:
        open_jobs = text("SELECT count(*) FROM jobs WHERE id = ANY(:ids) AND finished_at IS NULL")
        return bool(read_at_once(self.engine, lambda connection: connection.scalar(open_jobs, {"ids": jobs})) == 0)

    def _look(self, stop: threading.Event, began: float, processes: list[subprocess.Popen[bytes]]) -> None:
        watched = {"ticks": psutil.Process(), **{f"workers {p.pid}": psutil.Process(p.pid) for p in processes}}
        engine = make_engine(self.settings.require_database(), pool_size=1, name="fleet look")
        while not stop.wait(_LOOK_S):
            self.looks.append((time.monotonic() - began, look(engine)))
            self.server.see([process for process in psutil.process_iter() if _is_postgres(process, self.settings.home)])
            for name, process in watched.items():
                self.memory.setdefault(name, []).append(process.memory_info().rss)
        engine.dispose()

    def _print(self, jobs: list[int], seconds: float) -> None:
        with unhurried(self.engine) as connection:
            counted = connection.execute(_COUNTED, {"ids": jobs}).one()
        total = sum(counted.counts.values()) if counted.counts else 0
        print(f"{counted.questions:,} questions, {counted.answers:,} answers, {counted.distinct:,} of them distinct")
        print(f"{seconds:,.0f} s")
        print(f"counted when jobs ended: {total:,}; shards {counted.shards:,}, of which not done {counted.open:,}")
        for name, values in self.ticks.items():
            late = sum(value > _LIMIT_S for value in values)
            print(
                f"tick, {name}: {len(values)} times, median {1000 * quantile(values, 0.5):.0f} ms, 99 % "
                f"{1000 * quantile(values, 0.99):.0f} ms, most {1000 * max(values):.0f} ms, above 100 ms: {late}"
            )
        print("a tick takes", ", ".join(f"{ms:.1f} ms of {name}'s processor time" for name, ms in self.tick_ms.items()))
        print(f"Postgres: {self.server.total_s:,.0f} s of processor time, {100 * self.server.total_s / seconds:.0f} %")
        for name, sizes in self.memory.items():
            print(f"memory of {name}: {sizes[0] / 2**20:.0f} MiB at first, {sizes[-1] / 2**20:.0f} at the end")
        self._print_tables()
        self._print_statements()

    def _print_tables(self) -> None:
        print("table: MiB, dead rows (most), vacuums, rows read by scans of the whole table")
        first, last = self.looks[0][1], self.looks[-1][1]
        shown = self.looks[:: max(1, len(self.looks) // 5)]
        for name, end in sorted(last.items()):
            dead = max(tables[name].dead_rows for _, tables in self.looks)
            scanned = end.scanned_rows - first[name].scanned_rows
            grown = [round(tables[name].size_bytes / 2**20) for _, tables in shown]
            print(f"  {name}: {grown}, {dead:,}, {end.vacuums - first[name].vacuums}, {scanned:,}")

    def _print_statements(self) -> None:
        errors: list[str] = []
        while (line := self.messages.lpop(FIGURES)) is not None:
            figures: dict[str, Any] = json.loads(line)
            errors += figures["errors"]
            for name, (calls, seconds, longest) in figures["statements"].items():
                known = self.statements.by_text.setdefault(name, Statement())
                known.calls += calls
                known.seconds += seconds
                known.longest_s = max(known.longest_s, longest)
        print(f"errors of workers: {len(errors)} {errors[:3]}")
        print("statements: calls, mean ms, longest ms")
        for name, each in self.statements.slowest(_STATEMENTS):
            print(f"  {each.calls:,}, {1000 * each.seconds / each.calls:.1f}, {1000 * each.longest_s:.0f}: {name}")


_BACKEND = text("SELECT pg_backend_pid()")
_IMAGES = (
    """
    INSERT INTO blobs (sha256, state, size_bytes, media_type)
    SELECT lpad(to_hex(n), 64, '0'), 'live', 1000, 'image/png'
    FROM generate_series(CAST(:lo AS bigint), CAST(:hi AS bigint)) n
    """,
    """
    INSERT INTO images (archive_id, sha256, source, uri, width, height, media_type)
    SELECT :archive, lpad(to_hex(n), 64, '0'), 'picture-' || n || '.png', '/pictures/picture-' || n || '.png', 8, 8,
        'image/png'
    FROM generate_series(CAST(:lo AS bigint), CAST(:hi AS bigint)) n
    """,
)
_COUNTED = text("""
    SELECT (SELECT count(*) FROM questions) AS questions, (SELECT count(*) FROM answers) AS answers,
        (SELECT count(*) FROM (SELECT DISTINCT job_id, question_no FROM answers) each) AS distinct,
        (SELECT count(*) FROM shards) AS shards, (SELECT count(*) FROM shards WHERE state <> 'done') AS open,
        (SELECT jsonb_object_agg(id, CAST(counts->>'answered' AS bigint)) FROM jobs
         WHERE id = ANY(:ids) AND finished_at IS NOT NULL) AS counts
""")


def _is_postmaster(process: psutil.Process, home: Path) -> bool:
    try:
        return "postgres" in process.name() and str(home) in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _is_postgres(process: psutil.Process, home: Path) -> bool:
    """The server itself, or one of its processes."""
    try:
        return any(_is_postmaster(each, home) for each in [process, *process.parents()])
    except psutil.Error:
        return False


@contextmanager
def _said(what: str) -> Iterator[None]:
    """A block whose duration is printed."""
    began = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - began:.0f} s", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add: Callable[..., object] = parser.add_argument
    add("--questions", type=int, default=100_000)
    add("--images", type=int, default=1_000_000)
    add("--jobs", type=int, default=50)
    add("--workers", type=int, default=200)
    add("--processes", type=int, default=4, help="that share the workers")
    add("--connections", type=int, default=60, help="of all workers together")
    add("--per-shard", type=int, default=64)
    add("--candidates", type=int, default=5, help="of each question")
    add("--shard-s", type=float, default=10.0, help="that a worker sleeps for a shard, on average")
    add("--most-s", type=float, default=3_600.0, help="after which the run ends")
    add(
        "--retention", action="store_true", help="measure only the removal of half of the jobs, whose answers are given"
    )
    add("--tick-s", type=float, default=1.0)
    return parser.parse_args()


def main() -> None:
    """Run on services of its own, in a home that goes with it."""
    size = _arguments()
    home = Path(tempfile.mkdtemp(prefix="ragllava-fleet-"))
    try:
        with running_services(Settings(home=home, tick_s=size.tick_s)) as settings:
            migrations.upgrade(
                settings.require_database_owner(),
                application_url=settings.require_database(),
                api_url=settings.api_database(),
            )
            engine = make_engine(settings.require_database(), name="fleet ticks")
            fleet = Fleet(size, settings, engine, redis.Redis.from_url(settings.require_redis()))
            if size.retention:
                fleet.measure_retention()
            else:
                fleet.run()
            engine.dispose()
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
