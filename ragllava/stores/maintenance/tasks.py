"""Maintenance tasks: the one input of each maintenance job, and its report."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, func, select, update

from ragllava.records import TaskName, TaskStatus
from ragllava.stores.database import equals_any, record
from ragllava.stores.schema import maintenance_tasks


@dataclass(frozen=True, slots=True)
class TaskView:
    """A maintenance task as people see it. `reason` is a summary sentence; `report` has figures and examples."""

    action: TaskName
    status: TaskStatus | None
    reason: str | None
    report: dict[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """For `--json` and a job's result."""
        return asdict(self)


def insert_task(connection: Connection, job_id: int, action: TaskName) -> None:
    """The input of a new maintenance job."""
    connection.execute(maintenance_tasks.insert().values(job_id=job_id, action=action.value))


def views(connection: Connection, job_ids: Collection[int]) -> dict[int, TaskView]:
    """The maintenance tasks of maintenance jobs, by job."""
    query = select(maintenance_tasks).where(equals_any(maintenance_tasks.c.job_id, job_ids))
    return {row.job_id: record(TaskView, row) for row in connection.execute(query)}


def finish(connection: Connection, job_id: int, summary: str, report: dict[str, Any], *, failed: bool = False) -> None:
    """Store the report of a maintenance task that is done, or of which a part failed."""
    status = TaskStatus.FAILED if failed else TaskStatus.DONE
    done = {"status": status.value, "reason": summary, "report": report, "updated_at": func.now()}
    connection.execute(update(maintenance_tasks).where(maintenance_tasks.c.job_id == job_id).values(done))
