"""Twenty bindings, of which one is poisoned: the other nineteen are as quick as without."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pyarrow import array, binary, parquet, schema, string, table
from sqlalchemy import Engine, event, func, select, text, update

from ragllava.errors import ServiceUnavailable, SettingsError
from ragllava.settings import Settings
from ragllava.stages.answer.slow_reads import SlowReads
from ragllava.stages.buckets import apply_changes, inbox, observing, scanning, sync
from ragllava.stages.buckets.sync import ProcessedEvents
from ragllava.stages.ingest.uris import MAX_URI
from ragllava.stores.archives import archive
from ragllava.stores.buckets import bindings, change_events
from ragllava.stores.buckets.bindings import Binding, BindingRole
from ragllava.stores.objects import ExternalContent, ObjectInfo, ObjectStore
from ragllava.stores.schema import bindings as binding_table
from ragllava.stores.schema import bound_objects as object_table
from ragllava.stores.schema import change_events as event_table
from ragllava.stores.schema import jobs
from tests.support.foreign_bucket import Bucket, make_bucket
from tests.support.waiting import wait_for
from workers import schedule
from workers.runtime import Runtime

BINDINGS = 20
BAD = 7
QUESTION = b'{"question": "What is it?"}\n'


class Store(ObjectStore):
    """A store that raises `error` for every object under `bad`, and refuses nothing else."""

    bad = "no prefix"
    error: Exception = RuntimeError("a defect")

    def stat_external(self, bucket: str, key: str) -> ObjectInfo:
        self._check(key)
        return super().stat_external(bucket, key)

    def list_external(self, bucket: str, prefix: str) -> Iterator[ObjectInfo]:
        self._check(prefix)
        yield from super().list_external(bucket, prefix)

    def read_external(self, bucket: str, key: str, max_bytes: int = 2**20) -> ExternalContent:
        self._check(key)
        return super().read_external(bucket, key, max_bytes)

    def _check(self, key: str) -> None:
        if key.startswith(self.bad):
            raise self.error


@dataclass
class Streets:
    """Twenty archives, each bound to a prefix of one bucket with one picture or question file under it."""

    engine: Engine
    settings: Settings
    objects: Store
    bucket: Bucket
    bindings: list[Binding]
    monkeypatch: pytest.MonkeyPatch

    def put(self, number: int, name: str, data: bytes) -> None:
        """Put an object under a binding and record its event."""
        key = f"{self.bindings[number].prefix}{name}"
        self.bucket.put(key, data)
        self.event(key)

    def event(self, key: str) -> None:
        with self.engine.begin() as connection:
            change_events.record(connection, [(self.bucket.name, key)])

    def set_binding(self, **values: Any) -> None:
        """Write columns of the bad binding, as another version of the program could have."""
        with self.engine.begin() as connection:
            mine = binding_table.c.id == self.bindings[BAD].binding_id
            connection.execute(update(binding_table).where(mine).values(values))

    def process_events(self) -> ProcessedEvents:
        return sync.process_events(self.engine, self.settings, self.objects, SlowReads())

    def archives_with_job(self) -> set[int]:
        """The numbers of the bindings whose archive has a job."""
        with self.engine.begin() as connection:
            ids = set(connection.scalars(select(jobs.c.archive_id)))
        return {number for number, binding in enumerate(self.bindings) if binding.archive_id in ids}

    def end_ingest_jobs(self) -> None:
        """Give every file an outcome."""
        with self.engine.begin() as connection:
            connection.execute(text("UPDATE files SET status = 'rejected', reason = 'a test' WHERE status IS NULL"))

    def waiting(self) -> set[int]:
        """The numbers of the bindings with a picture that is being ingested."""
        with self.engine.begin() as connection:
            query = select(object_table.c.binding_id).where(object_table.c.file_no.is_not(None))
            ids = set(connection.scalars(query))
        return {number for number, binding in enumerate(self.bindings) if binding.binding_id in ids}

    def faults(self) -> list[Any]:
        from ragllava.stores.maintenance.faults import list_faults

        with self.engine.begin() as connection:
            return list_faults(connection)

    def statements(self, work: Callable[[], object]) -> int:
        """How many statements `work` executes."""
        count = 0

        def counted(*_arguments: object) -> None:
            nonlocal count
            count += 1

        event.listen(self.engine, "before_cursor_execute", counted)
        try:
            work()
        finally:
            event.remove(self.engine, "before_cursor_execute", counted)
        return count


def make_streets(engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch, role: BindingRole) -> Streets:
    bucket = make_bucket(settings)
    with engine.begin() as connection:
        made = [
            bindings.bind(
                connection,
                archive.ensure_archive(connection, f"street-{number:02}").archive_id,
                role,
                bucket.name,
                f"{number:02}/",
                {"outbox": f"s3://{bucket.name}/out/"} if role is BindingRole.INBOX else {},
            )
            for number in range(BINDINGS)
        ]
    return Streets(engine, settings, Store(settings), bucket, made, monkeypatch)


@pytest.fixture
def streets(engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Streets:
    return make_streets(engine, settings, monkeypatch, BindingRole.PICTURES)


@pytest.fixture
def inboxes(engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Streets:
    return make_streets(engine, settings, monkeypatch, BindingRole.INBOX)


def long_number(streets: Streets) -> None:
    captions = b'[{"image": "a.png", "caption": "x", "n": ' + b"9" * 4_301 + b"}]"
    streets.put(BAD, "captions.json", captions)


def long_number_line(streets: Streets) -> None:
    streets.put(BAD, "captions.jsonl", b'{"image": "a.png", "caption": "x", "n": ' + b"9" * 4_301 + b"}")


def long_number_as_name(streets: Streets) -> None:
    streets.put(BAD, "captions.json", b'[{"image": ' + b"9" * 4_300 + b', "caption": "x"}]')


def bad_utf8_parquet(streets: Streets) -> None:
    stream = io.BytesIO()
    columns = {"image": array([b"a.png"], binary()), "caption": array([b"\xff\xfe bad"], binary())}
    stored = table(columns).cast(schema([("image", string()), ("caption", string())]), safe=False)
    parquet.write_table(stored, stream)
    streets.put(BAD, "captions.parquet", stream.getvalue())


def dotted_key(streets: Streets) -> None:
    streets.event(f"{BAD:02}/a/../b.png")


def long_key(streets: Streets) -> None:
    streets.event(f"{BAD:02}/{'x' * 1_100}.png")


def huge_nesting(streets: Streets) -> None:
    streets.put(BAD, "captions.json", b"[" * 200_000)


def no_bucket(streets: Streets) -> None:
    streets.set_binding(bucket="no-such-bucket-here")
    with streets.engine.begin() as connection:
        change_events.record(connection, [("no-such-bucket-here", f"{BAD:02}/a.png")])


def impossible_bucket(streets: Streets) -> None:
    streets.set_binding(bucket="Not..a_Bucket!")
    with streets.engine.begin() as connection:
        change_events.record(connection, [("Not..a_Bucket!", f"{BAD:02}/a.png")])


def raising(error: Exception) -> Callable[[Streets], None]:
    def poison(streets: Streets) -> None:
        streets.objects.bad, streets.objects.error = f"{BAD:02}/", error

    return poison


def defect_in(module: Any, name: str, error: Exception) -> Callable[[Streets], None]:
    """A function that fails for the bad binding only."""

    def poison(streets: Streets) -> None:
        original = getattr(module, name)

        def failing(*args: Any, **kwargs: Any) -> Any:
            bad = streets.bindings[BAD]
            for value in (*args, *kwargs.values()):
                if value in (bad, bad.archive_id):
                    raise error
            return original(*args, **kwargs)

        streets.monkeypatch.setattr(module, name, failing)

    return poison


PICTURE_POISONS: dict[str, Callable[[Streets], None]] = {
    "nothing": lambda streets: None,
    "a number of 4,301 digits": long_number,
    "a number of 4,301 digits in a line": long_number_line,
    "a number of 4,300 digits as a name": long_number_as_name,
    "Parquet with bad UTF-8": bad_utf8_parquet,
    "a key with two dots": dotted_key,
    "a key of 1,100 bytes": long_key,
    "200,000 brackets": huge_nesting,
    "no such bucket": no_bucket,
    "an impossible bucket": impossible_bucket,
    "access denied": raising(SettingsError("AccessDenied")),
    "a store that is away for it": raising(ServiceUnavailable("it does not answer")),
    "a defect when it is observed": raising(RuntimeError("a defect")),
    "no memory when it is observed": raising(MemoryError()),
    "a defect when its job is made": defect_in(apply_changes, "create_ingest", ValueError("a defect")),
    "a defect in its metadata": defect_in(observing, "kind_of", KeyError("a defect")),
    "a full disk when captions are read": raising(OSError(28, "No space left on device")),
}


@pytest.mark.parametrize("poison", PICTURE_POISONS.values(), ids=PICTURE_POISONS)
def test_pictures_of_the_other_bindings_are_ingested_at_the_first_tick(
    streets: Streets, poison: Callable[[Streets], None]
) -> None:
    for number in range(BINDINGS):
        streets.put(number, "a.png", b"not looked at here")
    poison(streets)
    clean = set(range(BINDINGS)) - {BAD}
    processed = streets.process_events()
    assert streets.archives_with_job() >= clean
    assert len(processed.changes.added) >= len(clean)
    streets.end_ingest_jobs()
    streets.process_events()
    assert streets.waiting() <= {BAD}, "the outcomes of the others are recorded at the next tick"
    with streets.engine.begin() as connection:
        connection.execute(update(event_table).values(not_before=func.now()))
    for number in clean:
        streets.put(number, "b.png", b"not looked at here either")
    assert len(streets.process_events().changes.added) >= len(clean)
    if poison is not PICTURE_POISONS["nothing"] and poison not in (dotted_key, long_key, long_number_as_name):
        assert streets.faults(), "the reason is recorded"
        assert (
            str(BAD) in streets.faults()[0].subject
            or "no-such" in streets.faults()[0].subject
            or ("Not..a" in streets.faults()[0].subject)
        )


def no_outbox(streets: Streets) -> None:
    streets.set_binding(options={})


def unknown_answer_options(streets: Streets) -> None:
    streets.set_binding(options={"outbox": f"s3://{streets.bucket.name}/out/", "answer": {"no such": 1}})


def long_result_key(streets: Streets) -> None:
    folders = "/".join(["f" * 200] * 4)
    streets.set_binding(options={"outbox": f"s3://{streets.bucket.name}/out/{'o' * 200}/"})
    streets.put(BAD, f"{folders}/b.jsonl", QUESTION)


def long_number_in_a_question(streets: Streets) -> None:
    streets.put(BAD, "b.jsonl", b'{"question": "x", "n": ' + b"9" * 4_301 + b"}\n")


INBOX_POISONS: dict[str, Callable[[Streets], None]] = {
    "no outbox": no_outbox,
    "unknown options": unknown_answer_options,
    "keys of results over 1,024 bytes": long_result_key,
    "a number of 4,301 digits": long_number_in_a_question,
    "a defect when it is read": defect_in(inbox, "read_questions", RuntimeError("a defect")),
    "a defect when it is submitted": defect_in(observing, "submit_question_file", RecursionError()),
}


@pytest.mark.parametrize("poison", INBOX_POISONS.values(), ids=INBOX_POISONS)
def test_question_files_of_the_other_inboxes_are_submitted_at_the_first_tick(
    inboxes: Streets, poison: Callable[[Streets], None]
) -> None:
    for number in range(BINDINGS):
        inboxes.put(number, "a.jsonl", QUESTION)
    poison(inboxes)
    inboxes.process_events()
    assert inboxes.archives_with_job() >= set(range(BINDINGS)) - {BAD}


def test_a_poisoned_binding_costs_the_others_no_statement(streets: Streets) -> None:
    def fill(name: str) -> None:
        for number in range(BINDINGS):
            streets.put(number, name, b"not looked at here")

    fill("a.png")
    before = streets.statements(streets.process_events)
    streets.end_ingest_jobs()
    streets.process_events()
    fill("b.png")
    streets.objects.bad = f"{BAD:02}/"
    assert streets.statements(streets.process_events) <= before + 3
    assert [fault.subject for fault in streets.faults()] == [f"s3://{streets.bucket.name}/{BAD:02}/b.png"]


def test_a_bucket_that_hangs_does_not_hold_up_later_events_of_the_others(streets: Streets) -> None:
    is_asked, may_answer = threading.Event(), threading.Event()

    def hang(_store: Store, key: str) -> None:
        if key.startswith(f"{BAD:02}/"):
            is_asked.set()
            assert may_answer.wait(180)  # longer than what the others may take

    streets.monkeypatch.setattr(Store, "_check", hang)
    process = Runtime(streets.settings, streets.engine, cast("Any", SimpleNamespace(objects=streets.objects)))
    streets.monkeypatch.setattr(schedule, "runtime", lambda: process)
    streets.put(BAD, "a.png", b"not looked at here")
    try:
        schedule.run_tick()
        assert is_asked.wait(120)
        clean = set(range(BINDINGS)) - {BAD}
        for number in clean:
            streets.put(number, "a.png", b"not looked at here")
        schedule.run_tick()
        wait_for("jobs of the others", lambda: streets.archives_with_job() == clean, 120)
        may_answer.set()
        wait_for("the job of the bucket that hung", lambda: BAD in streets.archives_with_job(), 120)
    finally:
        may_answer.set()
        for thread in threading.enumerate():
            if thread.name in ("process events", "finish jobs", "webhooks"):
                thread.join(60)


def test_a_binding_that_has_failed_is_processed_last(streets: Streets) -> None:
    order: list[str] = []
    original = sync._process_binding

    def noted(*args: Any) -> Any:
        order.append(args[3].prefix)
        if args[3].prefix == f"{BAD:02}/":
            raise RuntimeError("a defect")
        return original(*args)

    streets.monkeypatch.setattr(sync, "_process_binding", noted)
    for name in ("a.png", "b.png"):
        for number in range(BINDINGS):
            streets.put(number, name, b"not looked at here")
        streets.process_events()
    assert order[BAD] == order[-1] == f"{BAD:02}/"


def test_twenty_bad_objects_do_not_starve_the_others_of_their_binding(streets: Streets) -> None:
    for number in range(30):
        streets.put(BAD, f"bad/{number:02}.png", b"never given")
    for number in range(60):
        streets.put(BAD, f"good/{number:02}.png", b"not looked at here")
    streets.objects.bad, streets.objects.error = f"{BAD:02}/bad/", SettingsError("AccessDenied")
    added: set[str] = set()
    for _ in range(4):
        added.update(streets.process_events().changes.added)
        with streets.engine.begin() as connection:
            connection.execute(update(event_table).values(not_before=func.now()))
    assert len(added) == 60
    faults = streets.faults()
    assert {fault.room for fault in faults} == {"object"} and sum(fault.number for fault in faults) == 30, faults


def test_the_name_of_the_bucket_counts_for_the_longest_address(streets: Streets) -> None:
    bucket = streets.bucket.name
    fits = MAX_URI - len(f"s3://{bucket}/{BAD:02}/.png")
    for length in (fits, fits + 1):
        folders = ("ä" * 40 + "/") * (length // 241)  # 241 characters in an address, 81 bytes in a key
        streets.put(BAD, f"{folders}{'x' * (length % 241)}.png", b"not looked at here")
    streets.process_events()
    with streets.engine.begin() as connection:
        rows = connection.execute(select(object_table.c.reason, object_table.c.file_no)).all()
    assert sorted((reason is None, file_no is None) for reason, file_no in rows) == [(False, True), (True, False)]


def test_a_scan_of_all_archives_compares_the_others(streets: Streets) -> None:
    for number in range(BINDINGS):
        streets.bucket.put(f"{number:02}/a.png", b"not looked at here")
    streets.objects.bad = f"{BAD:02}/"
    reports = scanning.scan(streets.engine, streets.settings, streets.objects)
    assert [report.problem for report in reports].count(None) == BINDINGS - 1
    assert reports[BAD].problem == "RuntimeError: a defect"
    assert streets.archives_with_job() == set(range(BINDINGS)) - {BAD}


def test_a_key_that_the_store_never_gives_is_recorded_once(streets: Streets) -> None:
    store, key = streets.objects, f"{BAD:02}/a/../b.png"

    class Listing(Store):
        def list_external(self, bucket: str, prefix: str) -> Iterator[ObjectInfo]:
            yield from super().list_external(bucket, prefix)
            if prefix == f"{BAD:02}/":
                yield ObjectInfo(key, 3, "etag", store.stat_external(bucket, f"{BAD:02}/a.png").modified_at)

    streets.bucket.put(f"{BAD:02}/a.png", b"not looked at here")
    streets.event(key)
    assert streets.process_events().kept == 0, "trying again cannot help"
    name = streets.bindings[BAD].archive
    report = scanning.scan(streets.engine, streets.settings, Listing(streets.settings), name)[0]
    assert not report.failed and report.listed == 2
    with streets.engine.begin() as connection:
        [row] = connection.execute(select(object_table).where(object_table.c.key == key)).all()
    assert row.kind == "other" and "'..'" in row.reason
    again = scanning.scan(streets.engine, streets.settings, Listing(streets.settings), name)[0]
    assert not again.found_differences and not again.failed


def test_an_outcome_between_observation_and_change_is_kept(streets: Streets, monkeypatch: pytest.MonkeyPatch) -> None:
    """An observation of a caption is not stale because its picture got an image meanwhile; it must not remove that."""
    streets.put(BAD, "a.png", b"not looked at here")
    streets.process_events()
    original = apply_changes.apply_observations

    def settled_first(*args: Any) -> Any:
        streets.end_ingest_jobs()
        sync.settle(streets.engine)
        return original(*args)

    streets.bucket.client.put_object(
        streets.bucket.name, f"{BAD:02}/a.png", io.BytesIO(b"not looked at here"), 18, metadata={"caption": "new"}
    )
    streets.event(f"{BAD:02}/a.png")
    monkeypatch.setattr(sync, "apply_observations", settled_first)
    streets.process_events()
    with streets.engine.begin() as connection:
        [row] = connection.execute(select(object_table)).all()
    assert (row.caption, row.reason, row.file_no) == ("new", "a test", None)
