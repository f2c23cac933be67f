"""Question files in inboxes, with pictures of a host that does not answer: they hold up no other file."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text, update

from ragllava.errors import FetchNeeded, ServiceUnavailable, UsageError
from ragllava.settings import Settings
from ragllava.stages.answer import remote_pictures, slow_reads
from ragllava.stages.answer.remote_pictures import RemotePictures
from ragllava.stages.answer.slow_reads import SlowReads
from ragllava.stages.buckets import scanning, sync
from ragllava.stores.archives import archive
from ragllava.stores.buckets import bindings, change_events
from ragllava.stores.buckets.bindings import Binding, BindingRole
from ragllava.stores.objects import ObjectStore
from ragllava.stores.schema import bound_objects as object_table
from ragllava.stores.schema import change_events as event_table
from ragllava.stores.schema import jobs
from tests.support.foreign_bucket import Bucket, make_bucket
from tests.support.holding import holding
from tests.support.waiting import wait_for

PLAIN = {"question": "What color is the barn?"}
SLOW = PLAIN | {"picture": "https://pictures.invalid/barn.png"}


@dataclass
class Post:
    """Two inboxes, `a/` and `b/`, in a bucket of the test's own."""

    engine: Engine
    settings: Settings
    objects: ObjectStore
    bucket: Bucket
    inboxes: list[Binding]
    slow: SlowReads = field(default_factory=SlowReads)

    def put(self, key: str, *lines: object) -> None:
        """Put a question file and record its event."""
        self.bucket.put(key, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
        with self.engine.begin() as connection:
            change_events.record(connection, [(self.bucket.name, key)])

    def process(self, slow: SlowReads | None = None) -> int:
        """What a pass of a maintenance worker does; returns how many events it took."""
        return sync.process_events(self.engine, self.settings, self.objects, slow or self.slow).change_events

    def make_due(self) -> None:
        """The time of all claims and delays is over, as after the death of a worker."""
        with self.engine.begin() as connection:
            connection.execute(update(event_table).values(not_before=func.now()))

    def jobs(self) -> Counter[str]:
        """How many jobs each question file has, by its key."""
        with self.engine.begin() as connection:
            specs = connection.scalars(select(jobs.c.spec))
            return Counter(spec["input"].removeprefix(f"s3://{self.bucket.name}/") for spec in specs)

    def events(self) -> set[str]:
        """The keys of which something is still to be done."""
        with self.engine.begin() as connection:
            return set(connection.scalars(select(event_table.c.key)))

    def outcome(self, key: str) -> Any:
        """What is recorded of a file: its job and the reason why it has none."""
        with self.engine.begin() as connection:
            query = select(object_table.c.job_id, object_table.c.reason).where(object_table.c.key == key)
            return connection.execute(query).one_or_none()

    def refusals(self) -> int:
        """How many error files are in the outbox."""
        return len(list(self.bucket.client.list_objects(self.bucket.name, "out/", recursive=True)))

    def await_all(self) -> None:
        """Until no file is read any more, by whichever worker."""
        wait_for("the reading threads", lambda: not reading_threads(), 60)


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("read s3://")]


