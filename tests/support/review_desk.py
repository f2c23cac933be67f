"""An archive of drawn postcards with answered questions that are open noisy cases: made of rows, without models."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text

from ragllava.feedback import NoisyCase, NoisyReason
from ragllava.jobs import control
from ragllava.jobs.control import NewJob
from ragllava.json_records import to_json
from ragllava.postcards.archive import KnownQuestion, draw_archive
from ragllava.records import Answer, AnswerOptions, AnswerStatus, Candidate, JobKind, ModelStamp, StoredImage
from ragllava.stores.archives import archive, blobs
from ragllava.stores.archives.blobs import NewBlob
from ragllava.stores.archives.descriptions import NewImage
from ragllava.stores.jobs import answers
from ragllava.stores.learning import noisy
from ragllava.stores.objects import ObjectStore

RERANKER = "hub/mini-reranker@1f3a9c02"  # names of the hub have a slash
STAMP = ModelStamp("1:clip", RERANKER, "mini-generator@77aa01bc", "prompt-3", 0.5)
HOSTILE = (
    "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">",
    "\u202egnp.trobrah\u202c \u2066left\u2069",
    "{{ 7 * 7 }} ' \" </template></textarea><style>*{display:none}</style>" + "x" * 2_000,
)
_CAUSES = (
    (NoisyReason.NEAR_THRESHOLD, "a candidate has the relevance 0.47, near the threshold 0.5"),
    (NoisyReason.RANKS_DISAGREE, "the most relevant picture has the retrieval rank 14"),
    (NoisyReason.LOW_CONFIDENCE, "the confidence of the answer is only 0.41"),
)


@dataclass(frozen=True)
class Desk:
    """What was made. `images` are by file name, `questions` in the order of their numbers."""

    archive: str
    archive_id: int
    job_id: int
    images: Mapping[str, StoredImage]
    questions: Sequence[KnownQuestion]


def make_desk(
    engine: Engine, objects: ObjectStore, name: str, *, cases: int = 60, pictures: int = 12, hostile: bool = False
) -> Desk:
    """An archive with so many pictures and open cases; with `hostile`, captions, questions and answers are."""
    drawn = draw_archive(seed=3, images=pictures, questions=min(cases, pictures * 3), two_image_share=0.0)
    contents = [card.png() for card in drawn.postcards]
    hashes = [hashlib.sha256(data).hexdigest() for data in contents]
    with engine.begin() as connection:
        announced = [NewBlob(sha256, len(data), "image/png") for sha256, data in zip(hashes, contents, strict=True)]
        blobs.announce_blobs(connection, announced)
    for data in contents:
        objects.put_content(data, "image/png")
    with engine.begin() as connection:
        archive_id = archive.ensure_archive(connection, name).archive_id
        new = [
            NewImage(sha256, card.file_name, f"file:///{card.file_name}", caption, 64, 48, "image/png", embedded={})
            for card, sha256, caption in zip(
                drawn.postcards, hashes, _captions([card.caption for card in drawn.postcards], hostile), strict=True
            )
        ]
        stored = archive.store_images(connection, archive_id, new)
        images = {
            card.file_name: StoredImage(row.image_id, sha256, card.file_name, item.caption)
            for card, row, sha256, item in zip(drawn.postcards, stored, hashes, new, strict=True)
        }
        job_id = _answer(connection, archive_id, drawn.questions, images, cases, hostile)
    return Desk(name, archive_id, job_id, images, drawn.questions)


def clear_reviews(engine: Engine, desk: Desk) -> None:
    """Undo what a test has said."""
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM reviews"))
        connection.execute(text("DELETE FROM labels"))
        connection.execute(
            text("""
                UPDATE noisy_cases SET state = 'open', reasons = array_remove(reasons, 'said_wrong'),
                    version = version + 1, locked_by = NULL, locked_tab = NULL, locked_until = NULL
                WHERE job_id = :id
            """),
            {"id": desk.job_id},
        )


def _captions(captions: Sequence[str], hostile: bool) -> list[str]:
    return [HOSTILE[number % len(HOSTILE)] for number in range(len(captions))] if hostile else list(captions)


def _answer(
    connection: Connection,
    archive_id: int,
    asked: Sequence[KnownQuestion],
    images: Mapping[str, StoredImage],
    cases: int,
    hostile: bool,
) -> int:
    new = NewJob(JobKind.ANSWER, archive_id, {"options": to_json(AnswerOptions())}, total=cases, per_shard=64)
    job_id, _ = control.create(connection, new)
    of_case = [asked[number % len(asked)] for number in range(cases)]
    texts = [HOSTILE[number % len(HOSTILE)] if hostile else question.text for number, question in enumerate(of_case)]
    answers.insert_questions(
        connection, job_id, ((number, number + 1, f"q{number + 1}", text) for number, text in enumerate(texts))
    )
    results = []
    for number, question in enumerate(of_case):
        shown = _candidates(question, images, number)
        given = HOSTILE[0] if hostile else question.answer if number % 3 else "grey"
        without = number % 7 == 5
        answer = Answer(number, AnswerStatus.NO_EVIDENCE if without else AnswerStatus.ANSWERED, models=STAMP)
        kept = tuple(
            Candidate(c.image, c.retrieval_rank, c.retrieval_score, c.relevance, None if without else c.evidence_no)
            for c in shown
        )
        results.append(
            Answer(
                answer.question_no,
                answer.status,
                text=None if without else given,
                confidence=None if without else 0.41 + 0.05 * (number % 9),
                candidates=kept,
                models=STAMP,
            )
        )
    answers.insert_answers(connection, job_id, 1, 1, 1, results)
    logged = []
    for number in range(cases):
        reason, sentence = _CAUSES[number % len(_CAUSES)]
        logged.append(NoisyCase(number, (reason,), {reason.value: HOSTILE[0] if hostile else sentence}))
    noisy.insert_cases(connection, archive_id, job_id, logged)
    connection.execute(text("UPDATE jobs SET state = 'completed', finished_at = now() WHERE id = :id"), {"id": job_id})
    connection.execute(text("UPDATE shards SET state = 'done' WHERE job_id = :id"), {"id": job_id})
    return job_id


def _candidates(question: KnownQuestion, images: Mapping[str, StoredImage], number: int) -> tuple[Candidate, ...]:
    """The right pictures first, then others with falling relevance; those from 0.5 are kept, two at most."""
    right = [images[name] for name in question.relevant]
    others = [image for name, image in sorted(images.items()) if name not in question.relevant]
    others = others[number % len(others) :] + others[: number % len(others)]
    scores = [0.93, 0.61 - 0.02 * (number % 9), 0.31, 0.12, 0.05, 0.02, 0.01, 0.003]
    listed = [*right, *others][: len(scores)]
    return tuple(
        Candidate(image, rank, 0.4 - rank / 50, scores[rank], rank if scores[rank] >= 0.5 and rank < 2 else None)
        for rank, image in enumerate(listed)
    )
