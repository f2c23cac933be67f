"""Refreshes: answer jobs over the questions of an earlier job, which ask only those for which something has changed.

Every line of the earlier job is a line of the refresh, with the same number. The earlier outcome is stored in
`questions.previous`, so that later changes to the earlier job do not change what the refresh compares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, text

from ragllava.records import Question
from ragllava.stores.database import record, records
from ragllava.stores.jobs.outcomes import COUNTED_AT_ONCE, LATEST_ANSWER, counted_together, ranges

_PAGE = 10_000  # lines in a statement, which must end before the statement timeout


@dataclass(frozen=True, slots=True)
class EarlierAnswer:
    """The answer of an earlier job and its inputs. `models` is a ModelStamp as JSON; `image_ids` were its candidates.

    `digest` is candidates_digest (stores/jobs/answers.py), None where none was stored.
    """

    question_no: int
    has_evidence: bool
    models: dict[str, Any] | None
    digest: str | None
    image_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class RefreshView:
    """The progress of a refresh of the job `refreshes`.

    `taken_over` questions were unchanged, `asked_again` questions were not, for the reasons that `because` counts (a
    question may have several). Of the questions that have an outcome, `changed` have another answer than before.
    """

    refreshes: int
    taken_over: int
    asked_again: int
    changed: int
    because: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """For `--json` and a job's result."""
        return asdict(self)


def lock_earlier(connection: Connection, earlier_job_id: int) -> int | None:
    """Prevent other refreshes of this job until the end of the transaction.

    Returns the refresh of it that has not ended yet, None when there is none.
    """
    connection.execute(text("SELECT id FROM jobs WHERE id = :id FOR NO KEY UPDATE"), {"id": earlier_job_id})
    open_refresh: int | None = connection.scalar(
        text("SELECT min(id) FROM jobs WHERE finished_at IS NULL AND kind = 'answer' AND spec ->> 'refreshes' = :id"),
        {"id": str(earlier_job_id)},
    )
    return open_refresh


def copy_lines(connection: Connection, job_id: int, earlier_job_id: int, total: int) -> None:
    """Copy the `total` lines of the earlier job to a new job. Lines without an answer keep their outcome."""
    for lo, hi in ranges(total, _PAGE):
        values = {"job_id": job_id, "earlier": earlier_job_id, "lo": lo, "hi": hi}
        connection.execute(_COPY_QUESTIONS, values)
        connection.execute(_COPY_UNANSWERED, values)


def earlier_answers(connection: Connection, job_id: int, numbers: Sequence[int]) -> dict[int, EarlierAnswer]:
    """The earlier answers of these questions of a refresh, by number; questions without one are left out."""
    if not numbers:
        return {}
    rows = connection.execute(_PINNED, _of(job_id, numbers))
    return {earlier.question_no: earlier for earlier in records(EarlierAnswer, rows)}


def answered_part(connection: Connection, job_id: int, lo: int, hi: int) -> list[tuple[Question, EarlierAnswer]]:
    """The questions of a job with numbers in [lo, hi) that ended as answered or without evidence, each with its latest
    answer, in order."""
    rows = connection.execute(_LATEST, {"job_id": job_id, "lo": lo, "hi": hi})
    return [(record(Question, row), record(EarlierAnswer, row)) for row in rows]


def take_over(
    connection: Connection, job_id: int, run_no: int, shard_id: int, epoch: int, numbers: Sequence[int]
) -> set[int]:
    """Copy the answers of the earlier job to the refresh, with their candidates and stamps.

    Returns the numbers of the copied answers; answers that were deleted meanwhile are missing.
    """
    values = _of(job_id, numbers) | {"run_no": run_no}
    taken = connection.scalars(_TAKE_ANSWERS, values | {"shard_id": shard_id, "epoch": epoch}).all()
    connection.execute(_TAKE_CANDIDATES, values)
    return set(taken)


def _of(job_id: int, numbers: Sequence[int]) -> dict[str, Any]:
    """Parameters for questions of a job; the bounds let the primary key find them, whatever the statistics say."""
    return {"job_id": job_id, "numbers": list(numbers), "first": min(numbers), "last": max(numbers)}


def views(connection: Connection, specs: Mapping[int, Mapping[str, Any]]) -> dict[int, RefreshView]:
    """The counts of refreshes, by job; answer jobs that refresh no other are left out. Small jobs share a statement.

    `specs` are the specs of answer jobs, by job.
    """
    refreshed = {job_id: spec["refreshes"] for job_id, spec in specs.items() if "refreshes" in spec}
    if not refreshed:
        return {}
    query = text("SELECT id, total FROM jobs WHERE id = ANY(:job_ids) ORDER BY id")
    totals: dict[int, int] = dict(connection.execute(query, {"job_ids": list(refreshed)}).all())
    counts = {job_id: Counter(taken_over=0, asked_again=0, changed=0) for job_id in refreshed}
    because: dict[int, Counter[str]] = {job_id: Counter() for job_id in refreshed}
    for job_ids in counted_together(totals):
        for lo, hi in ranges(totals[job_ids[0]], COUNTED_AT_ONCE):
            part = {"job_ids": job_ids, "lo": lo, "hi": hi}
            for job_id, *numbers in connection.execute(_COUNTS, part):
                counts[job_id].update(dict(zip(counts[job_id], numbers, strict=True)))
            for job_id, change, number in connection.execute(_BECAUSE, part):
                because[job_id][change] += number
    return {
        job_id: RefreshView(refreshes=earlier, because=dict(sorted(because[job_id].items())), **counts[job_id])
        for job_id, earlier in refreshed.items()
    }


