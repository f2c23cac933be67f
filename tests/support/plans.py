"""How many rows the statements of a piece of work visit, by EXPLAIN ANALYZE: what a bad plan cannot hide."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, event, text

_REMOVED = ("Rows Removed by Filter", "Rows Removed by Join Filter", "Rows Removed by Index Recheck")


@dataclass(frozen=True, slots=True)
class Visited:
    """A statement and the rows that all nodes of its plan visited together."""

    statement: str
    rows: int


def visited_rows(engine: Engine, work: Callable[[Connection], object]) -> list[Visited]:
    """Run `work`, then explain each of its statements with the same parameters; all of it is rolled back."""
    statements: list[tuple[str, Any]] = []

    def record(
        _connection: Connection, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool
    ) -> None:
        if not many and statement.lstrip().split(" ", 1)[0].upper() in ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH"):
            statements.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", record)
    try:
        with engine.connect() as connection:
            work(connection)
            connection.rollback()
    finally:
        event.remove(engine, "before_cursor_execute", record)
    with engine.connect() as connection:
        visited = [Visited(statement, _rows(connection, statement, values)) for statement, values in statements]
        connection.rollback()
    return visited


@contextmanager
def watching_rows(but: Engine) -> Iterator[list[Visited]]:
    """What each query visits that any engine of this process sends meanwhile, but for one engine.

    Each is explained before it runs, in its own transaction: with the rights and settings that it has there.
    """
    visited: list[Visited] = []

    def explain(
        connection: Connection, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool
    ) -> None:
        if connection.engine is not but and not many and statement.lstrip().upper().startswith(("SELECT", "WITH")):
            visited.append(Visited(statement, _rows(connection, statement, parameters)))

    event.listen(Engine, "before_cursor_execute", explain)
    try:
        yield visited
    finally:
        event.remove(Engine, "before_cursor_execute", explain)


def _rows(connection: Connection, statement: str, parameters: Any) -> int:
    cursor = connection.connection.cursor()
    cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
    [[explained]] = cursor.fetchall()
    return int(sum(_visited(node) for node in _nodes(explained[0]["Plan"])))


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _visited(node: dict[str, Any]) -> float:
    return float((node["Actual Rows"] + sum(node.get(name, 0) for name in _REMOVED)) * node["Actual Loops"])


def stop_autovacuum(connection: Connection, *tables: str) -> None:
    """Keep the statistics of these tables as they are now."""
    for table in tables:
        connection.execute(text(f"ALTER TABLE {table} SET (autovacuum_enabled = off)"))
