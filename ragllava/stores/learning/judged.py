"""Candidates that people have labelled, with the relevance that a version gave them."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from ragllava.stores.jobs.answered import QuestionKey


@dataclass(frozen=True, slots=True)
class JudgedCandidate:
    """A reranked candidate of a labelled question. `is_relevant` None: nobody said so of this picture."""

    question: QuestionKey
    relevance: float
    is_relevant: bool | None


def judged_candidates(connection: Connection, archive_id: int, reranker: str, limit: int) -> list[JudgedCandidate]:
    """The candidates of the newest labelled questions of an archive that this reranker answered, at most `limit`
    questions; of each, its newest label counts."""
    values = {"archive_id": archive_id, "reranker": reranker, "limit": limit, "searched": 4 * limit}
    rows = connection.execute(_JUDGED, values)
    return [JudgedCandidate((row.job_id, row.question_no), row.relevance, row.is_relevant) for row in rows]


_JUDGED = text("""
    WITH newest AS (
        SELECT DISTINCT ON (job_id, question_no) * FROM (
            SELECT * FROM labels WHERE archive_id = :archive_id ORDER BY created_at DESC LIMIT :searched) l
        ORDER BY job_id, question_no, id DESC),
    asked AS (
        SELECT n.*, a.run_no FROM newest n CROSS JOIN LATERAL (
            SELECT run_no, models FROM answers a WHERE a.job_id = n.job_id AND a.question_no = n.question_no
            ORDER BY run_no DESC LIMIT 1) a
        WHERE a.models->>'reranker' = :reranker ORDER BY n.id DESC LIMIT :limit)
    SELECT q.job_id, q.question_no, c.relevance,
           CASE WHEN c.image_id = ANY (q.relevant) THEN true WHEN c.image_id = ANY (q.irrelevant) THEN false END
               AS is_relevant
    FROM asked q JOIN candidates c ON c.job_id = q.job_id AND c.question_no = q.question_no AND c.run_no = q.run_no
    WHERE c.relevance IS NOT NULL
""")
