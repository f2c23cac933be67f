"""`ragllava doctor --deep`: rows against objects, vectors against images, leases, queues, clocks. Changes nothing.

The data may change meanwhile. So that nothing correct looks wrong, each check reads what refers before what is referred
to.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine

from ragllava.errors import ServiceUnavailable
from ragllava.jobs.isolation import reason_of
from ragllava.jobs.kinds import KINDS, queues_by_kind
from ragllava.settings import Settings
from ragllava.stores.archives import indexes, word_index
from ragllava.stores.archives.archive import list_archives
from ragllava.stores.database import in_transaction
from ragllava.stores.jobs.workers import FORGOTTEN_S
from ragllava.stores.maintenance import inspection, orphans, schedules
from ragllava.stores.maintenance.inspection import CountedRows
from ragllava.stores.objects import THUMBNAILS, ObjectStore, content_hash, content_key, thumbnail_hash

log = logging.getLogger(__name__)

_LARGEST_SKEW_S = 5.0
_SURPLUS = 10  # messages sent twice, which their worker drops
_RESULT_GRACE_S = 300.0

P = ParamSpec("P")
T = TypeVar("T")

OnProgress = Callable[[str, int], None]  # what is being checked, and how far


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of one check; `problem` says what is wrong, with an example, and what to do; None: nothing."""

    name: str
    value: str
    problem: str | None = None


_NO_TICK = "no tick runs: check that the maintenance worker runs (`ragllava status`)"
# Checks of rows: a name, a query for wrong rows, what continues their number, and the advice.
_JOB_CHECKS = (
    ("leases", inspection.EXPIRED_LEASES, "shards run on a lease that ended and was not reaped", _NO_TICK),
    ("messages", inspection.STALE_MESSAGES, "shards have been queued for too long", _NO_TICK),
    (
        "open jobs",
        inspection.JOBS_WITHOUT_OPEN_SHARD,
        "open jobs have no shard left to run",
        _NO_TICK,
    ),
)
_WORK_CHECKS = (
    (
        "results",
        inspection.JOBS_WITHOUT_RESULT,
        "ended jobs have no result yet",
        "the log of the maintenance worker says why",
    ),
    (
        "removals",
        inspection.STALLED_ERASURES,
        "removals are not finished",
        "the log of the maintenance worker says why; the next removal finishes them, too",
    ),
    ("schedules", inspection.OVERDUE_SCHEDULES, "schedules are overdue", _NO_TICK),
    (
        "workers",
        inspection.SILENT_WORKERS,
        "workers stopped reporting without signing off",
        "they were killed or cannot reach the database: read their log, start them again",
    ),
    (
        "waiting work",
        inspection.UNSERVED_SHARDS,
        "shards wait for a queue that no live worker serves",
        "start one: `ragllava up`",
    ),
)


