"""Pictures that callers ask with: counted once, without their history, and let go when nothing needs them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, text

from ragllava.errors import QuotaExceeded
from ragllava.settings import Settings
from ragllava.stages.answer.asked_pictures import let_pictures_go, put_pictures
from ragllava.stores.access import asked_pictures
from ragllava.stores.access.usage import stored_bytes
from ragllava.stores.archives import archive, blobs
from ragllava.stores.database import in_transaction, make_engine
from ragllava.stores.maintenance.erasing_jobs import delete_inputs
from ragllava.stores.objects import ObjectStore, content_key
from tests.support.plans import visited_rows

ANN, BOB = "key rgl_a", "key rgl_b"


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    """Of the caller ann."""
    engine = make_engine(settings.require_database(), owner=ANN)
    yield engine
    engine.dispose()


def put(engine: Engine, objects: ObjectStore, data: bytes) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    put_pictures(engine, objects, {sha256: data})
    return sha256


def ask(connection: Connection, sha256: str, *, owner: str = ANN, questions: int = 1) -> int:
    """A job of this caller that asks so often with one picture; its id."""
    values = {"owner": owner, "sha256": sha256, "questions": questions}
    job_id: int = connection.execute(
        text("""
            INSERT INTO jobs (kind, owner, state, spec, total, spec_digest)
            VALUES ('answer', :owner, 'completed', '{}', :questions, '') RETURNING id
        """),
        values,
    ).scalar_one()
    numbers = """
        INSERT INTO questions (job_id, question_no, place, line, picture)
        SELECT :job_id, n, n, n + 1, :sha256 FROM generate_series(0, :questions - 1) AS n
    """
    connection.execute(text(numbers), values | {"job_id": job_id})
    blobs.make_live(connection, [sha256])
    asked_pictures.own(connection, [sha256])
    return job_id


def end_hour(connection: Connection) -> None:
    connection.execute(text("UPDATE asked_pictures SET until = until - interval '2 hours'"))
    connection.execute(text("UPDATE blobs SET updated_at = updated_at - interval '2 hours'"))


def test_pictures_of_one_request_are_counted_once_and_stored_all_or_none(engine: Engine, settings: Settings) -> None:
    objects, sums = ObjectStore(settings), list[int]()
    pictures = {hashlib.sha256(data).hexdigest(): data for data in (b"a", b"bb", b"ccc")}

    def count(connection: Connection) -> None:
        sums.append(stored_bytes(connection, ANN))
        if len(sums) == 1:
            raise QuotaExceeded("too much", 1.0)

    with pytest.raises(QuotaExceeded):
        put_pictures(engine, objects, pictures, count)
    assert in_transaction(engine, stored_bytes, ANN) == 0
    assert not any(objects.exists(content_key(sha256)) for sha256 in pictures)
    for _ in range(2):
        put_pictures(engine, objects, pictures, count)
    assert sums == [6, 6], "not for what is stored already"
    assert [objects.get(content_key(sha256)) for sha256 in pictures] == list(pictures.values())


def test_a_picture_counts_until_nothing_of_its_caller_needs_it(engine: Engine, settings: Settings) -> None:
    objects = ObjectStore(settings)
    searched, asked, held = (put(engine, objects, data) for data in (b"s", b"as", b"hel"))
    put(engine, objects, b"s")
    assert in_transaction(engine, stored_bytes, ANN) == 1 + 2 + 3
    archive_id = in_transaction(engine, archive.ensure_archive, "stamps")
    with engine.begin() as connection:
        first, second = ask(connection, asked), ask(connection, asked)
        connection.execute(
            text("""
                INSERT INTO images (archive_id, sha256, source, uri, width, height, media_type)
                VALUES (:id, :sha256, 'x', 'x', 1, 1, 'image/png')
            """),
            {"id": getattr(archive_id, "archive_id", archive_id), "sha256": held},
        )
    assert let_pictures_go(engine, objects) == 0, "an hour has not passed"
    in_transaction(engine, end_hour)
    assert let_pictures_go(engine, objects) == 2
    there = [objects.exists(content_key(sha256)) for sha256 in (searched, asked, held)]
    assert there == [False, True, True] and in_transaction(engine, stored_bytes, ANN) == 2
    with engine.begin() as connection:  # of another caller, who keeps the bytes
        ask(connection, asked, owner=BOB)
        for job_id, left in ((first, 2), (second, 0)):
            delete_inputs(connection, job_id)
            assert stored_bytes(connection, ANN) == left
    assert objects.exists(content_key(asked))


def test_the_sum_visits_what_is_stored_and_not_what_was_asked(engine: Engine, settings: Settings) -> None:
    picture = put(engine, ObjectStore(settings), b"asked often")
    with engine.begin() as connection:
        job_id = ask(connection, picture, questions=500)
        connection.execute(
            text("""
                INSERT INTO uploads (id, owner, filename, purpose, size_bytes, lines, sha256, object_key, job_id)
                SELECT 'file-' || n, :owner, 'x', 'x', 1, 1, 'x', 'x', CASE WHEN n > 3 THEN :job_id END
                FROM generate_series(1, 500) AS n
            """),
            {"owner": ANN, "job_id": job_id},
        )
        connection.execute(text("ANALYZE"))
        assert stored_bytes(connection, ANN) == 3 + len(b"asked often")
    visited = visited_rows(engine, lambda connection: stored_bytes(connection, ANN))
    assert sum(statement.rows for statement in visited) < 20, visited
