"""Labels of answers. Nothing is overwritten: the newest label of a question counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import Connection, select, text
from sqlalchemy.dialects.postgresql import distinct_on

from ragllava.feedback import Label
from ragllava.records import Candidate
from ragllava.stores.database import equals_any, given, record, records, same
from ragllava.stores.jobs.answered import QuestionKey, load_questions
from ragllava.stores.schema import labels
from ragllava.stores.sessions import OWNER


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

    Who gave them is the owner of the session, unless the label names somebody.

    A label of an unknown job is an IntegrityError: check first.
    """
    if not new:
        return
    connection.execute(
        text(f"""
            INSERT INTO labels (archive_id, job_id, question_no, verdict, answer, relevant, irrelevant, source,
                                reviewer)
            VALUES ((SELECT archive_id FROM jobs WHERE id = :job_id), :job_id, :question_no, :verdict, :answer,
                    CAST(:relevant AS bigint[]), CAST(:irrelevant AS bigint[]), :source,
                    coalesce(CAST(:reviewer AS text), nullif(current_setting('{OWNER}', true), '')))
        """),  # noqa: S608 - our own name
        [asdict(label) | {"relevant": list(label.relevant), "irrelevant": list(label.irrelevant)} for label in new],
    )


def latest_labels(connection: Connection, archive_ids: Sequence[int] | None = None) -> list[LabelledRow]:
    """The newest label of each labelled question, oldest label first; only of these archives, unless None."""
    latest = _NEWEST if archive_ids is None else _NEWEST.where(equals_any(labels.c.archive_id, archive_ids))
    by_age = latest.subquery()
    rows = connection.execute(select(by_age).order_by(by_age.c.id)).all()
    questions = load_questions(connection, [(row.job_id, row.question_no) for row in rows])
    return [
        LabelledRow(
            record(Label, row), row.archive_id, question.archive, question.text, question.candidates, row.created_at
        )
        for row in rows
        if (question := questions.get((row.job_id, row.question_no))) is not None
    ]


def newest_labels(connection: Connection, keys: Sequence[QuestionKey]) -> dict[QuestionKey, Label]:
    """The newest label of each of these questions that has one."""
    wanted = given(keys, labels.c.job_id, labels.c.question_no)
    rows = connection.execute(_NEWEST.where(same(labels, wanted, "job_id", "question_no")))
    return {label.key: label for label in records(Label, rows)}


_NEWEST = (
    select(labels)
    .ext(distinct_on(labels.c.job_id, labels.c.question_no))
    .order_by(labels.c.job_id, labels.c.question_no, labels.c.id.desc())
)
