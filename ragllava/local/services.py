"""LocalServices: the embedded Postgres, Redis and S3 of one home, started and stopped together."""

from __future__ import annotations

import http.client
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pydantic import SecretStr
from sqlalchemy.engine import make_url

from ragllava.errors import AlreadyRunning, RagllavaError, ServiceUnavailable
from ragllava.local import postgres, redis_server, seaweed
from ragllava.local.home import Home, HomeLock, Owner, Secrets, ServicesState, choose_ports
from ragllava.local.service import EmbeddedService
from ragllava.local.watchdog import Watchdog
from ragllava.settings import Settings

log = logging.getLogger(__name__)

_WATCHDOG_GRACE_S = 5.0
RECEIVER = "receiver"  # of events; its port is kept beside those of the services

# Each service under the setting that names it; given by the user, that one is used in its place.
SERVICES: dict[str, type[EmbeddedService]] = {
    "database_url": postgres.PostgresService,
    "redis_url": redis_server.RedisService,
    "s3_endpoint": seaweed.SeaweedService,
}


class LocalServices:
    """The services of `settings.home` that are not given by URL. The constructor starts and touches nothing."""

    def __init__(self, settings: Settings, *, outlive_us: bool = True, events: bool = False) -> None:
        """`settings` may hold the addresses of embedded services that ran before; those are not `given`.

        With `outlive_us` the services go on when this process is killed, and the next `start` adopts them; else
        a watchdog ends them. With `events` the object store tells a receiver at `receiver_port`, which the caller
        runs, what happens in its buckets.
        """
        self.home = Home(settings.home)
        self._settings = settings
        self._lock = HomeLock(self.home)
        self._running: list[EmbeddedService] = []
        self._events = events
        self._watchdog = None if outlive_us else Watchdog(self.home.run, _WATCHDOG_GRACE_S)

    @property
    def given(self) -> list[str]:
        """The settings by which the user named services of his own."""
        ours = self.home.load_state().settings
        return [name for name in SERVICES if plain(self._settings, name) not in (None, ours.get(name))]

    @property
    def receiver_port(self) -> int | None:
        """The port of 127.0.0.1 for the receiver of events; None before the first start with `events`."""
        return next(iter(self.home.load_state().ports.get(RECEIVER, [])), None)

    def owner(self) -> Owner | None:
        """The process that runs the services of this home now."""
        return self._lock.owner()

    def start(self, on_ready: Callable[[EmbeddedService], None] = lambda service: None) -> Settings:
        """Start what does not run, adopt what does, wait until all answer; returns settings that name them.

        `on_ready` is called for each service, from a thread of its own, as soon as it answers. Raises
        AlreadyRunning when another process runs this home, SettingsError for an unusable home, ServiceUnavailable
        when a service does not come up; then those that did are stopped again.
        """
        self.home.prepare()
        self._lock.acquire()
        try:
            self._running = self._assemble()
            with ThreadPoolExecutor(max_workers=len(SERVICES)) as pool:
                for future in [pool.submit(_start_one, service, on_ready) for service in self._running]:
                    future.result()
            self._watch()
            return self._announce()
        except OSError as error:
            self.stop()
            raise self.home.unusable(error) from error
        except BaseException:
            self.stop()
            raise

    def revive(self) -> list[str]:
        """Start again what has died since; returns a sentence for each, good news or bad. Call it now and then."""
        news = []
        for service in self._running:
            if service.process is None or not service.process.alive():
                try:
                    service.start()
                    news.append(f"{service.title} had died and runs again at {service.address}; see {service.log}")
                except ServiceUnavailable as error:
                    news.append(f"{service.title} died and does not come up again: {error}")
        if news:
            self._watch()
        return news

    def stop(self) -> None:
        """Stop the services that `start` started or adopted, and give the home free; harmless when repeated."""
        self._stop(self._running)

    def stop_leftovers(self) -> list[str]:
        """Stop what a killed `ragllava up` left running; returns the names. Raises AlreadyRunning."""
        if not self.home.secrets_file.exists():
            return []
        self._lock.acquire()
        left = [service for service in self._existing() if service.find() is not None]
        self._stop(left)
        return [service.title for service in left]

    def _watch(self) -> None:
        if self._watchdog is not None:
            for service in self._running:
                if service.process is not None:
                    self._watchdog.add(service.process.pid)

    def _stop(self, services: list[EmbeddedService]) -> None:
        with ThreadPoolExecutor(max_workers=len(SERVICES)) as pool:
            list(pool.map(lambda service: service.stop(), services))
        if self._watchdog is not None:
            self._watchdog.close()
        self._running = []
        try:
            if self.home.services_file.exists():
                # The ports stay, so that addresses are the same the next time.
                self.home.save_state(ServicesState(ports=self.home.load_state().ports))
        finally:
            self._lock.release()

    def _existing(self) -> list[EmbeddedService]:
        """The embedded services as they were last set up, without a change to the home."""
        secrets, ports, given = self._secrets(), self.home.load_state().ports, self.given
        return [
            kind(self.home, secrets, ports.get(kind.name, [])) for field, kind in SERVICES.items() if field not in given
        ]

    def _secrets(self) -> Secrets:
        """The passwords of this home; the token of events may be the user's own."""
        secrets, token = self.home.load_secrets(), plain(self._settings, "events_token")
        return replace(secrets, events_token=token) if token else secrets

    def _assemble(self) -> list[EmbeddedService]:
        """The embedded services, with ports: those of one that runs, else the last ones if they are free."""
        services = self._existing()
        taken: set[int] = set()
        for service in services:
            if service.find() is None or len(service.ports) != service.port_count:
                service.ports = choose_ports(service.ports, service.port_count, taken, service.port_twin)
        state = self.home.load_state()
        if self._events:
            state.ports[RECEIVER] = self._choose_receiver_port(services, state.ports.get(RECEIVER, []), taken)
        state.ports |= {service.name: service.ports for service in services}
        self.home.save_state(state)
        return services

    def _choose_receiver_port(self, services: list[EmbeddedService], kept: list[int], taken: set[int]) -> list[int]:
        """A store that runs sends to the port of the last time; our own left-over receiver may still be on it."""
        store = next((service for service in services if isinstance(service, seaweed.SeaweedService)), None)
        ports = kept if kept and store is not None and store.find() is not None else choose_ports(kept, 1, taken)
        if store is not None:
            store.receiver_port = ports[0]
        return ports

    def _announce(self) -> Settings:
        addresses: dict[str, str] = {"events_token": self._secrets().events_token} if self._events else {}
        for service in self._running:
            addresses |= service.settings()
        self.home.save_state(ServicesState(settings=addresses, ports=self.home.load_state().ports))
        return with_addresses(self._settings, addresses)


