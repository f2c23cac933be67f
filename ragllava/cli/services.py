"""The work of `ragllava up`, `down` and `status`."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

import migrations
from ragllava.cli.console import base_url
from ragllava.cli.options import Problem, as_time, make_table
from ragllava.client import Client, Fault, HeldRemoval, JobView, WorkerView
from ragllava.errors import RagllavaError, ServiceUnavailable
from ragllava.local.fleet import WorkerFleet, WorkerSpec, end_orphans
from ragllava.local.processes import wait
from ragllava.local.service import EmbeddedService
from ragllava.local.services import (
    API,
    RECEIVER,
    LocalServices,
    ServerAddress,
    ServiceStatus,
    server_problem,
    service_status,
    worker_troubles,
)
from ragllava.settings import Settings

Echo = Callable[[str], None]
SpecsOf = Callable[[Settings], Sequence[WorkerSpec]]

_WORKERS_READY_S = 600.0  # a large model takes minutes to load
_CHECK_S = 1.0
_ARCHIVES_LOOKED_AT = 50  # each takes some milliseconds
_YES_NO = {True: "yes", False: "no"}
_DOWN_S = 120.0  # what the workers' grace and the services need together


def up(settings: Settings, worker_specs: SpecsOf, echo: Echo) -> None:
    """Start services, migrate, start workers; keep them running until Ctrl-C or SIGTERM, then stop them.

    Prints one line for each service and worker when it is ready. Raises AlreadyRunning when another process runs this
    home, ServiceUnavailable when something does not start.
    """
    stop = threading.Event()
    with on_stop_signals(stop.set), running_system(settings, worker_specs, echo, stop) as system:
        if not stop.is_set():
            echo(f"everything runs from {system.services.home.root}; Ctrl-C stops it")
            if system.settings.api_database() is not None:
                echo(f"the console is at {base_url(system.settings)}/console; `ragllava console` prints a link to it")
        while not stop.wait(_CHECK_S):
            for line in system.services.revive() + system.fleet.check():
                echo(line)


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
    """Services, a migrated database and ready workers for the length of a block, stopped at its end.

    Waiting for the workers ends early when `stop` is set. Raises AlreadyRunning, ServiceUnavailable.
    """
    specs = list(worker_specs(settings))
    services = LocalServices(settings, events=True)

    def echo_service(service: EmbeddedService) -> None:
        how = "taken over" if service.adopted else "ready"
        echo(f"{service.title:<12} {service.address:<22} {how} in {service.ready_after_s:.1f} s")

    def echo_worker(name: str, pid: int, seconds: float) -> None:
        echo(f"{'worker':<12} {f'{name} {pid}':<22} ready in {seconds:.1f} s")

    running = services.start(on_ready=echo_service)
    try:
        migrations.upgrade(
            running.require_database_owner(),
            application_url=running.require_database(),
            api_url=running.api_database(),
        )
        with Client(running, name="ragllava-up", pool_size=1) as client:
            servers = {RECEIVER: services.receiver}
            if running.api_database() is not None:
                servers[API] = services.api

            def is_ready(name: str, running_for_s: float) -> bool:
                if (address := servers.get(name)) is not None:
                    return server_problem(address) is None
                return has_reported_ready(client, name, running_for_s)

            specs += [_server_spec(name, address) for name, address in servers.items() if address is not None]
            fleet = WorkerFleet(services.home, specs, is_ready=is_ready)
            try:
                fleet.start()
                fleet.wait_until_ready(_WORKERS_READY_S, echo_worker, cancelled=stop.is_set, on_news=echo)
                yield RunningSystem(running, services, fleet)
            finally:
                echo("stopping the workers, which hand back unfinished work")
                fleet.stop()
    finally:
        services.stop()
        echo("stopped")


def _server_spec(name: str, address: ServerAddress) -> WorkerSpec:
    command = {RECEIVER: "receiver", API: "serve"}[name]
    return WorkerSpec(name, (sys.executable, "-m", "ragllava", command, *address.options))


def down(settings: Settings, echo: Echo) -> None:
    """Stop the `ragllava up` of this home, or what a killed one left behind.

    Raises ServiceUnavailable when it does not stop.
    """
    services = LocalServices(settings)
    owner = services.lock.owner()
    if owner is not None:
        owner.send_signal(signal.SIGTERM)
        if not wait(owner, _DOWN_S):
            raise ServiceUnavailable(
                f"process {owner.pid} was asked to stop {_DOWN_S:.0f} s ago and still runs the services of "
                f"{services.home.root}; end it with `kill -9 {owner.pid}` and run `ragllava down` again"
            )
        echo(f"stopped process {owner.pid}")
    left = services.stop_leftovers()
    orphans = end_orphans(services.home)
    if orphans:
        left.append(f"{orphans} worker processes")
    if left:
        echo(f"stopped what was left running: {', '.join(left)}")
    elif owner is None:
        echo(f"nothing runs in {services.home.root}")


@dataclass(slots=True)
class SystemStatus:
    """What `ragllava status` shows."""

    home: str
    owner_pid: int | None  # of the running `ragllava up`
    services: list[ServiceStatus]
    workers: list[WorkerView] = field(default_factory=list)
    jobs: list[JobView] = field(default_factory=list)  # the open ones
    events: dict[str, int] = field(default_factory=dict)  # counters of the events of buckets
    cautions: list[str] = field(default_factory=list)  # about profiles and archives
    faults: list[Fault] = field(default_factory=list)  # parts of the work that are postponed, with the reason
    troubles: dict[str, str] = field(default_factory=dict)  # of each worker that keeps dying: why
    held: list[HeldRemoval] = field(default_factory=list)  # pictures that are gone, too many to be believed
    problem: str | None = None  # why there are no workers and jobs to show

    @property
    def is_healthy(self) -> bool:
        """Every service answers, the database could be read, no worker keeps dying, and no part of the work has failed
        again and again."""
        keeps_failing = self.troubles or any(fault.is_persistent for fault in self.faults)
        return self.problem is None and not keeps_failing and all(service.answers for service in self.services)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "home": self.home,
            "owner_pid": self.owner_pid,
            "healthy": self.is_healthy,
            "problem": self.problem,
            "troubles": self.troubles,
            "services": [asdict(service) for service in self.services],
            "workers": [asdict(worker) | {"is_ready": worker.is_ready} for worker in self.workers],
            "open_jobs": [job.as_json() for job in self.jobs],
            "events": self.events,
            "cautions": self.cautions,
            "faults": [fault.as_json() for fault in self.faults],
            "held_removals": [asdict(held) for held in self.held],
        }


def status(settings: Settings) -> SystemStatus:
    """Ask every service, then the database for workers and open jobs. A service that does not run raises no error."""
    services = LocalServices(settings)
    owner = services.lock.owner()
    view = SystemStatus(str(services.home.root), owner.pid if owner else None, service_status(settings))
    view.troubles = worker_troubles(services)
    try:
        with Client(settings, name="ragllava-status", pool_size=1) as client:
            view.workers = client.system.workers()
            view.jobs = client.jobs.list(only_open=True)
            view.events = client.system.events()
            view.faults = client.system.faults()
            view.cautions = list(_cautions(client))
            view.held = client.archives.held_removals()
    except RagllavaError as error:
        view.problem = str(error)
    return view


def _cautions(client: Client) -> Iterator[str]:
    problem = client.system.profile_problem()
    if problem is not None:
        yield problem
    for name in client.archives.names()[:_ARCHIVES_LOOKED_AT]:
        yield from client.archives.cautions(name)


def status_lines(view: SystemStatus) -> Iterator[str | Table]:
    """The status as lines and tables for people."""
    yield f"home {view.home}, run by {f'process {view.owner_pid}' if view.owner_pid else 'no process'}"
    services = (
        (row.title + ("" if row.embedded else " (yours)"), row.address, _YES_NO[row.answers], row.detail)
        for row in view.services
    )
    yield make_table(("service", "address", "answers", "version, or what is wrong"), services)
    yield from map(Problem, view.troubles.values())
    if view.problem is not None:
        yield Problem(view.problem)
        return
    workers = [
        (row.name, ", ".join(row.queues), row.slots, row.state, _YES_NO[row.is_ready], f"{row.age_s:.0f} s ago")
        for row in view.workers
    ]
    yield make_table(("worker", "queues", "slots", "state", "ready", "seen"), workers) if workers else "no workers"
    jobs = [
        (job.job_id, job.kind, job.archive, job.state_text, job.progress.done, job.progress.total) for job in view.jobs
    ]
    yield make_table(("job", "kind", "archive", "state", "done", "of"), jobs) if jobs else "no open jobs"
    yield from (Problem(f"warning: {caution}") for caution in view.cautions)
    if any(view.events.values()):
        yield "events: " + ", ".join(f"{number} {name}" for name, number in view.events.items())
    if view.faults:
        faults = ((fault.title, fault.attempts, as_time(fault.next_try_at), fault.reason) for fault in view.faults)
        yield make_table(("does not succeed", "tries", "next", "why"), faults)
    yield from (Problem(held.problem) for held in view.held)


def is_worker_ready(settings: Settings, name: str) -> bool:
    """Whether the worker `NAME@this host` has loaded its models and reported within its last three periods."""
    with Client(settings, name="ragllava-health", pool_size=1) as client:
        return has_reported_ready(client, name, 3 * settings.tick_s)


def has_reported_ready(client: Client, name: str, within_s: float) -> bool:
    """Whether the worker `NAME@this host` is ready and was seen within so many seconds.

    For a worker that was started so many seconds ago: the row of a killed predecessor is older.
    """
    full_name = f"{name}@{socket.gethostname()}"
    workers = client.system.workers()
    return any(row.name == full_name and row.is_ready and row.age_s < within_s for row in workers)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Ctrl-C, SIGTERM and a closed terminal raise KeyboardInterrupt in the block: once, and not with the event set."""
    uninterruptible = threading.Event()

    def interrupt() -> None:
        if not uninterruptible.is_set():
            uninterruptible.set()
            raise KeyboardInterrupt

    with on_stop_signals(interrupt):
        yield uninterruptible


@contextmanager
def on_stop_signals(react: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal call `react` in the block, in place of what they did before."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda _number, _frame: react()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