_EARLIER = """
    a.question_no, a.status = 'answered' AS has_evidence, a.models, a.candidates_digest AS digest,
    ARRAY(SELECT c.image_id FROM candidates c
          WHERE c.job_id = a.job_id AND c.question_no = a.question_no AND c.run_no = a.run_no) AS image_ids
"""

_ARE_THESE = """
    q.job_id = :job_id AND q.question_no BETWEEN :first AND :last AND q.question_no = ANY(:numbers)
"""

_PINNED_ANSWER = """
    JOIN answers a ON a.job_id = CAST(q.previous ->> 'job' AS bigint) AND a.question_no = q.question_no
                  AND a.run_no = CAST(q.previous ->> 'run' AS int) AND a.status IN ('answered', 'no_evidence')
"""

_COPY_QUESTIONS = text(f"""
    INSERT INTO questions (job_id, question_no, place, line, custom_id, text, filter, note, given, picture, previous)
    SELECT :job_id, q.question_no, q.place, q.line, q.custom_id, q.text, q.filter, q.note, q.given,
           q.picture,
           jsonb_build_object('job', q.job_id, 'run', a.run_no, 'status', a.status, 'answer', a.text, 'evidence',
               (SELECT coalesce(jsonb_agg(jsonb_build_object('image_id', c.image_id, 'source', i.source)
                                          ORDER BY c.evidence_no), '[]')
                FROM candidates c JOIN images i ON i.id = c.image_id
                WHERE c.job_id = a.job_id AND c.question_no = a.question_no AND c.run_no = a.run_no
                      AND c.evidence_no IS NOT NULL))
    FROM questions q {LATEST_ANSWER}
    WHERE q.job_id = :earlier AND q.question_no >= :lo AND q.question_no < :hi
""")  # noqa: S608 - no foreign text

_COPY_UNANSWERED = text(f"""
    INSERT INTO answers (job_id, question_no, run_no, status, error_code, error)
    SELECT :job_id, q.question_no, 1, a.status, a.error_code, a.error
    FROM questions q {LATEST_ANSWER}
    WHERE q.job_id = :earlier AND q.question_no >= :lo AND q.question_no < :hi
          AND a.status NOT IN ('answered', 'no_evidence')
""")  # noqa: S608 - no foreign text

_PINNED = text(f"""
    SELECT {_EARLIER} FROM questions q {_PINNED_ANSWER} WHERE {_ARE_THESE}
""")  # noqa: S608 - no foreign text

_LATEST = text(f"""
    SELECT q.line, q.custom_id, q.text, q.filter, q.picture, {_EARLIER}
    FROM questions q {LATEST_ANSWER}
    WHERE q.job_id = :job_id AND q.question_no >= :lo AND q.question_no < :hi
          AND a.status IN ('answered', 'no_evidence')
    ORDER BY q.question_no
""")  # noqa: S608 - no foreign text

_TAKE_ANSWERS = text(f"""
    INSERT INTO answers (job_id, question_no, run_no, shard_id, epoch, status, text, confidence, models, note,
                         error_code, error, prompt_tokens, completion_tokens, candidates_digest, changes)
    SELECT q.job_id, q.question_no, :run_no, :shard_id, :epoch, a.status, a.text, a.confidence, a.models, a.note,
           a.error_code, a.error, a.prompt_tokens, a.completion_tokens, a.candidates_digest, '{{}}'
    FROM questions q {_PINNED_ANSWER} WHERE {_ARE_THESE}
    FOR KEY SHARE OF a  -- so that it is not deleted before its candidates are copied
    RETURNING question_no
""")  # noqa: S608 - no foreign text

_TAKE_CANDIDATES = text(f"""
    INSERT INTO candidates
        (job_id, question_no, run_no, image_id, retrieval_rank, retrieval_score, relevance, evidence_no, origin,
         caption_rank, caption_score)
    SELECT q.job_id, q.question_no, :run_no, c.image_id, c.retrieval_rank, c.retrieval_score, c.relevance,
           c.evidence_no, c.origin, c.caption_rank, c.caption_score
    FROM questions q {_PINNED_ANSWER}
    JOIN candidates c ON c.job_id = a.job_id AND c.question_no = a.question_no AND c.run_no = a.run_no
    WHERE {_ARE_THESE}
""")  # noqa: S608 - no foreign text

_NOW = f"""
    FROM questions q {LATEST_ANSWER}
    WHERE q.job_id = ANY(:job_ids) AND q.question_no >= :lo AND q.question_no < :hi AND a.status IS NOT NULL
"""

_COUNTS = text(f"""
    SELECT q.job_id, count(*) FILTER (WHERE cardinality(a.changes) = 0) AS taken_over,
           count(*) FILTER (WHERE cardinality(a.changes) > 0) AS asked_again,
           count(*) FILTER (WHERE a.status IS DISTINCT FROM q.previous ->> 'status'
                               OR a.text IS DISTINCT FROM q.previous ->> 'answer') AS changed
    {_NOW} GROUP BY q.job_id
""")  # noqa: S608 - no foreign text

_BECAUSE = text(f"""
    SELECT job_id, change, count(*) AS number
    FROM (SELECT q.job_id, a.changes {_NOW}) latest CROSS JOIN unnest(latest.changes) AS change GROUP BY job_id, change
""")  # noqa: S608 - no foreign text
