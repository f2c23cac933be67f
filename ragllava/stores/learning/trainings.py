"""Trainings: the one input of each train job, its progress and its outcome."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from ragllava.errors import UsageError
from ragllava.records import JobKind, Role, TrainingStatus
from ragllava.stores.database import equals_any, lock_name, record, records
from ragllava.stores.schema import jobs, model_versions, training_steps, trainings

_WITHOUT_VERSION = [status.value for status in (TrainingStatus.FAILED, TrainingStatus.DEAD, TrainingStatus.CANCELLED)]


@dataclass(frozen=True, slots=True)
class TrainingView:
    """A training for display. `phase` is what it does now; `version` the name of the version that it made."""

    role: Role
    phase: str
    steps_done: int
    steps_total: int
    status: TrainingStatus | None
    reason: str | None
    version: str | None

    def as_json(self) -> dict[str, Any]:
        """For `--json` and a job's result."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class StepLoss:
    """The loss on the examples of one step of a training, and the learning rate that it was taken with."""

    step: int
    loss: float
    learning_rate: float


@dataclass(frozen=True, slots=True)
class DueArchive:
    """An archive with new labels. `last_label` is the id of the newest label, to notice further ones."""

    archive: str
    labelled: int
    last_label: int


def folder_of(job_id: int, created_at: datetime) -> str:
    """The training's folder in the object store; the time of creation distinguishes jobs with the same id in an
    earlier database."""
    return f"training/{job_id}-{created_at:%Y%m%dT%H%M%S%f}"


def insert_training(connection: Connection, job_id: int, role: Role) -> None:
    """The input of a new train job."""
    connection.execute(trainings.insert().values(job_id=job_id, role=role.value))


def lock_role(connection: Connection, role: Role) -> None:
    """Prevent other new trainings of this role until the end of the transaction."""
    lock_name(connection, "training", role)


def open_training(connection: Connection, role: Role) -> int | None:
    """The job that trains this role or is queued for it; None when there is none."""
    query = (
        select(jobs.c.id)
        .join(trainings, trainings.c.job_id == jobs.c.id)
        .where(jobs.c.finished_at.is_(None), trainings.c.role == role.value)
    )
    return connection.scalar(query.order_by(jobs.c.id).limit(1))


def open_folders(connection: Connection) -> set[str]:
    """The folders of all trainings that have not ended."""
    query = select(jobs.c.id, jobs.c.created_at).where(jobs.c.kind == JobKind.TRAIN.value, jobs.c.finished_at.is_(None))
    return {folder_of(row.id, row.created_at) for row in connection.execute(query)}


def require_none_open(connection: Connection, role: Role) -> None:
    """Raises UsageError while a job trains this role or is queued for it. Lock the role first, or this may change."""
    job_id = open_training(connection, role)
    if job_id is not None:
        raise UsageError(
            f"job {job_id} trains the {role} already: wait for it, or stop it with `ragllava jobs cancel {job_id}`"
        )


def guard_retry(connection: Connection, job_id: int) -> None:
    """Lock the role that a job trains before the job is retried.

    Raises UsageError if the retry would train it again while another job does. Whoever holds a role's lock may have to
    wait for the row of a job, never the other way round.
    """
    role = Role(connection.execute(select(trainings.c.role).where(trainings.c.job_id == job_id)).scalar_one())
    lock_role(connection, role)
    if connection.scalar(select(trainings.c.status).where(trainings.c.job_id == job_id)) in _WITHOUT_VERSION:
        require_none_open(connection, role)


def views(connection: Connection, job_ids: Collection[int]) -> dict[int, TrainingView]:
    """The trainings of train jobs, by job."""
    query = select(trainings, model_versions.c.name.label("version")).outerjoin(model_versions)
    rows = connection.execute(query.where(equals_any(trainings.c.job_id, job_ids)))
    return {row.job_id: record(TrainingView, row) for row in rows}


def set_phase(connection: Connection, job_id: int, phase: str) -> None:
    """Set what the training does now, in one or two words."""
    _update(connection, job_id, phase=phase)


def set_steps(connection: Connection, job_id: int, done: int, total: int) -> None:
    """Set how many steps are trained, of how many."""
    _update(connection, job_id, steps_done=done, steps_total=total)


