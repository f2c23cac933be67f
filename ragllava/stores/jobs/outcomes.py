"""How the inputs of a job ended, whatever its kind: files of an ingest job, questions of an answer job, items of a
reindex job, and the one input of a train or maintenance job, which has the number 0. A question's number here is its
place in the order of work.

The queue counts, finds what is still open, and writes the outcomes of shards that ended without their stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, text

from ragllava.records import JobKind

# A question is open in a run when that run has no answer for it and no earlier run has a good one. A line that
# is no valid question (text IS NULL) got its answer at submit.
OPEN_QUESTION = """
    q.text IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM answers a WHERE a.job_id = q.job_id AND a.question_no = q.question_no
                    AND (a.run_no = :run_no OR a.status IN ('answered', 'no_evidence')))
"""

_OPEN_INPUTS = {
    JobKind.INGEST: """
        SELECT file_no FROM files WHERE job_id = :job_id AND file_no >= :lo AND file_no < :hi AND status IS NULL
        ORDER BY file_no""",
    JobKind.ANSWER: f"""
        SELECT q.place FROM questions q
        WHERE q.job_id = :job_id AND q.place >= :lo AND q.place < :hi AND {OPEN_QUESTION}
        ORDER BY q.place""",  # noqa: S608 - no foreign text
    JobKind.TRAIN: """
        SELECT 0 FROM trainings WHERE job_id = :job_id AND :lo <= 0 AND 0 < :hi AND status IS NULL""",
    JobKind.REINDEX: """
        SELECT item_no FROM reindexed WHERE job_id = :job_id AND item_no >= :lo AND item_no < :hi AND status IS NULL
        ORDER BY item_no""",
    JobKind.MAINTENANCE: """
        SELECT 0 FROM maintenance_tasks WHERE job_id = :job_id AND :lo <= 0 AND 0 < :hi AND status IS NULL""",
}

_COUNT = {
    JobKind.INGEST: """
        SELECT status, count(*) AS number FROM files WHERE job_id = :job_id AND status IS NOT NULL GROUP BY status""",
    JobKind.ANSWER: """
        SELECT status, count(*) AS number FROM (
            SELECT DISTINCT ON (question_no) question_no, status FROM answers WHERE job_id = :job_id
            ORDER BY question_no, run_no DESC) latest
        GROUP BY status""",
    JobKind.TRAIN: """
        SELECT status, 1 AS number FROM trainings WHERE job_id = :job_id AND status IS NOT NULL""",
    JobKind.REINDEX: """
        SELECT status, count(*) AS number FROM reindexed WHERE job_id = :job_id AND status IS NOT NULL
        GROUP BY status""",
    JobKind.MAINTENANCE: """
        SELECT status, 1 AS number FROM maintenance_tasks WHERE job_id = :job_id AND status IS NOT NULL""",
}

# Counted from the inputs' side: one without an outcome counts under NULL.
_RECONCILE = {
    JobKind.INGEST: "SELECT status, count(*) AS number FROM files WHERE job_id = :job_id GROUP BY status",
    JobKind.ANSWER: """
        SELECT a.status, count(*) AS number FROM questions q LEFT JOIN LATERAL (
            SELECT status FROM answers a WHERE a.job_id = q.job_id AND a.question_no = q.question_no
            ORDER BY run_no DESC LIMIT 1) a ON true
        WHERE q.job_id = :job_id GROUP BY a.status""",
    JobKind.TRAIN: "SELECT status, count(*) AS number FROM trainings WHERE job_id = :job_id GROUP BY status",
    JobKind.REINDEX: "SELECT status, count(*) AS number FROM reindexed WHERE job_id = :job_id GROUP BY status",
    JobKind.MAINTENANCE: """
        SELECT status, count(*) AS number FROM maintenance_tasks WHERE job_id = :job_id GROUP BY status""",
}

_WRITE_TERMINAL = {
    JobKind.INGEST: """
        UPDATE files SET status = :status, reason = :reason
        WHERE job_id = :job_id AND file_no = ANY(:numbers)""",
    JobKind.ANSWER: """
        INSERT INTO answers (job_id, question_no, run_no, status, error_code, error)
        SELECT job_id, question_no, :run_no, :status, :status, :reason FROM questions
        WHERE job_id = :job_id AND place = ANY(:numbers)""",
    JobKind.TRAIN: """
        UPDATE trainings SET status = :status, reason = :reason, phase = 'ended', updated_at = now()
        WHERE job_id = :job_id AND 0 = ANY(:numbers)""",
    JobKind.REINDEX: """
        UPDATE reindexed SET status = :status, reason = :reason
        WHERE job_id = :job_id AND item_no = ANY(:numbers)""",
    JobKind.MAINTENANCE: """
        UPDATE maintenance_tasks SET status = :status, reason = :reason, updated_at = now()
        WHERE job_id = :job_id AND 0 = ANY(:numbers)""",
}

_REOPEN = {
    JobKind.INGEST: """
        UPDATE files SET status = NULL, reason = NULL WHERE job_id = :job_id AND status = ANY(:statuses)
        RETURNING file_no""",
    JobKind.TRAIN: """
        UPDATE trainings SET status = NULL, reason = NULL, phase = 'waiting', updated_at = now()
        WHERE job_id = :job_id AND status = ANY(:statuses) RETURNING 0""",
    JobKind.REINDEX: """
        UPDATE reindexed SET status = NULL, reason = NULL WHERE job_id = :job_id AND status = ANY(:statuses)
        RETURNING item_no""",
    JobKind.MAINTENANCE: """
        UPDATE maintenance_tasks SET status = NULL, reason = NULL, report = NULL, updated_at = now()
        WHERE job_id = :job_id AND status = ANY(:statuses) RETURNING 0""",
}


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """A job's inputs, as their table holds them, beside their latest outcomes."""

    total: int  # what the job said when it was made
    inputs: int
    by_status: dict[str, int]

    @property
    def outcomes(self) -> int:
        """Inputs that have one."""
        return sum(self.by_status.values())

    @property
    def adds_up(self) -> bool:
        """Every input that the job was made with is there and has an outcome."""
        return self.total == self.inputs == self.outcomes

    @property
    def problem(self) -> str | None:
        """What does not add up, None when all does."""
        if self.inputs != self.total:
            return f"made with {self.total} inputs, of which {self.inputs} are there: the job does not add up"
        if not self.adds_up:
            return f"{self.inputs} inputs but {self.outcomes} outcomes: the job does not add up"
        return None

    def as_json(self) -> dict[str, Any]:
        """As written into the result."""
        return {"inputs": self.inputs, "outcomes": self.outcomes, "adds_up": self.adds_up}


