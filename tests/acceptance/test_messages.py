"""Question files that another program submits by message, with nothing of ours but the address of the broker."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

import migrations
from ragllava.client import Client
from ragllava.errors import ObjectMissing
from ragllava.jobs.states import JobState
from ragllava.local.services import running_services
from ragllava.settings import Settings
from ragllava.stores.archives.archive import ensure_archive
from ragllava.stores.buckets.bindings import BindingRole
from ragllava.stores.objects import ObjectStore
from tests.acceptance.conftest import Cluster
from tests.support.waiting import wait_for
from workers.app import broker_url

pytestmark = pytest.mark.acceptance

FRAGILE = "tests.support.fragile_worker"  # its answers are the questions
ARCHIVE = "holidays"
INBOX = "inbox"
GOOD = '{"custom_id": "a", "question": "first?"}\n{"custom_id": "b", "question": "second?"}\n'
ANSWER_S = 60.0


@dataclass(frozen=True)
class Stranger:
    """A foreign program: it has a Celery client, and a bucket of its own."""

    celery: Celery
    inbox: ObjectStore

    def send(self, *arguments: object, **named: object) -> None:
        """Send the message that workers/events.py documents."""
        self.celery.send_task("ragllava.submit", args=arguments, kwargs=named, queue="maint")

    def put(self, key: str, content: str) -> str:
        """Store a question file; returns its address."""
        self.inbox.put(key, content.encode())
        return f"s3://{INBOX}/{key}"

    def read(self, key: str) -> Any:
        """The JSON under a key, as soon as it is there."""
        wait_for(f"{key} in the inbox", lambda: self.inbox.exists(key), ANSWER_S)
        return json.loads(self.inbox.get(key))

    def keys(self) -> set[str]:
        """Everything in the inbox."""
        return {found.key for found in self.inbox.list_objects("")}


@pytest.fixture(scope="module")
def system() -> Iterator[Cluster]:
    """Services of their own, a worker for the clock and the messages, a worker that needs no models."""
    root = Path(tempfile.mkdtemp(prefix="ragllava-tests-"))
    quick = Settings(home=root / "home", tick_s=0.5, lease_s=10, heartbeat_s=2, submit_prefixes=f"s3://{INBOX}/")
    try:
        with running_services(quick) as settings, closing(Client(settings)) as client:
            migrations.upgrade(settings.require_database_owner(), application_url=settings.require_database())
            with client.engine.begin() as connection:
                ensure_archive(connection, ARCHIVE)
            made = Cluster(settings, root, client)
            try:
                made.start("answer", "query", FRAGILE)
                made.start("maint", "maint", FRAGILE, ticks=True)
                made.wait_ready("answer", "maint")
                yield made
            finally:
                made.stop()
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def stranger(system: Cluster) -> Iterator[Stranger]:
    with Celery("stranger", broker=broker_url(system.settings), set_as_current=False) as app:
        app.conf.broker_transport_options = {"global_keyprefix": "ragllava:"}
        inbox = ObjectStore(system.settings.model_copy(update={"s3_bucket": INBOX}))
        inbox.ensure_bucket()
        yield Stranger(app, inbox)


def logged(system: Cluster, action: str, address: object) -> Callable[[], bool]:
    """Whether the worker has written a line with this action about this address."""
    shown = repr(address) if " " in str(address) else str(address)
    return lambda: any(
        f" {action} " in line and f"address={shown} " in line for line in system.log("maint").splitlines()
    )


def finished(system: Cluster, receipt: dict[str, Any]) -> list[dict[str, Any]]:
    """The result lines of the job that a receipt names, taken from where it says that they are."""
    bucket = f"s3://{system.settings.s3_bucket}/"
    wait_for("the manifest", lambda: system.client.objects.exists(receipt["manifest"].removeprefix(bucket)), ANSWER_S)
    content = system.client.objects.get(receipt["results"].removeprefix(bucket))
    manifest = json.loads(system.client.objects.get(receipt["manifest"].removeprefix(bucket)))
    assert manifest["job"] == receipt["job"]
    assert manifest["files"]["results.jsonl"]["sha256"] == hashlib.sha256(content).hexdigest()
    return [json.loads(line) for line in content.splitlines()]


def test_a_message_makes_a_job_whose_results_are_where_the_receipt_says(system: Cluster, stranger: Stranger) -> None:
    address = stranger.put("today/questions.jsonl", GOOD)
    stranger.send(address, ARCHIVE)
    receipt = stranger.read("today/questions.jsonl.job.json")
    assert (receipt["address"], receipt["total"], receipt["invalid_lines"]) == (address, 2, 0)
    rows = finished(system, receipt)
    assert [(row["custom_id"], row["status"], row["answer"]) for row in rows] == [
        ("a", "answered", "first?"),
        ("b", "answered", "second?"),
    ]
    assert system.client.jobs.get(receipt["job"]).state is JobState.COMPLETED


def test_the_same_message_twice_makes_one_job(system: Cluster, stranger: Stranger) -> None:
    before = len(system.client.jobs.list())
    address = stranger.put("twice.jsonl", GOOD)
    for _ in range(2):
        stranger.send(address, ARCHIVE)

    def answered_twice() -> bool:
        lines = system.log("maint").splitlines()
        return sum(" job_submitted " in line and f"address={address} " in line for line in lines) == 2

    wait_for("both messages to be taken", answered_twice, ANSWER_S)
    assert len(system.client.jobs.list()) == before + 1
    assert len(finished(system, stranger.read("twice.jsonl.job.json"))) == 2


def test_another_file_under_the_same_address_needs_a_key_of_its_own(system: Cluster, stranger: Stranger) -> None:
    address = stranger.put("daily.jsonl", GOOD)
    stranger.send(address, ARCHIVE)
    first = stranger.read("daily.jsonl.job.json")["job"]
    stranger.put("daily.jsonl", '{"question": "another?"}')
    stranger.send(address, ARCHIVE)
    assert f"belongs to job {first}" in stranger.read("daily.jsonl.error.json")["message"]
    stranger.send(address, ARCHIVE, idempotency_key="tuesday")
    wait_for("a new receipt", lambda: stranger.read("daily.jsonl.job.json")["job"] != first, ANSWER_S)
    assert [row["answer"] for row in finished(system, stranger.read("daily.jsonl.job.json"))] == ["another?"]


def test_options_go_with_the_message(system: Cluster, stranger: Stranger) -> None:
    address = stranger.put("options.jsonl", GOOD + "no json\n")
    stranger.send(address, ARCHIVE, {"top_k": 3, "threshold": 0.25}, skip_invalid=True)
    receipt = stranger.read("options.jsonl.job.json")
    assert (receipt["total"], receipt["invalid_lines"]) == (3, 1)
    assert [row["status"] for row in finished(system, receipt)] == ["answered", "answered", "failed"]
    options = system.client.jobs.get(receipt["job"]).spec["options"]
    assert (options["top_k"], options["top_n"], options["threshold"]) == (3, 2, 0.25)


def test_an_invalid_file_is_answered_with_each_invalid_line(system: Cluster, stranger: Stranger) -> None:
    before = len(system.client.jobs.list())
    stranger.send(stranger.put("bad.jsonl", GOOD + "no json\n" + '{"custom_id": "a", "question": "?"}'), ARCHIVE)
    refusal = stranger.read("bad.jsonl.error.json")
    assert refusal["address"] == f"s3://{INBOX}/bad.jsonl"
    assert "line 3" in refusal["message"]
    assert [(error["line"], error["code"]) for error in refusal["errors"]] == [
        (3, "invalid_json_line"),
        (4, "duplicate_custom_id"),
    ]
    assert len(system.client.jobs.list()) == before
    assert not stranger.inbox.exists("bad.jsonl.job.json")


@pytest.mark.parametrize(
    ("name", "archive", "named", "says"),
    [
        ("archive", "nowhere", {}, "there is no archive 'nowhere'"),
        ("no-text", 5, {}, "archive must be text, not 5"),
        ("option", ARCHIVE, {"options": {"topk": 3}}, "options may contain only top_k"),
        ("value", ARCHIVE, {"options": {"top_k": "many"}}, "top_k must be a whole number"),
        ("list", ARCHIVE, {"options": [3]}, "options may contain only top_k"),
        ("flag", ARCHIVE, {"skip_invalid": "yes"}, "skip_invalid must be true or false"),
        ("key", ARCHIVE, {"idempotency_key": 5}, "idempotency_key must be text"),
    ],
)
def test_a_wrong_argument_is_answered_in_one_sentence(
    name: str, archive: object, named: dict[str, object], says: str, system: Cluster, stranger: Stranger
) -> None:
    before = len(system.client.jobs.list())
    stranger.send(stranger.put(f"wrong/{name}.jsonl", GOOD), archive, **named)
    refusal = stranger.read(f"wrong/{name}.jsonl.error.json")
    assert says in refusal["message"]
    assert refusal["errors"] == []
    assert len(system.client.jobs.list()) == before


def test_a_file_that_is_not_there_is_answered_beside_its_place(stranger: Stranger) -> None:
    stranger.send(f"s3://{INBOX}/gone.jsonl", ARCHIVE)
    assert f"there is no {INBOX}/gone.jsonl" in stranger.read("gone.jsonl.error.json")["message"]


@pytest.mark.parametrize(
    "address",
    ["questions.jsonl", "s3://", f"s3://{INBOX}", "s3://No_Bucket!/q.jsonl", "s3://no-such-bucket/q.jsonl", 5, "a b"],
)
def test_a_bad_address_is_a_log_line_and_nothing_else(address: object, system: Cluster, stranger: Stranger) -> None:
    jobs, keys = len(system.client.jobs.list()), stranger.keys()
    traces = system.log("maint").count("Traceback")
    stranger.send(address, ARCHIVE)
    wait_for("the refusal in the log", logged(system, "submission_refused", address), ANSWER_S)
    assert len(system.client.jobs.list()) == jobs
    assert stranger.keys() == keys
    with pytest.raises(ObjectMissing):  # nor was a bucket made for a refusal
        stranger.inbox.put_external("s3://no-such-bucket/probe", b"")
    assert system.log("maint").count("Traceback") == traces


def test_a_file_that_no_message_may_name_is_neither_read_nor_answered(system: Cluster, stranger: Stranger) -> None:
    """Whoever can write to the queue must not reach all that the workers' key can read: our own bucket, say."""
    private = ObjectStore(system.settings.model_copy(update={"s3_bucket": "private"}))
    own = system.settings.s3_bucket
    for bucket in (private, system.client.objects):
        bucket.put("q.jsonl", GOOD.encode())
    jobs = len(system.client.jobs.list())
    addresses = ["s3://private/q.jsonl", f"s3://{own}/q.jsonl", f"s3://{INBOX}/../{own}/q.jsonl"]
    for address in addresses:
        stranger.send(address, ARCHIVE)
        wait_for("the refusal in the log", logged(system, "submission_refused", address), ANSWER_S)
    assert len(system.client.jobs.list()) == jobs
    for bucket in (private, system.client.objects):
        assert [found.key for found in bucket.list_objects("q.jsonl")] == ["q.jsonl"], "an answer was written"
    system.client.archives.bind(ARCHIVE, "s3://private/", BindingRole.PICTURES)
    stranger.send(addresses[0], ARCHIVE)
    wait_for("a receipt in the bound bucket", lambda: private.exists("q.jsonl.job.json"), ANSWER_S)


