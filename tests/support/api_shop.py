"""The HTTP API as a real server beside a worker with the mini models, which runs and ticks in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from ragllava.api.app import POOL
from ragllava.client import AnswerOptions, Client, ResultRow
from ragllava.jobs.ending import end_jobs
from ragllava.records import Depth
from ragllava.stages.erasing.steps import Eraser
from ragllava.stages.results.finalize import publish_missing_results
from ragllava.stages.webhooks.deliver import deliver_due
from tests.support.api_server import make_key, serving
from tests.support.waiting import wait_for
from tests.support.wakeful import Rest
from tests.support.workshop import Workshop


@dataclass(frozen=True)
class Shop:
    """A running server and its worker."""

    url: str
    workshop: Workshop
    client: Client  # of the plain role: it sees everything
    _works: threading.Event = field(default_factory=threading.Event)
    _busy: threading.Lock = field(default_factory=threading.Lock)
    closed: threading.Event = field(default_factory=threading.Event)
    failures: list[BaseException] = field(default_factory=list)
    rest: Rest = field(default_factory=Rest)

    def hold_up(self) -> None:
        """From now on no shard is run. One that runs ends first, with all that it would take next."""
        with self._busy:
            self._works.clear()

    def go_on(self) -> None:
        """Run shards, also again."""
        self._works.set()
        self.rest.disturb()

    def key(self, role: str = "admin", *archives: str, **limits: Any) -> str:
        """A new key, of all archives if none is named."""
        return make_key(self.client, role, archives or None, **limits)

    @contextmanager
    def http(self, role: str = "admin", *archives: str, **limits: Any) -> Iterator[httpx.Client]:
        """A client with a new key."""
        headers = {"authorization": f"Bearer {self.key(role, *archives, **limits)}"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=120) as client:
            yield client

    def wait_for_job(self, http: httpx.Client, job_id: int) -> Mapping[str, Any]:
        """The job, when it has ended and its result is there."""

        def has_ended() -> bool:
            shown = http.get(f"/v1/jobs/{job_id}").raise_for_status().json()
            return shown["finished_at"] is not None and shown["result"] is not None

        wait_for(f"the end of job {job_id}", has_ended, 120)
        ended: Mapping[str, Any] = http.get(f"/v1/jobs/{job_id}").json()
        return ended

    def workshop_rows(self, question: str) -> list[ResultRow]:
        """The result of a question that was asked in a job, all of whose candidates were reranked."""
        job = self.client.questions.submit([question], "postcards", AnswerOptions(top_k=1_000, depth=Depth.FIXED))
        self.client.jobs.wait(job.job_id, timeout_s=120)
        return list(self.client.questions.results(job.job_id))

    def work(self) -> None:
        """What workers and maintenance worker do, until the shop is closed."""
        shop, settings = self.workshop, self.workshop.settings
        while not self.closed.is_set():
            try:
                with self._busy:
                    shards = (shop.ids("queued") or shop.dispatch()) if self._works.is_set() else []
                    for shard_id in shards:
                        shop.run_shard(shard_id)
                end_jobs(shop.engine)
                publish_missing_results(shop.engine, shop.resources.objects)
                Eraser(shop.engine, shop.resources.objects).continue_all()
                deliver_due(shop.engine, settings)
            except BaseException as error:
                self.failures.append(error)
                raise
            self.rest.take()


@contextmanager
def open_shop(workshop: Workshop) -> Iterator[Shop]:
    """A server on the services of a workshop; what it started ends with the block."""
    with (
        Client(workshop.settings, name="front") as plain,
        Client(workshop.settings, name="api", pool_size=POOL, for_tenants=True) as tenants,
        serving(tenants) as url,
    ):
        shop = Shop(url, workshop, plain)
        shop.go_on()
        thread = threading.Thread(target=shop.work)
        thread.start()
        try:
            yield shop
        finally:
            shop.closed.set()
            shop.rest.disturb()
            thread.join(60)
            shop.rest.close()
    assert not shop.failures
