"""Statements that change several rows wait for their locks in one order, so that two of them never wait in a circle."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from sqlalchemy import Connection, Engine, select, text

from ragllava.feedback import NoisyState, Verdict
from ragllava.jobs import queue
from ragllava.settings import Settings
from ragllava.stages.feedback.files import Dismissal, FeedbackFile, FeedbackLine
from ragllava.stages.feedback.labels import store_feedback
from ragllava.stores.archives import archive, image_changes
from ragllava.stores.archives.blobs import NewBlob, announce_blobs
from ragllava.stores.archives.descriptions import NewImage
from ragllava.stores.buckets import bindings, change_events
from ragllava.stores.buckets.bindings import BindingRole
from ragllava.stores.buckets.change_events import ChangeEvent
from ragllava.stores.database import records
from ragllava.stores.jobs import workers
from ragllava.stores.learning import noisy
from ragllava.stores.maintenance import faults
from ragllava.stores.schema import change_events as event_table
from ragllava.stores.schema import shards
from tests.support.job_rows import Desk, without_ticks


@dataclass(frozen=True)
class Case:
    """Rows in two places of the order, the later one made first; `work` changes both."""

    table: str
    first: str  # the condition that a row is the first one
    last: str
    prepare: Callable[[Connection], object]
    work: Callable[[Connection], object]


def _events(connection: Connection) -> None:
    archive_id = archive.ensure_archive(connection, "test").archive_id
    bindings.bind(connection, archive_id, BindingRole.PICTURES, "bucket", "", {})
    for key in ("b", "a"):
        change_events.record(connection, [("bucket", key)])


def _claimed(connection: Connection) -> list[ChangeEvent]:
    return records(ChangeEvent, connection.execute(select(event_table).order_by(event_table.c.key.desc())))


def _of_events(work: Callable[[Connection, list[ChangeEvent]], object]) -> Case:
    return Case("change_events", "key = 'a'", "key = 'b'", _events, lambda c: work(c, _claimed(c)))


def _cases(connection: Connection) -> None:
    connection.execute(
        text("""
            INSERT INTO noisy_cases (job_id, question_no, archive_id, reasons, details, state)
            SELECT (SELECT min(id) FROM jobs), number, (SELECT min(id) FROM archives), '{}', '{}', 'open'
            FROM unnest(ARRAY[2, 1]) AS number
        """)
    )


def _job(connection: Connection) -> int:
    return int(connection.execute(text("SELECT min(id) FROM jobs")).scalar_one())


def _archive(connection: Connection) -> int:
    return int(connection.execute(text("SELECT min(id) FROM archives")).scalar_one())


def _set_state(connection: Connection) -> None:
    job_id = _job(connection)
    noisy.set_state(connection, [(job_id, 2), (job_id, 1)], NoisyState.LABELLED)


def _faults(connection: Connection) -> None:
    for subject in ("b", "a"):
        faults.record(connection, "results", subject, "a test", 60.0)


def _workers(connection: Connection) -> None:
    for name in ("b", "a"):
        workers.register(connection, name, ["query"], 1)
    connection.execute(text("UPDATE workers SET seen_at = now() - interval '2 days' WHERE name IN ('a', 'b')"))


def _queued(connection: Connection) -> None:
    """Both shards; the first one is updated last, so that it comes later in the table."""
    for number in (1, 0):
        connection.execute(text("UPDATE shards SET state = 'queued', worker = 'w' WHERE lo = :lo"), {"lo": 2 * number})


def _running(connection: Connection) -> None:
    _queued(connection)
    connection.execute(text("UPDATE shards SET state = 'running' WHERE lo = 2"))
    connection.execute(text("UPDATE shards SET state = 'running' WHERE lo = 0"))


def _image(digit: str, name: str) -> NewImage:
    uri = f"file:///{name}.png"
    return NewImage(digit * 64, f"{name}.png", uri, caption=None, width=1, height=1, media_type="image/png")


def _images(connection: Connection) -> None:
    archive_id = _archive(connection)
    announce_blobs(connection, [NewBlob(digit * 64, 1, "image/png") for digit in "ab"])
    for digit in "ba":
        archive.store_images(connection, archive_id, [_image(digit, digit)])


def _image_ids(connection: Connection) -> list[int]:
    return list(connection.scalars(text("SELECT id FROM images ORDER BY sha256 DESC")))


CASES = {
    "finished events": _of_events(change_events.finish),
    "postponed events": _of_events(lambda connection, events: change_events.postpone(connection, events, 60.0)),
    "recorded events": _of_events(lambda c, _: change_events.record(c, [("bucket", "b"), ("bucket", "a")])),
    "states of noisy cases": Case("noisy_cases", "question_no = 1", "question_no = 2", _cases, _set_state),
    "dismissed cases": Case(
        "noisy_cases", "question_no = 1", "question_no = 2", _cases, lambda c: noisy.dismiss(c, _archive(c))
    ),
    "faults that are over": Case(
        "faults", "subject = 'a'", "subject = 'b'", _faults, lambda c: faults.clear(c, "results", ["b", "a"])
    ),
    "silent workers": Case("workers", "name = 'a'", "name = 'b'", _workers, workers.remove_silent),
    "messages that were lost": Case(
        "shards", "lo = 0", "lo = 2", _queued, lambda c: queue.unqueue(c, shards.c.state == "queued")
    ),
    "leases of a dead child": Case("shards", "lo = 0", "lo = 2", _running, lambda c: queue.expire(c, "w")),
    "images that are retired": Case(
        "images",
        "source = 'a.png'",
        "source = 'b.png'",
        _images,
        lambda c: image_changes.retire(c, _archive(c), _image_ids(c)),
    ),
    "images whose files are gone": Case(
        "images",
        "source = 'a.png'",
        "source = 'b.png'",
        _images,
        lambda c: image_changes.retire_at(c, _archive(c), ["file:///b.png", "file:///a.png"]),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_later_row_is_free_while_an_earlier_one_is_waited_for(
    case: Case, engine: Engine, settings: Settings, wait_for_waiter: Callable[[], None]
) -> None:
    desk = Desk(engine, without_ticks(settings))
    desk.questions_job(4, per_shard=2)
    with engine.begin() as connection:
        case.prepare(connection)

    def work() -> None:
        with engine.begin() as connection:
            case.work(connection)

    with ThreadPoolExecutor(1) as threads:
        with engine.begin() as holder:
            assert len(holder.execute(text(f"SELECT FROM {case.table} WHERE {case.first} FOR UPDATE")).all()) == 1
            working = threads.submit(work)
            wait_for_waiter()
            with engine.begin() as other:
                free = text(f"SELECT FROM {case.table} WHERE {case.last} FOR UPDATE SKIP LOCKED")
                assert len(other.execute(free).all()) == 1, "it holds a later row, and waits for an earlier one"
        working.result(timeout=60)


def test_labels_and_dismissals_of_one_file_lock_their_cases_together(
    engine: Engine, settings: Settings, wait_for_waiter: Callable[[], None]
) -> None:
    """In two steps, two files that name the same questions the other way round would wait in a circle."""
    desk = Desk(engine, without_ticks(settings))
    job_id = desk.questions_job(4, per_shard=4)
    desk.live_worker()
    desk.drain()
    with engine.begin() as connection:
        _cases(connection)
    line = FeedbackLine(1, job_id, "q2", Verdict.WRONG, "another")
    file = FeedbackFile("labels.jsonl", [line], dismissed=(Dismissal(2, job_id, "q1"),))

    def work() -> None:
        with engine.begin() as connection:
            store_feedback(connection, file)

    with ThreadPoolExecutor(1) as threads:
        with engine.begin() as holder:
            holder.execute(text("SELECT FROM noisy_cases WHERE question_no = 1 FOR UPDATE"))
            working = threads.submit(work)
            wait_for_waiter()
            with engine.begin() as other:
                free = text("SELECT FROM noisy_cases WHERE question_no = 2 FOR UPDATE SKIP LOCKED")
                assert len(other.execute(free).all()) == 1
        working.result(timeout=60)


def test_pictures_that_swap_their_names_are_locked_together(
    engine: Engine, settings: Settings, wait_for_waiter: Callable[[], None]
) -> None:
    """The bytes of `b` come under the name of `a`: both images are locked at once, that of `a` first."""
    Desk(engine, settings).questions_job(1, per_shard=1)
    with engine.begin() as connection:
        _images(connection)

    def work() -> None:
        with engine.begin() as connection:
            archive.store_images(connection, _archive(connection), [_image("b", "a")])

    with ThreadPoolExecutor(1) as threads:
        with engine.begin() as holder:
            holder.execute(text("SELECT FROM images WHERE source = 'a.png' FOR UPDATE"))
            working = threads.submit(work)
            wait_for_waiter()
            with engine.begin() as other:
                free = text("SELECT FROM images WHERE source = 'b.png' FOR UPDATE SKIP LOCKED")
                assert len(other.execute(free).all()) == 1
        working.result(timeout=60)
