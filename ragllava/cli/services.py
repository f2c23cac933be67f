"""What stands behind `ragllava up`, `down` and `status`."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

import click
from sqlalchemy import Connection, Engine

import migrations
from ragllava.cli.options import print_problem, print_table
from ragllava.errors import RagllavaError, ServiceUnavailable
from ragllava.jobs import control
from ragllava.jobs.control import JobView
from ragllava.local.fleet import Readiness, WorkerFleet, WorkerSpec, end_orphans
from ragllava.local.service import EmbeddedService
from ragllava.local.services import RECEIVER, LocalServices, ServiceStatus, receiver_problem, service_status
from ragllava.settings import Settings
from ragllava.stores.buckets import change_events
from ragllava.stores.database import in_transaction, make_engine
from ragllava.stores.jobs import workers
from ragllava.stores.jobs.workers import WorkerView

log = logging.getLogger(__name__)

Echo = Callable[[str], None]
SpecsOf = Callable[[Settings], Sequence[WorkerSpec]]

_WORKERS_READY_S = 600.0  # a large model takes minutes to load
_CHECK_S = 1.0
_DOWN_S = 120.0  # what the workers' grace and the services need together


def up(settings: Settings, worker_specs: SpecsOf, echo: Echo) -> None:
    """Services, migration, workers; then stay until Ctrl-C or SIGTERM, and stop all that was started.

    One line for each service and worker when it is ready. Raises AlreadyRunning when another process runs this
    home, ServiceUnavailable when something does not come up.
    """
    with stop_signals() as stop, running_system(settings, worker_specs, echo, stop) as system:
        if not stop.is_set():
            echo(f"everything runs from {system.services.home.root}; Ctrl-C stops it")
        _supervise(system, stop, echo)


@dataclass(frozen=True, slots=True)
class RunningSystem:
    """What `running_system` has started; `settings` hold the addresses."""

    settings: Settings
    services: LocalServices
    fleet: WorkerFleet


@contextmanager
def running_system(
    settings: Settings, worker_specs: SpecsOf, echo: Echo, stop: threading.Event
) -> Iterator[RunningSystem]:
    """Services, migrated database and ready workers for the time of a `with` block; all is stopped at its end.

    Waiting for the workers ends early when `stop` is set. Raises AlreadyRunning, ServiceUnavailable.
    """
    specs = worker_specs(settings)
    services = LocalServices(settings, events=True)
    running = services.start(on_ready=lambda service: echo(_ready_line(service)))
    try:
        migrations.upgrade(running.require_database())
        engine = make_engine(running.require_database(), pool_size=1, name="ragllava-up")
        specs = [*specs, receiver_spec(services)]
        fleet = WorkerFleet(services.home, specs, is_ready=_readiness(engine, services))
        try:
            fleet.start()
            fleet.wait_until_ready(_WORKERS_READY_S, _worker_echo(echo), cancelled=stop.is_set)
            yield RunningSystem(running, services, fleet)
        finally:
            echo("stopping the workers, which hand back what they have not finished")
            fleet.stop()
            engine.dispose()
    finally:
        services.stop()
        echo("stopped")


def down(settings: Settings, echo: Echo) -> None:
    """Stop the `ragllava up` of this home, or what a killed one left behind.

    Raises ServiceUnavailable when it does not stop.
    """
    services = LocalServices(settings)
    owner = services.owner()
    if owner is not None and owner.alive:
        os.kill(owner.pid, signal.SIGTERM)
        deadline = time.monotonic() + _DOWN_S
        while services.owner() is not None:
            if time.monotonic() >= deadline:
                raise ServiceUnavailable(
                    f"process {owner.pid} was asked to stop {_DOWN_S:.0f} s ago and still runs the services of "
                    f"{services.home.root}; end it with `kill -9 {owner.pid}` and say `ragllava down` again"
                )
            time.sleep(0.1)
        echo(f"stopped process {owner.pid}")
    left = services.stop_leftovers()
    orphans = end_orphans(services.home)
    if orphans:
        left.append(f"{orphans} worker processes")
    if left:
        echo(f"stopped what was left running: {', '.join(left)}")
    elif owner is None:
        echo(f"nothing runs in {services.home.root}")


@dataclass(frozen=True, slots=True)
class SystemStatus:
    """What `ragllava status` shows."""

    home: str
    owner_pid: int | None  # of the running `ragllava up`
    services: list[ServiceStatus]
    workers: list[WorkerView]
    jobs: list[JobView]  # the open ones
    events: dict[str, int]  # counters of what buckets have told
    problem: str | None  # why there are no workers and jobs to show

    @property
    def is_healthy(self) -> bool:
        """Every service answers and the database could be read."""
        return self.problem is None and all(service.answers for service in self.services)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "home": self.home,
            "owner_pid": self.owner_pid,
            "healthy": self.is_healthy,
            "problem": self.problem,
            "services": [asdict(service) for service in self.services],
            "workers": [
                {**asdict(worker), "started_at": worker.started_at.isoformat(), "is_ready": worker.is_ready}
                for worker in self.workers
            ],
            "open_jobs": [job.as_json() for job in self.jobs],
            "events": self.events,
        }


def status(settings: Settings) -> SystemStatus:
    """Ask every service, then the database for workers and open jobs. Never raises for what does not run."""
    services = service_status(settings)
    local = LocalServices(settings)
    owner = local.owner()
    worker_views: list[WorkerView] = []
    jobs: list[JobView] = []
    events: dict[str, int] = {}
    problem = None
    try:
        engine = make_engine(settings.require_database(), pool_size=1, name="ragllava-status")
        try:
            if migrations.current(settings.require_database()) is None:
                raise ServiceUnavailable("the database has no tables yet; run `ragllava migrate` or `ragllava up`")
            worker_views = in_transaction(engine, workers.list_workers)
            jobs = in_transaction(engine, control.list_jobs, only_open=True)
            events = in_transaction(engine, _events)
        finally:
            engine.dispose()
    except RagllavaError as error:
        problem = str(error)
    home = str(local.home.root)
    return SystemStatus(home, owner.pid if owner else None, services, worker_views, jobs, events, problem)


def _events(connection: Connection) -> dict[str, int]:
    return change_events.totals(connection) | {"waiting": change_events.count_waiting(connection)}


def is_worker_ready(settings: Settings, name: str) -> bool:
    """Whether the worker `NAME@this host` has loaded its models and was seen within its last three beats
    (docs/reliability.md D17)."""
    engine = make_engine(settings.require_database(), pool_size=1, name="ragllava-health")
    try:
        return worker_readiness(engine)(name, 3 * settings.tick_s)
    finally:
        engine.dispose()


def print_status(found: SystemStatus) -> None:
    """The status as tables for people."""
    from rich.table import Table

    by = f"process {found.owner_pid}" if found.owner_pid else "nobody"
    click.echo(f"home {found.home}, run by {by}")
    table = Table("service", "address", "answers", "version, or what is wrong")
    for service in found.services:
        kind = service.title if service.embedded else f"{service.title} (yours)"
        table.add_row(kind, service.address or "-", "yes" if service.answers else "no", service.detail)
    print_table(table)
    if found.problem is not None:
        print_problem(found.problem)
        return
    table = Table("worker", "queues", "slots", "state", "ready", "seen")
    for worker in found.workers:
        ready = "yes" if worker.is_ready else "no"
        seen = f"{worker.age_s:.0f} s ago"
        table.add_row(worker.name, ", ".join(worker.queues), str(worker.slots), worker.state, ready, seen)
    print_table(table) if found.workers else click.echo("no workers")
    table = Table("job", "kind", "archive", "state", "done", "of")
    for job in found.jobs:
        done, total = str(job.progress.done), str(job.progress.total)
        table.add_row(str(job.job_id), job.kind, job.archive, job.state, done, total)
    print_table(table) if found.jobs else click.echo("no open jobs")
    if any(found.events.values()):
        click.echo("events: " + ", ".join(f"{number} {name}" for name, number in found.events.items()))


def worker_readiness(engine: Engine) -> Callable[[str, float], bool]:
    """Whether the worker `NAME@this host` has reported ready since it was started."""
    host = socket.gethostname()

    def is_ready(name: str, running_for_s: float) -> bool:
        # A row of a killed predecessor is older than this process.
        rows = in_transaction(engine, workers.list_workers)
        return any(row.name == f"{name}@{host}" and row.is_ready and row.age_s < running_for_s for row in rows)

    return is_ready


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Ctrl-C, SIGTERM and a closed terminal raise KeyboardInterrupt in the block: once, and not with the event set."""
    uninterruptible = threading.Event()

    def interrupt() -> None:
        if not uninterruptible.is_set():
            uninterruptible.set()
            raise KeyboardInterrupt

    with _when_told_to_stop(interrupt):
        yield uninterruptible


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C, SIGTERM and a closed terminal set, in place of what they did before."""
    stop = threading.Event()
    with _when_told_to_stop(stop.set):
        yield stop


@contextmanager
def _when_told_to_stop(react: Callable[[], None]) -> Iterator[None]:
    def handle(_number: int, _frame: FrameType | None) -> None:
        react()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def receiver_spec(services: LocalServices) -> WorkerSpec:
    """The receiver of events, at the port to which the embedded object store sends them."""
    command = (sys.executable, "-m", "ragllava", "receiver", "--port", str(services.receiver_port))
    return WorkerSpec(RECEIVER, command)


def _readiness(engine: Engine, services: LocalServices) -> Readiness:
    of_workers = worker_readiness(engine)

    def is_ready(name: str, running_for_s: float) -> bool:
        return receiver_problem(services.receiver_port) is None if name == RECEIVER else of_workers(name, running_for_s)

    return is_ready


def _supervise(system: RunningSystem, stop: threading.Event, echo: Echo) -> None:
    reported: set[str] = set()
    while not stop.wait(_CHECK_S):
        for news in system.services.revive():
            echo(news)
        system.fleet.check()
        for loss in system.fleet.lost():
            if loss not in reported:
                reported.add(loss)
                echo(loss)


def _ready_line(service: EmbeddedService) -> str:
    how = "taken over" if service.adopted else "ready"
    return f"{service.title:<12} {service.address:<22} {how} in {service.ready_after_s:.1f} s"


def _worker_echo(echo: Echo) -> Callable[[str, int, float], None]:
    def line(name: str, pid: int, seconds: float) -> None:
        echo(f"{'worker':<12} {name + ' ' + str(pid):<22} ready in {seconds:.1f} s")

    return line
