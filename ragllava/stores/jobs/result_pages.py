"""Pages of the results of an answer job, for people who look: by number, with filters, each after bounded work."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, TextClause, select, text

from ragllava.records import Candidate
from ragllava.stores.jobs.answers import RESULT_COLUMNS, load_candidates
from ragllava.stores.jobs.earlier_answers import OTHER_ANSWER, SAME_QUESTION
from ragllava.stores.jobs.outcomes import LATEST_ANSWER
from ragllava.stores.schema import jobs

_SEARCHED_AT_ONCE = 10_000  # questions in a statement
_SEARCHING_S = 0.12  # after which a page ends, also if it is not full


class ResultFilter(StrEnum):
    """Which rows; `low` have evidence, but none above a relevance, `changed` another answer than before."""

    ALL = "all"
    ANSWERED = "answered"
    NO_EVIDENCE = "no_evidence"
    LOW = "low"
    FAILED = "failed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class ResultQuery:
    """Rows after the question `after`. `code` narrows `failed` to one reason, `below` is the relevance of `low`.

    `against` is the job with whose answers `changed` compares; None: what the job has refreshed.
    """

    which: ResultFilter = ResultFilter.ALL
    after: int = -1
    limit: int = 50
    code: str | None = None
    below: float = 0.5
    against: int | None = None


@dataclass(frozen=True, slots=True)
class RowsAfter:
    """Rows as `iterate_results` has them. `next_after`: where to go on; None: this was the end."""

    rows: list[tuple[Any, tuple[Candidate, ...]]] = field(default_factory=list)
    next_after: int | None = None


def find_rows(connection: Connection, job_id: int, query: ResultQuery) -> RowsAfter:
    """The next rows, also those that have no outcome yet under `all`."""
    total = int(connection.execute(select(jobs.c.total).where(jobs.c.id == job_id)).scalar_one())
    numbers: list[int] = []
    until, lo = time.monotonic() + _SEARCHING_S, query.after + 1
    while lo < total and len(numbers) < query.limit:
        hi = min(lo + _SEARCHED_AT_ONCE, total)
        numbers += _numbers(connection, job_id, query, lo, hi, query.limit - len(numbers))
        lo = hi
        if time.monotonic() > until:
            break
    last = numbers[-1] if len(numbers) >= query.limit else lo - 1
    return RowsAfter(_rows(connection, job_id, numbers), last if last < total - 1 else None)


def failures_by_code(connection: Connection, job_id: int) -> dict[str, int]:
    """The failed, dead and expired questions of a job by their error code, the most frequent first."""
    query = text("""
        SELECT coalesce(error_code, status), count(*) FROM answers a
        WHERE job_id = :job_id AND status IN ('failed', 'dead', 'expired') AND NOT EXISTS (
            SELECT FROM answers b WHERE b.job_id = a.job_id AND b.question_no = a.question_no AND b.run_no > a.run_no)
        GROUP BY 1 ORDER BY 2 DESC, 1
    """)
    return dict(connection.execute(query, {"job_id": job_id}).all())


_ALL = """
    SELECT question_no FROM questions q WHERE job_id = :job_id AND question_no >= :lo AND question_no < :hi
    ORDER BY question_no LIMIT :limit
"""
# From the answers, which are fewer and narrower than questions with their latest answer.
_OF_ANSWERS = """
    SELECT a.question_no FROM answers a {join}
    WHERE a.job_id = :job_id AND a.question_no >= :lo AND a.question_no < :hi AND {condition} AND NOT EXISTS (
        SELECT FROM answers b WHERE b.job_id = a.job_id AND b.question_no = a.question_no AND b.run_no > a.run_no)
    ORDER BY a.question_no LIMIT :limit
"""
_BEST = """(SELECT max(c.relevance) FROM candidates c WHERE c.job_id = a.job_id AND c.question_no = a.question_no
            AND c.run_no = a.run_no AND c.evidence_no IS NOT NULL)"""
_CONDITIONS = {
    ResultFilter.ANSWERED: "a.status = 'answered'",
    ResultFilter.NO_EVIDENCE: "a.status = 'no_evidence'",
    ResultFilter.LOW: f"a.status = 'answered' AND {_BEST} < :below",
    ResultFilter.FAILED: "a.status IN ('failed', 'dead', 'expired') AND (CAST(:code AS text) IS NULL"
    " OR coalesce(a.error_code, a.status) = :code)",
    ResultFilter.CHANGED: "q.previous IS NOT NULL"
    " AND (q.previous ->> 'status', q.previous ->> 'answer') IS DISTINCT FROM (a.status, a.text)",
}
_QUESTIONS = "JOIN questions q ON q.job_id = a.job_id AND q.question_no = a.question_no"


def _numbers(connection: Connection, job_id: int, query: ResultQuery, lo: int, hi: int, limit: int) -> list[int]:
    values: dict[str, Any] = {"job_id": job_id, "lo": lo, "hi": hi, "limit": limit}
    if query.which is ResultFilter.LOW:
        values["below"] = query.below
    if query.which is ResultFilter.FAILED:
        values["code"] = query.code
    if _compares(query):
        values["against"] = query.against
    return list(connection.scalars(_statement(query), values))


def _compares(query: ResultQuery) -> bool:
    return query.which is ResultFilter.CHANGED and query.against is not None


def _statement(query: ResultQuery) -> TextClause:
    if query.which is ResultFilter.ALL:
        return text(_ALL)
    join, condition = _QUESTIONS if query.which is ResultFilter.CHANGED else "", _CONDITIONS[query.which]
    if _compares(query):
        join = f"{_QUESTIONS} {SAME_QUESTION} {OTHER_ANSWER}"
        condition = "(o.status, o.text) IS DISTINCT FROM (a.status, a.text)"
    return text(_OF_ANSWERS.format(join=join, condition=condition))


def _rows(connection: Connection, job_id: int, numbers: Sequence[int]) -> list[tuple[Any, tuple[Candidate, ...]]]:
    rows = connection.execute(_OF_NUMBERS, {"job_id": job_id, "numbers": list(numbers)}).all() if numbers else []
    of_runs = load_candidates(connection, [(job_id, row.question_no, row.run_no) for row in rows]) if rows else {}
    return [(row, tuple(of_runs.get((job_id, row.question_no, row.run_no), ()))) for row in rows]


_OF_NUMBERS = text(f"""
    SELECT {RESULT_COLUMNS} FROM questions q {LATEST_ANSWER}
    WHERE q.job_id = :job_id AND q.question_no = ANY(CAST(:numbers AS bigint[])) ORDER BY q.question_no
""")  # noqa: S608 - no foreign text
