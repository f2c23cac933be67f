"""Whether the system is well, in a few looks: what `ragllava status` and `doctor` say, without what is slow."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from ragllava.client.connections import Namespace, forwarded
from ragllava.client.system import System
from ragllava.errors import RagllavaError
from ragllava.jobs.figures import SILENT_TICKS, TICK_GRACE_S
from ragllava.jobs.queues import QueueView, list_queues
from ragllava.stores.jobs.workers import WorkerView

_SMALLEST_FREE_BYTES = 2 * 2**30


class Severity(StrEnum):
    """How bad a finding is: `bad` stops work, `warning` will or may."""

    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Check:
    """One look. `advice` is a sentence on what to do, `page` the name of a page of the documentation that says more."""

    name: str
    severity: Severity
    value: str
    advice: str | None = None
    page: str | None = None


class Health(Namespace):
    """Looks at the services, the workers and what does not succeed."""

    queues = forwarded(list_queues)

    def checks(self) -> list[Check]:
        """All looks, each of which takes milliseconds; a service that is away is a finding and raises nothing."""
        return [*self._services(), *self._workers(), *self._faults(), self._disk()]

    def _services(self) -> Iterator[Check]:
        connections = self._connections
        yield _asked("PostgreSQL", self._system.last_tick_age_s, "postgresql")
        yield _asked("Redis", self._system.waiting_messages, "redis")
        yield _asked("Object store", lambda: connections.objects.exists("health"), "object-store")

    @property
    def _system(self) -> System:
        return System(self._connections)

    def _workers(self) -> Iterator[Check]:
        settings, workers = self._connections.settings, self._system.workers()
        age_s = self._system.last_tick_age_s()
        latest_s = SILENT_TICKS * settings.tick_s + TICK_GRACE_S
        if age_s is None or abs(age_s) > latest_s:
            value = "no tick has ended yet" if age_s is None else f"the last tick ended {age_s:,.0f} s ago"
            advice = "Start the maintenance worker, or look into its log: without ticks nothing that is due begins."
            yield Check("Maintenance", Severity.BAD, value, advice, "workers")
        else:
            yield Check("Maintenance", Severity.GOOD, f"ticked {age_s:.0f} s ago")
        alive = [worker for worker in workers if worker.age_s < latest_s]
        ready = Counter(queue for worker in alive if worker.is_ready for queue in worker.queues)
        for queue in self.queues():
            if queue.name != "maint":
                yield _of_queue(queue, ready[queue.name], alive)

    def _faults(self) -> Iterator[Check]:
        for fault in self._system.faults():
            severity = Severity.BAD if fault.is_persistent else Severity.WARNING
            value = f"{fault.attempts} tries: {fault.reason}"
            yield Check(fault.title, severity, value, "It is tried again by itself; remove the cause.", "faults")

    def _disk(self) -> Check:
        usage = shutil.disk_usage(self._connections.settings.existing_home)
        value = f"{usage.free / 2**30:,.1f} of {usage.total / 2**30:,.1f} GiB free"
        if usage.free < _SMALLEST_FREE_BYTES:
            return Check("Disk", Severity.BAD, value, "Free some, or set RAGLLAVA_HOME to another disk.", "disk")
        return Check("Disk", Severity.GOOD, value)


def _asked(name: str, ask: Callable[[], object], page: str) -> Check:
    began = time.monotonic()
    try:
        ask()
    except RagllavaError as error:
        advice = "Start it, or run `ragllava doctor` on the machine of the system."
        return Check(name, Severity.BAD, f"does not answer: {error}", advice, page)
    return Check(name, Severity.GOOD, f"answers in {1000 * (time.monotonic() - began):.0f} ms")


def _of_queue(queue: QueueView, ready: int, alive: list[WorkerView]) -> Check:
    name = f"Workers of {queue.name}"
    if ready:
        return Check(name, Severity.GOOD, f"{ready} ready")
    if any(queue.name in worker.queues for worker in alive):
        return Check(name, Severity.WARNING, "loading their models", "Wait; a large model takes minutes.", "workers")
    work = queue.waiting + queue.running
    severity = Severity.BAD if work else Severity.WARNING
    advice = f"Start a worker of the queue {queue.name}: `ragllava up`, or the service of that name."
    return Check(
        name,
        severity,
        f"none runs; {work:,} {'shard waits' if work == 1 else 'shards wait'}" if work else "none runs",
        advice,
        "workers",
    )