def open_inputs(connection: Connection, kind: JobKind, job_id: int, run_no: int, lo: int, hi: int) -> list[int]:
    """Numbers of the inputs in [lo, hi) that have no outcome in this run, ascending."""
    values = {"job_id": job_id, "lo": lo, "hi": hi}
    if kind == JobKind.ANSWER:
        values["run_no"] = run_no
    return list(connection.scalars(text(_OPEN_INPUTS[kind]), values))


def count(connection: Connection, kind: JobKind, job_id: int) -> dict[str, int]:
    """Inputs by their latest outcome; inputs without one are not counted."""
    rows = connection.execute(text(_COUNT[kind]), {"job_id": job_id})
    return {row.status: row.number for row in rows}


def reconcile(connection: Connection, kind: JobKind, job_id: int) -> Reconciliation:
    """Count a job's inputs and their outcomes in the tables themselves."""
    total = connection.scalar(text("SELECT total FROM jobs WHERE id = :job_id"), {"job_id": job_id})
    rows = connection.execute(text(_RECONCILE[kind]), {"job_id": job_id})
    found = {row.status: int(row.number) for row in rows}
    by_status = {status: number for status, number in found.items() if status is not None}
    return Reconciliation(int(total or 0), sum(found.values()), by_status)


def write_terminal(
    connection: Connection,
    kind: JobKind,
    job_id: int,
    run_no: int,
    bounds: tuple[int, int],
    status: str,
    reason: str,
) -> int:
    """Give every open input of [lo, hi) the same outcome; returns how many there were."""
    numbers = open_inputs(connection, kind, job_id, run_no, *bounds)
    values = {"job_id": job_id, "status": status, "reason": reason, "numbers": numbers}
    if kind == JobKind.ANSWER:
        values["run_no"] = run_no
    if numbers:
        connection.execute(text(_WRITE_TERMINAL[kind]), values)
    return len(numbers)


def reopen(connection: Connection, kind: JobKind, job_id: int, statuses: list[str], run_no: int) -> list[int]:
    """Inputs to be tried again in run `run_no`: those whose latest outcome is one of `statuses`, ascending.

    Files and trainings lose their outcome; answers of earlier runs stay and are outdone by the new run's.
    """
    if kind in _REOPEN:
        rows = connection.scalars(text(_REOPEN[kind]), {"job_id": job_id, "statuses": statuses})
        return sorted(rows)
    query = text(
        "SELECT q.place FROM (SELECT DISTINCT ON (question_no) question_no, status FROM answers "
        "  WHERE job_id = :job_id AND run_no < :run_no ORDER BY question_no, run_no DESC) latest "
        "JOIN questions q ON q.job_id = :job_id AND q.question_no = latest.question_no "
        "WHERE latest.status = ANY(:statuses) AND q.text IS NOT NULL ORDER BY 1"
    ).bindparams(bindparam("statuses"))
    return list(connection.scalars(query, {"job_id": job_id, "statuses": statuses, "run_no": run_no}))
