"""Real worker processes on real services, with leases of seconds instead of minutes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import exists, select

from ragllava.client import Client
from ragllava.jobs.states import ShardState
from ragllava.settings import Settings
from ragllava.stores.schema import shards
from tests.conftest import environment_of
from tests.support.processes import command_of
from tests.support.waiting import wait_for

READY_S = 180.0
FRAGILE = "tests.support.fragile_worker"  # a module that makes a worker answer without models


@dataclass
class Cluster:
    """Starts, kills and restarts workers of one test; `client` talks to the same database."""

    settings: Settings
    logs: Path
    client: Client
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, queue: str, include: str = "workers.tasks", *, ticks: bool = False) -> None:
        """Start a worker in a process group of its own; `include` is a module that it loads in every process.

        `ticks`: it is a maintenance worker.
        """
        command = [sys.executable, "-m", "celery", "-A", "workers.app", "worker", "-I", include, "-Q", queue]
        command += ["-n", f"{name}@test", "--concurrency", "1", "--pool", "solo" if ticks else "prefork"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        environment = os.environ | environment_of(self.settings) | {"OMP_WAIT_POLICY": "PASSIVE"}
        with (self.logs / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait_ready(self, *names: str) -> None:
        """Until these workers have loaded their models."""

        def ready() -> bool:
            for name in names:
                assert self.processes[name].poll() is None, f"worker {name} ended:\n{self.log(name)[-3000:]}"
            live = {worker.name for worker in self.client.system.workers() if worker.is_ready and worker.age_s < 5}
            return {f"{name}@test" for name in names} <= live

        wait_for(f"workers {names} ready", ready, READY_S)

    def kill(self, name: str) -> None:
        """SIGKILL the worker with its children, as a crash of the machine would."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def kill_in_a_shard(self, name: str, job_id: int) -> None:
        """`kill`, at a moment at which the worker runs a shard of the job, and not between two of them."""
        child = self.child(name)
        is_run = (shards.c.job_id == job_id, shards.c.state == ShardState.RUNNING)

        def stands_in_a_shard() -> bool:
            child.suspend()
            with self.client.engine.begin() as connection:
                if connection.scalar(select(exists().where(*is_run))):
                    return True
            child.resume()
            return False

        wait_for("the worker to run a shard", stands_in_a_shard)
        self.kill(name)

    def terminate(self, name: str, timeout_s: float = 60.0) -> int:
        """SIGTERM the worker, as an orderly shutdown does; returns its exit code."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout_s)

    def child(self, name: str) -> psutil.Process:
        """The process that runs the worker's tasks."""
        children = psutil.Process(self.processes[name].pid).children()
        [runner] = [child for child in children if "spawn_main" in " ".join(command_of(child))]
        return runner

    def log(self, name: str) -> str:
        """What the worker has written."""
        return (self.logs / f"{name}.log").read_text(errors="replace")

    def stop(self) -> None:
        """End everything at once."""
        for name in list(self.processes):
            self.kill(name)


@pytest.fixture
def quick_settings(settings: Settings, tmp_path: Path) -> Settings:
    """Leases of seconds, so that a test of a crash takes seconds; and a home of the test's own."""
    quick: dict[str, Any] = {
        "home": tmp_path / "home",
        "lease_s": 4.0,
        "heartbeat_s": 1.0,
        "tick_s": 0.5,
        "queued_timeout_s": 3.0,
    }
    quick |= {"torch_threads": 1, "questions_per_shard": 8, "questions_per_step": 4}
    return settings.model_copy(update=quick)


@pytest.fixture
def cluster(quick_settings: Settings, tmp_path: Path) -> Iterator[Cluster]:
    logs = tmp_path / "logs"
    logs.mkdir()
    client = Client(quick_settings)
    cluster = Cluster(quick_settings, logs, client)
    yield cluster
    cluster.stop()
    client.close()
