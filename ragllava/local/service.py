"""What the embedded servers have in common: find the program, adopt or start it, wait until it is ready, stop it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import psutil
import urllib3

from ragllava.errors import ServiceUnavailable, SettingsError
from ragllava.local.home import Home, Secrets
from ragllava.local.processes import exit_text, is_alive, last_lines, launch, processes_in, stop
from ragllava.local.sockets import short_path
from ragllava.settings import Settings
from ragllava.stores.unix_http import UnixPoolManager

log = logging.getLogger(__name__)

_READY_S = 60.0
_ADOPT_S = 20.0  # a Postgres that replays its log after a crash needs some time
_STOP_S = 10.0
_POLL_S = 0.05


class EmbeddedService(ABC):
    """One server with its data under the home, which clients reach at a Unix socket beside the data.

    Subclasses say how it is run and how it is asked.
    """

    name: str
    title: str  # for people
    setting: str  # the setting that names a server of the user in its place
    wheel: str  # the package that holds the program
    program: str  # the end of the program's path in the wheel
    config_name: str  # the file in run/ from which the program reads its passwords
    socket_name: str  # in the folder of the data
    port_count = 0  # of TCP ports that it needs besides
    port_twin = 0  # each port has a second one, this many numbers above it
    stop_signal: int = signal.SIGTERM
    account: str | None = None  # the system account to run as, None: our own

    def __init__(self, home: Home, secrets: Secrets, ports: list[int]) -> None:
        """Nothing is started; `ports` has `port_count` entries."""
        self.home = home
        self.secrets = secrets
        self.ports = ports
        self.folder = home.data / self.name
        self.log = home.logs / f"{self.name}.log"
        self.config = home.run / self.config_name
        self.process: psutil.Process | None = None
        self.adopted = False
        self.ready_after_s = 0.0

    @classmethod
    def find_program(cls) -> Path:
        """The program in the installed wheel, which is not imported. Raises SettingsError when it is not installed."""
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            for file in importlib.metadata.files(cls.wheel) or []:
                if str(file).endswith(cls.program):
                    return Path(str(file.locate())).resolve()
        raise SettingsError(
            f"{cls.title} is not installed: run `pip install 'ragllava[local]'`, or set "
            f"RAGLLAVA_{cls.setting.upper()} to the address of a server of yours"
        )

    @property
    def socket(self) -> Path:
        """The socket at which clients connect, by a path that is short enough. Raises SettingsError without one."""
        return short_path(self.home.root, self.folder / self.socket_name)

    @property
    def address(self) -> str:
        """The socket for people: its path in the home."""
        return str((self.folder / self.socket_name).relative_to(self.home.root))

    @abstractmethod
    def settings(self) -> dict[str, str]:
        """The settings by which others reach this server. Raises SettingsError for a home with too long a path."""

    @abstractmethod
    def prepare(self) -> None:
        """Write the configuration and, the first time, fill the data folder. No server runs on it now."""

    @abstractmethod
    def command(self) -> list[str]:
        """The command line; it holds no secret, since every account of the machine can read it."""

    def own_settings(self) -> Settings:
        """Settings that name this server."""
        return with_addresses(Settings(home=self.home.root, s3_secure=False), self.settings())

    def probe(self) -> None:
        """Ask a real question; raises ServiceUnavailable unless the answer is right."""
        self.server_version(self.own_settings())

    @staticmethod
    @abstractmethod
    def server_version(settings: Settings) -> str:
        """The version of the server that `settings` name; raises ServiceUnavailable when it does not answer."""

    def environment(self) -> Mapping[str, str]:
        """Our own environment is not passed on: a PG… or AWS… variable would change what the server does."""
        return {"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "LANG": "C.UTF-8"}

    def start(self) -> None:
        """Adopt the server that already runs on our data, or start one; returns when it answers.

        Raises ServiceUnavailable with the end of its log when it does not become ready.
        """
        began = time.monotonic()
        self._adopt()
        self.adopted = self.process is not None
        if not self.adopted:
            try:
                self.folder.mkdir(mode=0o700, exist_ok=True)
                self.prepare()
                self.process = launch(
                    self.command(),
                    folder=self.folder,
                    log=self.log,
                    environment=self.environment(),
                    account=self.account,
                    umask=0o077,  # SeaweedFS makes sockets in the temporary folder of all accounts
                )
            except OSError as error:
                raise ServiceUnavailable(f"{self.title} cannot be started: {error}") from error
            self._wait_until_ready(_READY_S)
        self.ready_after_s = time.monotonic() - began

    def stop(self) -> None:
        """Stop the server, gracefully first; harmless when it does not run."""
        running = self.process or self.find()
        if running is not None:
            stop([running], _STOP_S, self.stop_signal)
        self.process = None
        stop(self._processes(), _STOP_S, signal.SIGKILL)

    def find(self) -> psutil.Process | None:
        """The server that runs on our data folder, whichever process started it."""
        processes = self._processes()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.parent() not in processes:  # the others are its children
                    return process
        return None

    def _processes(self) -> list[psutil.Process]:
        return processes_in(self.folder, Path(self.program).name)

    def _adopt(self) -> None:
        """Take over the server that already runs on our data; stop one that does not answer."""
        self.process = self.find()
        try:
            if self.process is not None:
                if not (self.folder / self.socket_name).is_socket():
                    raise ServiceUnavailable(
                        "it is of an earlier version, which had no socket, or has just been started"
                    )
                self._wait_until_ready(_ADOPT_S)
        except ServiceUnavailable as error:
            log.warning(
                f"a left-over server does not answer and is started again: {error}", extra={"service": self.name}
            )
            self.stop()

    def _wait_until_ready(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self.probe()
                return
            except ServiceUnavailable as error:
                problem = None
                if self.process is not None and not is_alive(self.process):
                    problem = f"ended while starting ({exit_text(self.process)}): {last_lines(self.log)}"
                elif time.monotonic() >= deadline:
                    problem = f"at {self.address} does not answer after {timeout_s:.0f} s ({error})"
                if problem is not None:
                    raise ServiceUnavailable(f"{self.title} {problem}; see {self.log}") from error
            time.sleep(_POLL_S)


def with_addresses(settings: Settings, addresses: dict[str, str]) -> Settings:
    """The same settings with the services at these addresses."""
    return Settings(**(settings.model_dump() | addresses))


def http_get(url: str, socket: str | None = None) -> urllib3.BaseHTTPResponse:
    """The response of a server, also one that is a redirect; with `socket` of the server at that Unix socket.

    Raises ServiceUnavailable when it does not answer.
    """
    try:
        with UnixPoolManager(socket) if socket else urllib3.PoolManager() as pool:
            return pool.request("GET", url, headers={"Connection": "close"}, timeout=3, retries=False)
    except urllib3.exceptions.HTTPError as error:
        raise ServiceUnavailable(str(error)) from error
