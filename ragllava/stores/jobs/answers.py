"""Questions, answers and candidates in Postgres: written and read in bulk."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select, text, update

from ragllava.json_records import to_json
from ragllava.records import Answer, AnswerStatus, Candidate, Origin, Question, StoredImage
from ragllava.stores.database import copy_rows, equals_any, given, records, same
from ragllava.stores.jobs.outcomes import LATEST_ANSWER, OPEN_QUESTION, ranges
from ragllava.stores.schema import answers, candidates, images, jobs, questions

RunKey = tuple[int, int, int | None]  # job, number of the question, run; None: it has no answer yet

_QUESTION_COLUMNS = (
    "job_id",
    "question_no",
    "place",
    "line",
    "custom_id",
    "text",
    "filter",
    "note",
    "given",
    "picture",
)
_TOKENS = ("prompt_tokens", "completion_tokens")
_ANSWER_COLUMNS = (
    "question_no",
    "status",
    "text",
    "confidence",
    "note",
    "error_code",
    "error",
    *_TOKENS,
)  # of an Answer
_CANDIDATE_COLUMNS = (
    "retrieval_rank",
    "retrieval_score",
    "relevance",
    "evidence_no",
    "origin",
    "caption_rank",
    "caption_score",
)  # as in a Candidate
_PAGE = 500


def insert_questions(
    connection: Connection,
    job_id: int,
    rows: Iterable[tuple[int, int, str | None, str | None]],
    own: Mapping[int, Question] | None = None,
) -> None:
    """COPY (question_no, line, custom_id, text) rows; text None marks a line that is not a valid question.

    `own` has by number the questions that have a filter, a note, a picture or further columns. The questions are
    answered in the order of their numbers until `reorder` changes it.
    """
    with_own = own or {}
    nothing = (None, None, None, None)
    copied = (
        (job_id, row[0], *row, *(_own_cells(with_own[row[0]]) if row[0] in with_own else nothing)) for row in rows
    )
    copy_rows(connection, questions, _QUESTION_COLUMNS, copied)


def _own_cells(question: Question) -> tuple[str | None, ...]:
    where, given = (json.dumps(value) if value else None for value in (question.filter, question.given))
    return where, question.note, given, question.picture


def insert_refusals(connection: Connection, job_id: int, rows: Iterable[tuple[int, str, str]]) -> None:
    """COPY the `failed` answers of invalid lines: (question_no, error_code, error)."""
    columns = ("job_id", "question_no", "run_no", "status", "error_code", "error")
    refusals = ((job_id, number, 1, AnswerStatus.FAILED.value, code, error) for number, code, error in rows)
    copy_rows(connection, answers, columns, refusals)


def open_questions(connection: Connection, job_id: int, run_no: int, lo: int, hi: int) -> list[Question]:
    """The valid questions at the positions [lo, hi) that have no answer in this run yet, in the order of work."""
    query = text(f"""
        SELECT q.question_no, q.line, q.custom_id, q.text, q.filter, q.picture FROM questions q
        WHERE q.job_id = :job_id AND q.place >= :lo AND q.place < :hi AND {OPEN_QUESTION} ORDER BY q.place
    """)  # noqa: S608 - no foreign text
    return records(Question, connection.execute(query, {"job_id": job_id, "run_no": run_no, "lo": lo, "hi": hi}))


def reorder(connection: Connection, job_id: int, numbers: Sequence[int]) -> list[int]:
    """Put questions into this order, at the positions that they have together; returns these, ascending."""
    columns = questions.c
    near = (columns.job_id == job_id, columns.question_no.between(min(numbers), max(numbers)))
    query = select(columns.place).where(*near, equals_any(columns.question_no, numbers))
    positions = list(connection.scalars(query.order_by(columns.place)))
    moved = given(zip(numbers, positions, strict=True), columns.question_no, columns.place)
    is_moved = same(questions, moved, "question_no") & (columns.place != moved.c.place)
    connection.execute(update(questions).where(*near, is_moved).values(place=moved.c.place))
    return positions


def insert_answers(
    connection: Connection, job_id: int, run_no: int, shard_id: int, epoch: int, results: list[Answer]
) -> None:
    """Write answers and their candidates. A plain INSERT: a second answer of a question in a run is an error
    (docs/reliability.md D2)."""
    if not results:
        return
    connection.execute(
        answers.insert(),
        [
            {
                "job_id": job_id,
                "run_no": run_no,
                "shard_id": shard_id,
                "epoch": epoch,
                **{name: getattr(answer, name) for name in _ANSWER_COLUMNS},
                "models": to_json(answer.models),
                "candidates_digest": candidates_digest(answer.candidates) if answer.models else None,
                "changes": to_json(answer.changes),
            }
            for answer in results
        ],
    )
    rows = [
        {
            "job_id": job_id,
            "question_no": answer.question_no,
            "run_no": run_no,
            "image_id": candidate.image.image_id,
            **{name: getattr(candidate, name) for name in _CANDIDATE_COLUMNS},
        }
        for answer in results
        for candidate in answer.candidates
    ]
    if rows:
        connection.execute(candidates.insert(), rows)


def load_candidates(connection: Connection, runs: Iterable[RunKey]) -> dict[RunKey, list[Candidate]]:
    """The candidates of these runs of questions, ordered by relevance, best first; runs without any are left out."""
    columns = candidates.c
    wanted = given(runs, columns.job_id, columns.question_no, columns.run_no)
    query = (
        select(candidates, images.c.sha256, images.c.source, images.c.caption)
        .where(same(candidates, wanted, "job_id", "question_no", "run_no"), images.c.id == columns.image_id)
        .order_by(columns.relevance.desc().nulls_last(), columns.retrieval_rank)
    )
    rows = connection.execute(query)
    by_run: dict[RunKey, list[Candidate]] = defaultdict(list)
    for row in rows:
        image = StoredImage(row.image_id, row.sha256, row.source, row.caption)
        scores = {name: getattr(row, name) for name in _CANDIDATE_COLUMNS}
        candidate = Candidate(image, **scores | {"origin": Origin(row.origin)})
        by_run[row.job_id, row.question_no, row.run_no].append(candidate)
    return by_run


def candidates_digest(candidates: Sequence[Candidate]) -> str:
    """The hash (hex) of a reranker's input in any order: the images, their captions, and what they correct."""
    shown: list[Any] = sorted([row.image.image_id, row.image.sha256, row.image.caption] for row in candidates)
    shown += sorted([spelling.asked, spelling.meant] for row in candidates for spelling in row.spellings)
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def iterate_results(connection: Connection, job_id: int) -> Iterator[tuple[Any, tuple[Candidate, ...]]]:
    """Every input line of a job in order with its latest answer, in pages, so that a job of any size fits in memory.

    Yields (row, candidates): row has question_no, line, custom_id, question, previous, given, picture and the answer's
    columns, which are NULL while the question is open; candidates are ordered by relevance, best first.
    """
    total = connection.execute(select(jobs.c.total).where(jobs.c.id == job_id)).scalar_one()
    for lo, hi in ranges(total, _PAGE):
        rows = connection.execute(_RESULTS, {"job_id": job_id, "lo": lo, "hi": hi}).all()
        of_runs = load_candidates(connection, [(job_id, row.question_no, row.run_no) for row in rows])
        for row in rows:
            yield row, tuple(of_runs.get((job_id, row.question_no, row.run_no), ()))


# Of `questions q` and LATEST_ANSWER.
RESULT_COLUMNS = """
    q.question_no, q.line, q.custom_id, q.text AS question, q.previous, q.given, q.picture, a.run_no, a.status,
    a.text AS answer, a.confidence, a.models, a.prompt_tokens, a.completion_tokens,
    nullif(concat_ws('; ', q.note, a.note), '') AS note, a.error_code, a.error, a.changes
"""
_RESULTS = text(f"""
    SELECT {RESULT_COLUMNS} FROM questions q {LATEST_ANSWER}
    WHERE q.job_id = :job_id AND q.question_no >= :lo AND q.question_no < :hi ORDER BY q.question_no
""")  # noqa: S608 - no foreign text