def store_losses(connection: Connection, job_id: int, losses: Sequence[StepLoss]) -> None:
    """Store the losses of steps; steps that are taken again after an interruption replace what they were."""
    if not losses:
        return
    statement = insert(training_steps)
    new = {name: statement.excluded[name] for name in ("loss", "learning_rate")}
    statement = statement.on_conflict_do_update(index_elements=["job_id", "step"], set_=new)
    rows = {loss.step: asdict(loss) | {"job_id": job_id} for loss in losses}
    connection.execute(statement, [rows[step] for step in sorted(rows)])


def load_losses(connection: Connection, job_id: int, after: int = 0) -> list[StepLoss]:
    """The stored losses of a training after a step, by step."""
    steps = training_steps.c
    query = select(training_steps).where(steps.job_id == job_id, steps.step > after).order_by(steps.step)
    return records(StepLoss, connection.execute(query))


def finish(connection: Connection, job_id: int, status: TrainingStatus, reason: str, version_id: int) -> None:
    """Store the outcome of a training that made a version."""
    _update(connection, job_id, phase="ended", status=status.value, reason=reason, version_id=version_id)


def due_archives(connection: Connection, role: Role, labelled: int, *, to_judge: bool = False) -> Sequence[DueArchive]:
    """Archives in which at least `labelled` questions were labelled since the last training of the role began there.

    `to_judge`: or since a version of the role was evaluated again. A training that was requested for another archive
    counts for the archives it replayed as well, unless it made no version: that other archive may have had too few
    labels.
    """
    query = text(f"""
        SELECT a.name AS archive, count(DISTINCT (l.job_id, l.question_no)) AS labelled, max(l.id) AS last_label
        FROM labels l JOIN archives a ON a.id = l.archive_id
        WHERE l.created_at > {_LAST_BEGUN}
        GROUP BY a.name HAVING count(DISTINCT (l.job_id, l.question_no)) >= :labelled ORDER BY a.name
    """)  # noqa: S608 - our own condition
    values = {"role": role.value, "labelled": labelled, "in_vain": _WITHOUT_VERSION, "to_judge": to_judge}
    return records(DueArchive, connection.execute(query, values))


def count_new_labels(connection: Connection, archive_id: int, role: Role) -> int:
    """How many questions of an archive were labelled since the last training of the role; reads only their labels."""
    query = text(f"""
        SELECT count(DISTINCT (job_id, question_no)) FROM labels WHERE archive_id = :archive_id AND created_at > (
            SELECT {_LAST_BEGUN} FROM archives a WHERE a.id = :archive_id)
    """)  # noqa: S608 - our own condition
    values = {"archive_id": archive_id, "role": role.value, "in_vain": _WITHOUT_VERSION, "to_judge": False}
    return int(connection.execute(query, values).scalar_one())


# When the last training began that counts for the archive `a`.
_LAST_BEGUN = """
    coalesce((SELECT max(j.created_at) FROM jobs j JOIN trainings t ON t.job_id = j.id
        WHERE t.role = :role AND j.spec->'archives' ? a.name AND (:to_judge OR j.spec->>'version' IS NULL)
        AND (j.spec->'archives'->>0 = a.name OR NOT coalesce(t.status = ANY(:in_vain), false))), '-infinity')
"""


def labelled_archives(connection: Connection, role: Role) -> Sequence[str]:
    """The archives, by name, in which the newest label of a question is usable for this role."""
    query = text("""
        SELECT DISTINCT a.name FROM (
            SELECT DISTINCT ON (job_id, question_no) * FROM labels ORDER BY job_id, question_no, id DESC) latest
        JOIN archives a ON a.id = latest.archive_id
        WHERE CASE WHEN :answers THEN cardinality(relevant) > 0 AND answer IS NOT NULL
              ELSE cardinality(relevant) + cardinality(irrelevant) > 0 END ORDER BY a.name
    """)
    return connection.scalars(query, {"answers": role is Role.GENERATOR}).all()


def _update(connection: Connection, job_id: int, **values: Any) -> None:
    connection.execute(update(trainings).where(trainings.c.job_id == job_id).values(**values, updated_at=func.now()))
