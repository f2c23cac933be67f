"""The faults of a chaos run, by name. Each disturbs a system that answers questions, and heals what it disturbed.

A fault returns when the system is whole again as far as the outside is concerned; what it must recover from is its own
affair. What a fault started beside the questions is checked at the end of the run (`System.checks`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import psutil
import redis
from celery import Celery
from sqlalchemy import select, text

from ragllava.client import ReindexRequest
from ragllava.errors import UsageError
from ragllava.records import Role, Selection
from ragllava.stores.database import in_transaction
from ragllava.stores.learning import registry
from ragllava.stores.learning.registry import AdapterVersion
from ragllava.stores.schema import shards
from tests.chaos.system import ARCHIVE, LEASE_S, System, send
from tests.chaos.up import ANSWER_WORKERS, WORKERS
from tests.support import cut_commits
from tests.support.waiting import wait_for

PAST_LEASE_S = LEASE_S + 2.0
SHORT_S = 4.0
AWAY_S = 120.0  # of the long absence of the database
SECOND_CHAMPION = "chaos-second"

Work = Callable[[System], None]
WorkOn = Callable[[System, str], None]  # on the part of this name


@dataclass(frozen=True, slots=True)
class Fault:
    """`cuts_submit`: the questions of this fault are submitted over a connection that breaks after its COMMIT."""

    name: str
    what: str
    work: Work
    cuts_submit: bool = False


FAULTS: dict[str, Fault] = {}


def fault(name: str, what: str, *, cuts_submit: bool = False) -> Callable[[Work], Work]:
    """Register a fault; `what` is for the table."""

    def register(work: Work) -> Work:
        FAULTS[name] = Fault(name, what, work, cuts_submit)
        return work

    return register


def family(names: Iterable[str], name: str, what: str) -> Callable[[WorkOn], WorkOn]:
    """Register a fault for each of `names`, which replaces `*` in name and text."""

    def register(work: WorkOn) -> WorkOn:
        for part in names:
            fault(name.replace("*", part), what.replace("*", part))(partial(_call, work, part))
        return work

    return register


def _call(work: WorkOn, part: str, system: System) -> None:
    work(system, part)


# Workers.


@fault("kill-child", "SIGKILL the child that answers")
def _kill_child(system: System) -> None:
    send(system.runners(system.busy_worker()), signal.SIGKILL)


@fault("kill-parent", "SIGKILL the parent of a worker that answers, not the child")
def _kill_parent(system: System) -> None:
    send(system.parents(system.busy_worker()), signal.SIGKILL)


@fault("kill-worker", "SIGKILL a worker that answers with its children")
def _kill_worker(system: System) -> None:
    name = system.busy_worker()
    send([*system.children(name), *system.parents(name)], signal.SIGKILL)


@fault("kill-answering", "SIGKILL both workers that answer")
def _kill_answering(system: System) -> None:
    for name in ANSWER_WORKERS:
        send([*system.children(name), *system.parents(name)], signal.SIGKILL)


@family(("maint", "ingest"), "kill-*", "SIGKILL the worker `*` with its children")
def _kill_named(system: System, name: str) -> None:
    send([*system.children(name), *system.parents(name)], signal.SIGKILL)


@fault("stop-worker", "SIGTERM a worker that answers")
def _stop_worker(system: System) -> None:
    send(system.parents(system.busy_worker()), signal.SIGTERM)


@fault("six-deaths", "SIGKILL both workers that answer, six times as soon as they are back")
def _six_deaths(system: System) -> None:
    for _ in range(6):
        wait_for("both workers to run", lambda: all(map(system.parents, ANSWER_WORKERS)), 60)
        _kill_answering(system)


@fault("freeze-child", "SIGSTOP the child that answers past its lease")
def _freeze_child(system: System) -> None:
    with system.frozen(system.runners(system.busy_worker())):
        time.sleep(PAST_LEASE_S)


@fault("freeze-parent", "SIGSTOP the parent of a worker that answers")
def _freeze_parent(system: System) -> None:
    with system.frozen(system.parents(system.busy_worker())):
        time.sleep(PAST_LEASE_S)


@fault("freeze-answering", "SIGSTOP both workers that answer, with their children")
def _freeze_answering(system: System) -> None:
    with system.frozen(process for name in ANSWER_WORKERS for process in system.parents(name) + system.children(name)):
        time.sleep(PAST_LEASE_S)


@fault("freeze-maint", "SIGSTOP the maintenance worker")
def _freeze_maint(system: System) -> None:
    with system.frozen(system.parents("maint")):
        time.sleep(PAST_LEASE_S)


@fault("rows-of-workers", "delete the rows of all workers")
def _rows_of_workers(system: System) -> None:
    with system.client.engine.begin() as connection:
        connection.execute(text("DELETE FROM workers"))


# `ragllava up`.


@fault("kill-up", "SIGKILL `ragllava up`, start it again at once")
def _kill_up(system: System) -> None:
    system.kill_up()
    system.start()
    system.wait_ready()


@fault("freeze-up", "SIGSTOP `ragllava up`, kill a worker meanwhile")
def _freeze_up(system: System) -> None:
    with system.frozen([system.up]):
        _kill_worker(system)
        time.sleep(SHORT_S)


@fault("freeze-everything", "SIGSTOP every process: up, workers, services")
def _freeze_everything(system: System) -> None:
    with system.frozen(system.everything()):
        time.sleep(PAST_LEASE_S)


@fault("kill-everything", "SIGKILL every process: up, workers, services; start up again")
def _kill_everything(system: System) -> None:
    processes = system.everything()
    system.kill_up()
    send(processes, signal.SIGKILL)
    system.start()
    system.wait_ready()


# Services.


@fault("postgres-stop", "immediate stop of Postgres (SIGQUIT)")
def _postgres_stop(system: System) -> None:
    send(system.service("postgres")[:1], signal.SIGQUIT)


@fault("postgres-backend", "SIGKILL the backends of Postgres: it recovers from its log")
def _postgres_backend(system: System) -> None:
    send(system.service("postgres")[1:], signal.SIGKILL)


@fault("postgres-away", "Postgres is away for two minutes")
def _postgres_away(system: System) -> None:
    with system.frozen([system.up]):
        send(system.service("postgres")[:1], signal.SIGQUIT)
        time.sleep(AWAY_S)


@fault("redis-empty", "SIGKILL Redis, which comes back empty")
def _redis_empty(system: System) -> None:
    processes = system.service("redis")
    with system.frozen([system.up]):
        send(processes, signal.SIGKILL)
        wait_for("Redis to end", lambda: not system.service("redis"), 10)
        for file in (system.home.data / "redis").iterdir():
            file.unlink()


@fault("redis-flush", "FLUSHALL")
def _redis_flush(system: System) -> None:
    with _redis(system) as client:
        client.flushall()


@fault("redis-full", "a full Redis: maxmemory reached, noeviction")
def _redis_full(system: System) -> None:
    with _redis(system) as client:
        client.config_set("maxmemory", 1)
        try:
            time.sleep(SHORT_S)
        finally:
            client.config_set("maxmemory", 0)


@fault("s3-kill", "SIGKILL SeaweedFS")
def _store_kill(system: System) -> None:
    send(system.service("s3"), signal.SIGKILL)


@family(("postgres", "redis", "s3"), "freeze-*", "SIGSTOP the service `*` past the lease")
def _freeze_service(system: System, name: str) -> None:
    with system.frozen(system.service(name)):
        time.sleep(PAST_LEASE_S)


# Networks, between the workers and one service.


@family(("postgres", "redis", "s3"), "cut-*", "connections to `*` break, new ones are refused")
def _cut(system: System, name: str) -> None:
    system.proxies[name].cut()
    try:
        time.sleep(SHORT_S)
    finally:
        system.proxies[name].heal()


@family(("postgres", "redis", "s3"), "silent-*", "nothing passes to `*` for longer than the lease, then all of it")
def _silence(system: System, name: str) -> None:
    system.proxies[name].silence()
    try:
        time.sleep(PAST_LEASE_S)
    finally:
        system.proxies[name].heal()


@family(("postgres", "redis", "s3"), "half-open-*", "connections to `*` stay silent, new ones work")
def _half_open(system: System, name: str) -> None:
    proxy = system.proxies[name]
    proxy.silence()
    proxy.heal(half_open=True)
    time.sleep(PAST_LEASE_S)
    if name == "postgres":  # the keepalive of its connections, of which a proxy on one machine knows nothing
        proxy.drop_deaf()


# Disks. A limit on the size of files makes every write fail, as on a full disk, and leaves other programs alone.


@fault("disk-of-workers", "the workers cannot write a byte: logs and temporary files")
def _disk_of_workers(system: System) -> None:
    _fill_disk(lambda: [p for name in WORKERS for p in system.parents(name) + system.children(name)])


@family(("postgres", "redis", "s3"), "disk-of-*", "the service `*` cannot write a byte")
def _disk_of_service(system: System, name: str) -> None:
    _fill_disk(lambda: system.service(name))


def _fill_disk(processes: Callable[[], list[psutil.Process]]) -> None:
    _limit_files(processes(), full=True)
    try:
        time.sleep(SHORT_S)
    finally:
        _limit_files(processes(), full=False)


def _limit_files(processes: list[psutil.Process], *, full: bool) -> None:
    """Set the soft limit alone, which can be taken back; as the account of the process, which may be Postgres's own."""
    limit = "0:" if full else "unlimited:"
    codes = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            user, group = process.uids().real, process.gids().real
            command = ["prlimit", "--pid", str(process.pid), f"--fsize={limit}"]
            if user == os.getuid():
                codes.append(subprocess.run(command, check=False).returncode)
            else:
                limited = subprocess.run(command, check=False, user=user, group=group, extra_groups=[])
                codes.append(limited.returncode)
    assert 0 in codes, "no process could be limited"


