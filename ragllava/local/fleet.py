"""WorkerFleet: starts worker processes, restarts those that die for as long as it takes, and stops them."""

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

_ALARMING_DEATHS = 3  # in a row; fewer are not reported
_MOST_DEATHS_AT_START = 6
_LONGEST_DELAY_S = 30.0
_HEALTHY_S = 60.0  # the deaths before a run of this length no longer count
_POLL_S = 0.1
_NEWS_S = 15.0  # between two lines about workers that are waited for


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
    trouble: str | None = None  # why it does not run; None: it runs, or has died rarely

    def death_message(self) -> str:
        return (
            f"worker {self.spec.name} died {self.deaths} times in a row ({last_lines(self.log, 1)}); it is started "
            f"again at least every {_LONGEST_DELAY_S:.0f} s; see {self.log}"
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
        self._stored: dict[str, str] = {}  # the troubles in the home's file

    def start(self) -> None:
        """Start every worker, after stopping those that a killed `ragllava up` left behind."""
        end_orphans(self._home)
        self._home.save_troubles({})
        for worker in self._workers:
            self._launch(worker)

    def wait_until_ready(
        self,
        timeout_s: float,
        on_ready: Callable[[str, int, float], None] = lambda name, pid, seconds: None,
        cancelled: Callable[[], bool] = lambda: False,
        on_news: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Wait for all workers; `on_ready(name, pid, seconds)` is called for each as soon as it is ready.

        Dead workers are restarted meanwhile. `on_news` is called with a line about each that keeps dying, and from
        time to time about one that is waited for. Returns early when `cancelled()`. Raises ServiceUnavailable when a
        worker died too often: what prevents its first start rarely ends on its own. Also after `timeout_s` seconds.
        """
        started = time.monotonic()
        deadline, next_news = started + timeout_s, started + _NEWS_S
        while not cancelled():
            for line in self.check():
                on_news(line)
            hopeless = next((worker for worker in self._workers if worker.deaths >= _MOST_DEATHS_AT_START), None)
            if hopeless is not None:
                raise ServiceUnavailable(
                    f"worker {hopeless.spec.name} died {hopeless.deaths} times in a row "
                    f"({last_lines(hopeless.log, 1)}); see {hopeless.log}"
                )
            waiting = [worker for worker in self._workers if not self._check_ready(worker, on_ready)]
            if not waiting:
                return
            if time.monotonic() >= deadline:
                worker = waiting[0]
                raise ServiceUnavailable(
                    f"worker {worker.spec.name} is not ready after {timeout_s:.0f} s: "
                    f"{last_lines(worker.log, 1)}; see {worker.log}"
                )
            if time.monotonic() >= next_news:
                next_news += _NEWS_S
                names = ", ".join(worker.spec.name for worker in waiting)
                on_news(
                    f"waiting for {names} since {time.monotonic() - started:.0f} s; the last line of "
                    f"{waiting[0].log.name}: {last_lines(waiting[0].log, 1) or 'none yet'}"
                )
            time.sleep(_POLL_S)

    def check(self) -> list[str]:
        """Restart dead workers, each after a delay that grows with its deaths in a row; it never gives one up.

        Returns a sentence for each worker that has begun to die again and again, and one when it runs again. Until
        then the sentence is in the home's file of troubles, which `ragllava status` and `ragllava doctor` read.
        """
        news: list[str] = []
        now = time.monotonic()
        for worker in self._workers:
            if worker.process is not None and not is_alive(worker.process):
                self._note_death(worker, worker.process, now)
            if worker.restart_at is not None and now >= worker.restart_at:
                try:
                    self._launch(worker)
                except ServiceUnavailable as error:  # no more processes or no space for its log, for example
                    log.warning(str(error), extra={"action": "worker_not_started", "worker": worker.spec.name})
                    self._plan_restart(worker, now)
            if worker.process is not None and worker.deaths and now - worker.started >= _HEALTHY_S:
                worker.deaths = 0
            news += _report(worker)
        try:
            self._watchdog.check()
            self._store_troubles()
        except OSError as error:  # the next check tries it again
            log.warning(str(error), extra={"action": "fleet_not_watched"})
        return news

    def stop(self) -> None:
        """Ask all workers to end, wait `grace_s` seconds for all together, then kill what is left of their groups."""
        stop([worker.process for worker in self._workers if worker.process is not None], self._grace_s)
        for worker in self._workers:
            worker.process = worker.restart_at = None
        self._watchdog.close()
        end_orphans(self._home)
        self._home.save_troubles({})

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

    def _note_death(self, worker: _Worker, process: psutil.Process, now: float) -> None:
        worker.process = None
        kill_group(process)  # its children, if it left any
        self._watchdog.remove(process.pid)
        delay_s = self._plan_restart(worker, now)
        facts = {"action": "worker_died", "worker": worker.spec.name, "pid": process.pid, "deaths": worker.deaths}
        log.warning(f"worker {exit_text(process)}, next start in {delay_s:g} s", extra=facts)

    def _plan_restart(self, worker: _Worker, now: float) -> float:
        worker.deaths += 1
        delay_s = restart_delay_s(worker.deaths)
        worker.restart_at = now + delay_s
        return delay_s

    def _store_troubles(self) -> None:
        troubles = {worker.spec.name: worker.trouble for worker in self._workers if worker.trouble is not None}
        if troubles != self._stored:
            self._home.save_troubles(troubles)
            self._stored = troubles

    def _check_ready(self, worker: _Worker, on_ready: Callable[[str, int, float], None]) -> bool:
        seconds = time.monotonic() - worker.started
        if worker.process and not worker.ready and self._is_ready(worker.spec.name, seconds):
            worker.ready = True
            on_ready(worker.spec.name, worker.process.pid, seconds)
        return worker.ready


def _report(worker: _Worker) -> list[str]:
    """What is new about a worker that keeps dying, or does not any more: one sentence, or none."""
    if worker.trouble is None and worker.deaths >= _ALARMING_DEATHS:
        worker.trouble = worker.death_message()
        log.error(worker.trouble, extra={"action": "worker_keeps_dying", "worker": worker.spec.name})
        return [worker.trouble]
    if worker.trouble is not None and not worker.deaths:
        worker.trouble = None
        return [f"worker {worker.spec.name} runs again"]
    return []


def restart_delay_s(deaths: int) -> float:
    """Seconds to wait after so many deaths in a row: 1, 2, 4 … at most 30."""
    return min(_LONGEST_DELAY_S, 2.0 ** min(deaths - 1, 10))


def end_orphans(home: Home) -> int:
    """Stop every process that works in this home's worker folder; returns how many there were."""
    orphans = processes_in(home.workers)
    if orphans:
        log.info("stopping left-over worker processes", extra={"action": "orphans_ended", "count": len(orphans)})
    stop(orphans, grace_s=5.0)
    return len(orphans)