def test_a_message_with_missing_arguments_disturbs_nobody(system: Cluster, stranger: Stranger) -> None:
    stranger.send()
    stranger.send(stranger.put("after.jsonl", GOOD), ARCHIVE)
    assert len(finished(system, stranger.read("after.jsonl.job.json"))) == 2


def has_dropped(system: Cluster, name: str, number: int) -> bool:
    return system.log(name).count(" message_unreadable ") == number


def test_bytes_that_are_no_message_are_dropped_and_the_workers_live(system: Cluster, stranger: Stranger) -> None:
    junk = [b"no message", b"\xff", b"{}", b'"text"', b"5", b'{"body": "eA==", "headers": {}, "properties": {}}']
    with redis.Redis.from_url(system.settings.require_redis()) as broker:
        for queue in ("maint", "query"):
            broker.lpush(f"ragllava:{queue}", *junk)
        wait_for("the junk to be read", lambda: not broker.exists("ragllava:maint", "ragllava:query"), ANSWER_S)
    for name in ("maint", "answer"):
        wait_for("the lines in the log", partial(has_dropped, system, name, len(junk)), ANSWER_S)
        assert system.processes[name].poll() is None
    stranger.send(stranger.put("after-junk.jsonl", GOOD), ARCHIVE)
    assert len(finished(system, stranger.read("after-junk.jsonl.job.json"))) == 2


