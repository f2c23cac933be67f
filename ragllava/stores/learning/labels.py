"""Labels of answers. Nothing is overwritten: the newest label of a question counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Row, text

from ragllava.json_records import from_json, to_json
from ragllava.records import Candidate, Label, StoredImage
from ragllava.stores.jobs.answered import QuestionKey, load_questions


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """The newest label of a question, with the question. `candidates` are those of the latest run, best first."""

    label: Label
    archive_id: int
    archive: str
    text: str
    candidates: tuple[Candidate, ...]
    created_at: datetime


def insert_labels(connection: Connection, new: Sequence[Label]) -> None:
    """Insert labels in the order given, each into the archive of its job; the last label of a question counts.

    A label of an unknown job is an IntegrityError: check first.
    """
    if not new:
        return
    connection.execute(
        text("""
            INSERT INTO labels (archive_id, job_id, question_no, verdict, answer, relevant, irrelevant, source)
            VALUES ((SELECT archive_id FROM jobs WHERE id = :job_id), :job_id, :question_no, :verdict, :answer,
                    CAST(:relevant AS bigint[]), CAST(:irrelevant AS bigint[]), :source)
        """),
        to_json(new),
    )


def latest_labels(connection: Connection, archive_ids: Sequence[int] | None = None) -> list[LabelledRow]:
    """The newest label of each labelled question, oldest label first; only of these archives, unless None."""
    rows = connection.execute(
        text("""
            SELECT * FROM (
                SELECT DISTINCT ON (job_id, question_no) * FROM labels
                WHERE CAST(:archive_ids AS bigint[]) IS NULL OR archive_id = ANY(:archive_ids)
                ORDER BY job_id, question_no, id DESC
            ) latest
            ORDER BY id
        """),
        {"archive_ids": None if archive_ids is None else list(archive_ids)},
    ).all()
    questions = load_questions(connection, [(row.job_id, row.question_no) for row in rows])
    return [
        LabelledRow(_label(row), row.archive_id, question.archive, question.text, question.candidates, row.created_at)
        for row in rows
        if (question := questions.get((row.job_id, row.question_no))) is not None
    ]


def newest_labels(connection: Connection, keys: Sequence[QuestionKey]) -> dict[QuestionKey, Label]:
    """The newest label of each of these questions that has one."""
    rows = connection.execute(
        text("""
            SELECT DISTINCT ON (labels.job_id, labels.question_no) labels.*
            FROM unnest(CAST(:jobs AS bigint[]), CAST(:numbers AS bigint[])) AS wanted (job_id, question_no)
            JOIN labels USING (job_id, question_no)
            ORDER BY labels.job_id, labels.question_no, labels.id DESC
        """),
        {"jobs": [job for job, _ in keys], "numbers": [number for _, number in keys]},
    )
    return {(row.job_id, row.question_no): _label(row) for row in rows}


def images_by_source(
    connection: Connection, archive_id: int, sources: Sequence[str]
) -> dict[str, tuple[StoredImage, ...]]:
    """The images of an archive, retired ones left out, by name; several may share a name."""
    rows = connection.execute(
        text("""
            SELECT id, sha256, source, caption FROM images
            WHERE archive_id = :archive_id AND NOT retired AND source = ANY(:sources) ORDER BY id
        """),
        {"archive_id": archive_id, "sources": list(sources)},
    )
    by_source: dict[str, tuple[StoredImage, ...]] = {}
    for row in rows:
        by_source[row.source] = (*by_source.get(row.source, ()), StoredImage(*row))
    return by_source


def images_by_id(connection: Connection, archive_id: int, image_ids: Sequence[int]) -> dict[int, StoredImage]:
    """Images of an archive by id, also retired ones, which may be candidates of old answers."""
    rows = connection.execute(
        text("SELECT id, sha256, source, caption FROM images WHERE archive_id = :archive_id AND id = ANY(:ids)"),
        {"archive_id": archive_id, "ids": list(image_ids)},
    )
    return {row.id: StoredImage(*row) for row in rows}


def _label(row: Row[tuple[object, ...]]) -> Label:
    return from_json(Label, dict(row._mapping))