@dataclass(frozen=True)
class Inspector:
    """What all checks need. `waiting` counts the messages of each queue."""

    engine: Engine
    settings: Settings
    objects: ObjectStore
    waiting: Mapping[str, int]
    on_progress: OnProgress

    def ask(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work(connection, *args, **kwargs)` in a transaction whose statements may take minutes."""

        def with_time(connection: Connection) -> T:
            inspection.allow_minutes(connection)
            return work(connection, *args, **kwargs)

        return in_transaction(self.engine, with_time)

    def run(self, name: str, query: str, problem: str, advice: str, **values: Any) -> Checked:
        """The result of a check of rows."""
        return _checked(name, self.ask(inspection.count, query, self.limits | values), problem, advice)

    @cached_property
    def limits(self) -> dict[str, Any]:
        """The values that the queries share: the largest correct ages in seconds, and the queues."""
        grace_s = 3 * self.settings.tick_s + 5.0  # a tick may be that late
        return {
            "grace_s": grace_s,
            "queued_s": self.settings.queued_timeout_s + grace_s,
            "result_s": _RESULT_GRACE_S + grace_s,
            "forgotten_s": FORGOTTEN_S,
            "queues": json.dumps(queues_by_kind()),
        }


def inspect(inspector: Inspector) -> Iterator[Checked]:
    """The result of each check. A check that fails is a problem, and the others are made.

    Raises ServiceUnavailable when Postgres or the object store cannot be reached.
    """
    groups: list[tuple[str, Callable[[Inspector], Iterator[Checked]]]] = [
        *((name, partial(_rows, check)) for check in _JOB_CHECKS for name in check[:1]),
        ("reconciliation", _reconciliation),
        *((name, partial(_rows, check)) for check in _WORK_CHECKS for name in check[:1]),
        ("clock", _clocks),
        ("queues", _queues),
        ("vectors", _embeddings),
        ("words", _words),
        ("content", _content),
        ("thumbnails", _thumbnails),
        ("result files", _results),
        ("adapters", _adapters),
    ]
    for name, check in groups:
        try:
            yield from check(inspector)
        except ServiceUnavailable:
            raise
        except Exception as error:
            log.warning(reason_of(error), exc_info=error, extra={"action": "check_failed", "check": name})
            yield Checked(name, "not checked", f"the check {name} failed: {reason_of(error)}")


def _rows(check: tuple[str, str, str, str], inspector: Inspector) -> Iterator[Checked]:
    yield inspector.run(*check)


def _checked(name: str, rows: CountedRows, problem: str, advice: str) -> Checked:
    if not rows.number:
        return Checked(name, "all well")
    return Checked(name, f"{rows.number:,} wrong", f"{rows.number:,} {problem}, as {rows.example}; {advice}")


def _reconciliation(inspector: Inspector) -> Iterator[Checked]:
    totals = {kind.name: kind.inputs.totals() for kind in KINDS.values()}
    rows = inspector.ask(inspection.jobs_that_do_not_add_up, totals)
    problem = "ended jobs have inputs without an outcome, or lost inputs"
    yield _checked("reconciliation", rows, problem, "do not rely on their results; submit them again")


def _clocks(inspector: Inspector) -> Iterator[Checked]:
    before, started = datetime.now(UTC), time.monotonic()
    theirs = inspector.ask(schedules.database_now)
    took_s = time.monotonic() - started
    skew_s = (theirs - before).total_seconds() - took_s / 2
    value = f"{skew_s:+.1f} s against the database"
    problem = None
    if abs(skew_s) > _LARGEST_SKEW_S + took_s / 2:
        problem = (
            f"this machine's clock and the database's differ by {abs(skew_s):.0f} s; leases and schedules use the "
            "database's, logs use this one: synchronise both with a time server"
        )
    yield Checked("clock", value, problem)


def _queues(inspector: Inspector) -> Iterator[Checked]:
    """A missing message is not a fault: dispatch sends it again. A large surplus of messages is one."""
    waiting = inspector.waiting
    queued = inspector.ask(inspection.queued_shards, queues_by_kind())
    surplus = {name: number - queued.get(name, 0) for name, number in waiting.items()}
    worst = max(surplus, key=lambda name: surplus[name], default=None)
    value = ", ".join(f"{name} {number}" for name, number in waiting.items())
    if worst is None or surplus[worst] <= _SURPLUS:
        yield Checked("queues", value)
        return
    problem = (
        f"{waiting[worst]:,} messages wait in {worst} for {queued.get(worst, 0):,} queued shards: no worker takes "
        "them, or another system sends there; check its workers, and that no other system uses this Redis database"
    )
    yield Checked("queues", value, problem)


def _embeddings(inspector: Inspector) -> Iterator[Checked]:
    yield inspector.run(
        "indexes",
        inspection.ARCHIVES_WITHOUT_INDEX,
        "archives have images and no index",
        "ingest a picture of each again",
    )
    for details in inspector.ask(indexes.all_indexes):
        archive, index = details.archive, details.index
        if index.state != "active":
            continue
        inspector.on_progress(f"vectors of {archive}", 0)
        ids = {"archive_id": index.archive_id, "index_id": index.index_id}
        yield inspector.run(
            f"vectors of {archive}",
            inspection.IMAGES_WITHOUT_VECTOR,
            f"images of {archive} are not in its index {index.index_id} and cannot be found",
            f"run `ragllava reindex --archive {archive} --only missing`",
            **ids,
        )
        yield inspector.run(
            f"images of {archive}",
            inspection.VECTORS_WITHOUT_IMAGE,
            f"vectors of index {index.index_id} belong to no image of {archive} that is in use",
            f"run `ragllava reindex --archive {archive}`",
            **ids,
        )
    yield inspector.run(
        "graphs",
        inspection.INVALID_GRAPHS,
        "indexes of the database are incomplete",
        "drop them with DROP INDEX CONCURRENTLY; a graph is built again when pictures are next ingested",
    )


def _words(inspector: Inspector) -> Iterator[Checked]:
    for each in inspector.ask(list_archives):
        inspector.on_progress(f"words of {each.name}", 0)
        wrong = inspector.ask(word_index.disagreements, each.archive_id)
        yield _checked(
            f"words of {each.name}",
            CountedRows(wrong.number, wrong.example),
            f"images or words of {each.name} are wrong in the search by captions",
            "write the words again with `ragllava migrate --words`",
        )


def _content(inspector: Inspector) -> Iterator[Checked]:
    """Rows are read before the listing, and blobs after it: an object is put after its blob's row, before its image."""
    yield inspector.run(
        "blobs", inspection.IMAGES_WITHOUT_LIVE_BLOB, "images refer to content that is not live", "ingest them again"
    )
    named = inspector.ask(inspection.named_content)
    missing, wrong_size, unnamed, checked = dict(named), [], [], 0
    for listed in inspector.objects.list_objects("sha256/"):
        sha256 = content_hash(listed.key)
        if sha256 is None:
            continue
        size_bytes = missing.pop(sha256, None)
        if size_bytes is None and sha256 not in named:
            unnamed.append(sha256)
        elif size_bytes is not None and size_bytes != listed.size_bytes:
            wrong_size.append(sha256)
        checked += 1
        if checked % 1000 == 0:
            inspector.on_progress("objects", checked)
    inspector.on_progress("objects", checked)
    yield _damaged(inspector, "pictures", sorted(missing), "pictures are missing from the object store")
    yield _damaged(inspector, "sizes", wrong_size, "pictures in the object store have another size than their row says")
    unknown = sorted(inspector.ask(orphans.unknown_hashes, unnamed))
    yield _checked(
        "content",
        CountedRows(len(unknown), next(iter(unknown), None)),
        "objects in the store have no row",
        "`ragllava maintenance gc` reports what can be deleted, and when",
    )


def _thumbnails(inspector: Inspector) -> Iterator[Checked]:
    """Their number, and those whose picture is gone."""
    hashes = [sha256 for listed in inspector.objects.list_objects(THUMBNAILS) if (sha256 := thumbnail_hash(listed.key))]
    unknown = sorted(inspector.ask(orphans.unknown_hashes, hashes))
    checked = _checked(
        "thumbnails",
        CountedRows(len(unknown), next(iter(unknown), None)),
        "thumbnails in the object store have no picture",
        "`ragllava maintenance gc` reports what can be deleted, and when",
    )
    yield checked if checked.problem else replace(checked, value=f"{len(hashes):,} stored")


def _damaged(inspector: Inspector, name: str, hashes: list[str], problem: str) -> Checked:
    example = None
    if hashes:
        example = f"{inspector.ask(inspection.image_named, hashes[0])} ({content_key(hashes[0])})"
    return _checked(name, CountedRows(len(hashes), example), problem, "ingest their files again, which restores them")


def _results(inspector: Inspector) -> Iterator[Checked]:
    named = inspector.ask(inspection.result_keys)
    for listed in inspector.objects.list_objects("jobs/"):
        named.pop(listed.key, None)
    example = next((f"{key} of {job}" for key, job in sorted(named.items())), None)
    yield _checked(
        "result files",
        CountedRows(len(named), example),
        "result files are missing from the object store",
        "`ragllava results` writes them again from the database",
    )


def _adapters(inspector: Inspector) -> Iterator[Checked]:
    named = inspector.ask(inspection.adapters_of_versions)
    for listed in inspector.objects.list_objects("adapters/"):
        if listed.key.endswith("/manifest.json"):
            named.pop(listed.key.split("/")[1], None)
    yield _checked(
        "adapters",
        CountedRows(len(named), min(named.values(), default=None)),
        "model versions have no adapter in the object store",
        "go back with `ragllava models rollback`, or train them again",
    )
