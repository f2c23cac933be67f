"""How the inputs of a job ended: what the queue counts, finds still open, ends for a stage that cannot, and reopens.

The inputs of most kinds of job are rows of one table (`InputTable`). Questions have an outcome for each run, in a
table of its own (`QuestionInputs`). jobs/kinds.py says which kind of job has which inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Executable,
    Select,
    Table,
    and_,
    distinct,
    func,
    literal_column,
    select,
    text,
    update,
)

from ragllava.stores.database import equals_any
from ragllava.stores.schema import answers, jobs, questions

# A question is open in a run when that run has no answer for it and no earlier run has a good one. A line that
# is not a valid question (text IS NULL) got its answer at submit.
#
# Not NOT EXISTS: that is planned as a join, which is quadratic when the statistics do not know the job's answers yet.
# A subquery with LIMIT is executed for each question, by the primary key.
OPEN_QUESTION = """
    q.text IS NOT NULL
    AND (SELECT 1 FROM answers a WHERE a.job_id = q.job_id AND a.question_no = q.question_no
         AND (a.run_no = :run_no OR a.status IN ('answered', 'no_evidence')) LIMIT 1) IS NULL
"""
# `a` is the answer of the latest run of the question `q`; its columns are NULL while the question is open.
LATEST_ANSWER = """
    LEFT JOIN LATERAL (
        SELECT * FROM answers a WHERE a.job_id = q.job_id AND a.question_no = q.question_no
        ORDER BY a.run_no DESC LIMIT 1) a ON true
