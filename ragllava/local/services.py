"""LocalServices: the embedded Postgres, Redis and S3 of one home, started and stopped together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import SecretStr

from ragllava.errors import AlreadyRunning, RagllavaError, ServiceUnavailable, SettingsError
from ragllava.local.home import Home, HomeLock, Secrets, ServicesState
from ragllava.local.passage import withdraw
from ragllava.local.ports import API_PORT, Ports
from ragllava.local.postgres import PostgresService
from ragllava.local.processes import is_alive
from ragllava.local.redis_server import RedisService
from ragllava.local.seaweed import SeaweedService
from ragllava.local.service import EmbeddedService, http_get, with_addresses
from ragllava.local.sockets import short_path
from ragllava.local.watchdog import Watchdog
from ragllava.settings import Settings

_WATCHDOG_GRACE_S = 5.0
RECEIVER = "receiver"  # of events; its port is kept beside those of the services
API = "api"  # the HTTP API; so is its port
NOT_RUNNING = "not running"

_KINDS: tuple[type[EmbeddedService], ...] = (PostgresService, RedisService, SeaweedService)


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where the receiver or the HTTP API of `ragllava up` listens: at a socket, or at a port of 127.0.0.1."""

    shown: str  # for people: host:port, or the path of the socket in the home
    socket: Path | None = None

    @property
    def options(self) -> tuple[str, str]:
        """The options of the command that serves there."""
        if self.socket is not None:
            return "--socket", str(self.socket)
        return "--port", self.shown.rpartition(":")[2]


