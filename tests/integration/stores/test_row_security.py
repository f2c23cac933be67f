"""Row-level security for the role of the HTTP API: it owns nothing, and sees the archives that a transaction states."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.exc import ProgrammingError

from ragllava.errors import AccessDenied, NotFound
from ragllava.settings import Settings
from ragllava.stores.access.keys import AccessRole, NewKey, create_key, find_principal, revoke_key
from ragllava.stores.access.policies import POLICIES
from ragllava.stores.access.tenancy import Scope, acting, secure
from ragllava.stores.access.usage import AuditEntry, add_audit, list_audit
from ragllava.stores.database import in_transaction, make_engine, read_at_once
from ragllava.stores.jobs import answers
from ragllava.stores.schema import metadata, questions
from tests.conftest import own_settings
from tests.support.many_rows import unhurried
from tests.support.plans import visited_rows

# They have archives' numbers or words, and no policy: see stores/access/policies.py.
UNSECURED = {"image_words"}

_ROWS = """
    INSERT INTO archives (id, name) OVERRIDING SYSTEM VALUE VALUES (:a, 'archive-' || :a);
    INSERT INTO blobs (sha256, state, size_bytes, media_type) VALUES ('s' || :a, 'live', 1, 'image/png');
    INSERT INTO images (id, archive_id, sha256, source, uri, width, height, media_type) OVERRIDING SYSTEM VALUE
        VALUES (:a, :a, 's' || :a, 'x', 'x', 1, 1, 'image/png');
    INSERT INTO word_counts (archive_id, word, images) VALUES (:a, 'x', 1);
    INSERT INTO indexes (id, archive_id, retriever, dim, state) OVERRIDING SYSTEM VALUE
        VALUES (:a, :a, 'test', 2, 'active');
    INSERT INTO jobs (id, kind, archive_id, state, spec, total, spec_digest) OVERRIDING SYSTEM VALUE
        VALUES (:a, 'answer', :a, 'running', '{}', 1, '');
    INSERT INTO shards (job_id, lo, hi, state) VALUES (:a, 0, 1, 'pending');
    INSERT INTO files (job_id, file_no, source, uri) VALUES (:a, 0, 'x', 'x');
    INSERT INTO questions (job_id, question_no, place, line) VALUES (:a, 0, 0, 1);
    INSERT INTO answers (job_id, question_no, run_no, status) VALUES (:a, 0, 1, 'answered');
    INSERT INTO candidates (job_id, question_no, run_no, image_id, retrieval_rank, retrieval_score)
        VALUES (:a, 0, 1, :a, 0, 0);
    INSERT INTO trainings (job_id, role) VALUES (:a, 'reranker');
    INSERT INTO maintenance_tasks (job_id, action) VALUES (:a, 'gc');
    INSERT INTO reindexed (job_id, item_no) VALUES (:a, 0);
    INSERT INTO labels (archive_id, job_id, question_no, verdict, relevant, irrelevant, source)
        VALUES (:a, :a, 0, 'right', '{}', '{}', 'person');
    INSERT INTO noisy_cases (job_id, question_no, archive_id, reasons, details, state)
        VALUES (:a, 0, :a, '{}', '{}', 'open');
    INSERT INTO reviews (archive_id, job_id, question_no, reviewer, save_id, relevant, irrelevant, version)
        VALUES (:a, :a, 0, 'x', 'x', '{}', '{}', 1);
    INSERT INTO training_steps (job_id, step, loss, learning_rate) VALUES (:a, 1, 1, 1);
    INSERT INTO bindings (id, archive_id, role, bucket, prefix, options) OVERRIDING SYSTEM VALUE
        VALUES (:a, :a, 'pictures', 'b' || :a, '', '{}');
    INSERT INTO bound_objects (binding_id, key, kind, etag, size_bytes) VALUES (:a, 'k', 'picture', 'e', 1);
    INSERT INTO listed_captions (binding_id, name, file, base_name) VALUES (:a, 'n', 'f', 'n');
    INSERT INTO schedules (id, name, action, archive_id, options, cron, timezone) OVERRIDING SYSTEM VALUE
        VALUES (:a, 's' || :a, 'scan', :a, '{}', '0 3 * * *', 'UTC');
    INSERT INTO schedule_runs (schedule_id) VALUES (:a);
    INSERT INTO erasures (kind, archive_id, account) VALUES ('job', :a, 'x');
    INSERT INTO held_removals (archive_id, origin, gone, pictures) VALUES (:a, 'x', 1, 1);
    INSERT INTO uploads (id, owner, archives, filename, purpose, size_bytes, lines, sha256, object_key)
        VALUES ('file-' || :a, 'x', ARRAY[CAST(:a AS bigint)], 'x', 'batch', 1, 1, 'x', 'x');
    INSERT INTO batches (id, owner, archive_id, input_file_id, endpoint, completion_window, options, questions,
                         content_digest)
        VALUES ('batch_' || :a, 'x', :a, 'x', 'x', '24h', '{}', 1, 'x');
    INSERT INTO requests (job_id, operation, body) VALUES (:a, 'score', '{}');
    INSERT INTO webhooks (id, owner, archive_id, url, kinds, secret) OVERRIDING SYSTEM VALUE
        VALUES (:a, 'x', :a, 'x', '{answer}', 'x');
    INSERT INTO deliveries (webhook_id, job_id, finished_at) VALUES (:a, :a, now());
    INSERT INTO notices (id, event, subject, archive_id, job_id, facts) OVERRIDING SYSTEM VALUE
        VALUES (:a, 'job_ended', 'x' || :a, :a, :a, '{}');
    INSERT INTO mailings (notice_id, target) VALUES (:a, 'x')