# Clocks.


@family(("back", "forward"), "clock-*", "the clocks of the workers jump * by an hour")
def _skew(system: System, direction: str) -> None:
    system.clock.write_text("-3600" if direction == "back" else "3600")
    try:
        time.sleep(SHORT_S)
    finally:
        system.clock.write_text("0")


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
    with _redis(system) as client:
        for queue in ("query", "maint", "ingest"):
            for junk in (b"not a message", b"{}", b'"text"', b'{"body": "eA==", "headers": {}, "properties": {}}'):
                client.lpush(f"ragllava:{queue}", junk)


@fault("messages-lost", "the waiting messages of the answer queue are deleted")
def _lose_messages(system: System) -> None:
    with _redis(system) as client:
        keys = list(client.scan_iter("ragllava:query*"))
        if keys:
            client.delete(*keys)


def _send_messages(system: System, arguments: Iterable[list[object]]) -> None:
    with Celery("forger", broker=system.settings.require_redis(), set_as_current=False) as app:
        app.conf.broker_transport_options = {"global_keyprefix": "ragllava:"}
        for args in arguments:
            app.send_task("ragllava.answer", args=args, queue="query")


# Work beside the questions.


@fault("pause-resume", "pause and resume every open job")
def _pause(system: System) -> None:
    paused = [job.job_id for job in system.client.jobs.list(only_open=True) if job.kind == "answer"]
    for job_id in list(paused):
        try:
            system.client.jobs.pause(job_id)
        except UsageError:  # it has ended
            paused.remove(job_id)
    time.sleep(SHORT_S)
    for job_id in paused:
        system.client.jobs.resume(job_id)


