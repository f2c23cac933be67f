"""Chores: the one input of each chore job, and what it reported."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, func, select, update

from ragllava.records import ChoreAction, ChoreStatus
from ragllava.stores.schema import chores


@dataclass(frozen=True, slots=True)
class ChoreView:
    """A chore as people see it. `reason` sums it up in one sentence; `report` has its figures and examples."""

    action: ChoreAction
    status: ChoreStatus | None
    reason: str | None
    report: dict[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """For `--json` and a job's result."""
        return asdict(self)


def insert_chore(connection: Connection, job_id: int, action: ChoreAction) -> None:
    """The input of a new chore job."""
    connection.execute(chores.insert().values(job_id=job_id, action=action.value))


def view(connection: Connection, job_id: int) -> ChoreView:
    """The chore of a chore job."""
    row = connection.execute(select(chores).where(chores.c.job_id == job_id)).one()
    status = ChoreStatus(row.status) if row.status else None
    return ChoreView(ChoreAction(row.action), status, row.reason, row.report)


def finish(connection: Connection, job_id: int, summary: str, report: dict[str, Any], *, failed: bool = False) -> None:
    """Write down that a chore is done, or failed in a part, and what came of it."""
    status = ChoreStatus.FAILED if failed else ChoreStatus.DONE
    done = {"status": status.value, "reason": summary, "report": report, "updated_at": func.now()}
    connection.execute(update(chores).where(chores.c.job_id == job_id).values(done))