def _start_one(service: EmbeddedService, on_ready: Callable[[EmbeddedService], None]) -> None:
    service.start()
    on_ready(service)


@contextmanager
def running_services(settings: Settings) -> Iterator[Settings]:
    """The services for the length of a block: those that already run, else started now and stopped after."""
    services = LocalServices(settings, outlive_us=False)
    try:
        started = services.start()
    except AlreadyRunning:
        yield with_addresses(settings, services.home.load_state().settings)
        return
    try:
        yield started
    finally:
        services.stop()


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One service, embedded or given by URL."""

    title: str
    address: str | None  # host:port; None when it does not run
    embedded: bool
    answers: bool
    detail: str  # its version, or what is wrong


def service_status(settings: Settings) -> list[ServiceStatus]:
    """Ask each service for its version, and a running `ragllava up` for its receiver.

    `settings` come from load_settings, so they name what runs.
    """
    local = LocalServices(settings)
    given = local.given
    found = [_status_of(field, kind, settings, embedded=field not in given) for field, kind in SERVICES.items()]
    if local.owner() is not None and local.receiver_port is not None:
        problem = receiver_problem(local.receiver_port)
        detail = problem or "takes events of buckets"
        address = f"127.0.0.1:{local.receiver_port}"
        found.append(ServiceStatus(RECEIVER, address, embedded=True, answers=problem is None, detail=detail))
    return found


def receiver_problem(port: int | None) -> str | None:
    """What keeps the receiver at this port of 127.0.0.1 from taking events; None: nothing does."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        return None if response.status == 200 else f"HTTP status {response.status}: {response.read().decode()}"
    except (OSError, http.client.HTTPException) as error:
        return str(error)
    finally:
        connection.close()


def _status_of(field: str, kind: type[EmbeddedService], settings: Settings, *, embedded: bool) -> ServiceStatus:
    value = plain(settings, field)
    if value is None:
        return ServiceStatus(kind.title, None, embedded, answers=False, detail="not running")
    title = kind.title if embedded else field.removesuffix("_url").removesuffix("_endpoint")
    try:
        address = value if "://" not in value else f"{make_url(value).host}:{make_url(value).port}"
        detail = {
            "database_url": lambda: postgres.server_version(value),
            "redis_url": lambda: redis_server.server_version(value),
            "s3_endpoint": lambda: seaweed.server_version(settings),
        }[field]()
    except RagllavaError as error:
        return ServiceStatus(title, address, embedded, answers=False, detail=str(error))
    return ServiceStatus(title, address, embedded, answers=True, detail=detail)


def with_addresses(settings: Settings, addresses: dict[str, str]) -> Settings:
    """The same settings with the services at these addresses."""
    return Settings(**(settings.model_dump() | addresses))


def plain(settings: Settings, name: str) -> str | None:
    """A setting's value as text, secrets too."""
    value = getattr(settings, name)
    return value.get_secret_value() if isinstance(value, SecretStr) else value
