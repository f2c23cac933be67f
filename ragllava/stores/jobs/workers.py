"""The rows of the workers: registered by the parent process, set ready by the child, read by dispatch and `status`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Text, any_, cast, delete, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert

from ragllava.stores.database import lock_rows, records, seconds
from ragllava.stores.schema import jobs, workers

FORGOTTEN_S = 86_400.0


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as `ragllava status` shows it; `age_s` is the time since it was last seen, by the database's clock.

    `refused` has the open jobs that it cannot do, by id, each with the reason.
    """

    name: str
    queues: list[str]
    slots: int
    state: str
    versions: dict[str, str]
    refused: dict[str, str]
    started_at: datetime
    age_s: float

    @property
    def is_ready(self) -> bool:
        """Whether its models are loaded and warmed up, so that no question waits for them."""
        return self.state == "live" and bool(self.versions)


def register(connection: Connection, name: str, queues: list[str], slots: int) -> None:
    """Insert the row of a worker that starts: live, not ready. Replaces the row of its predecessor."""
    now = func.now()
    fresh = {"queues": queues, "slots": slots, "state": "live", "versions": {}, "refused": {}}
    fresh |= {"started_at": now, "seen_at": now}
    statement = insert(workers).values(name=name, **fresh)
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=fresh))


def report_ready(connection: Connection, name: str, versions: dict[str, str], *, only_missing: bool = False) -> None:
    """Set the versions of the models that a child of this worker has loaded; never empty.

    With `only_missing`, nothing changes when the row has versions.
    """
    statement = update(workers).where(workers.c.name == name)
    if only_missing:
        statement = statement.where(workers.c.versions == literal({}, workers.c.versions.type))
    connection.execute(statement.values(versions=versions, seen_at=func.now()))


def beat(connection: Connection, name: str, state: str) -> dict[str, str] | None:
    """Record that the worker is alive; returns its versions, None when it has no row any more."""
    seen = update(workers).where(workers.c.name == name).values(state=state, seen_at=func.now())
    versions: dict[str, str] | None = connection.scalar(seen.returning(workers.c.versions))
    return versions


def note_refusal(connection: Connection, name: str, job_id: int, reason: str) -> bool:
    """Record that a worker cannot do a job, so that it does not claim its shards any more; refusals of ended jobs go.

    False for a process that is not a worker: it has no row.
    """
    refused: dict[str, str] | None = connection.scalar(
        select(workers.c.refused).where(workers.c.name == name).with_for_update()
    )
    if refused is None:
        return False
    is_open = jobs.c.id.in_([int(job) for job in refused]) & jobs.c.finished_at.is_(None)
    kept = {str(job): refused[str(job)] for job in connection.scalars(select(jobs.c.id).where(is_open))}
    kept[str(job_id)] = reason
    connection.execute(update(workers).where(workers.c.name == name).values(refused=kept))
    return True


def forget_refusals(connection: Connection, job_id: int) -> None:
    """Let all workers try a job again: what kept them from it may be repaired."""
    refused = workers.c.refused.has_key(str(job_id))
    names = connection.scalars(select(workers.c.name).where(refused).order_by(workers.c.name).with_for_update()).all()
    left = workers.c.refused.op("-")(str(job_id))
    connection.execute(update(workers).where(workers.c.name.in_(names)).values(refused=left))


def has_refused(job_id: ColumnElement[int]) -> ColumnElement[bool]:
    """The condition that a worker has refused this job."""
    condition: ColumnElement[bool] = workers.c.refused.has_key(cast(job_id, Text))
    return condition


def can_anyone_else(connection: Connection, job_id: int, queue: str, within_s: float) -> bool:
    """Whether a worker of this queue may be able to do a job: it does not stop, was seen within so many seconds, and
    has not refused the job."""
    may = select(workers.c.name).where(
        literal(queue) == any_(workers.c.queues),
        workers.c.state != "draining",
        workers.c.seen_at > func.now() - seconds(within_s),
        ~has_refused(literal(job_id)),
    )
    return connection.scalar(may.limit(1)) is not None


def remove(connection: Connection, name: str) -> None:
    """Delete the row of a worker that was shut down."""
    connection.execute(delete(workers).where(workers.c.name == name))


def remove_silent(connection: Connection) -> int:
    """Delete the rows of workers that were last seen more than FORGOTTEN_S ago; returns how many.

    A killed container never comes back under its name.
    """
    is_silent = workers.c.seen_at < func.now() - seconds(FORGOTTEN_S)
    lock_rows(connection, workers, is_silent)
    return connection.execute(delete(workers).where(is_silent)).rowcount


def list_workers(connection: Connection) -> list[WorkerView]:
    """All rows by name; the row of a killed worker stays for a day, or until a worker of that name starts again."""
    age = func.extract("epoch", func.now() - workers.c.seen_at)
    return records(WorkerView, connection.execute(select(workers, age.label("age_s")).order_by(workers.c.name)))
