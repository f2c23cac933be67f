"""Faults of workers, `ragllava up`, services, networks, disks and clocks."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

import psutil
from sqlalchemy import text

from tests.chaos.registry import AWAY_S, PAST_LEASE_S, SHORT_S, family, fault, redis_of
from tests.chaos.system import System, send
from tests.chaos.up import ANSWER_WORKERS, WORKERS
from tests.support.waiting import wait_for

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
def kill_named(system: System, name: str) -> None:
    """Kill a worker by its name."""
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


@fault("postgres-away", "Postgres is away for a minute")
def _postgres_away(system: System) -> None:
    with system.frozen([system.up]):
        send(system.service("postgres")[:1], signal.SIGQUIT)
        time.sleep(AWAY_S)


@fault("redis-empty", "SIGKILL Redis, which comes back empty")
def _redis_empty(system: System) -> None:
    processes = system.service("redis")
    with system.frozen([system.up]):
        send(processes, signal.SIGKILL)
        wait_for("Redis to end", lambda: not system.service("redis"), 60)
        for file in (system.home.data / "redis").iterdir():
            file.unlink()


@fault("redis-flush", "FLUSHALL")
def _redis_flush(system: System) -> None:
    with redis_of(system) as client:
        client.flushall()


@fault("redis-full", "a full Redis: maxmemory reached, noeviction")
def _redis_full(system: System) -> None:
    with redis_of(system) as client:
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
