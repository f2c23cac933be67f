"""When the last tick ended, by the database's clock; whoever ticks notes it."""

from __future__ import annotations

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.postgresql import insert

from ragllava.stores.schema import ticks

_NAME = "tick"


def note_tick(connection: Connection) -> None:
    """Record that a tick has ended now."""
    statement = insert(ticks).values(name=_NAME, ended_at=func.now())
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"ended_at": func.now()}))


def last_tick_age_s(connection: Connection) -> float | None:
    """Seconds since the last tick ended; None before the first. Negative after the database's clock was set back."""
    age = func.extract("epoch", func.clock_timestamp() - ticks.c.ended_at)
    seconds = connection.scalar(select(age).where(ticks.c.name == _NAME))
    return None if seconds is None else float(seconds)