@fault("cancel-other", "cancel another job")
def _cancel(system: System) -> None:
    job_id = _other_job(system, 200)
    time.sleep(0.5)
    system.client.jobs.cancel(job_id)

    def check() -> str | None:
        job = system.client.jobs.get(job_id)
        done = sum(job.progress.by_status.values())
        right = (job.state.value, done) == ("cancelled", 200) and set(job.progress.by_status) <= {
            "answered",
            "cancelled",
        }
        return None if right else f"the cancelled job {job_id} is {job.state} with {job.progress.by_status}"

    system.checks.append(check)


@fault("reindex", "a reindexing of the archive, with a kill of the worker that embeds")
def _reindex(system: System) -> None:
    try:
        job_id = system.client.archives.reindex(ReindexRequest(ARCHIVE, Selection.ALL))
    except UsageError:  # the one that another fault began has not ended
        return
    time.sleep(1.0)
    _kill_named(system, "ingest")
    _expect(system, job_id)


@fault("champion-switch", "another champion, and back")
def _switch_champion(system: System) -> None:
    system.client.models.promote(SECOND_CHAMPION, Role.RERANKER, "chaos")
    time.sleep(1.0)
    champion = system.client.models.rollback(Role.RERANKER)
    assert champion.name != SECOND_CHAMPION


