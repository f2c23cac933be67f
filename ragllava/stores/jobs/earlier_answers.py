"""What other jobs have said about the same questions: those with the same custom_id and the same text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from ragllava.errors import UsageError
from ragllava.stores.database import records

_LOOKED_AT = 200  # jobs, the newest
_COMPARED = 50  # questions at the start of each: enough to know a job by
_LISTED = 20
# Of a question `q`: the same one `p` of the job `against`, and its newest outcome `o`.
SAME_QUESTION = "JOIN questions p ON p.job_id = :against AND p.custom_id = q.custom_id AND p.text = q.text"
OTHER_ANSWER = """LEFT JOIN LATERAL (SELECT status, text FROM answers WHERE job_id = p.job_id
    AND question_no = p.question_no ORDER BY run_no DESC LIMIT 1) o ON true"""


@dataclass(frozen=True, slots=True)
class ComparableJob:
    """An answer job of the same archive that has questions of another one."""

    job_id: int
    title: str | None


@dataclass(frozen=True, slots=True)
class EarlierAnswer:
    """The newest outcome that a question has in another job; `status` None: it has none yet."""

    question_no: int
    status: str | None
    answer: str | None


def comparable_jobs(connection: Connection, job_id: int) -> list[ComparableJob]:
    """The newest other answer jobs of a job's archive that begin with one of the questions with which it begins."""
    query = text("""
        SELECT j.id AS job_id, coalesce(j.name, j.spec ->> 'input') AS title
        FROM (SELECT o.id, o.name, o.spec FROM jobs o JOIN jobs own ON own.archive_id = o.archive_id
              WHERE own.id = :job_id AND o.id <> :job_id AND o.kind = 'answer' ORDER BY o.id DESC LIMIT :looked_at) j
        WHERE EXISTS (
            SELECT FROM questions q JOIN questions p ON p.job_id = j.id AND p.custom_id = q.custom_id
            WHERE q.job_id = :job_id AND q.question_no < :compared AND q.text = p.text)
        ORDER BY j.id DESC LIMIT :listed
    """)
    values = {"job_id": job_id, "looked_at": _LOOKED_AT, "compared": _COMPARED, "listed": _LISTED}
    return records(ComparableJob, connection.execute(query, values))


def require_comparable(connection: Connection, job_id: int, other_id: int) -> None:
    """Raises UsageError for a job that is not an answer job of the same archive, or not there."""
    query = text("""
        SELECT count(*) FROM jobs a JOIN jobs b ON b.archive_id = a.archive_id
        WHERE a.id = :job_id AND b.id = :other_id AND a.id <> b.id AND a.kind = 'answer' AND b.kind = 'answer'
    """)
    if not connection.scalar(query, {"job_id": job_id, "other_id": other_id}):
        raise UsageError(
            f"job {other_id} is no other answer job of the archive of job {job_id}; compare with one that is"
        )


def earlier_answers(
    connection: Connection, job_id: int, other_id: int, numbers: Sequence[int]
) -> dict[int, EarlierAnswer]:
    """What another job has said about these questions of a job, by their numbers; those that it does not have are
    left out."""
    query = text(f"""
        SELECT q.question_no, o.status, o.text AS answer FROM questions q {SAME_QUESTION} {OTHER_ANSWER}
        WHERE q.job_id = :job_id AND q.question_no = ANY(CAST(:numbers AS bigint[]))
    """)  # noqa: S608 - no foreign text
    values = {"job_id": job_id, "against": other_id, "numbers": list(numbers)}
    return {answer.question_no: answer for answer in records(EarlierAnswer, connection.execute(query, values))}
