"""WorkerFleet: starts worker processes, starts them again when they die, and ends them in good order."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ragllava.errors import ServiceUnavailable
from ragllava.local.home import Home
from ragllava.local.processes import RunningProcess, last_lines, launch, processes_in
from ragllava.local.watchdog import Watchdog, stop_all

log = logging.getLogger(__name__)

_MOST_DEATHS = 6
_LONGEST_DELAY_S = 30.0
_HEALTHY_S = 60.0  # a worker that ran this long begins with a clean slate
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
    process: RunningProcess | None = None
    started: float = 0.0  # time.monotonic()
    deaths: int = 0  # in a row, none of them after a healthy time
    restart_at: float | None = None
    given_up: bool = False
    ready: bool = False


# Says whether the worker of this name, running for so many seconds, is ready for work.
Readiness = Callable[[str, float], bool]


class WorkerFleet:
    """The worker processes of one home. Call `start`, then `check` again and again, at the end `stop`."""

    def __init__(self, home: Home, specs: Iterable[WorkerSpec], *, is_ready: Readiness, grace_s: float = 60.0) -> None:
        """Nothing is started. `grace_s` is what a worker gets to hand its work back when it is asked to end."""
        self._home = home
        self._workers = [_Worker(spec) for spec in specs]
        self._is_ready = is_ready
        self._grace_s = grace_s
        self._watchdog = Watchdog(home.workers, grace_s)

    def start(self) -> None:
        """Start every worker, after ending those that a killed `ragllava up` left behind."""
        end_orphans(self._home)
        for worker in self._workers:
            self._launch(worker)

    def wait_until_ready(
        self,
        timeout_s: float,
        on_ready: Callable[[str, int, float], None] = lambda name, pid, seconds: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Wait for all workers; `on_ready(name, pid, seconds)` is called for each when it is.

        Dead workers are restarted meanwhile. Returns early when `cancelled()`. Raises ServiceUnavailable when a
        worker is given up or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while not cancelled():
            self.check()
            for worker in self._workers:
                self._note_ready(worker, on_ready)
            waiting = [worker for worker in self._workers if not worker.ready]
            if not waiting:
                return
            lost = next((worker for worker in waiting if worker.given_up), None)
            if lost is not None:
                raise ServiceUnavailable(self._lost_message(lost))
            if time.monotonic() >= deadline:
                name = waiting[0].spec.name
                raise ServiceUnavailable(
                    f"worker {name} is not ready after {timeout_s:.0f} s: "
                    f"{last_lines(self._log(name), 1)}; see {self._log(name)}"
                )
            time.sleep(_POLL_S)

    def check(self) -> None:
        """One look at every worker: a dead one is restarted, after a delay that grows with each death in a row."""
        now = time.monotonic()
        for worker in self._workers:
            if worker.process is not None and not worker.process.alive():
                self._bury(worker, now)
            if worker.restart_at is not None and now >= worker.restart_at:
                self._launch(worker)
        self._watchdog.check()

    def alive(self) -> dict[str, int]:
        """Process ids of the workers that run, by name."""
        return {
            worker.spec.name: worker.process.pid
            for worker in self._workers
            if worker.process is not None and worker.process.alive()
        }

    def lost(self) -> list[str]:
        """One sentence for each worker that died too often and is not restarted any more."""
        return [self._lost_message(worker) for worker in self._workers if worker.given_up]

    def stop(self) -> None:
        """Ask all workers to end, give them `grace_s` seconds together, then kill what is left of their groups."""
        stop_all([worker.process for worker in self._workers if worker.process is not None], self._grace_s)
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
                log=self._log(worker.spec.name),
                environment={**os.environ, "RAGLLAVA_HOME": str(self._home.root), **worker.spec.environment},
            )
        except OSError as error:
            raise ServiceUnavailable(f"worker {worker.spec.name} cannot be started: {error}") from error
        self._watchdog.add(worker.process.pid)

    def _bury(self, worker: _Worker, now: float) -> None:
        process = worker.process
        if process is None:
            return
        worker.process = None
        process.kill_group()  # its children, if it left any
        self._watchdog.remove(process.pid)
        worker.deaths = 1 if now - worker.started >= _HEALTHY_S else worker.deaths + 1
        delay_s = restart_delay_s(worker.deaths)
        facts = {"action": "worker_died", "worker": worker.spec.name, "pid": process.pid, "deaths": worker.deaths}
        if delay_s is None:
            worker.given_up = True
            log.error(self._lost_message(worker), extra=facts)
        else:
            worker.restart_at = now + delay_s
            log.warning(f"worker {process.exit_text()}, next start in {delay_s:g} s", extra=facts)

    def _note_ready(self, worker: _Worker, on_ready: Callable[[str, int, float], None]) -> None:
        if worker.ready or worker.process is None:
            return
        seconds = time.monotonic() - worker.started
        if self._is_ready(worker.spec.name, seconds):
            worker.ready = True
            on_ready(worker.spec.name, worker.process.pid, seconds)

    def _log(self, name: str) -> Path:
        return self._home.logs / f"worker-{name}.log"

    def _lost_message(self, worker: _Worker) -> str:
        path = self._log(worker.spec.name)
        return (
            f"worker {worker.spec.name} died {worker.deaths} times in a row and is not started again "
            f"({last_lines(path, 1)}); see {path}"
        )


def restart_delay_s(deaths: int) -> float | None:
    """Seconds to wait after so many deaths in a row: 1, 2, 4 … at most 30; None when it is time to give up."""
    return None if deaths >= _MOST_DEATHS else min(_LONGEST_DELAY_S, 2.0 ** (deaths - 1))


def end_orphans(home: Home) -> int:
    """End every process that works in this home's worker folder; returns how many there were."""
    orphans = [RunningProcess(process) for process in processes_in(home.workers)]
    if orphans:
        log.info("ending left-over worker processes", extra={"action": "orphans_ended", "count": len(orphans)})
    stop_all(orphans, grace_s=5.0)
    return len(orphans)