@fault("ingest-beside", "an ingest of new pictures")
def _ingest(system: System) -> None:
    pictures = [system.late_pictures.pop() for _ in range(min(6, len(system.late_pictures)))]
    if pictures:
        _expect(system, system.client.archives.ingest(pictures, ARCHIVE).job_id)


@fault("remove-beside", "the removal of a picture")
def _remove(system: System) -> None:
    with system.client.engine.begin() as connection:
        late = text("SELECT id FROM images WHERE source LIKE 'late%' AND NOT retired ORDER BY id LIMIT 1")
        image_id = connection.scalar(late)
    if image_id is not None:
        with suppress(UsageError):  # a job ingests it just now
            system.client.archives.remove_pictures(ARCHIVE, [str(image_id)])


@fault("ask-beside", "an urgent question beside the bulk job")
def _ask(system: System) -> None:
    row = system.client.questions.ask("an urgent question?", ARCHIVE, timeout_s=60)
    assert row.status.value == "answered", row


@fault("commit-cut", "the connection breaks right after the COMMIT of the submit", cuts_submit=True)
def _commit_cut(_system: System) -> None:
    """The submit has been disturbed already."""


def submit_over_a_cut_connection(system: System, submit: Callable[[], int]) -> int:
    """Submit while the first COMMIT takes effect and its acknowledgement is lost."""
    with cut_commits.cut(system.client.engine, cut_commits.after) as cuts:
        job_id = submit()
    assert cuts == [True]
    return job_id


def register_second_champion(system: System) -> None:
    """A version to switch to. Nothing loads it, so it has no files."""
    version = AdapterVersion(
        role=Role.RERANKER,
        name=SECOND_CHAMPION,
        profile="mini",
        prompt="none",
        adapter_sha256="0" * 64,
        base="fragile",
        training={},
    )
    in_transaction(system.client.engine, registry.register_adapter, version)


def _other_job(system: System, questions: int) -> int:
    lines = (json.dumps({"custom_id": f"other-{n}", "question": f"another question {n}?"}) for n in range(questions))
    return system.client.questions.submit("\n".join(lines).encode(), ARCHIVE).job_id


def _expect(system: System, job_id: int) -> None:
    def check() -> str | None:
        job = system.client.jobs.get(job_id)
        if job.state.value == "completed":
            return None
        return f"job {job_id} ({job.kind}) is {job.state} with {job.progress.by_status}: {job.error}"

    system.checks.append(check)


def _redis(system: System) -> redis.Redis:
    return redis.Redis.from_url(system.settings.require_redis(), socket_timeout=5)
