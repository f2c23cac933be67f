"""Faults that come from outside: messages, other accounts of the machine, and other sessions of the database."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from celery import Celery
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError

from ragllava.jobs import queue
from ragllava.jobs.retry import Limits
from ragllava.local.home import Home
from ragllava.stores.database import in_transaction
from ragllava.stores.schema import shards
from tests.chaos.registry import SHORT_S, expect_completed, fault, other_job, redis_of
from tests.chaos.system import ARCHIVE, System
from tests.support import strangers
from workers.app import broker_url

# Messages.


@fault("messages-repeated", "the message of every shard three times, in any order")
def _repeat_messages(system: System) -> None:
    with system.client.engine.begin() as connection:
        ids = list(connection.scalars(select(shards.c.id).order_by(shards.c.id)).all())[-200:] * 3
    system.random.shuffle(ids)
    _send_messages(system, [[number, 1] for number in ids])


@fault("messages-forged", "messages of no shard, of another version, of other types, and bytes that are no message")
def _forge_messages(system: System) -> None:
    forged: list[list[object]] = [[10**12, 1], [-1, 1], [1, 99], ["1", 1], [None, None], [], [1], [{"a": 1}, 1]]
    _send_messages(system, [*forged, [2**70, 1]])
    with redis_of(system) as client:
        for queue in ("query", "maint", "ingest"):
            for junk in (b"not a message", b"{}", b'"text"', b'{"body": "eA==", "headers": {}, "properties": {}}'):
                client.lpush(f"ragllava:{queue}", junk)


@fault("messages-lost", "the waiting messages of the answer queue are deleted")
def _lose_messages(system: System) -> None:
    with redis_of(system) as client:
        keys = list(client.scan_iter("ragllava:query*"))
        if keys:
            client.delete(*keys)


def _send_messages(system: System, arguments: Iterable[list[object]]) -> None:
    with _forger(system) as app:
        for args in arguments:
            app.send_task("ragllava.answer", args=args, queue="query")


def _forger(system: System) -> Celery:
    app = Celery("forger", broker=broker_url(system.settings), set_as_current=False)
    app.conf.broker_transport_options = {"global_keyprefix": "ragllava:"}
    return app


@fault("submits-forged", "messages that submit files of the system's own bucket, and of no bound one")
def _forge_submits(system: System) -> None:
    own = system.settings.s3_bucket
    system.client.objects.put("jobs/questions.jsonl", b'{"question": "who sent this?"}')
    with _forger(system) as app:
        for address in (f"s3://{own}/jobs/questions.jsonl", "s3://elsewhere/q.jsonl", f"s3://a/../{own}/q.jsonl", "?"):
            app.send_task("ragllava.submit", args=[address, ARCHIVE], queue="maint")

    def check() -> str | None:
        written = [info.key for info in system.client.objects.list_objects("jobs/questions.jsonl")]
        return None if written == ["jobs/questions.jsonl"] else f"a forged submit was answered: {written}"

    system.checks.append(check)


# Other accounts of the machine.


@fault("stranger", "another account tries to hold `up.lock`, asks every port, and floods ports and sockets")
def _stranger(system: System) -> None:
    state = system.home.load_state().ports
    ports = [port for chosen in state.values() for port in chosen] + [port + 10_000 for port in state["s3"]]
    is_root = os.geteuid() == 0  # nobody else can become another account
    reach = partial(_reach, system.home if is_root else None, ports)
    system.folder.chmod(0o755)  # as the folders of most people
    try:
        reached = strangers.as_nobody(reach) if is_root else reach()
        if is_root:
            with strangers.flood(ports, [path for path in system.home.root.rglob("*") if path.is_socket()]):
                time.sleep(SHORT_S)
    finally:
        system.folder.chmod(0o700)
    assert reached == [], f"another account reached {reached}"


def _reach(home: Home | None, ports: list[int]) -> list[str]:
    """What an account without a password gets, within a few seconds."""
    reached: list[str] = []
    with suppress(OSError):
        if home is not None:
            with home.lock_file.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                reached.append("up.lock")
    for port in ports:
        for request in (b"GET /dir/status HTTP/1.0\r\n\r\n", b"PING\r\n", b""):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0) as client:
                client.sendall(request)
                if request and (client.recv(12) in (b"HTTP/1.0 200", b"HTTP/1.1 200", b"+PONG\r\n")):
                    reached.append(f"port {port}")
    return reached


# Locks.


@fault("deadlocks", "a session locks running shards before their jobs, the other way round than all others")
def _deadlocks(system: System) -> None:
    end = time.monotonic() + SHORT_S
    while time.monotonic() < end:
        with suppress(OperationalError), system.client.engine.begin() as connection:
            running = text("SELECT job_id FROM shards WHERE state = 'running' FOR UPDATE")
            job_ids = list(connection.scalars(running))
            time.sleep(0.3)  # workers that end their shards meanwhile have locked the job, and wait for us
            jobs = text("SELECT FROM jobs WHERE id = ANY(:ids) ORDER BY id FOR NO KEY UPDATE")
            connection.execute(jobs, {"ids": job_ids})


FAILING = 8


@fault("eight-failures", "eight workers fail at once on shards of one job, which are halved")
def _eight_failures(system: System) -> None:
    job_id = other_job(system, 200)
    engine, lease_s = system.client.engine, system.settings.lease_s
    limits = Limits(max_attempts=1, max_transient_attempts=1, backoff_s=0.0)
    with engine.begin() as connection:
        ids = connection.scalars(_QUEUE_SOME, {"job": job_id, "number": FAILING}).all()
    claimed = [in_transaction(engine, queue.claim, number, f"failing-{number}", lease_s) for number in ids]
    leases = [lease for lease in claimed if lease is not None]
    assert leases, "the other workers were faster"
    barrier = threading.Barrier(len(leases))

    def fail(lease: queue.Lease) -> None:
        barrier.wait()
        with engine.begin() as connection:  # without the repetition of in_transaction: a deadlock is an error
            queue.fail(connection, lease, "a chaos run", limits)

    with ThreadPoolExecutor(len(leases)) as threads:
        list(threads.map(fail, leases))
    expect_completed(system, job_id)


_QUEUE_SOME = text("""
    UPDATE shards SET state = 'queued', queued_at = now() WHERE id IN (
        SELECT id FROM shards WHERE job_id = :job AND state = 'pending' ORDER BY id DESC LIMIT :number
        FOR UPDATE SKIP LOCKED
    ) RETURNING id
""")