class LocalServices:
    """The services of `settings.home` that are not given by address. The constructor starts and touches nothing."""

    def __init__(self, settings: Settings, *, outlive_us: bool = True, events: bool = False) -> None:
        """`settings` may hold the addresses of embedded services that ran before; those are not `given`.

        With `outlive_us` the services keep running when this process is killed, and the next `start` adopts them;
        else a watchdog stops them. With `events` the object store sends the events of its buckets to a `receiver`,
        which the caller runs.
        """
        self.home = Home(settings.home)
        self._settings = settings
        self.lock = HomeLock(self.home)
        self._ports = Ports()
        self._running: list[EmbeddedService] = []
        self._events = events
        self._unrevived: dict[str, str] = {}  # what was said about services that cannot be restarted
        self._watchdog = None if outlive_us else Watchdog(self.home.run, _WATCHDOG_GRACE_S)

    @property
    def given(self) -> list[str]:
        """The settings with which the user names servers of their own."""
        ours = self.home.load_state().settings
        names = [kind.setting for kind in _KINDS]
        return [name for name in names if plain(self._settings, name) not in (None, ours.get(name))]

    @property
    def receiver(self) -> ServerAddress | None:
        """Where the receiver of events listens; None before the first start with `events`.

        Only the embedded store posts to it, by its own way in; another store needs a port.
        """
        if SeaweedService in self._embedded() and self._port_of(RECEIVER) is not None:
            socket = self.home.receiver_socket
            return ServerAddress(str(socket.relative_to(self.home.root)), short_path(self.home.root, socket))
        return self._at_port(RECEIVER)

    @property
    def api(self) -> ServerAddress | None:
        """Where the HTTP API listens; None before the first start with `events`."""
        return self._at_port(API)

    @property
    def serves(self) -> bool:
        """Whether a process with `events` runs this home, so the receiver and the HTTP API should answer."""
        return self.lock.owner() is not None and "events_token" in self.home.load_state().settings

    def _at_port(self, name: str) -> ServerAddress | None:
        port = self._port_of(name)
        return ServerAddress(f"127.0.0.1:{port}") if port is not None else None

    def _port_of(self, name: str) -> int | None:
        return next(iter(self.home.load_state().ports.get(name, [])), None)

    def start(self, on_ready: Callable[[EmbeddedService], None] = lambda service: None) -> Settings:
        """Start what does not run, adopt what does, wait until all answer; returns settings that name them.

        `on_ready` is called for each service, from a thread of its own, as soon as it answers. Raises
        AlreadyRunning when another process runs this home, SettingsError for an unusable home or a server that is not
        installed, ServiceUnavailable when a service does not become ready; then the others are stopped again.
        """

        def start_service(service: EmbeddedService) -> None:
            service.start()
            on_ready(service)

        for kind in self._embedded():
            kind.find_program()
        if self._settings.s3_secure and SeaweedService in self._embedded():
            raise SettingsError(
                "RAGLLAVA_S3_SECURE=true needs RAGLLAVA_S3_ENDPOINT: the embedded SeaweedFS is reached at a Unix "
                "socket, without HTTPS; leave out the former"
            )
        self.home.prepare()
        self.lock.acquire()
        try:
            self._running = self._assemble()
            with ThreadPoolExecutor(max_workers=len(_KINDS)) as pool:
                list(pool.map(start_service, self._running))
            self._watch()
            return self._announce()
        except OSError as error:
            self.stop()
            raise self.home.unusable(error) from error
        except BaseException:
            self.stop()
            raise

    def revive(self) -> list[str]:
        """Restart the services that have died. Call it regularly.

        Returns a sentence for each that was restarted, and one for each that cannot be: once, not at each attempt.
        """
        news = []
        for service in self._running:
            if service.process is None or not is_alive(service.process):
                try:
                    service.start()
                    self._unrevived.pop(service.title, None)
                    news.append(f"{service.title} died and was restarted at {service.address}; see {service.log}")
                except (OSError, RagllavaError) as error:
                    if service.title not in self._unrevived:
                        news.append(f"{service.title} died and cannot be restarted, which is tried again: {error}")
                    self._unrevived[service.title] = str(error)
        if news:
            self._watch()
        return news

    def stop(self) -> None:
        """Stop the services that `start` started or adopted, and release the home; harmless when repeated."""
        with ThreadPoolExecutor(max_workers=len(_KINDS)) as pool:
            list(pool.map(EmbeddedService.stop, self._running))
        if self._watchdog is not None:
            self._watchdog.close()
        self._running = []
        withdraw(self.home.passages_file)
        try:
            if self.home.services_file.exists():
                # The ports stay, so that addresses are the same the next time.
                self.home.save_state(ServicesState(ports=self.home.load_state().ports))
        finally:
            self._ports.release()
            self.lock.release()

    def stop_leftovers(self) -> list[str]:
        """Stop what a killed `ragllava up` left running; returns the names. Raises AlreadyRunning."""
        if not self.home.secrets_file.exists():
            return []
        self.lock.acquire()
        self._running = [service for service in self._existing() if service.find() is not None]
        titles = [service.title for service in self._running]
        self.stop()
        return titles

    def _watch(self) -> None:
        if self._watchdog is not None:
            for service in self._running:
                if service.process is not None:
                    self._watchdog.add(service.process.pid)

    def _embedded(self) -> list[type[EmbeddedService]]:
        given = self.given
        return [kind for kind in _KINDS if kind.setting not in given]

    def _existing(self) -> list[EmbeddedService]:
        """The embedded services as they were last set up, without a change to the home."""
        secrets, ports = self._secrets(), self.home.load_state().ports
        return [kind(self.home, secrets, ports.get(kind.name, [])) for kind in self._embedded()]

    def _secrets(self) -> Secrets:
        """The passwords of this home; the token of events may be the user's own."""
        secrets, token = self.home.load_secrets(), plain(self._settings, "events_token")
        return replace(secrets, events_token=token) if token else secrets

    def _assemble(self) -> list[EmbeddedService]:
        """The embedded services with ports: those of one that runs, else the last ones if they are free."""
        services = self._existing()
        for service in services:
            if service.find() is None or len(service.ports) != service.port_count:
                service.ports = self._ports.choose(service.ports, service.port_count, service.port_twin)
        kept = self.home.load_state().ports
        # A store elsewhere posts to the port of the receiver also after a run without one, such as a restore.
        state = replace(self.home.load_state(), ports={name: kept[name] for name in (RECEIVER, API) if name in kept})
        if self._events:
            state.ports[RECEIVER] = self._choose_receiver_port(services, kept.get(RECEIVER, []))
            state.ports[API] = self._ports.choose(kept.get(API, [API_PORT]), 1)
        state.ports |= {service.name: service.ports for service in services if service.ports}
        self.home.save_state(state)
        return services

    def _choose_receiver_port(self, services: list[EmbeddedService], kept: list[int]) -> list[int]:
        """A store that runs sends to the port of the last run, which our own left-over receiver may still use."""
        store = next((service for service in services if isinstance(service, SeaweedService)), None)
        ports = kept if kept and store is not None and store.find() is not None else self._ports.choose(kept, 1)
        if store is not None:
            store.receiver_port = ports[0]
        return ports

    def _announce(self) -> Settings:
        addresses: dict[str, str] = {"events_token": self._secrets().events_token} if self._events else {}
        for service in self._running:
            addresses |= service.settings()
        self.home.save_state(ServicesState(settings=addresses, ports=self.home.load_state().ports))
        return with_addresses(self._settings, addresses)


