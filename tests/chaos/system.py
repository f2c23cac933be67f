"""The system that a chaos run disturbs: a whole `ragllava up` in a home of its own, with proxies, and its parts."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import select

from ragllava.client import Client
from ragllava.errors import SchemaMismatch, ServiceUnavailable
from ragllava.local.home import Home
from ragllava.local.postgres import PostgresService
from ragllava.local.processes import is_alive, processes_in
from ragllava.local.redis_server import RedisService
from ragllava.local.seaweed import SeaweedService
from ragllava.local.service import EmbeddedService, with_addresses
from ragllava.settings import Settings
from ragllava.stores.schema import shards
from tests.chaos.proxy import Proxy
from tests.chaos.up import ANSWER_WORKERS, WORKERS
from tests.support.processes import ROOT
from tests.support.waiting import wait_for

LEASE_S = 4.0
READY_S = 300.0
ARCHIVE = "postcards"
# Leases of seconds instead of minutes, so that a run has time for many faults.
QUICK: dict[str, Any] = {
    "lease_s": LEASE_S,
    "heartbeat_s": 1.3,
    "tick_s": 1.0,
    "queued_timeout_s": 5.0,
    "retry_backoff_s": 0.5,
    "questions_per_shard": 10,
    "files_per_shard": 8,
    "files_per_step": 4,
    "gate_questions": 0,
    "torch_threads": 1,
    "decoders": 1,
}
SERVICES: dict[str, type[EmbeddedService]] = {"postgres": PostgresService, "redis": RedisService, "s3": SeaweedService}

# Called when all jobs have ended: what is wrong, None if nothing is.
Check = Callable[[], str | None]


@dataclass
class System:
    """The running system, and the calls that disturb it. `random` is seeded; whatever is chosen is chosen by it."""

    home: Home
    random: random.Random
    client: Client
    proxies: dict[str, Proxy]
    environment: dict[str, str]
    folder: Path  # for files of the run
    process: subprocess.Popen[bytes] | None = None
    late_pictures: list[Path] = field(default_factory=list)  # not ingested yet
    checks: list[Check] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        return self.client.settings

    @property
    def up(self) -> psutil.Process:
        """The process of `ragllava up`."""
        assert self.process is not None
        return psutil.Process(self.process.pid)

    def start(self) -> None:
        """Start `ragllava up`; returns at once."""
        with (self.home.root / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.up"],
                env=self.environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill_up(self) -> None:
        """SIGKILL `ragllava up` alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Stop all, as Ctrl-C does."""
        if self.process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                _send(self.everything(), signal.SIGCONT)
            self.process.terminate()
            self.process.wait(120)

    def wait_ready(self) -> None:
        """Until all workers of this `ragllava up` have reported ready."""

        def ready() -> bool:
            assert self.process is not None and self.process.poll() is None, f"up ended:\n{self.up_log()[-3000:]}"
            with contextlib.suppress(ServiceUnavailable, SchemaMismatch):  # services start, tables are made
                ages = {row.name.partition("@")[0]: row.age_s for row in self.client.system.workers() if row.is_ready}
                return all(self._is_ready(name, ages.get(name)) for name in WORKERS)
            return False

        wait_for("all workers to be ready", ready, READY_S)

    def wait_services(self) -> None:
        """Until every service accepts connections, after a fault that has ended one."""
        wait_for("the services to run", lambda: all(map(self._answers, SERVICES)), READY_S)

    def _answers(self, name: str) -> bool:
        if not self.service(name):
            return False
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1.0)
            return client.connect_ex(str(_service(self.home, name).socket)) == 0

    def _is_ready(self, name: str, age_s: float | None) -> bool:
        """Whether a ready row of this age is that of a worker which the present `ragllava up` has started."""
        started = [parent.create_time() for parent in self.parents(name)]
        newest = max(started, default=0.0)
        return newest > self.up.create_time() and age_s is not None and age_s < time.time() - newest

    def up_log(self) -> str:
        """What `ragllava up` has printed."""
        return (self.home.root / "up.log").read_text(errors="replace")

    def parents(self, name: str) -> list[psutil.Process]:
        """The parent process of a worker, if it runs."""
        processes = processes_in(self.home.workers)
        return [process for process in processes if f"{name}@%h" in _command(process)]

    def children(self, name: str) -> list[psutil.Process]:
        """The processes below a worker."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child for parent in self.parents(name) for child in parent.children(recursive=True)]
        return []

    def runners(self, name: str) -> list[psutil.Process]:
        """The process of a worker that runs its tasks."""
        return [child for child in self.children(name) if "spawn_main" in " ".join(_command(child))]

    def busy_worker(self) -> str:
        """An answer worker that has a shard now, else any."""
        with self.client.engine.begin() as connection:
            running = select(shards.c.worker).where(shards.c.state == "running").distinct()
            names = sorted(str(name).partition("@")[0] for name in connection.scalars(running))
        return self.random.choice([name for name in names if name in ANSWER_WORKERS] or list(ANSWER_WORKERS))

    def service(self, name: str) -> list[psutil.Process]:
        """The processes of a service, the main one first."""
        main = _service(self.home, name).find()
        return [main, *main.children(recursive=True)] if main is not None else []

    def everything(self) -> list[psutil.Process]:
        """Every process of the system."""
        found = [self.up, *processes_in(self.home.workers)]
        found += [child for name in WORKERS for child in self.children(name)]
        found += [process for name in SERVICES for process in self.service(name)]
        return list(dict.fromkeys(found))

    @contextmanager
    def frozen(self, processes: Iterable[psutil.Process]) -> Iterator[None]:
        """SIGSTOP these processes for the length of a block."""
        stopped = list(processes)
        _send(stopped, signal.SIGSTOP)
        try:
            yield
        finally:
            _send(stopped, signal.SIGCONT)

    @cached_property
    def clock(self) -> Path:
        """The file by which the clocks of the workers are skewed."""
        return Path(self.environment["CHAOS_CLOCK"])