# What Redis refuses, until it is repaired: how it comes to it, how it is repaired, and what it then says.
REFUSALS: dict[str, tuple[Sequence[str], Sequence[str], str]] = {
    "it is full": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), "OutOfMemoryError"),
    "it is a replica": (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), "read only replica|ReadOnlyError"),
    "its master is away": (
        ("CONFIG", "SET", "replica-serve-stale-data", "no"),
        ("CONFIG", "SET", "replica-serve-stale-data", "yes"),
        "MASTER is down|MasterDownError|ReadOnlyError",
    ),
    "it lacks replicas": (
        ("CONFIG", "SET", "min-replicas-to-write", "1"),
        ("CONFIG", "SET", "min-replicas-to-write", "0"),
        "ResponseError",
    ),
    "rights are gone": (
        ("ACL", "SETUSER", "default", "-@write"),
        ("ACL", "SETUSER", "default", "+@write"),
        "NoPermissionError",
    ),
}


def has_logged(system: Cluster, name: str, start: int, pattern: str) -> bool:
    return re.search(pattern, system.log(name)[start:]) is not None


@pytest.mark.parametrize("way", REFUSALS)
def test_a_redis_that_refuses_ends_no_worker(way: str, system: Cluster, stranger: Stranger) -> None:
    begin, end, error = REFUSALS[way]
    workers = dict(system.processes)
    lines = {name: len(system.log(name)) for name in workers}
    parked = "parked"  # a queue that nobody reads
    stranger.celery.send_task("ragllava.answer", args=[10**12, 1], queue=parked)
    stranger.celery.send_task("ragllava.submit", args=["nowhere", ARCHIVE], queue=parked)
    is_replica = way == "its master is away"
    with redis.Redis.from_url(system.settings.require_redis()) as broker:
        if is_replica:
            broker.execute_command("REPLICAOF", "127.0.0.1", "1")
        try:
            with broker.pipeline(transaction=not is_replica) as pipeline:
                if not is_replica:  # a worker takes its message, and is refused when it notes that it has it
                    for queue in ("maint", "query"):
                        pipeline.rpoplpush(f"ragllava:{parked}", f"ragllava:{queue}")
                pipeline.execute_command(*begin)
                pipeline.execute()
            for name in workers:
                wait_for(f"{name} to be refused", partial(has_logged, system, name, lines[name], error), ANSWER_S)
        finally:
            broker.execute_command(*end)
            if is_replica:
                broker.execute_command("REPLICAOF", "NO", "ONE")
    name = f"after {way}.jsonl".replace(" ", "-")
    stranger.send(stranger.put(name, GOOD), ARCHIVE)
    assert len(finished(system, stranger.read(f"{name}.job.json"))) == 2
    for name, process in workers.items():
        assert process.poll() is None and system.processes[name] is process, system.log(name)[-2000:]