@pytest.fixture
def post(engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Post:
    bucket = make_bucket(settings, "post")
    with engine.begin() as connection:
        archive_id = archive.ensure_archive(connection, "stamps").archive_id
        options = {"outbox": f"s3://{bucket.name}/out/"}
        inboxes = [
            bindings.bind(connection, archive_id, BindingRole.INBOX, bucket.name, prefix, options)
            for prefix in ("a/", "b/")
        ]
    monkeypatch.setattr(RemotePictures, "_address", lambda *_: "192.0.2.1")
    monkeypatch.setattr(remote_pictures, "_received", lambda *_: b"a picture")
    chosen = settings.model_copy(update={"api_picture_hosts": "pictures.invalid"})
    return Post(engine, chosen, ObjectStore(chosen), bucket, inboxes)


def test_a_silent_host_holds_up_no_other_file(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    post.put("a/slow.jsonl", SLOW)
    post.put("a/plain.jsonl", PLAIN)
    post.put("b/plain.jsonl", PLAIN)
    with holding(monkeypatch, RemotePictures, "_address", post.process, asked=1, held=1) as [first]:
        wait_for("the other files", lambda: post.jobs() == {"a/plain.jsonl": 1, "b/plain.jsonl": 1}, 30)
        assert first.result(60) == 3, "the pass ends"
        [thread] = reading_threads()
        assert thread.daemon, "it ends with its process"
        post.put("a/later.jsonl", PLAIN)
        assert post.process(SlowReads()) == 1, "another worker takes the later file, and not the one that is read"
        assert post.jobs() == {"a/plain.jsonl": 1, "b/plain.jsonl": 1, "a/later.jsonl": 1}
        assert post.events() == {"a/slow.jsonl"} and post.outcome("a/slow.jsonl") is None
    post.await_all()
    assert post.jobs()["a/slow.jsonl"] == 1 and post.events() == set()
    assert post.process() == 0


@pytest.mark.parametrize("gets_picture", [True, False])
def test_what_a_worker_has_not_ended_is_taken_up_and_makes_one_job(
    post: Post, monkeypatch: pytest.MonkeyPatch, gets_picture: bool
) -> None:
    """The first worker is gone for longer than its claim, then goes on; the picture may be gone by then."""
    if not gets_picture:
        monkeypatch.setattr(remote_pictures, "_received", refuse)
    post.put("a/slow.jsonl", SLOW)
    with (
        holding(monkeypatch, RemotePictures, "_address", post.process, asked=1, held=1) as [first],
        monkeypatch.context() as other,
    ):
        assert first.result(60) == 1
        other.setattr(RemotePictures, "fetch", lambda *_: fetched())
        post.make_due()
        assert post.process(SlowReads()) == 1, "another worker takes it up"
        wait_for("the job", lambda: post.jobs() == {"a/slow.jsonl": 1} and post.events() == set(), 60)
    post.await_all()
    assert (post.jobs(), post.events(), post.refusals()) == ({"a/slow.jsonl": 1}, set(), 0)
    assert post.outcome("a/slow.jsonl").job_id is not None


def test_a_file_that_another_worker_has_claimed_since_is_left_to_it(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest file comes first. While it is read, the claims run out, and another worker claims all files."""
    for name in ("c", "a", "b"):
        post.put(f"a/{name}.jsonl", SLOW)
    with holding(monkeypatch, RemotePictures, "_address", post.process, asked=1, held=1) as [first]:
        assert first.result(60) == 3
        post.make_due()
        with post.engine.begin() as connection:
            claimed = change_events.claim(connection, 10, 300.0)
        assert [event.key for event in claimed] == ["a/c.jsonl", "a/a.jsonl", "a/b.jsonl"]
    post.await_all()
    assert post.jobs() == {"a/c.jsonl": 1} and post.events() == {"a/a.jsonl", "a/b.jsonl"}
    assert post.process(SlowReads()) == 0, "nobody has postponed what the other worker has claimed"


def test_a_turn_that_fails_leaves_no_file_claimed(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    post.put("a/1.jsonl", SLOW)
    post.put("a/2.jsonl", SLOW)
    with holding(monkeypatch, RemotePictures, "_address", post.process, asked=1, held=1) as [first]:
        assert first.result(60) == 2
        monkeypatch.setattr(sync, "apply_in_parts", fail)
    post.await_all()
    with post.engine.begin() as connection:
        claimed_until = func.now() + text("interval '200 s'")
        assert not connection.scalars(select(event_table.c.key).where(event_table.c.not_before > claimed_until)).all()
    assert post.events() == {"a/1.jsonl", "a/2.jsonl"}


def fail(*_: Any) -> None:
    raise ServiceUnavailable("a test")


def refuse(*_: Any) -> bytes:
    raise UsageError("the host did not send the picture in time")


def fetched() -> bytes:
    """What a host that answers at once sends."""
    if not remote_pictures.may_fetch():
        raise FetchNeeded
    return b"a picture"


def test_a_file_that_is_refused_for_its_picture_is_refused_once(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_pictures, "_received", refuse)
    post.put("a/slow.jsonl", SLOW)
    assert post.process() == 1
    post.await_all()
    assert "did not send the picture" in post.outcome("a/slow.jsonl").reason
    assert (post.jobs(), post.events(), post.refusals(), post.process()) == ({}, set(), 1, 0)


def test_a_scan_leaves_it_to_the_tick(post: Post) -> None:
    for key, line in (("a/slow.jsonl", SLOW), ("a/plain.jsonl", PLAIN)):
        post.bucket.put(key, json.dumps(line).encode())
    report = scanning.scan(post.engine, post.settings, post.objects)[0]
    assert (report.changes.added, report.changes.waiting) == (["a/plain.jsonl"], ["a/slow.jsonl"])
    assert post.jobs() == {"a/plain.jsonl": 1} and post.events() == {"a/slow.jsonl"}
    assert post.process() == 1
    post.await_all()
    assert post.jobs() == {"a/plain.jsonl": 1, "a/slow.jsonl": 1}


def test_inboxes_take_turns(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many at once, and none for longer than its turn."""
    monkeypatch.setattr(sync, "_TURN_S", 0.0)
    post.put("a/1.jsonl", SLOW)
    post.put("a/2.jsonl", SLOW)
    with monkeypatch.context() as full:
        full.setattr(slow_reads, "_AT_ONCE", 0)
        assert post.process() == 2
    assert not reading_threads() and post.events() == {"a/1.jsonl", "a/2.jsonl"}
    for number in (1, 2):
        post.make_due()
        post.process()
        post.await_all()
        assert sum(post.jobs().values()) == number
    assert post.jobs() == {"a/1.jsonl": 1, "a/2.jsonl": 1} and post.events() == set()


def test_an_inbox_that_found_no_place_comes_before_one_that_had_it(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "_TURN_S", 0.0)
    monkeypatch.setattr(slow_reads, "_AT_ONCE", 1)
    for key in ("a/1.jsonl", "a/2.jsonl", "b/1.jsonl"):
        post.put(key, SLOW)
    with holding(monkeypatch, RemotePictures, "_address", post.process, asked=1, held=1) as [first]:
        assert first.result(60) == 3
    post.await_all()
    for done in ({"a/1.jsonl", "b/1.jsonl"}, {"a/1.jsonl", "b/1.jsonl", "a/2.jsonl"}):
        post.make_due()
        post.process()
        post.await_all()
        assert set(post.jobs()) == done