def _send(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        if is_alive(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def send(processes: Iterable[psutil.Process], number: int) -> int:
    """Signal these processes; returns how many there were."""
    alive = [process for process in processes if is_alive(process)]
    _send(alive, number)
    return len(alive)


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return process.cmdline()
    return []


@contextmanager
def running_system(seed: int, *, keep: bool = False) -> Iterator[System]:
    """A system that is ready, in a temporary home, which is gone after the block unless `keep` is set."""
    root = Path(tempfile.mkdtemp(prefix="ragllava-chaos-"))
    home = Home(root / "home")
    home.prepare()
    proxies: dict[str, Proxy] = {}
    through: dict[str, str] = {}
    for name in SERVICES:
        socket_path = _service(home, name).socket
        folder = root / "proxies" / name
        folder.mkdir(mode=0o700, parents=True)
        proxies[name] = Proxy(folder / socket_path.name, socket_path)
        addresses = _service(home, name).settings()
        through |= {
            key: value.replace(str(socket_path.parent), str(folder))
            for key, value in addresses.items()
            if key != "database_owner_url"
        }
    temporary = root / "temporary"
    temporary.mkdir()
    for_workers = {f"RAGLLAVA_{key.upper()}": value for key, value in through.items()}
    for_workers |= {"CHAOS_CLOCK": str(root / "clock"), "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAGLLAVA_")}
    environment |= {f"RAGLLAVA_{key.upper()}": str(value) for key, value in QUICK.items()}
    environment |= {"RAGLLAVA_HOME": str(home.root), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    environment |= {"CHAOS_WORKERS": json.dumps(for_workers), "CHAOS_CLOCK": str(root / "clock")}
    # The services are at their addresses only after the start; a client connects at its first call.
    client = Client(Settings(home=home.root), name="chaos")
    system = System(home, random.Random(seed), client, proxies, environment, root)
    try:
        system.start()
        wait_for("the services", lambda: _announced(system), READY_S)
        client.settings = with_addresses(Settings(home=home.root, **QUICK), home.load_state().settings)
        system.wait_ready()
        yield system
    finally:
        system.stop()
        client.close()
        for proxy in proxies.values():
            proxy.close()
        if not keep:
            shutil.rmtree(root, ignore_errors=True)


def _announced(system: System) -> bool:
    assert system.process is not None and system.process.poll() is None, f"up ended:\n{system.up_log()[-3000:]}"
    return bool(system.home.load_state().settings)


def _service(home: Home, name: str) -> EmbeddedService:
    """One of the services; its ports are of no use here."""
    kind = SERVICES[name]
    return kind(home, home.load_secrets(), [0] * kind.port_count)
