"""What the removal of old jobs costs: their rows leave in short transactions, then VACUUM cleans up after them."""

from __future__ import annotations

import time

import psutil
from sqlalchemy import Connection, Engine, text

from ragllava.jobs import ending
from ragllava.settings import Settings
from ragllava.stages.erasing.remove import Remover
from ragllava.stores.database import in_transaction, outside_transaction
from ragllava.stores.objects import ObjectStore
from tests.fleet.measures import Statements, look
from tests.support.many_rows import unhurried

_TABLES = ("candidates", "answers", "questions", "shards")
_AT_ONCE = 20_000  # questions
_ANSWERS = text("""
    INSERT INTO answers (job_id, question_no, run_no, status, text)
    SELECT :job_id, number, 1, 'answered', 'yes' FROM generate_series(CAST(:lo AS bigint), :hi - 1) number
""")
_CANDIDATES = text("""
    INSERT INTO candidates (job_id, question_no, run_no, image_id, retrieval_rank, retrieval_score, evidence_no)
    SELECT :job_id, number, 1, 1 + (number * 7919 + rank * 104729) % :images, rank, 0.5, CASE rank WHEN 0 THEN 1 END
    FROM generate_series(CAST(:lo AS bigint), :hi - 1) number, generate_series(0, :most - 1) rank ON CONFLICT DO NOTHING
""")


def answer(engine: Engine, jobs: list[int], questions: int, images: int, candidates: int) -> None:
    """Answer all questions of the jobs by SQL, and end the jobs."""
    for job_id in jobs:
        for lo in range(0, questions, _AT_ONCE):
            values = {"job_id": job_id, "lo": lo, "hi": min(questions, lo + _AT_ONCE)}
            with unhurried(engine) as connection:
                connection.execute(_ANSWERS, values)
                connection.execute(_CANDIDATES, values | {"images": images, "most": candidates})
    with engine.begin() as connection:
        connection.execute(text("UPDATE shards SET state = 'done', finished_at = now()"))
    while in_transaction(engine, _open):
        ending.end_jobs(engine)


def _open(connection: Connection) -> int:
    return int(connection.scalar(text("SELECT count(*) FROM jobs WHERE finished_at IS NULL")) or 0)


def remove(engine: Engine, owner: Engine, settings: Settings, jobs: list[int], server: list[psutil.Process]) -> None:
    """Remove these jobs, then VACUUM, and print what each took."""
    statements = Statements()
    statements.watch(engine)
    remover = Remover(engine, settings, ObjectStore(settings), "fleet")
    began, used = time.monotonic(), _processor_s(server)
    for job_id in jobs:
        remover.job(job_id)
    seconds = time.monotonic() - began
    longest = max((each.longest_s for each in statements.by_text.values()), default=0.0)
    print(f"removed {len(jobs)} jobs: {seconds:.1f} s, longest statement {1000 * longest:.0f} ms")
    for name, tables in look(engine).items():
        if name in _TABLES:
            print(f"  {name}: {tables.dead_rows:,} dead rows, {tables.size_bytes / 2**20:.0f} MiB")
    with outside_transaction(owner) as connection:
        for table in _TABLES:
            began = time.monotonic()
            connection.execute(text(f"VACUUM (ANALYZE) {table}"))
            print(f"  VACUUM {table}: {time.monotonic() - began:.1f} s")
    print(f"  Postgres: {_processor_s(server) - used:.1f} s of processor time for both")


def _processor_s(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        for each in [process, *process.children(recursive=True)]:
            times = each.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total
