"""`ragllava doctor --deep`: rows against objects, embeddings against images, leases, queues, clocks. Changes nothing.

What is checked may change meanwhile, so each check reads in the order in which nothing sound can look wrong: what
refers before what is referred to.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from sqlalchemy import Connection, Engine

from ragllava.jobs.kinds import KINDS, queues_by_kind
from ragllava.settings import Settings
from ragllava.stores.database import in_transaction
from ragllava.stores.maintenance import inspection
from ragllava.stores.maintenance.inspection import Found
from ragllava.stores.objects import ObjectStore, content_key

_CONTENT = re.compile(r"sha256/[0-9a-f]{2}/[0-9a-f]{2}/([0-9a-f]{64})")
_LARGEST_SKEW_S = 5.0
_FORGOTTEN_S = 86_400.0
_SURPLUS = 10  # messages that came twice, and are dropped when they are looked at
_RESULT_GRACE_S = 300.0

T = TypeVar("T")

OnProgress = Callable[[str, int], None]  # what is being looked at, and how far


@dataclass(frozen=True, slots=True)
class Checked:
    """One thing that was looked at; `problem` says what is wrong, with an example, and what to do; None: nothing."""

    name: str
    value: str
    problem: str | None = None


@dataclass(frozen=True)
class Inspector:
    """What all checks work with. `waiting` counts the messages of each queue."""

    engine: Engine
    settings: Settings
    objects: ObjectStore
    waiting: Mapping[str, int]
    on_progress: OnProgress

    def ask(self, question: Callable[[Connection], T]) -> T:
        """One question to the database, which may take minutes."""

        def work(connection: Connection) -> T:
            inspection.be_patient(connection)
            return question(connection)

        return in_transaction(self.engine, work)

    @property
    def grace_s(self) -> float:
        """So long a tick may be late."""
        return 3 * self.settings.tick_s + 5.0


def inspect(inspector: Inspector) -> Iterator[Checked]:
    """Everything, one line for each check. Raises ServiceUnavailable when Postgres or the store is away."""
    yield from _jobs(inspector)
    yield from _workers(inspector)
    yield _queues(inspector, inspector.waiting)
    yield from _embeddings(inspector)
    yield from _content(inspector)
    yield _results(inspector)
    yield _adapters(inspector)


def _checked(name: str, found: Found, what: str, advice: str) -> Checked:
    """`what` continues the number: `are missing from …`."""
    if not found.number:
        return Checked(name, "all well")
    return Checked(name, f"{found.number:,} wrong", f"{found.number:,} {what}, as {found.example}; {advice}")


def _jobs(inspector: Inspector) -> Iterator[Checked]:
    ask, grace_s = inspector.ask, inspector.grace_s
    totals = {kind.name: kind.inputs.totals() for kind in KINDS.values()}
    restart = "no tick runs: see that the maint worker does (`ragllava status`)"
    yield _checked(
        "leases",
        ask(lambda c: inspection.expired_leases(c, grace_s)),
        "shards run on a lease that ended and was not taken back",
        restart,
    )
    too_old_s = inspector.settings.queued_timeout_s + grace_s
    yield _checked(
        "messages", ask(lambda c: inspection.stale_messages(c, too_old_s)), "shards are queued for too long", restart
    )
    yield _checked(
        "open jobs",
        ask(inspection.jobs_without_open_shard),
        "open jobs have no shard left to run",
        "end them with `ragllava jobs cancel`; `ragllava jobs retry` asks for the rest again",
    )
    yield _checked(
        "reconciliation",
        ask(lambda c: inspection.jobs_that_do_not_add_up(c, totals)),
        "ended jobs have inputs without an outcome, or lost some",
        "do not rely on their results; submit them again",
    )
    yield _checked(
        "results",
        ask(lambda c: inspection.jobs_without_result(c, _RESULT_GRACE_S + grace_s)),
        "ended jobs have no result yet",
        "the log of the maint worker says why",
    )
    yield _checked(
        "schedules",
        ask(lambda c: inspection.overdue_schedules(c, grace_s)),
        "schedules are overdue",
        restart,
    )


def _workers(inspector: Inspector) -> Iterator[Checked]:
    queues = queues_by_kind()
    grace_s = inspector.grace_s
    yield _checked(
        "workers",
        inspector.ask(lambda c: inspection.silent_workers(c, grace_s, _FORGOTTEN_S)),
        "workers went silent without a goodbye",
        "they were killed or cannot reach the database: look into their log, start them again",
    )
    yield _checked(
        "waiting work",
        inspector.ask(lambda c: inspection.unserved_shards(c, queues, grace_s)),
        "shards wait for a queue that no live worker serves",
        "start one: `ragllava up`",
    )
    yield _clocks(inspector)


def _clocks(inspector: Inspector) -> Checked:
    before, started = datetime.now(UTC), time.monotonic()
    theirs = inspector.ask(inspection.clock)
    took_s = time.monotonic() - started
    skew_s = (theirs - before).total_seconds() - took_s / 2
    value = f"{skew_s:+.1f} s against the database"
    if abs(skew_s) <= _LARGEST_SKEW_S + took_s / 2:
        return Checked("clock", value)
    return Checked(
        "clock",
        value,
        f"this machine's clock and the database's differ by {abs(skew_s):.0f} s; leases and schedules go by the "
        "database's, logs by this one: let both follow a time server",
    )


def _queues(inspector: Inspector, waiting: Mapping[str, int]) -> Checked:
    """Messages are hints, so a missing one is no fault: the sweep sends it again. Many too many are one."""
    queues = queues_by_kind()
    queued = inspector.ask(lambda c: inspection.queued_shards(c, queues))
    surplus = {name: number - queued.get(name, 0) for name, number in waiting.items()}
    worst = max(surplus, key=lambda name: surplus[name], default=None)
    value = ", ".join(f"{name} {number}" for name, number in waiting.items())
    if worst is None or surplus[worst] <= _SURPLUS:
        return Checked("queues", value)
    return Checked(
        "queues",
        value,
        f"{waiting[worst]:,} messages wait in {worst} for {queued.get(worst, 0):,} queued shards: nobody takes them, "
        "or somebody else sends there; see that its workers run, and that no other system shares this Redis database",
    )


def _embeddings(inspector: Inspector) -> Iterator[Checked]:
    ask = inspector.ask
    yield _checked(
        "indexes",
        ask(inspection.archives_without_index),
        "archives hold images and have no index",
        "ingest a picture of theirs again",
    )
    for archive, index in inspector.ask(inspection.searched_indexes):
        inspector.on_progress(f"vectors of {archive}", 0)
        yield _checked(
            f"vectors of {archive}",
            ask(lambda c, index=index: inspection.images_without_vector(c, index)),  # type: ignore[misc]
            f"images of {archive} are not in its index {index.index_id} and cannot be found",
            f"say `ragllava reindex --archive {archive} --only missing`",
        )
        yield _checked(
            f"images of {archive}",
            ask(lambda c, index=index: inspection.vectors_without_image(c, index)),  # type: ignore[misc]
            f"vectors of index {index.index_id} belong to no image of {archive} that is in use",
            f"say `ragllava reindex --archive {archive}`",
        )
    yield _checked(
        "graphs",
        ask(inspection.invalid_graphs),
        "indexes of the database were left half built",
        "drop them with DROP INDEX CONCURRENTLY; a graph is built again when pictures are next ingested",
    )


def _content(inspector: Inspector) -> Iterator[Checked]:
    """Rows are read before the listing, and blobs after it: an object is put after its blob's row, before its image."""
    yield _checked(
        "blobs",
        inspector.ask(inspection.images_of_no_living_blob),
        "images name content that is not live",
        "ingest them again",
    )
    named = inspector.ask(inspection.named_content)
    missing, wrong_size, others, looked_at = dict(named), [], [], 0
    for found in inspector.objects.list_objects("sha256/"):
        match = _CONTENT.fullmatch(found.key)
        if match is None:
            continue
        size_bytes = missing.pop(match[1], None)
        if size_bytes is None and match[1] not in named:
            others.append(match[1])
        elif size_bytes is not None and size_bytes != found.size_bytes:
            wrong_size.append(match[1])
        looked_at += 1
        if looked_at % 1000 == 0:
            inspector.on_progress("objects", looked_at)
    inspector.on_progress("objects", looked_at)
    yield _damaged(inspector, "pictures", sorted(missing), "pictures are missing from the object store")
    yield _damaged(inspector, "sizes", wrong_size, "pictures in the object store have another size than their row says")
    unknown = inspector.ask(lambda c: inspection.unknown_content(c, others))
    yield _checked(
        "content",
        unknown,
        "objects in the store have no row",
        "`ragllava maintenance sweep` tells what may go, and when",
    )


def _damaged(inspector: Inspector, name: str, hashes: list[str], what: str) -> Checked:
    if not hashes:
        return Checked(name, "all well")
    image = inspector.ask(lambda c: inspection.image_named(c, hashes[0]))
    example = f"{image} ({content_key(hashes[0])})"
    return _checked(name, Found(len(hashes), example), what, "ingest their files again, which puts them back")


def _results(inspector: Inspector) -> Checked:
    named = inspector.ask(inspection.result_keys)
    for found in inspector.objects.list_objects("jobs/"):
        named.pop(found.key, None)
    example = next((f"{key} of {job}" for key, job in sorted(named.items())), None)
    return _checked(
        "result files",
        Found(len(named), example),
        "result files are missing from the object store",
        "`ragllava results` writes them again from the database",
    )


def _adapters(inspector: Inspector) -> Checked:
    named = inspector.ask(inspection.adapters_of_versions)
    for found in inspector.objects.list_objects("adapters/"):
        if found.key.endswith("/manifest.json"):
            named.pop(found.key.split("/")[1], None)
    example = next(iter(sorted(named.values())), None)
    return _checked(
        "adapters",
        Found(len(named), example),
        "model versions have no adapter in the object store",
        "go back with `ragllava models rollback`, or train them again",
    )
