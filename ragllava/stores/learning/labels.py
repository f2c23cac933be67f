"""What was said about answers. Nothing is overwritten: the newest label of a question counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Row, text

from ragllava.records import Candidate, Label, StoredImage, Verdict
from ragllava.stores.jobs.answered import QuestionKey, load_questions


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """The newest label of a question beside what was asked. `candidates` are those of the latest run, best first."""

    label: Label
    archive_id: int
    archive: str
    text: str
    candidates: tuple[Candidate, ...]
    created_at: datetime


def insert_labels(connection: Connection, new: Sequence[Label]) -> None:
    """Write labels in the order given, each into the archive of its job; the last one of a question counts.

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
        [
            {
                "job_id": label.job_id,
                "question_no": label.question_no,
                "verdict": label.verdict.value,
                "answer": label.answer,
                "relevant": list(label.relevant),
                "irrelevant": list(label.irrelevant),
                "source": label.source,
            }
            for label in new
        ],
    )


def latest_labels(connection: Connection, archive_ids: Sequence[int] | None = None) -> list[LabelledRow]:
    """The newest label of each labelled question, in the order in which these were given; of these archives only,
    unless None."""
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
    asked = load_questions(connection, [(row.job_id, row.question_no) for row in rows])
    return [
        LabelledRow(_label(row), row.archive_id, question.archive, question.text, question.candidates, row.created_at)
        for row in rows
        if (question := asked.get((row.job_id, row.question_no))) is not None
    ]


def newest_labels(connection: Connection, keys: Sequence[QuestionKey]) -> dict[QuestionKey, Label]:
    """The newest label of each of the questions that has one."""
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
    """The living images of an archive that have one of these names; several may share one."""
    rows = connection.execute(
        text("""
            SELECT id, sha256, source, caption FROM images
            WHERE archive_id = :archive_id AND NOT retired AND source = ANY(:sources) ORDER BY id
        """),
        {"archive_id": archive_id, "sources": list(sources)},
    )
    found: dict[str, tuple[StoredImage, ...]] = {}
    for row in rows:
        image = StoredImage(row.id, row.sha256, row.source, row.caption)
        found[image.source] = (*found.get(image.source, ()), image)
    return found


def images_by_id(connection: Connection, archive_id: int, image_ids: Sequence[int]) -> dict[int, StoredImage]:
    """Images of an archive by id, also retired ones: a question may have been answered from them."""
    rows = connection.execute(
        text("SELECT id, sha256, source, caption FROM images WHERE archive_id = :archive_id AND id = ANY(:ids)"),
        {"archive_id": archive_id, "ids": list(image_ids)},
    )
    return {row.id: StoredImage(row.id, row.sha256, row.source, row.caption) for row in rows}


def _label(row: Row[tuple[object, ...]]) -> Label:
    return Label(
        job_id=row.job_id,
        question_no=row.question_no,
        verdict=Verdict(row.verdict),
        answer=row.answer,
        relevant=tuple(row.relevant),
        irrelevant=tuple(row.irrelevant),
        source=row.source,
    )
