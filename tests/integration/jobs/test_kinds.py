"""A sixth kind of job, from submit to result, made of what a kind needs: a table, an enum, a stage, a record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import pytest
from sqlalchemy import BigInteger, Column, Connection, Engine, ForeignKey, MetaData, Table, Text, func, select, text

from ragllava.cli import progress
from ragllava.client import Client
from ragllava.errors import JobRefused, ServiceUnavailable
from ragllava.jobs import control, views
from ragllava.jobs.control import NewJob
from ragllava.jobs.kinds import KINDS, Kind, queues_by_kind
from ragllava.jobs.runner import ShardContext, run_shard
from ragllava.jobs.states import JobState
from ragllava.records import TaskName
from ragllava.settings import Settings
from ragllava.stages.maintenance.stage import submit_task
from ragllava.stages.resources import Resources
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stores.database import in_transaction
from ragllava.stores.jobs.outcomes import InputTable
from ragllava.stores.maintenance import inspection
from ragllava.stores.objects import ObjectStore
from ragllava.stores.schema import jobs, shards
from tests.support.job_rows import WORKER, Desk, without_ticks
from tests.support.plans import visited_rows
from tests.support.run_command import Run

words = Table(
    "words",
    MetaData(),
    Column("job_id", BigInteger, ForeignKey(jobs.c.id, ondelete="CASCADE"), primary_key=True),
    Column("word_no", BigInteger, primary_key=True),
    Column("word", Text, nullable=False),
    Column("letters", BigInteger),
    Column("status", Text),
    Column("reason", Text),
)


class WordStatus(StrEnum):
    """How a word ended."""

    COUNTED = "counted"
    UNREADABLE = "unreadable"
    DEAD = "dead"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class WordsView:
    """The letters of all words so far."""

    letters: int

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def view_words(connection: Connection, specs: Mapping[int, Mapping[str, Any]]) -> dict[int, WordsView]:
    """The details of words jobs."""
    query = select(words.c.job_id, func.coalesce(func.sum(words.c.letters), 0)).where(words.c.job_id.in_(list(specs)))
    return {job_id: WordsView(int(letters)) for job_id, letters in connection.execute(query.group_by(words.c.job_id))}


def words_stage(context: ShardContext[Resources]) -> None:
    """Count the letters of each word."""
    for number in context.open_inputs():
        context.check()
        context.commit(count_letters, context.lease.job_id, number)


def count_letters(connection: Connection, job_id: int, number: int) -> None:
    this_word = (words.c.job_id == job_id) & (words.c.word_no == number)
    word = connection.execute(select(words.c.word).where(this_word)).scalar_one()
    if word == "foreign":
        raise JobRefused("no dictionary has this word")
    if word == "broken":
        raise RuntimeError("a bug that only this word shows")
    if word == "away":
        raise ServiceUnavailable("the dictionary is away")
    status = WordStatus.COUNTED if word.isalpha() else WordStatus.UNREADABLE
    connection.execute(words.update().where(this_word).values(status=status, letters=len(word)))


WORDS = Kind(
    name="words",
    queue="query",
    stage=f"{__name__}:words_stage",
    per_shard=lambda _settings: 2,
    inputs=InputTable(words, "word_no"),
    statuses=WordStatus,
    bad=(WordStatus.UNREADABLE, WordStatus.DEAD),
    refused=WordStatus.UNREADABLE,
    noun="word",
    detail_key="words",
    details=view_words,
    result_has_detail=True,
)


@pytest.fixture
def desk(engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setitem(KINDS, WORDS.name, WORDS)
    words.create(engine)
    desk = Desk(engine, without_ticks(settings))
    desk.live_worker(queues=("query", "ingest"))
    return desk


def submit(desk: Desk, *texts: str) -> int:
    """Queue a words job."""
    with desk.engine.begin() as connection:
        job_id, _ = control.create(connection, NewJob("words", None, {}, len(texts), WORDS.per_shard(desk.settings)))
        rows = [{"job_id": job_id, "word_no": number, "word": word} for number, word in enumerate(texts)]
        connection.execute(words.insert(), rows)
    return job_id


def run_all(desk: Desk) -> None:
    """Run shards until none is ready."""
    resources = Resources(desk.settings)
    while ready := desk.ids("queued") or desk.dispatch():
        assert run_shard(ready[0], WORKER, desk.settings, desk.engine, resources)


def test_it_runs_from_submit_to_result(desk: Desk, run: Run) -> None:
    job_id = submit(desk, "plain", "words", "only")
    assert (desk.job(job_id).kind, desk.job(job_id).progress.by_status) == ("words", {})
    run_all(desk)
    job = desk.job(job_id)
    assert (job.state, job.progress.by_status, job.error) == (JobState.COMPLETED, {"counted": 3}, None)
    assert progress.outcome_line(job) == f"job {job_id} completed: 3 words: 3 counted"

    assert publish_missing_results(desk.engine, ObjectStore(desk.settings)) == 1
    assert (desk.job(job_id).result or {}) | {"archive": "*"} == {
        "job": job_id,
        "kind": "words",
        "archive": "*",
        "state": "completed",
        "total": 3,
        "counts": {"counted": 3},
        "reconciled": {"inputs": 3, "outcomes": 3, "adds_up": True},
        "words": {"letters": 14},
    }
    _, out, _ = run("jobs", "show", job_id)
    assert "\nletters: 14\n" in out
    _, out, _ = run("jobs", "list", "--json")
    [shown] = json.loads(out)
    assert (shown["kind"], shown["counts"], shown["words"]) == ("words", {"counted": 3}, {"letters": 14})


def test_its_bad_inputs_end_alone_and_are_retried(desk: Desk) -> None:
    job_id = submit(desk, "fine", "broken", "4", "good")
    run_all(desk)
    job = desk.job(job_id)
    assert job.state == JobState.COMPLETED_WITH_ERRORS
    assert job.progress.by_status == {"counted": 2, "dead": 1, "unreadable": 1}
    with desk.engine.begin() as connection:
        reason = connection.scalar(select(words.c.reason).where(words.c.status == "dead"))
        connection.execute(words.update().where(words.c.word == "broken").values(word="mended"))
    assert reason == "given up after 2 attempts: RuntimeError: a bug that only this word shows"

    client = Client(desk.settings)
    assert client.jobs.retry(job_id) == 2
    client.close()
    run_all(desk)
    assert desk.job(job_id).progress.by_status == {"counted": 3, "unreadable": 1}
    with desk.engine.begin() as connection:
        runs = connection.execute(select(shards.c.lo, shards.c.hi).where(shards.c.run_no == 2)).all()
    assert [tuple(run) for run in runs] == [(1, 3)]


def test_a_refused_job_ends_with_the_reason(desk: Desk) -> None:
    job_id = submit(desk, "foreign", "fine", "good")
    run_all(desk)
    job = desk.job(job_id)
    assert (job.state, job.error) == (JobState.FAILED, "no dictionary has this word")
    assert job.progress.by_status == {"unreadable": 3}


def test_a_service_that_is_away_costs_no_attempt(desk: Desk) -> None:
    job_id = submit(desk, "away")
    run_all(desk)
    with desk.engine.begin() as connection:
        shard = connection.execute(select(shards).where(shards.c.job_id == job_id)).one()
        assert (shard.state, shard.attempts, shard.error) == ("pending", 0, "the dictionary is away")
        control.cancel(connection, job_id)
    assert desk.job(job_id).progress.by_status == {"cancelled": 1}


def test_inspection_and_vacuum_cover_its_table(desk: Desk) -> None:
    job_id = submit(desk, "plain", "words")
    run_all(desk)
    totals = {kind.name: kind.inputs.totals() for kind in KINDS.values()}
    with desk.engine.begin() as connection:
        assert inspection.jobs_that_do_not_add_up(connection, totals).number == 0
        assert inspection.queued_shards(connection, queues_by_kind()) == {}
        connection.execute(words.delete().where(words.c.word == "plain"))
        wrong = inspection.jobs_that_do_not_add_up(connection, totals)
    assert (wrong.number, wrong.example) == (1, f"job {job_id} (words, completed)")

    task_id = in_transaction(desk.engine, submit_task, desk.settings, TaskName.VACUUM, None, {})
    run_all(desk)
    task = desk.job(task_id).task
    assert task is not None and task.report is not None, desk.job(task_id).error
    assert "words" in [table["table"] for table in task.report["tables"]]


def test_a_long_list_of_jobs_takes_as_many_statements_as_a_short_one(engine: Engine) -> None:
    for number in range(40):
        with engine.begin() as connection:
            for statement in _JOB_OF_EACH_KIND[number % 5]:
                connection.execute(text(statement), {"number": number})

    def listing(limit: int) -> int:
        return len(visited_rows(engine, lambda connection: views.list_jobs(connection, limit=limit)))

    assert listing(40) == listing(5) > 0
    with engine.begin() as connection:
        listed = views.list_jobs(connection, limit=40)
        assert [job.as_json() for job in listed] == [views.view(connection, job.job_id).as_json() for job in listed]
    shown = {json.dumps(job.detail_json(), sort_keys=True) for job in listed}
    assert len(shown) == 33  # each its own, but the jobs without a detail


_JOB = """
    INSERT INTO jobs (id, kind, state, spec, total, spec_digest) OVERRIDING SYSTEM VALUE
