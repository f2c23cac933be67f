"""What is measured while the fleet works: statements, ticks, tables, processors and memory."""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
from sqlalchemy import Connection, Engine, event, text

TABLES = ("jobs", "shards", "workers", "questions", "answers", "candidates", "images", "totals")
_SHOWN = 160  # characters of a statement


@dataclass
class Statement:
    """How often a statement ran, and how long."""

    calls: int = 0
    seconds: float = 0.0
    longest_s: float = 0.0

    def add(self, seconds: float) -> None:
        """One call."""
        self.calls += 1
        self.seconds += seconds
        self.longest_s = max(self.longest_s, seconds)


class Statements:
    """The time of all statements of some engines, seen from the client."""

    def __init__(self) -> None:
        """Nothing is measured yet."""
        self.by_text: dict[str, Statement] = defaultdict(Statement)
        self._lock = threading.Lock()

    def watch(self, engine: Engine) -> None:
        """Measure the statements of this engine from now on."""
        event.listen(engine, "before_cursor_execute", self._before)
        event.listen(engine, "after_cursor_execute", self._after)

    def _before(self, connection: Connection, *_facts: Any) -> None:
        connection.info["fleet_began"] = time.perf_counter()

    def _after(self, connection: Connection, _cursor: Any, statement: str, *_facts: Any) -> None:
        seconds = time.perf_counter() - connection.info["fleet_began"]
        short = re.sub(r"\s+", " ", re.sub(r"%\(\w+\)s(::\w+)?", "?", statement)).strip()[:_SHOWN]
        with self._lock:
            self.by_text[short].add(seconds)

    def slowest(self, number: int) -> list[tuple[str, Statement]]:
        """Those that took most time together."""
        return sorted(self.by_text.items(), key=lambda item: -item[1].seconds)[:number]


@dataclass(frozen=True, slots=True)
class TableLook:
    """A table at one moment; `scanned_rows` were read from its beginning since the server started."""

    size_bytes: int
    live_rows: int
    dead_rows: int
    scanned_rows: int
    vacuums: int


_LOOK = text("""
    SELECT relname, pg_total_relation_size(relid) AS size_bytes, n_live_tup AS live_rows, n_dead_tup AS dead_rows,
        seq_tup_read AS scanned_rows, autovacuum_count AS vacuums
    FROM pg_stat_user_tables WHERE relname = ANY(:names)
""")


def look(engine: Engine) -> dict[str, TableLook]:
    """All measured tables, by name."""
    with engine.connect() as connection:
        rows = connection.execute(_LOOK, {"names": list(TABLES)}).all()
    return {
        row.relname: TableLook(row.size_bytes, row.live_rows, row.dead_rows, row.scanned_rows, row.vacuums)
        for row in rows
    }


@dataclass
class Processor:
    """The processor time of a group of processes, by their ids at each look."""

    seconds: dict[int, float] = field(default_factory=dict)

    def see(self, processes: Sequence[psutil.Process]) -> None:
        """Note what each has used; one that has ended keeps its last number."""
        for process in processes:
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            self.seconds[process.pid] = times.user + times.system

    @property
    def total_s(self) -> float:
        """Of all of them."""
        return sum(self.seconds.values())


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of the values does not exceed; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Note how long a block took."""
    began = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - began)
