"""Noisy cases: questions whose candidates or answer look wrong, or were labelled wrong, with all the reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from ragllava.feedback import NoisyCase, NoisyReason, NoisyState
from ragllava.stores.database import equals_any, given, lock_rows, record, records, same
from ragllava.stores.jobs.answered import AnsweredQuestion, QuestionKey, load_questions
from ragllava.stores.schema import noisy_cases


@dataclass(frozen=True, slots=True)
class NoisyView:
    """A noisy case for display. `details` has a sentence for each reason, by its name.

    `version` grows with every change; who saves a review names the version that he saw. `locked_by` has the case open
    until `locked_until`, unless that is past.
    """

    question: AnsweredQuestion
    reasons: tuple[NoisyReason, ...]
    details: dict[str, Any]
    state: NoisyState
    created_at: datetime
    updated_at: datetime
    version: int = 0
    locked_by: str | None = None
    locked_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class AnsweredJob:
    """An ended answer job; `top_n` is its limit of evidence."""

    job_id: int
    archive_id: int
    top_n: int


def insert_cases(
    connection: Connection, archive_id: int, job_id: int, cases: Sequence[NoisyCase], *, reopen: bool = False
) -> None:
    """Insert noisy cases of a job, as `open`. A question that is a case already gets the new reasons.

    Its state stays; with `reopen` a labelled case is open again, but not a dismissed one.
    """
    if not cases:
        return
    statement = insert(noisy_cases)
    old, new = noisy_cases.c, statement.excluded
    state = case((old.state == NoisyState.LABELLED, NoisyState.OPEN.value), else_=old.state) if reopen else old.state
    statement = statement.on_conflict_do_update(
        index_elements=[old.job_id, old.question_no],
        set_={
            "reasons": text("ARRAY(SELECT DISTINCT unnest(noisy_cases.reasons || excluded.reasons) ORDER BY 1)"),
            "details": old.details.op("||")(new.details),
            "state": state,
            "updated_at": func.now(),
            "version": old.version + 1,
        },
    )
    connection.execute(
        statement,
        [
            {
                "job_id": job_id,
                "question_no": noisy.question_no,
                "archive_id": archive_id,
                "reasons": list(noisy.reasons),
                "details": noisy.details,
                "state": NoisyState.OPEN,
            }
            for noisy in sorted(cases, key=lambda noisy: noisy.question_no)  # in one order, to avoid deadlocks
        ],
    )


def add_reason(
    connection: Connection, archive_id: int, job_id: int, question_no: int, reason: NoisyReason, detail: Any
) -> None:
    """Log a further reason for a question, which becomes a noisy case if it is not yet; a labelled case is open again.

    `detail` is a sentence for the user, or figures; it replaces the case's detail for this reason.
    """
    added = NoisyCase(question_no, (reason,), {reason.value: detail})
    insert_cases(connection, archive_id, job_id, [added], reopen=True)


def lock_cases(connection: Connection, keys: Sequence[QuestionKey]) -> None:
    """Lock those of the questions that are noisy cases, in one order, for a transaction that changes them in several
    steps."""
    lock_rows(connection, noisy_cases, _are(keys))


def set_state(connection: Connection, keys: Sequence[QuestionKey], state: NoisyState) -> int:
    """Set the state of those questions that are noisy cases; returns how many these are."""
    moved = _are(keys)
    lock_rows(connection, noisy_cases, moved)
    return connection.execute(update(noisy_cases).where(moved).values(state=state, **_CHANGED)).rowcount


def open_numbers(connection: Connection, archive_id: int, job_id: int, numbers: Sequence[int]) -> set[int]:
    """Those of the questions that are open noisy cases."""
    cases = noisy_cases.c
    query = select(cases.question_no).where(cases.archive_id == archive_id, cases.job_id == job_id)
    is_open = cases.state == NoisyState.OPEN
    return set(connection.scalars(query.where(is_open, equals_any(cases.question_no, numbers))))


def dismiss(
    connection: Connection,
    archive_id: int,
    *,
    job_id: int | None = None,
    numbers: Sequence[int] | None = None,
    reason: NoisyReason | None = None,
    before: datetime | None = None,
) -> int:
    """Dismiss the open cases of an archive that fulfil all conditions given; returns how many.

    `numbers` are questions of the job `job_id`; `before` is when a case was logged.
    """
    cases = noisy_cases.c
    conditions = [cases.archive_id == archive_id, cases.state == NoisyState.OPEN]
    if job_id is not None:
        conditions.append(cases.job_id == job_id)
    if numbers is not None:
        conditions.append(equals_any(cases.question_no, numbers))
    if reason is not None:
        conditions.append(cases.reasons.contains([reason.value]))
    if before is not None:
        conditions.append(cases.created_at < before)
    lock_rows(connection, noisy_cases, *conditions)
    dismissed = update(noisy_cases).where(*conditions).values(state=NoisyState.DISMISSED, **_CHANGED)
    return connection.execute(dismissed).rowcount


def list_cases(
    connection: Connection,
    archive_id: int,
    *,
    state: NoisyState | None = None,
    reason: NoisyReason | None = None,
    limit: int | None = None,
) -> list[NoisyView]:
    """The noisy cases of an archive, newest job first, within a job in input order."""
    conditions = [noisy_cases.c.archive_id == archive_id]
    if state is not None:
        conditions.append(noisy_cases.c.state == state)
    if reason is not None:
        conditions.append(noisy_cases.c.reasons.contains([reason.value]))
    return _views(connection, conditions, limit)


def find_case(connection: Connection, job_id: int, question_no: int) -> NoisyView | None:
    """The noisy case of a question, if there is one."""
    views = _views(connection, [noisy_cases.c.job_id == job_id, noisy_cases.c.question_no == question_no])
    return views[0] if views else None


def load_cases(connection: Connection, keys: Sequence[QuestionKey]) -> list[NoisyView]:
    """Those of the questions that are noisy cases, in the order of the keys."""
    views = {view.question.key: view for view in _views(connection, [_are(keys)])}
    return [views[key] for key in keys if key in views]


def answered_jobs(connection: Connection, archive_id: int | None) -> list[AnsweredJob]:
    """The ended answer jobs of an archive, or of all; the newest first."""
    query = text("""
        SELECT id AS job_id, archive_id, spec->'options'->'top_n' AS top_n FROM jobs
        WHERE kind = 'answer' AND finished_at IS NOT NULL
          AND (CAST(:archive_id AS bigint) IS NULL OR archive_id = :archive_id)
        ORDER BY id DESC
    """)
    return records(AnsweredJob, connection.execute(query, {"archive_id": archive_id}))


def unlabelled_questions(connection: Connection, job_id: int) -> list[int]:
    """The questions of a job that ended as answered or without evidence and are not labelled or dismissed, ascending.

    Answers that a refresh took over are checked in the job that gave them.
    """
    query = text("""
        SELECT DISTINCT a.question_no FROM answers a
        WHERE a.job_id = :job_id AND a.status IN ('answered', 'no_evidence')
          AND a.changes IS DISTINCT FROM '{}'
          AND (SELECT 1 FROM labels l
               WHERE l.job_id = a.job_id AND l.question_no = a.question_no LIMIT 1) IS NULL
          AND (SELECT 1 FROM noisy_cases n
               WHERE n.job_id = a.job_id AND n.question_no = a.question_no AND n.state <> 'open' LIMIT 1) IS NULL
        ORDER BY 1
    """)
    return list(connection.scalars(query, {"job_id": job_id}))


def logged_reasons(connection: Connection, job_id: int, numbers: Sequence[int]) -> dict[int, set[str]]:
    """The logged reasons of each question."""
    cases = noisy_cases.c
    if not numbers:
        return {}
    near = (cases.job_id == job_id, cases.question_no.between(min(numbers), max(numbers)))
    query = select(cases.question_no, cases.reasons).where(*near, equals_any(cases.question_no, numbers))
    rows = connection.execute(query)
    return {number: set(reasons) for number, reasons in rows}


_CHANGED: dict[str, Any] = {"updated_at": func.now(), "version": noisy_cases.c.version + 1}


def _are(keys: Sequence[QuestionKey]) -> ColumnElement[bool]:
    return same(noisy_cases, given(keys, noisy_cases.c.job_id, noisy_cases.c.question_no), "job_id", "question_no")


def _views(
    connection: Connection, conditions: Sequence[ColumnElement[bool]], limit: int | None = None
) -> list[NoisyView]:
    query = select(noisy_cases).where(*conditions).order_by(noisy_cases.c.job_id.desc(), noisy_cases.c.question_no)
    rows = connection.execute(query.limit(limit)).all()
    questions = load_questions(connection, [(row.job_id, row.question_no) for row in rows])
    return [record(NoisyView, row, question=questions[row.job_id, row.question_no]) for row in rows]