"""


def fill(connection: Connection, archive_id: int) -> None:
    """A row in every table that belongs to an archive."""
    for statement in _ROWS.split(";\n"):
        connection.exec_driver_sql(statement.replace(":a", f"{archive_id}"))


class RolledBack(Exception):
    """Ends a transaction whose changes are not to stay."""


@pytest.fixture(scope="module")
def settings(services: Settings, template_database: str) -> Iterator[Settings]:
    """One database for all tests here, which leave it as it is."""
    with own_settings(services, template_database) as own:
        yield own


@pytest.fixture(scope="module")
def engine(settings: Settings) -> Iterator[Engine]:
    engine = make_engine(settings.require_database(), name="test")
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def api(settings: Settings, engine: Engine) -> Iterator[Engine]:
    with engine.begin() as connection:
        for archive_id in (1, 2):
            fill(connection, archive_id)
        connection.exec_driver_sql("CREATE TABLE embeddings_1 PARTITION OF embeddings FOR VALUES IN (1)")
        connection.exec_driver_sql("CREATE TABLE embeddings_2 PARTITION OF embeddings FOR VALUES IN (2)")
        connection.exec_driver_sql("INSERT INTO embeddings VALUES (1, 1, '[1,0]'), (2, 2, '[1,0]')")
    url = settings.api_database()
    assert url is not None
    api = secure(make_engine(url, name="api"))
    yield api
    api.dispose()


def count(connection: Connection, table: str) -> int:
    return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


def test_every_table_of_an_archive_has_a_policy() -> None:
    parents = {"archive_id", "job_id", "binding_id", "index_id", "schedule_id", "notice_id"}
    owned = {name for name, table in metadata.tables.items() if parents & set(table.c.keys())}
    assert owned | {"archives"} == (set(POLICIES) | UNSECURED)


@pytest.mark.parametrize("table", POLICIES)
def test_rows_of_other_archives_are_not_there(api: Engine, table: str) -> None:
    for scope, seen in ((Scope(frozenset({1}), "x"), 1), (Scope(None, "x"), 2), (Scope(frozenset(), "x"), 0)):
        with acting(scope):
            assert in_transaction(api, count, table) == seen
            assert read_at_once(api, count, table) == seen
    assert in_transaction(api, count, table) == 0  # nothing is stated


def test_without_a_stated_scope_nothing_is_there(settings: Settings, api: Engine) -> None:
    """Also on a connection of which nobody has made a secured engine."""
    url = settings.api_database()
    assert url is not None
    plain = make_engine(url, name="forgotten")
    try:
        assert sum(in_transaction(plain, count, table) for table in POLICIES) == 0
    finally:
        plain.dispose()


def test_the_scope_ends_with_its_transaction(api: Engine) -> None:
    with acting(Scope(None, "x")):
        assert in_transaction(api, count, "jobs") == 2
    with api.connect() as connection:
        assert count(connection, "jobs") == 0


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO jobs (kind, archive_id, state, spec, total, spec_digest) VALUES ('answer', 2, 'x', '{}', 1, '')",
        "INSERT INTO jobs (kind, state, spec, total, spec_digest) VALUES ('answer', 'x', '{}', 1, '')",
        "UPDATE jobs SET archive_id = 2",
        "INSERT INTO questions (job_id, question_no, place, line) VALUES (2, 7, 7, 7)",
        "INSERT INTO archives (id, name) OVERRIDING SYSTEM VALUE VALUES (99, 'mine')",
        "DROP TABLE jobs",
        "ALTER TABLE jobs DISABLE ROW LEVEL SECURITY",
        "SET ROLE ragllava_app",
        "TRUNCATE jobs",
        "INSERT INTO api_keys (prefix, sha256, name, role) VALUES ('x', 'x', 'x', 'admin')",
        "UPDATE api_keys SET role = 'admin'",
        "UPDATE audit SET owner = 'x'",
        "DELETE FROM audit",
        "SELECT * FROM embeddings_2",
        "CREATE TABLE mine (x int)",
    ],
)
def test_what_a_caller_of_one_archive_cannot_do(api: Engine, statement: str) -> None:
    def work(connection: Connection) -> None:
        connection.exec_driver_sql(statement)

    with acting(Scope(frozenset({1}), "x")), pytest.raises((AccessDenied, ProgrammingError)):
        in_transaction(api, work)


def test_changes_do_not_reach_other_archives(api: Engine) -> None:
    def work(connection: Connection) -> None:
        statements = ("UPDATE jobs SET name = 'mine'", "DELETE FROM labels", "UPDATE batches SET owner = 'mine'")
        assert [connection.exec_driver_sql(statement).rowcount for statement in statements] == [1, 1, 1]
        raise RolledBack

    with acting(Scope(frozenset({1}), "x")), pytest.raises(RolledBack):
        in_transaction(api, work)


def test_the_role_owns_nothing_and_has_no_power(api: Engine) -> None:
    rights = ("rolsuper", "rolcreatedb", "rolcreaterole", "rolreplication", "rolbypassrls")
    with api.connect() as connection:
        row = connection.exec_driver_sql(f"SELECT {', '.join(rights)} FROM pg_roles WHERE rolname = current_user").one()
        owned = connection.exec_driver_sql(
            "SELECT relname FROM pg_class WHERE pg_get_userbyid(relowner) = current_user"
        ).all()
    assert not any(row) and not owned


def test_rows_are_copied_under_row_level_security(api: Engine) -> None:
    rows = [(number, number + 1, f"q{number}", None if number % 2 else "a\tb\\n'") for number in range(1, 7_000)]

    def work(connection: Connection) -> None:
        answers.insert_questions(connection, 1, rows)
        query = select(questions.c.question_no, questions.c.line, questions.c.custom_id, questions.c.text)
        found = connection.execute(query.where(questions.c.question_no > 0).order_by(questions.c.question_no))
        assert [tuple(row) for row in found] == rows
        raise RolledBack

    with acting(Scope(frozenset({1}), "x")), pytest.raises(RolledBack):
        in_transaction(api, work)


def test_a_page_of_results_visits_no_more_rows_than_without_policies(api: Engine, engine: Engine) -> None:
    """The policies look up the job of each row, and read no other rows."""
    with unhurried(engine) as connection:
        for archive_id in range(3, 60):
            fill(connection, archive_id)
        connection.exec_driver_sql(
            "INSERT INTO questions (job_id, question_no, place, line, text) "
            "SELECT job, n, n, n + 1, 'x' FROM generate_series(1, 59) job, generate_series(1, 400) n"
        )
        connection.exec_driver_sql(
            "INSERT INTO answers (job_id, question_no, run_no, status) "
            "SELECT job, n, 1, 'answered' FROM generate_series(1, 59) job, generate_series(1, 400) n"
        )
        connection.exec_driver_sql("UPDATE jobs SET total = 401")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in ("jobs", "questions", "answers", "candidates"):
            connection.exec_driver_sql(f"ANALYZE {table}")

    def read(connection: Connection) -> object:
        return list(answers.iterate_results(connection, 1))

    plain = sum(visited.rows for visited in visited_rows(engine, read))
    with acting(Scope(frozenset({1}), "x")):
        secured = sum(visited.rows for visited in visited_rows(api, read))
    assert 400 < secured <= 4 * plain


def test_only_an_administrator_of_all_archives_makes_keys_and_reads_the_audit(api: Engine) -> None:
    """Whoever calls is looked up and noted by anybody's transaction."""
    entry = AuditEntry("x", "POST /x", "/x", 200, "req_x")
    for scope, may in (
        (Scope(None, "x", is_admin=True), True),
        (Scope(None, "x"), False),
        (Scope(frozenset({1, 2}), "x", is_admin=True), False),
        (Scope(frozenset(), ""), False),
    ):
        with acting(scope):
            in_transaction(api, add_audit, entry)
            assert bool(in_transaction(api, list_audit)) is may
            assert in_transaction(api, find_principal, "rgl_unknown") is None
            if may:
                _, view = in_transaction(api, create_key, NewKey("made", AccessRole.READ))
                in_transaction(api, revoke_key, view.prefix)
            else:
                with pytest.raises((AccessDenied, ProgrammingError)):
                    in_transaction(api, create_key, NewKey("made", AccessRole.READ))
                with pytest.raises(NotFound):  # no row may be changed
                    in_transaction(api, revoke_key, "rgl_00000000")