"""

COUNTED_AT_ONCE = 20_000  # inputs; each part is a statement, which takes well below a second


def ranges(total: int, size: int) -> Iterator[tuple[int, int]]:
    """The numbers from 0 in parts [lo, hi) of `size`, for statements of bounded length; the last part is open, so that
    inputs are found that a job of `total` inputs should not have."""
    starts = range(0, max(1, total), size)
    yield from ((lo, lo + size if lo != starts[-1] else _BEYOND) for lo in starts)


def counted_together(totals: Mapping[int, int]) -> list[list[int]]:
    """The jobs of these numbers of inputs in groups that one statement can count; a job that is too large is alone."""
    groups: list[list[int]] = []
    room = -1  # in the last group; below 0 there is none for a job without inputs either
    for job_id, total in totals.items():
        if total > room:
            groups.append([])
            room = COUNTED_AT_ONCE
        groups[-1].append(job_id)
        room -= total
    return groups


_BEYOND = 2**62


@dataclass(frozen=True, slots=True)
class InputTable:
    """Inputs that are rows of one table with the columns job_id, status (NULL while the input is open) and reason.

    `number` names the column that numbers the inputs of a job from 0. None: the table has one row for each job, and
    this only input has the number 0. `ended` and `reopened` are further columns to set when the queue ends an input
    and when a retry opens it again.
    """

    table: Table
    number: str | None = None
    ended: Mapping[str, Any] = field(default_factory=dict)
    reopened: Mapping[str, Any] = field(default_factory=dict)

    @property
    def updated_tables(self) -> tuple[str, ...]:
        """Names of the tables whose rows are updated, and so need VACUUM."""
        return (self.table.name,)

    @property
    def _number(self) -> ColumnElement[int]:
        return self.table.c[self.number] if self.number else literal_column("0", BigInteger)

    def open_numbers(self, connection: Connection, job_id: int, run_no: int, lo: int, hi: int) -> list[int]:
        """Numbers of the inputs in [lo, hi) that have no outcome in this run, ascending."""
        number, columns = self._number, self.table.c
        query = select(number).where(columns.job_id == job_id, number >= lo, number < hi, columns.status.is_(None))
        return sorted(connection.scalars(query))

    def count_all(self, connection: Connection, job_id: int, total: int) -> dict[str | None, int]:
        """All inputs of a job of `total` by their latest outcome; those without one under None."""
        columns = self.table.c
        counts: Counter[str | None] = Counter()
        for lo, hi in ranges(total, COUNTED_AT_ONCE):
            part = (columns.job_id == job_id, self._number >= lo, self._number < hi)
            query = select(columns.status, func.count()).where(*part)
            counts.update(_numbers(connection, query.group_by(columns.status)))
        return dict(counts)

    def count(self, connection: Connection, job_id: int, total: int) -> dict[str, int]:
        """Inputs by their latest outcome; those without one are not counted."""
        counts = self.count_all(connection, job_id, total)
        return {status: number for status, number in counts.items() if status is not None}

    def count_many(self, connection: Connection, totals: Mapping[int, int]) -> dict[int, dict[str, int]]:
        """As `count`, of several jobs by id; `totals` says how many inputs each has. Small jobs share a statement."""
        return _count_many(self, connection, totals)

    def count_small(self, connection: Connection, job_ids: Sequence[int]) -> list[tuple[int, str, int]]:
        """Job, status and number of inputs, of jobs that have few together."""
        columns = self.table.c
        query = select(columns.job_id, columns.status, func.count()).where(
            equals_any(columns.job_id, job_ids), columns.status.is_not(None)
        )
        return [tuple(row) for row in connection.execute(query.group_by(columns.job_id, columns.status))]

    def totals(self) -> Select[Any]:
        """A query for the columns job_id, inputs and outcomes: a row for each job that has inputs."""
        columns = self.table.c
        inputs, outcomes = func.count().label("inputs"), func.count(columns.status).label("outcomes")
        return select(columns.job_id, inputs, outcomes).group_by(columns.job_id)

    def end(self, connection: Connection, job_id: int, run_no: int, lo: int, hi: int, status: str, reason: str) -> None:
        """Give the open inputs in [lo, hi) the same outcome in a run."""
        columns = self.table.c
        are_open = (columns.job_id == job_id, self._number >= lo, self._number < hi, columns.status.is_(None))
        connection.execute(update(self.table).where(*are_open).values(status=status, reason=reason, **self.ended))

    def reopen(self, connection: Connection, job_id: int, run_no: int, statuses: Sequence[str]) -> list[int]:
        """Open the inputs whose outcome is one of `statuses` for run `run_no`; returns their numbers, ascending."""
        numbers = connection.scalars(
            update(self.table)
            .where(self.table.c.job_id == job_id, self.table.c.status.in_(statuses))
            .values(status=None, reason=None, **self.reopened)
            .returning(self._number)
        )
        return sorted(numbers)


class QuestionInputs:
    """The questions of an answer job, with the methods of InputTable.

    A question's number is its place in the order of work. Answers of earlier runs stay; that of the latest run counts.
    """

    updated_tables: tuple[str, ...] = ()  # answers are written once

    def open_numbers(self, connection: Connection, job_id: int, run_no: int, lo: int, hi: int) -> list[int]:
        """As InputTable; a question with a good answer of an earlier run is not open."""
        query = text(f"""
            SELECT q.place FROM questions q
            WHERE q.job_id = :job_id AND q.place >= :lo AND q.place < :hi AND {OPEN_QUESTION}
            ORDER BY q.place
        """)  # noqa: S608 - no foreign text
        return list(connection.scalars(query, {"job_id": job_id, "run_no": run_no, "lo": lo, "hi": hi}))

    def count_all(self, connection: Connection, job_id: int, total: int) -> dict[str | None, int]:
        """As InputTable."""
        query = text(f"""
            SELECT a.status, count(*) FROM questions q {LATEST_ANSWER}
            WHERE q.job_id = :job_id AND q.question_no >= :lo AND q.question_no < :hi GROUP BY a.status
        """)  # noqa: S608 - no foreign text
        counts: Counter[str | None] = Counter()
        for lo, hi in ranges(total, COUNTED_AT_ONCE):
            counts.update(_numbers(connection, query, job_id=job_id, lo=lo, hi=hi))
        return dict(counts)

    def count(self, connection: Connection, job_id: int, total: int) -> dict[str, int]:
        """As InputTable. It looks at the answers only, because this is asked often while a job runs."""
        query = text("""
            SELECT status, count(*) FROM (
                SELECT DISTINCT ON (question_no) question_no, status FROM answers
                WHERE job_id = :job_id AND question_no >= :lo AND question_no < :hi
                ORDER BY question_no, run_no DESC) latest
            GROUP BY status
        """)
        counts: Counter[str] = Counter()
        for lo, hi in ranges(total, COUNTED_AT_ONCE):
            counts.update(_numbers(connection, query, job_id=job_id, lo=lo, hi=hi))
        return dict(counts)

    def count_many(self, connection: Connection, totals: Mapping[int, int]) -> dict[int, dict[str, int]]:
        """As InputTable."""
        return _count_many(self, connection, totals)

    def count_small(self, connection: Connection, job_ids: Sequence[int]) -> list[tuple[int, str, int]]:
        """As InputTable."""
        query = text("""
            SELECT job_id, status, count(*) FROM (
                SELECT DISTINCT ON (job_id, question_no) job_id, question_no, status FROM answers
                WHERE job_id = ANY(:job_ids) ORDER BY job_id, question_no, run_no DESC) latest
            GROUP BY job_id, status
        """)
        return [tuple(row) for row in connection.execute(query, {"job_ids": list(job_ids)})]

    def totals(self) -> Select[Any]:
        """As InputTable."""
        same = and_(answers.c.job_id == questions.c.job_id, answers.c.question_no == questions.c.question_no)
        inputs = func.count(distinct(questions.c.question_no)).label("inputs")
        outcomes = func.count(distinct(answers.c.question_no)).label("outcomes")
        joined = questions.outerjoin(answers, same)
        return select(questions.c.job_id, inputs, outcomes).select_from(joined).group_by(questions.c.job_id)

    def end(self, connection: Connection, job_id: int, run_no: int, lo: int, hi: int, status: str, reason: str) -> None:
        """As InputTable."""
        query = text(f"""
            INSERT INTO answers (job_id, question_no, run_no, status, error_code, error)
            SELECT q.job_id, q.question_no, :run_no, :status, :status, :reason FROM questions q
            WHERE q.job_id = :job_id AND q.place >= :lo AND q.place < :hi AND {OPEN_QUESTION}
        """)  # noqa: S608 - no foreign text
        values = {"job_id": job_id, "run_no": run_no, "lo": lo, "hi": hi, "status": status, "reason": reason}
        connection.execute(query, values)

    def reopen(self, connection: Connection, job_id: int, run_no: int, statuses: Sequence[str]) -> list[int]:
        """As InputTable, without a write: run `run_no` has no answer yet."""
        query = text(f"""
            SELECT q.place FROM questions q {LATEST_ANSWER}
            WHERE q.job_id = :job_id AND q.question_no >= :lo AND q.question_no < :hi AND q.text IS NOT NULL
                  AND a.status = ANY(:statuses)
        """)  # noqa: S608 - no foreign text
        total = connection.execute(select(jobs.c.total).where(jobs.c.id == job_id)).scalar_one()
        values = {"job_id": job_id, "statuses": list(statuses)}
        parts = (values | {"lo": lo, "hi": hi} for lo, hi in ranges(total, COUNTED_AT_ONCE))
        return sorted(place for part in parts for place in connection.scalars(query, part))


JobInputs = InputTable | QuestionInputs


def _count_many(inputs: JobInputs, connection: Connection, totals: Mapping[int, int]) -> dict[int, dict[str, int]]:
    counts: dict[int, dict[str, int]] = {job_id: {} for job_id in totals}
    for job_ids in counted_together(totals):
        if totals[job_ids[0]] > COUNTED_AT_ONCE:
            counts[job_ids[0]] = inputs.count(connection, job_ids[0], totals[job_ids[0]])
            continue
        for job_id, status, number in inputs.count_small(connection, job_ids):
            counts[job_id][status] = number
    return counts


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
    def problem(self) -> str | None:
        """What does not add up; None if every input that the job was made with is there and has an outcome."""
        if self.inputs != self.total:
            return f"made with {self.total} inputs, of which {self.inputs} are there: the job does not add up"
        if self.inputs != self.outcomes:
            return f"{self.inputs} inputs but {self.outcomes} outcomes: the job does not add up"
        return None

    def as_json(self) -> dict[str, Any]:
        """As written into the result."""
        return {"inputs": self.inputs, "outcomes": self.outcomes, "adds_up": self.problem is None}


def reconcile(connection: Connection, inputs: JobInputs, job_id: int) -> Reconciliation:
    """Count a job's inputs and their outcomes in the tables themselves."""
    total = connection.execute(select(jobs.c.total).where(jobs.c.id == job_id)).scalar_one()
    counts = inputs.count_all(connection, job_id, total)
    by_status = {status: number for status, number in counts.items() if status is not None}
    return Reconciliation(total, sum(counts.values()), by_status)


def _numbers(connection: Connection, query: Executable, **values: int) -> dict[Any, int]:
    """The rows of a query for a value and a number."""
    return dict(connection.execute(query, values).all())
