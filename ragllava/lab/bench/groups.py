"""The groups of rows by name, in the order in which they run, and what each needs to be running."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from ragllava.errors import UsageError
from ragllava.lab.bench.growing import growth_rows
from ragllava.lab.bench.ingesting import ingest_rows
from ragllava.lab.bench.overhead import overhead_rows
from ragllava.lab.bench.reranking import rerank_rows
from ragllava.lab.bench.rows import BenchRow
from ragllava.lab.bench.searching import search_rows
from ragllava.lab.bench.workload import Workload


class Needs(IntEnum):
    """What must run while a group is measured."""

    NOTHING = 0
    SERVICES = 1  # Postgres, Redis, S3
    WORKERS = 2  # the services, and workers behind the queue


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that are measured together; `rows` is given a system when the group needs one."""

    name: str
    needs: Needs
    rows: Callable[[Workload], list[BenchRow]]


GROUPS = (
    Group("rerank", Needs.NOTHING, rerank_rows),
    Group("search", Needs.SERVICES, search_rows),
    Group("ingest", Needs.WORKERS, ingest_rows),
    Group("overhead", Needs.WORKERS, overhead_rows),
    Group("growth", Needs.WORKERS, growth_rows),
)


def choose_groups(only: str | None) -> list[Group]:
    """The groups named in a list with commas, in the bench's own order; None: all. Raises UsageError for another."""
    if only is None:
        return list(GROUPS)
    names = [name.strip() for name in only.split(",")]
    known = [group.name for group in GROUPS]
    for name in names:
        if name not in known:
            raise UsageError(f"there are no bench rows named {name!r}; there are: {', '.join(known)}")
    return [group for group in GROUPS if group.name in names]
