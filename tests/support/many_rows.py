"""Rows by the ten thousand, for tests of what large tables cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, text


@contextmanager
def unhurried(engine: Engine) -> Iterator[Connection]:
    """A transaction whose statements may take as long as they do: making rows is not what a test is about, and takes
    longer than a statement may on a busy machine.

    Cached plans are discarded first. The plan of a foreign key may be from the time when its table had one row: then
    Postgres would read the whole table for each new row, 100,000 times.
    """
    with engine.begin() as connection:
        connection.execute(text("DISCARD PLANS"))
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        yield connection
