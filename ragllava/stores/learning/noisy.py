"""Noisy cases: questions whose candidates or answer look wrong, or were labelled wrong, with all the reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, case, func, select, text
from sqlalchemy.dialects.postgresql import insert

from ragllava.json_records import from_json
from ragllava.records import NoisyCase, NoisyReason, NoisyState
from ragllava.stores.jobs.answered import AnsweredQuestion, QuestionKey, load_questions
from ragllava.stores.schema import noisy_cases


@dataclass(frozen=True, slots=True)
class NoisyView:
    """A noisy case for display. `details` has a sentence for each reason, by its name."""

    question: AnsweredQuestion
    reasons: tuple[NoisyReason, ...]
    details: dict[str, Any]
    state: NoisyState
    created_at: datetime
    updated_at: datetime


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
        },
    )
    connection.execute(
        statement,
        [
            {
                "job_id": job_id,
                "question_no": noisy.question_no,
                "archive_id": archive_id,
                "reasons": [reason.value for reason in noisy.reasons],
                "details": noisy.details,
                "state": NoisyState.OPEN.value,
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


def set_state(connection: Connection, keys: Sequence[QuestionKey], state: NoisyState) -> int:
    """Set the state of those questions that are noisy cases; returns how many these are."""
    result = connection.execute(
        text("""
            UPDATE noisy_cases SET state = :state, updated_at = now()
            FROM unnest(CAST(:jobs AS bigint[]), CAST(:numbers AS bigint[])) AS moved (job_id, question_no)
            WHERE noisy_cases.job_id = moved.job_id AND noisy_cases.question_no = moved.question_no
        """),
        {"state": state.value, "jobs": [job for job, _ in keys], "numbers": [number for _, number in keys]},
    )
    return result.rowcount


def list_cases(
    connection: Connection,
    archive_id: int,
    *,
    state: NoisyState | None = None,
    reason: NoisyReason | None = None,
    limit: int | None = None,
) -> list[NoisyView]:
    """The noisy cases of an archive, newest job first, within a job in input order."""
    query = select(noisy_cases).where(noisy_cases.c.archive_id == archive_id)
    if state is not None:
        query = query.where(noisy_cases.c.state == state)
    if reason is not None:
        query = query.where(noisy_cases.c.reasons.contains([reason.value]))
    ordered = query.order_by(noisy_cases.c.job_id.desc(), noisy_cases.c.question_no).limit(limit)
    return _views(connection, connection.execute(ordered).all())


def find_case(connection: Connection, job_id: int, question_no: int) -> NoisyView | None:
    """The noisy case of a question, if there is one."""
    query = select(noisy_cases).where(and_(noisy_cases.c.job_id == job_id, noisy_cases.c.question_no == question_no))
    views = _views(connection, connection.execute(query).all())
    return views[0] if views else None


def _views(connection: Connection, rows: Sequence[Row[Any]]) -> list[NoisyView]:
    questions = load_questions(connection, [(row.job_id, row.question_no) for row in rows])
    return [from_json(NoisyView, {**row._mapping, "question": questions[row.job_id, row.question_no]}) for row in rows]
