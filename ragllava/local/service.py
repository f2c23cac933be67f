"""What the embedded servers have in common: adopt or start, wait until ready, stop."""

from __future__ import annotations

import logging
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping

import psutil

from ragllava.errors import ServiceUnavailable
from ragllava.local.home import Home, Secrets
from ragllava.local.processes import RunningProcess, last_lines, launch, processes_in

log = logging.getLogger(__name__)

_READY_S = 60.0
_ADOPT_S = 20.0  # a Postgres that replays its log after a crash needs some time
_POLL_S = 0.05


class EmbeddedService(ABC):
    """One server on 127.0.0.1 with its data under the home. Subclasses say how it is run and asked."""

    name: str
    title: str  # for people
    executable: str  # the name of the process
    port_count = 1
    port_twin = 0  # each port has a second one, this many numbers above it
    stop_signal: int = signal.SIGTERM
    account: str | None = None  # the system account to run as, None: our own

    def __init__(self, home: Home, secrets: Secrets, ports: list[int]) -> None:
        """Nothing is started; `ports` has `port_count` entries, the first one is for clients."""
        self.home = home
        self.secrets = secrets
        self.ports = ports
        self.folder = home.data / self.name
        self.log = home.logs / f"{self.name}.log"
        self.process: RunningProcess | None = None
        self.adopted = False
        self.ready_after_s = 0.0

    @property
    def address(self) -> str:
        """Where clients connect: host:port."""
        return f"127.0.0.1:{self.ports[0]}"

    @abstractmethod
    def settings(self) -> dict[str, str]:
        """The settings by which others reach this server."""

    @abstractmethod
    def prepare(self) -> None:
        """Write the configuration and, the first time, the data folder. No server runs on it now."""

    @abstractmethod
    def command(self) -> list[str]:
        """The command line; it holds no secret, since every account of the machine can read it."""

    @abstractmethod
    def probe(self) -> None:
        """Ask a real question; raises ServiceUnavailable unless the answer is right."""

    def environment(self) -> Mapping[str, str]:
        """Our own environment is not passed on: a PG… or AWS… variable would change what the server does."""
        return {"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "LANG": "C.UTF-8"}

    def start(self) -> None:
        """Adopt the server that already runs on our data, or start one; returns when it answers.

        Raises ServiceUnavailable with the end of its log when it does not come up.
        """
        began = time.monotonic()
        self.process = self._adopt()
        self.adopted = self.process is not None
        if self.process is None:
            try:
                self.prepare()
                self.process = launch(
                    self.command(),
                    folder=self.folder,
                    log=self.log,
                    environment=self.environment(),
                    account=self.account,
                )
            except OSError as error:
                raise ServiceUnavailable(f"{self.title} cannot be started: {error}") from error
            self._wait_until_ready(_READY_S)
        self.ready_after_s = time.monotonic() - began

    def stop(self, grace_s: float = 10.0) -> None:
        """Stop the server, gracefully first; harmless when it does not run."""
        running = self.process or self.find()
        if running is not None:
            running.stop(self.stop_signal, grace_s)
        self.process = None
        for process in processes_in(self.folder, self.executable):
            RunningProcess(process).stop(signal.SIGKILL, grace_s)

    def find(self) -> RunningProcess | None:
        """The server that runs on our data folder, whoever started it."""
        found = processes_in(self.folder, self.executable)
        pids = {process.pid for process in found}
        for process in found:
            try:
                if process.ppid() not in pids:  # the others are its children
                    return RunningProcess(process)
            except psutil.NoSuchProcess:
                continue
        return None

    def _adopt(self) -> RunningProcess | None:
        running = self.find()
        if running is None:
            return None
        self.process = running
        try:
            self._wait_until_ready(_ADOPT_S)
        except ServiceUnavailable as error:
            log.warning("left-over server does not answer, starting anew", extra={"service": self.name})
            log.debug("%s", error)
            self.stop()
            return None
        return running

    def _wait_until_ready(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self.probe()
                return
            except ServiceUnavailable as error:
                if self.process is not None and not self.process.alive():
                    raise ServiceUnavailable(self._ended_message()) from error
                if time.monotonic() >= deadline:
                    raise ServiceUnavailable(
                        f"{self.title} at {self.address} does not answer after {timeout_s:.0f} s ({error}); "
                        f"see {self.log}"
                    ) from error
            time.sleep(_POLL_S)

    def _ended_message(self) -> str:
        how = self.process.exit_text() if self.process is not None else "ended"
        return f"{self.title} ended while starting ({how}): {last_lines(self.log)}; see {self.log}"
