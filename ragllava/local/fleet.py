"""WorkerFleet: starts worker processes, restarts those that die, and stops them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ragllava.errors import ServiceUnavailable
from ragllava.local.home import Home
from ragllava.local.processes import exit_text, is_alive, kill_group, last_lines, launch, processes_in, stop
from ragllava.local.watchdog import Watchdog

log = logging.getLogger(__name__)

_MOST_DEATHS = 6
_LONGEST_DELAY_S = 30.0
_HEALTHY_S = 60.0  # the deaths before a run of this length no longer count
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One worker process: `environment` is added to ours, with RAGLLAVA_HOME."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Worker:
    spec: WorkerSpec
    log: Path
    process: psutil.Process | None = None
    started: float = 0.0  # time.monotonic()
    deaths: int = 0  # in a row, with no healthy run between them
    restart_at: float | None = None
    ready: bool = False

    def lost_message(self) -> str:
        return (
            f"worker {self.spec.name} died {self.deaths} times in a row and is not started again "
            f"({last_lines(self.log, 1)}); see {self.log}"
        )


# Whether the worker of this name, which has run for so many seconds, is ready for work.
Readiness = Callable[[str, float], bool]


class WorkerFleet:
    """The worker processes of one home. Call `start`, then `check` regularly, at the end `stop`."""

    def __init__(self, home: Home, specs: Iterable[WorkerSpec], *, is_ready: Readiness, grace_s: float = 60.0) -> None:
        """Nothing is started. `grace_s` is the time in which a stopping worker hands its work back."""
        self._home = home
        self._workers = [_Worker(spec, home.logs / f"worker-{spec.name}.log") for spec in specs]
        self._is_ready = is_ready
        self._grace_s = grace_s
        self._watchdog = Watchdog(home.workers, grace_s)

    def start(self) -> None:
        """Start every worker, after stopping those that a killed `ragllava up` left behind."""
        end_orphans(self._home)
        for worker in self._workers:
            self._launch(worker)

    def wait_until_ready(
        self,
        timeout_s: float,
        on_ready: Callable[[str, int, float], None] = lambda name, pid, seconds: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Wait for all workers; `on_ready(name, pid, seconds)` is called for each as soon as it is ready.

        Dead workers are restarted meanwhile. Returns early when `cancelled()`. Raises ServiceUnavailable when a
        worker died too often, or after `timeout_s` seconds.
        """
        deadline = time.monotonic() + timeout_s
        while not cancelled():
            lost = self.check()
            if lost:
                raise ServiceUnavailable(lost[0])
            waiting = [worker for worker in self._workers if not self._check_ready(worker, on_ready)]
            if not waiting:
                return
            if time.monotonic() >= deadline:
                worker = waiting[0]
                raise ServiceUnavailable(
                    f"worker {worker.spec.name} is not ready after {timeout_s:.0f} s: "
                    f"{last_lines(worker.log, 1)}; see {worker.log}"
                )
            time.sleep(_POLL_S)

    def check(self) -> list[str]:
        """Restart dead workers, each after a delay that grows with its deaths in a row.

        Returns one sentence for each worker that has now died too often and is not restarted any more.
        """
        lost = []
        now = time.monotonic()
        for worker in self._workers:
            if worker.process is not None and not is_alive(worker.process):
                self._plan_restart(worker, worker.process, now)
                if worker.restart_at is None:
                    lost.append(worker.lost_message())
            if worker.restart_at is not None and now >= worker.restart_at:
                self._launch(worker)
        self._watchdog.check()
        return lost

    def stop(self) -> None:
        """Ask all workers to end, wait `grace_s` seconds for all together, then kill what is left of their groups."""
        stop([worker.process for worker in self._workers if worker.process is not None], self._grace_s)
        for worker in self._workers:
            worker.process = worker.restart_at = None
        self._watchdog.close()
        end_orphans(self._home)

    def _launch(self, worker: _Worker) -> None:
        worker.restart_at = None
        worker.ready = False
        worker.started = time.monotonic()
        try:
            worker.process = launch(
                worker.spec.command,
                folder=self._home.workers,
                log=worker.log,
                environment={**os.environ, "RAGLLAVA_HOME": str(self._home.root), **worker.spec.environment},
            )
        except OSError as error:
            raise ServiceUnavailable(f"worker {worker.spec.name} cannot be started: {error}") from error
        self._watchdog.add(worker.process.pid)

    def _plan_restart(self, worker: _Worker, process: psutil.Process, now: float) -> None:
        worker.process = None
        kill_group(process)  # its children, if it left any
        self._watchdog.remove(process.pid)
        worker.deaths = 1 if now - worker.started >= _HEALTHY_S else worker.deaths + 1
        delay_s = restart_delay_s(worker.deaths)
        facts = {"action": "worker_died", "worker": worker.spec.name, "pid": process.pid, "deaths": worker.deaths}
        if delay_s is None:
            log.error(worker.lost_message(), extra=facts)
        else:
            worker.restart_at = now + delay_s
            log.warning(f"worker {exit_text(process)}, next start in {delay_s:g} s", extra=facts)

    def _check_ready(self, worker: _Worker, on_ready: Callable[[str, int, float], None]) -> bool:
        seconds = time.monotonic() - worker.started
        if worker.process and not worker.ready and self._is_ready(worker.spec.name, seconds):
            worker.ready = True
            on_ready(worker.spec.name, worker.process.pid, seconds)
        return worker.ready


def restart_delay_s(deaths: int) -> float | None:
    """Seconds to wait after so many deaths in a row: 1, 2, 4 … at most 30; None: do not restart."""
    return None if deaths >= _MOST_DEATHS else min(_LONGEST_DELAY_S, 2.0 ** (deaths - 1))


def end_orphans(home: Home) -> int:
    """Stop every process that works in this home's worker folder; returns how many there were."""
    orphans = processes_in(home.workers)
    if orphans:
        log.info("stopping left-over worker processes", extra={"action": "orphans_ended", "count": len(orphans)})
    stop(orphans, grace_s=5.0)
    return len(orphans)
