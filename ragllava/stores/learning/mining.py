"""Which stored answers to check for noisy cases, and the reasons that are logged for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select, text

from ragllava.stores.database import equals_any, records
from ragllava.stores.schema import noisy_cases


@dataclass(frozen=True, slots=True)
class AnsweredJob:
    """An ended answer job; `top_n` is its limit of evidence."""

    job_id: int
    archive_id: int
    top_n: int


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
          AND NOT EXISTS (SELECT 1 FROM labels l
                          WHERE l.job_id = a.job_id AND l.question_no = a.question_no)
          AND NOT EXISTS (SELECT 1 FROM noisy_cases n
                          WHERE n.job_id = a.job_id AND n.question_no = a.question_no AND n.state <> 'open')
        ORDER BY 1
    """)
    return list(connection.scalars(query, {"job_id": job_id}))


def logged_reasons(connection: Connection, job_id: int, numbers: Sequence[int]) -> dict[int, set[str]]:
    """The logged reasons of each question."""
    cases = noisy_cases.c
    query = select(cases.question_no, cases.reasons).where(cases.job_id == job_id)
    rows = connection.execute(query.where(equals_any(cases.question_no, numbers)))
    return {number: set(reasons) for number, reasons in rows}