"""
_JOB_OF_EACH_KIND = (
    (f"{_JOB} VALUES (:number, 'ingest', 'running', '{{}}', 1, '')",),
    (
        f"{_JOB} VALUES (:number, 'train', 'running', '{{}}', 1, '')",
        "INSERT INTO trainings (job_id, role, steps_done) VALUES (:number, 'reranker', :number)",
    ),
    (
        f"{_JOB} VALUES (:number, 'maintenance', 'running', '{{}}', 1, '')",
        "INSERT INTO maintenance_tasks (job_id, action, reason) VALUES (:number, 'gaps', CAST(:number AS text))",
    ),
    (
        f"""{_JOB} VALUES (:number, 'reindex', 'running',
                jsonb_build_object('index', CAST(:number AS int), 'selection', 'all', 'gate', 2), 3, '')""",
        """INSERT INTO reindexed (job_id, item_no, status, reason)
           SELECT :number, n, 'kept', n || ' of ' || :number FROM generate_series(0, 2) n""",
    ),
    (
        f"""{_JOB} VALUES (:number, 'answer', 'completed',
                jsonb_build_object('options', '{{}}'::jsonb, 'refreshes', CAST(:number AS int)), 2, '')""",
        """INSERT INTO questions (job_id, question_no, place, line, custom_id, text, previous)
           SELECT :number, n, n, n, 'q' || n, 'What?', '{"status": "answered", "answer": "no"}'
           FROM generate_series(0, 1) n""",
        """INSERT INTO answers (job_id, question_no, run_no, status, text, changes)
           SELECT :number, n, 1, 'answered', 'yes', CASE n WHEN 1 THEN ARRAY['index', 'images'] ELSE '{}' END
           FROM generate_series(0, 1) n""",
    ),
)