@contextmanager
def running_services(settings: Settings) -> Iterator[Settings]:
    """The services for the length of a block: those that already run, else started now and stopped after."""
    services = LocalServices(settings, outlive_us=False)
    with ExitStack() as stack:
        try:
            settings = services.start()
            stack.callback(services.stop)
        except AlreadyRunning:
            settings = with_addresses(settings, services.home.load_state().settings)
        yield settings


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One service, embedded or given by address."""

    title: str
    address: str | None  # host:port, or the path of a socket, in the home if it is there; None when it does not run
    embedded: bool
    answers: bool
    detail: str  # its version, or what is wrong


def service_status(settings: Settings) -> list[ServiceStatus]:
    """Ask each service for its version, and a running `ragllava up` for its receiver.

    `settings` come from load_settings, so they name what runs.
    """
    local = LocalServices(settings)
    given = local.given
    statuses = [_status_of(kind, settings, embedded=kind.setting not in given) for kind in _KINDS]
    servers = ((RECEIVER, local.receiver, "takes events of buckets"), (API, local.api, "serves the HTTP API"))
    for title, address, work in servers if local.serves else ():
        if address is not None:
            problem = server_problem(address)
            statuses.append(ServiceStatus(title, address.shown, True, answers=problem is None, detail=problem or work))
    return statuses


def worker_troubles(local: LocalServices) -> dict[str, str]:
    """For each worker of a running `ragllava up` that keeps dying, a sentence that says why."""
    return local.home.load_troubles() if local.lock.owner() is not None else {}


def server_problem(address: ServerAddress) -> str | None:
    """Why the receiver or the HTTP API at this address cannot work; None when it can."""
    try:
        if address.socket is not None:
            response = http_get("http://localhost/healthz", socket=str(address.socket))
        else:
            response = http_get(f"http://{address.shown}/healthz")
    except ServiceUnavailable as error:
        return str(error)
    body = response.data.decode(errors="replace")
    return None if response.status == 200 else f"HTTP status {response.status}: {body}"


def _status_of(kind: type[EmbeddedService], settings: Settings, *, embedded: bool) -> ServiceStatus:
    title = kind.title if embedded else kind.setting.removesuffix("_url").removesuffix("_endpoint")
    value = plain(settings, kind.setting)
    address = _address_of(value, settings.home) if value is not None else None
    try:
        if value is not None:
            return ServiceStatus(title, address, embedded, answers=True, detail=kind.server_version(settings))
        kind.find_program()
        detail = NOT_RUNNING
    except RagllavaError as error:
        detail = str(error)
    return ServiceStatus(title, address, embedded, answers=False, detail=detail)


def _address_of(value: str, home: Path) -> str:
    """Where a server is reached, without passwords: host:port, or the path of its socket, in the home if it is
    there."""
    if "://" not in value:
        return value  # of an object store
    url = urlsplit(value)
    if url.hostname:
        return f"{url.hostname}:{url.port}" if url.port else url.hostname
    if url.scheme.startswith("redis"):
        return "localhost"
    place = unquote(url.path) if url.scheme == "unix" else parse_qs(url.query).get("host", [""])[0]
    if not place.startswith("/"):
        return place or "the default socket"
    path = Path(place).resolve()
    return str(path.relative_to(home.resolve()) if path.is_relative_to(home.resolve()) else path)


def plain(settings: Settings, name: str) -> str | None:
    """A setting's value as text, secrets too."""
    value = getattr(settings, name)
    return value.get_secret_value() if isinstance(value, SecretStr) else value
