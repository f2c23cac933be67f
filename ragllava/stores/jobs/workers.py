"""The rows of the workers: registered by the parent process, set ready by the child, read by dispatch and `status`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from ragllava.stores.database import records, seconds
from ragllava.stores.schema import workers

FORGOTTEN_S = 86_400.0


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as `ragllava status` shows it; `age_s` is the time since it was last seen, by the database's clock."""

    name: str
    queues: list[str]
    slots: int
    state: str
    versions: dict[str, str]
    started_at: datetime
    age_s: float

    @property
    def is_ready(self) -> bool:
        """Whether its models are loaded and warmed up, so that no question waits for them."""
        return self.state == "live" and bool(self.versions)


def register(connection: Connection, name: str, queues: list[str], slots: int) -> None:
    """Insert the row of a worker that starts: live, not ready. Replaces the row of its predecessor."""
    now = func.now()
    fresh = {"queues": queues, "slots": slots, "state": "live", "versions": {}, "started_at": now, "seen_at": now}
    statement = insert(workers).values(name=name, **fresh)
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=fresh))


def report_ready(connection: Connection, name: str, versions: dict[str, str]) -> None:
    """Set the versions of the models that a child of this worker has loaded; never empty."""
    connection.execute(update(workers).where(workers.c.name == name).values(versions=versions, seen_at=func.now()))


def beat(connection: Connection, name: str, state: str) -> None:
    """Record that the worker is alive."""
    connection.execute(update(workers).where(workers.c.name == name).values(state=state, seen_at=func.now()))


def remove(connection: Connection, name: str) -> None:
    """Delete the row of a worker that was shut down."""
    connection.execute(delete(workers).where(workers.c.name == name))


def remove_silent(connection: Connection) -> int:
    """Delete the rows of workers that were last seen more than FORGOTTEN_S ago; returns how many.

    A killed container never comes back under its name.
    """
    return connection.execute(delete(workers).where(workers.c.seen_at < func.now() - seconds(FORGOTTEN_S))).rowcount


def list_workers(connection: Connection) -> list[WorkerView]:
    """All rows by name; the row of a killed worker stays for a day, or until a worker of that name starts again."""
    age = func.extract("epoch", func.now() - workers.c.seen_at)
    return records(WorkerView, connection.execute(select(workers, age.label("age_s")).order_by(workers.c.name)))
