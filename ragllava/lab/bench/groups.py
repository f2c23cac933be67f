"""The groups of rows by name, in the order in which they run, and what each needs to be running."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from ragllava.errors import UsageError
from ragllava.lab.bench.console_pages import console_rows
from ragllava.lab.bench.estimates import deadline_rows, estimate_rows
from ragllava.lab.bench.first_stage import first_stage_rows
from ragllava.lab.bench.front_door import http_rows
from ragllava.lab.bench.growing import growth_rows
from ragllava.lab.bench.ingesting import ingest_rows
from ragllava.lab.bench.machinery import machinery_rows
from ragllava.lab.bench.overhead import overhead_rows
from ragllava.lab.bench.reranking import rerank_rows
from ragllava.lab.bench.rows import BenchRow
from ragllava.lab.bench.searching import search_rows
from ragllava.lab.bench.workload import Workload


class Needs(Enum):
    """What must be running while a group is measured."""

    NOTHING = auto()
    SERVICES = auto()  # Postgres, Redis, S3
    WORKERS = auto()  # the services, and workers that consume the queue


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that are measured together; the workload has a client if the group needs services."""

    name: str
    needs: Needs
    rows: Callable[[Workload], list[BenchRow]]


GROUPS = (
    Group("rerank", Needs.NOTHING, rerank_rows),
    Group("search", Needs.SERVICES, search_rows),
    Group("captions", Needs.SERVICES, first_stage_rows),
    Group("ingest", Needs.WORKERS, ingest_rows),
    Group("overhead", Needs.WORKERS, overhead_rows),
    Group("growth", Needs.WORKERS, growth_rows),
    Group("http", Needs.WORKERS, http_rows),
    Group("estimates", Needs.WORKERS, estimate_rows),
    Group("deadlines", Needs.WORKERS, deadline_rows),
    Group("machinery", Needs.SERVICES, machinery_rows),
    Group("console", Needs.SERVICES, console_rows),
)


def choose_groups(only: str | None) -> list[Group]:
    """The groups of a comma-separated list, in the order of GROUPS; None: all. UsageError: an unknown name."""
    if only is None:
        return list(GROUPS)
    names = [name.strip() for name in only.split(",")]
    existing = [group.name for group in GROUPS]
    for name in names:
        if name not in existing:
            raise UsageError(f"there is no group of rows {name!r}; there are: {', '.join(existing)}")
    return [group for group in GROUPS if group.name in names]
