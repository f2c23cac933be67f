"""Questions with their latest answer and its candidates: for labels, noisy cases and review."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, select, text

from ragllava.records import AnswerStatus, Candidate, evidence_of
from ragllava.stores.database import equals_any, given, record, same
from ragllava.stores.jobs.answers import load_candidates
from ragllava.stores.jobs.outcomes import LATEST_ANSWER
from ragllava.stores.schema import jobs
from ragllava.stores.schema import questions as question_table

T = TypeVar("T")

_PAGE = 1_000
_SEARCHED = 10_000  # newest questions among which distinct texts are searched

QuestionKey = tuple[int, int]  # job and number of the question


@dataclass(frozen=True, slots=True)
class AnsweredQuestion:
    """A question of a job with the outcome of its latest run.

    `status` None: it has no outcome yet. `candidates` are ordered by relevance, best first. `models` is
    a ModelStamp as JSON.
    """

    job_id: int
    question_no: int
    custom_id: str
    text: str
    archive_id: int
    archive: str
    status: AnswerStatus | None
    answer: str | None
    confidence: float | None
    models: dict[str, Any] | None
    candidates: tuple[Candidate, ...]

    @property
    def key(self) -> QuestionKey:
        """Its job and number."""
        return self.job_id, self.question_no

    @property
    def evidence(self) -> list[Candidate]:
        """The kept candidates in rank order."""
        return evidence_of(self.candidates)


def load_questions(connection: Connection, keys: Iterable[QuestionKey]) -> dict[QuestionKey, AnsweredQuestion]:
    """Those of the questions that exist and are valid, in the order of the keys."""
    questions: dict[QuestionKey, AnsweredQuestion] = {}
    for page in _pages(keys):
        values = {"jobs": [job for job, _ in page], "numbers": [number for _, number in page]}
        rows = {(row.job_id, row.question_no, row.run_no): row for row in connection.execute(_QUESTIONS, values)}
        candidates = load_candidates(connection, rows)
        by_key = {
            (job_id, number): record(AnsweredQuestion, row, candidates=candidates.get((job_id, number, run_no), ()))
            for (job_id, number, run_no), row in rows.items()
        }
        questions.update((key, by_key[key]) for key in page if key in by_key)
    return questions


def find_questions(connection: Connection, names: Iterable[tuple[int, str]]) -> dict[tuple[int, str], AnsweredQuestion]:
    """The same by job and `custom_id`."""
    keys: list[QuestionKey] = []
    columns = question_table.c
    for page in _pages(names):
        wanted = given(page, columns.job_id, columns.custom_id)
        is_wanted = same(question_table, wanted, "job_id", "custom_id")
        rows = connection.execute(select(columns.job_id, columns.question_no).where(is_wanted))
        keys += [(job_id, number) for job_id, number in rows]
    questions = load_questions(connection, keys).values()
    return {(question.job_id, question.custom_id): question for question in questions}


def newest_questions(
    connection: Connection, archive_id: int, limit: int, *, answered: bool = False
) -> list[AnsweredQuestion]:
    """The newest questions of an archive, each text once, the newest first; `answered`: only those with an answer."""
    query = text("""
        SELECT job_id, question_no FROM (
            SELECT DISTINCT ON (text) job_id, question_no FROM (
                SELECT q.job_id, q.question_no, q.text FROM questions q JOIN jobs ON jobs.id = q.job_id
                WHERE jobs.archive_id = :archive_id AND q.text IS NOT NULL
                  AND (NOT :answered OR EXISTS (
                      SELECT FROM answers a WHERE a.job_id = q.job_id AND a.question_no = q.question_no
                                              AND a.status = 'answered'))
                ORDER BY q.job_id DESC, q.question_no DESC LIMIT :searched) newest
            ORDER BY text, job_id DESC, question_no DESC) once
        ORDER BY job_id DESC, question_no DESC LIMIT :limit
    """)
    values = {"archive_id": archive_id, "answered": answered, "searched": _SEARCHED, "limit": limit}
    rows = connection.execute(query, values)
    return list(load_questions(connection, [(row.job_id, row.question_no) for row in rows]).values())


def kinds_of_jobs(connection: Connection, job_ids: Sequence[int]) -> dict[int, str]:
    """The kind of each job; unknown jobs are left out."""
    return dict(connection.execute(select(jobs.c.id, jobs.c.kind).where(equals_any(jobs.c.id, job_ids))).all())


_QUESTIONS = text(f"""
    SELECT q.job_id, q.question_no, q.custom_id, q.text, j.archive_id, archives.name AS archive,
           a.run_no, a.status, a.text AS answer, a.confidence, a.models
    FROM unnest(CAST(:jobs AS bigint[]), CAST(:numbers AS bigint[])) AS wanted (job_id, question_no)
    JOIN questions q USING (job_id, question_no)
    JOIN jobs j ON j.id = q.job_id JOIN archives ON archives.id = j.archive_id
    {LATEST_ANSWER}
    WHERE q.text IS NOT NULL
""")  # noqa: S608 - no foreign text


def _pages(items: Iterable[T]) -> Iterator[list[T]]:
    distinct = list(dict.fromkeys(items))
    for start in range(0, len(distinct), _PAGE):
        yield distinct[start : start + _PAGE]
