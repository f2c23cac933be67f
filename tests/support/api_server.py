"""The HTTP API as a real server on real services, with a worker in a thread that answers every question with `yes`."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text
from urllib3 import PoolManager

from ragllava.api.app import POOL
from ragllava.api.serving import ApiServer
from ragllava.client import AccessRole, Client, NewKey
from ragllava.client.access.access import Access
from ragllava.console.site import make_site
from ragllava.jobs import queue
from ragllava.jobs.queue import Lease
from ragllava.records import JobKind
from ragllava.settings import Settings
from ragllava.stages.answer.slow_reads import SlowReads
from ragllava.stages.batches.process import process_batches
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stores.archives import archive
from ragllava.stores.database import in_transaction, make_engine
from ragllava.stores.jobs import requests
from ragllava.stores.objects import ObjectStore
from tests.support.job_rows import Desk
from tests.support.waiting import wait_for
from tests.support.wakeful import Rest


@dataclass(frozen=True)
class Office(Desk):
    """Does in a thread what the maintenance worker and an answer worker do."""

    objects: ObjectStore
    _may_answer: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)
    failures: list[BaseException] = field(default_factory=list)
    busy: threading.Lock = field(default_factory=threading.Lock)
    slow_reads: SlowReads = field(default_factory=SlowReads)
    rest: Rest = field(default_factory=Rest)

    def clear(self) -> None:
        """Remove what a test has left, but the archives."""
        with self.busy, self.engine.begin() as connection:
            for table in ("batches", "uploads", "jobs", "api_usage", "audit", "api_keys", "faults"):
                connection.execute(text(f"DELETE FROM {table}"))
        self.objects.remove_prefix("uploads/")
        self.go_on()

    def hold_up(self) -> None:
        """From now on nothing is answered. A tick that is answering ends first: it would take a job that comes next."""
        with self.busy:
            self._may_answer.clear()

    def go_on(self) -> None:
        """Answer again."""
        self._may_answer.set()
        self.rest.disturb()

    def claims_all(self) -> bool:
        """A caller may stop a job between a look at its shards and the claim."""
        return False

    def answer(self, lease: Lease) -> None:
        """Also a request: a search finds nothing, and everything is as relevant."""
        if lease.kind != JobKind.REQUEST:
            super().answer(lease)
            return
        with self.engine.begin() as connection:
            queue.fence(connection, lease, 60.0)
            request = requests.load_request(connection, lease.job_id)
            if request is not None:  # else its caller has gone since, and it was cancelled
                scores = {"relevances": [0.5 for _ in request.body.get("pairs", ())], "model": "office", "tokens": 7}
                requests.finish_request(connection, lease.job_id, scores | {"found": []})
            queue.finish(connection, lease)

    def tick(self) -> None:
        """What is due for batches and ended jobs, and answers if there may be any."""
        process_batches(self.engine, self.settings, self.objects, self.slow_reads)
        if self._may_answer.is_set():
            self.drain()
        publish_missing_results(self.engine, self.objects)
        process_batches(self.engine, self.settings, self.objects, self.slow_reads)

    def work(self) -> None:
        """Until the office is closed."""
        while not self.closed.is_set():
            try:
                with self.busy:
                    self.tick()
            except BaseException as error:
                self.failures.append(error)
                raise
            self.rest.take()


@dataclass(frozen=True)
class Front:
    """A running server, and what tests need beside it."""

    url: str
    office: Office
    client: Client  # of the plain role: it sees everything

    @property
    def settings(self) -> Settings:
        """Those of the server."""
        return self.office.settings

    def key(self, role: str = "ask", archives: Sequence[str] | None = None, **limits: Any) -> str:
        """A new key."""
        return make_key(self.client, role, archives, **limits)

    def call(
        self, method: str, path: str, key: str | None, *, json: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, body and headers of a plain request."""
        sent = dict(headers or {}) | ({"Authorization": f"Bearer {key}"} if key else {})
        with PoolManager(timeout=60, retries=False) as pool:
            response = pool.request(method, self.url + path, json=json, headers=sent)
            is_json = response.headers.get("content-type", "").startswith("application/json")
            return response.status, response.json() if is_json else response.data, dict(response.headers)


def make_key(client: Client, role: str, archives: Sequence[str] | None = None, **limits: Any) -> str:
    """A new key of a system."""
    from ragllava.client import Limits

    access: Access = client.access
    return access.create_key(NewKey("test", AccessRole(role), archives, limits=Limits(**limits)))[0]


@contextmanager
def serving(client: Client) -> Iterator[str]:
    """The whole site on a free port, in a thread; its address."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = ApiServer(make_site(client), "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        wait_for("the server to start", lambda: server.started)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        listening.close()
        assert not thread.is_alive(), "the server does not stop"


@contextmanager
def open_front(settings: Settings, archives: Sequence[str] = ("stamps", "coins")) -> Iterator[Front]:
    """A server with these archives, which are empty, and an office that works."""
    unhurried = settings.model_copy(update={"tick_s": 36_000.0})  # workers are taken for gone after three ticks
    engine = make_engine(unhurried.require_database(), pool_size=5, name="office")
    office = Office(engine, unhurried, ObjectStore(unhurried))
    office.live_worker()
    office.go_on()
    for name in archives:
        in_transaction(engine, archive.ensure_archive, name)
    thread = threading.Thread(target=office.work)
    with (
        Client(unhurried, name="front") as plain,
        Client(unhurried, name="api", pool_size=POOL, for_tenants=True) as tenants,
    ):
        thread.start()
        try:
            with serving(tenants) as url:
                yield Front(url, office, plain)
        finally:
            office.closed.set()
            office.rest.disturb()
            thread.join(60)
            office.rest.close()
            engine.dispose()
        assert not office.failures
