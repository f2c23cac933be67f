"""Statements stay linear in the size of a job when the statistics of its tables lag behind.

The tables hold older jobs and are analyzed; then a large job is inserted without another ANALYZE. So the planner
expects no row of it at all: the plan that it takes for an empty job must not be quadratic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection, Engine, make_url, text

from ragllava.jobs import closing, views
from ragllava.jobs.kinds import KINDS
from ragllava.records import JobKind, ReindexStatus
from ragllava.settings import Settings
from ragllava.source_files import FileOutcome, FileStatus
from ragllava.stores import roles
from ragllava.stores.archives import archive, blobs, image_changes, indexes, ingest_files, reindex_items, vectors
from ragllava.stores.archives.reindex_items import ItemOutcome
from ragllava.stores.database import make_engine
from ragllava.stores.jobs import answers, refreshes, result_pages
from ragllava.stores.jobs.result_pages import ResultQuery
from ragllava.stores.learning import noisy
from tests.support.many_rows import unhurried
from tests.support.plans import stop_autovacuum, visited_rows

SIZE = 20_000  # inputs of the large job
OLD_JOBS, OLD_SIZE = 40, 100
SHARD = 64
LARGE, REFRESH = 1_000, 1_001  # ids of jobs
ANSWERED = SIZE // 2
NEW_ARCHIVE = 2_000
_TABLES = (
    "archives",
    "blobs",
    "images",
    "questions",
    "answers",
    "candidates",
    "files",
    "reindexed",
    "shards",
    "noisy_cases",
    "labels",
    "jobs",
)

Work = Callable[[Connection], object]


@pytest.fixture(scope="module")
def lagging(services: Settings, template_database: str) -> Iterator[Engine]:
    """A database whose statistics know nothing of the job LARGE, nor of REFRESH, which refreshes it."""
    from tests.conftest import own_settings

    with own_settings(services, template_database) as own:
        owner = make_engine(own.require_database_owner(), name="plans owner")
        with unhurried(owner) as connection:
            stop_autovacuum(connection, *_TABLES)
            for number in range(OLD_JOBS):
                _insert_archive(connection, number + 1, OLD_SIZE)
                _insert_job(connection, number + 1, OLD_SIZE, answered=OLD_SIZE)
        with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for table in _TABLES:
                connection.execute(text(f"VACUUM (ANALYZE) {table}"))
        with unhurried(owner) as connection:
            _insert_archive(connection, NEW_ARCHIVE, SIZE)
            _insert_job(connection, LARGE, SIZE, answered=ANSWERED)
            _insert_job(connection, REFRESH, SIZE, answered=ANSWERED, refreshes=LARGE)
            # The application owns the vectors of the indexes that it makes; here the owner made them.
            roles.admit(connection, str(make_url(own.require_database()).username))
        owner.dispose()
        engine = make_engine(own.require_database(), statement_timeout_s=30, name="plans")
        yield engine
        engine.dispose()


def _insert_archive(connection: Connection, archive_id: int, size: int) -> None:
    """Half of the images of an archive have a vector in its index, which has the same id."""
    values = {"id": archive_id, "size": size, "name": f"archive-{archive_id}", "half": size // 2}
    for statement in _IMAGES[:4]:
        connection.execute(text(statement), values)
    indexes.create_partition(connection, archive_id, 2)
    connection.execute(text(_IMAGES[4]), values)


_IMAGES = (
    "INSERT INTO archives (id, name) OVERRIDING SYSTEM VALUE VALUES (:id, :name)",
    """
    INSERT INTO blobs (sha256, state, size_bytes, media_type)
    SELECT :name || '-' || n, 'live', 1, 'image/png' FROM generate_series(1, :size) n
    """,
    """
    INSERT INTO images (archive_id, sha256, source, uri, width, height, media_type)
    SELECT :id, :name || '-' || n, n, 'file:///' || n, 1, 1, 'image/png' FROM generate_series(1, :size) n
    """,
    """
    INSERT INTO indexes (id, archive_id, retriever, dim, state) OVERRIDING SYSTEM VALUE
    VALUES (:id, :id, 'test', 2, 'active')
    """,
    """
    INSERT INTO embeddings (index_id, image_id, vector)
    SELECT :id, id, '[1,0]' FROM images WHERE archive_id = :id ORDER BY id LIMIT :half
    """,
)


def _insert_job(connection: Connection, job_id: int, size: int, *, answered: int, refreshes: int | None = None) -> None:
    """A running answer job of which the first questions are answered; the other kinds of inputs are beside it."""
    values = {"job": job_id, "size": size, "answered": answered, "shard": SHARD, "earlier": refreshes}
    for statement in _ROWS:
        connection.execute(text(statement), values)


_ROWS = (
    """
    INSERT INTO jobs (id, kind, archive_id, state, spec, total, spec_digest) OVERRIDING SYSTEM VALUE
    VALUES (:job, 'answer', 1, 'running',
            jsonb_strip_nulls(jsonb_build_object('options', '{}'::jsonb, 'refreshes', CAST(:earlier AS bigint))),
            :size, '')
    """,
    """
    INSERT INTO questions (job_id, question_no, place, line, custom_id, text, previous)
    SELECT :job, n, n, n + 1, 'q' || n, 'question ' || n,
           jsonb_build_object('job', CAST(:earlier AS bigint), 'run', 1, 'status', 'answered')
    FROM generate_series(0, :size - 1) n
    """,
    """
    INSERT INTO answers (job_id, question_no, run_no, status, changes)
    SELECT :job, n, 1, CASE WHEN n % 2 = 0 THEN 'answered' ELSE 'failed' END, ARRAY['index']
    FROM generate_series(0, :answered - 1) n
    """,
    """
    INSERT INTO noisy_cases (job_id, question_no, archive_id, reasons, details, state)
    SELECT :job, n, 1, '{}', '{}', 'labelled' FROM generate_series(0, :answered - 1) n
    """,
    """
    INSERT INTO labels (archive_id, job_id, question_no, verdict, relevant, irrelevant, source)
    SELECT 1, :job, n, 'right', '{}', '{}', 'person' FROM generate_series(0, :answered - 1) n
    """,
    "INSERT INTO files (job_id, file_no, source, uri) SELECT :job, n, n, n FROM generate_series(0, :size - 1) n",
    "INSERT INTO reindexed (job_id, item_no) SELECT :job, n FROM generate_series(0, :size - 1) n",
    """
    INSERT INTO shards (job_id, lo, hi, state)
    SELECT :job, n, n + :shard, CASE WHEN n < :answered THEN 'done' ELSE 'pending' END
    FROM generate_series(0, :size - 1, :shard) n
    """,
)

HASHES = [f"archive-{NEW_ARCHIVE}-{number}" for number in range(1, SHARD)]
URIS = [f"file:///{number}" for number in range(1, SHARD)]
ANSWER, INGEST, REINDEX = (KINDS[name].inputs for name in (JobKind.ANSWER, JobKind.INGEST, JobKind.REINDEX))
PART = range(ANSWERED, ANSWERED + SHARD)  # the inputs of one shard


def _finish_files(connection: Connection) -> object:
    return ingest_files.finish_files(connection, LARGE, [FileOutcome(number, FileStatus.STORED) for number in PART])


def _finish_items(connection: Connection) -> None:
    outcomes = [ItemOutcome(number, ReindexStatus.EMBEDDED) for number in PART]
    reindex_items.finish_items(connection, LARGE, outcomes)


# Each with the most rows that it may visit: a small multiple of those that it is about.
WHOLE, FEW = 12 * SIZE, 60 * SHARD
STATEMENTS: dict[str, tuple[Work, int]] = {
    "all open questions": (lambda c: ANSWER.open_numbers(c, LARGE, 1, 0, SIZE), WHOLE),
    "open questions to answer": (lambda c: answers.open_questions(c, LARGE, 1, 0, SIZE), WHOLE),
    "open questions of a shard": (lambda c: answers.open_questions(c, LARGE, 1, PART.start, PART.stop), FEW),
    "open files of a shard": (lambda c: INGEST.open_numbers(c, LARGE, 1, PART.start, PART.stop), FEW),
    "open items of a shard": (lambda c: REINDEX.open_numbers(c, LARGE, 1, PART.start, PART.stop), FEW),
    "files of a shard": (lambda c: ingest_files.load_files(c, LARGE, PART.start, PART.stop), FEW),
    "items of a shard": (lambda c: reindex_items.load_items(c, LARGE, PART.start, PART.stop), FEW),
    "outcomes of files": (_finish_files, FEW),
    "outcomes of items": (_finish_items, FEW),
    "order of questions": (lambda c: answers.reorder(c, LARGE, list(PART)), FEW),
    "retried questions": (lambda c: ANSWER.reopen(c, LARGE, 2, ["failed"]), WHOLE),
    "a view of a job": (lambda c: views.view(c, LARGE), WHOLE),
    "a view of a refresh": (lambda c: views.view(c, REFRESH), 2 * WHOLE),
    "troubled shards": (lambda c: views.troubled_shards(c, LARGE), WHOLE),
    "earlier answers": (lambda c: refreshes.earlier_answers(c, REFRESH, range(SHARD)), FEW),
    "answers taken over": (lambda c: refreshes.take_over(c, REFRESH, 2, 1, 1, range(SHARD)), FEW),
    "lines of a refresh": (lambda c: refreshes.answered_part(c, LARGE, 0, 500), 60 * 500),
    "unlabelled questions": (lambda c: noisy.unlabelled_questions(c, LARGE), WHOLE),
    "logged reasons": (lambda c: noisy.logged_reasons(c, LARGE, range(SHARD)), FEW),
    "results": (lambda c: [next(answers.iterate_results(c, LARGE))], 60 * 500),
    "existing images": (lambda c: archive.existing_images(c, NEW_ARCHIVE, HASHES), FEW),
    "images that share a name": (lambda c: archive.ambiguous_uris(c, range(SIZE, SIZE + SHARD)), FEW),
    "a page of results": (lambda c: result_pages.find_rows(c, LARGE, ResultQuery(after=SIZE - 100)), FEW),
    "images of files": (lambda c: image_changes.images_at(c, NEW_ARCHIVE, URIS), FEW),
    "live content": (lambda c: blobs.make_live(c, HASHES), FEW),
    "images without a vector": (lambda c: vectors.unembedded_images(c, NEW_ARCHIVE), WHOLE),
    "gaps of an archive": (lambda c: reindex_items.gaps(c, NEW_ARCHIVE, NEW_ARCHIVE), WHOLE),
    "missing vectors": (lambda c: vectors.missing_embeddings(c, NEW_ARCHIVE, range(SIZE, SIZE + SHARD)), FEW),
    "removed vectors": (lambda c: vectors.remove_embeddings(c, NEW_ARCHIVE, range(SIZE, SIZE + SHARD)), FEW),
    "the end of a job": (lambda c: closing.close_job_if_ended(c, LARGE), WHOLE),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_is_linear_when_statistics_lag(lagging: Engine, name: str) -> None:
    work, limit = STATEMENTS[name]
    visited = visited_rows(lagging, work)
    assert visited
    too_many = [each for each in visited if each.rows > limit]
    assert not too_many, "\n".join(f"{each.rows:,} rows: {each.statement}" for each in too_many)
