"""An archive and an answered job for tests of labels and noisy cases, made of rows: no model, no picture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from ragllava.client import Client
from ragllava.errors import InvalidInput
from ragllava.feedback import NoisyCase, NoisyReason
from ragllava.jobs import control
from ragllava.jobs.control import NewJob
from ragllava.json_records import to_json
from ragllava.records import Answer, AnswerOptions, AnswerStatus, Candidate, JobKind, ModelStamp, StoredImage
from ragllava.settings import Settings
from ragllava.stores.archives import archive
from ragllava.stores.jobs import answers
from ragllava.stores.learning import labels, noisy

STAMP = ModelStamp("1:clip", "reranker@1", "generator@1", "prompt", 0.5)
SOURCES = ("boats.png", "bridge.png", "tower.png", "twin.png", "twin.png")


@dataclass(frozen=True)
class Review:
    """An archive of five images and a job of four questions: answered, no evidence, failed, open."""

    client: Client
    archive_id: int
    job_id: int
    images: tuple[StoredImage, ...]

    def say(self, *lines: dict[str, Any], **how: Any) -> Any:
        """Feedback on this job."""
        return self.client.reviews.feedback([{"job": self.job_id, **line} for line in lines], **how)

    def refused(self, *lines: dict[str, Any]) -> list[tuple[str, int, str]]:
        """The errors of feedback that is refused."""
        with pytest.raises(InvalidInput) as caught:
            self.say(*lines)
        return [(error.code, error.line, error.message) for error in caught.value.errors]

    def labels(self, archive_ids: list[int] | None = None) -> list[labels.LabelledRow]:
        """The newest labels."""
        with self.client.engine.begin() as connection:
            return labels.latest_labels(connection, archive_ids)

    def cases(self, **only: Any) -> dict[str, noisy.NoisyView]:
        """The noisy cases by custom_id."""
        return {case.question.custom_id: case for case in self.client.reviews.list("harbour", **only)}

    def doubt(self, question_no: int, reason: NoisyReason, sentence: str = "because") -> None:
        """Log a noisy case as the answer stage does."""
        with self.client.engine.begin() as connection:
            case = NoisyCase(question_no, (reason,), {reason.value: sentence})
            noisy.insert_cases(connection, self.archive_id, self.job_id, [case])


def add_images(engine: Engine, archive_id: int) -> tuple[StoredImage, ...]:
    """Rows of images named SOURCES; the last two share a name."""
    added = []
    with engine.begin() as connection:
        for number, source in enumerate(SOURCES):
            sha256 = f"{archive_id:032x}{number:032x}"
            connection.execute(
                text("INSERT INTO blobs (sha256, state, size_bytes, media_type) VALUES (:h, 'live', 1, 'image/png')"),
                {"h": sha256},
            )
            image_id = connection.scalar(
                text(
                    "INSERT INTO images (archive_id, sha256, source, uri, caption, width, height, media_type) "
                    "VALUES (:a, :h, :s, :u, :c, 1, 1, 'image/png') RETURNING id"
                ),
                {"a": archive_id, "h": sha256, "s": source, "u": f"file:///{number}", "c": f"caption {number}"},
            )
            assert image_id is not None
            added.append(StoredImage(image_id, sha256, source, f"caption {number}"))
    return tuple(added)


def reranked(images: tuple[StoredImage, ...], *relevances: float) -> tuple[Candidate, ...]:
    """Candidates in the order of relevance; those above one half are kept. Retrieval had the reverse order."""
    return tuple(
        Candidate(image, len(relevances) - 1 - rank, 0.5, relevance, rank if relevance > 0.5 else None)
        for rank, (image, relevance) in enumerate(zip(images, relevances, strict=False))
    )


def add_job(connection: Connection, review: Review, questions: int) -> int:
    """A further answered job of so many questions, each of them an open noisy case; returns its id."""
    new = NewJob(JobKind.ANSWER, review.archive_id, {"options": to_json(AnswerOptions())}, total=questions, per_shard=8)
    job_id, _ = control.create(connection, new)
    asked = (
        (number, number + 1, f"c{number}", f"How many boats are in harbour {number}?") for number in range(questions)
    )
    answers.insert_questions(connection, job_id, asked)
    stamp = replace(STAMP, reranker="reranker@2", generator="generator@2")
    shown = reranked(review.images[:4], 0.9, 0.8, 0.3, 0.1)
    results = [Answer(number, AnswerStatus.ANSWERED, "two", 0.5, shown, stamp) for number in range(questions)]
    answers.insert_answers(connection, job_id, 1, 1, 1, results)
    because = {"near_threshold": "because"}
    cases = [NoisyCase(number, (NoisyReason.NEAR_THRESHOLD,), because) for number in range(questions)]
    noisy.insert_cases(connection, review.archive_id, job_id, cases)
    return job_id


@contextmanager
def open_review(settings: Settings, engine: Engine) -> Iterator[Review]:
    """A review on a database of the test's own."""
    with engine.begin() as connection:
        archive_id = archive.ensure_archive(connection, "harbour").archive_id
    images = add_images(engine, archive_id)
    with engine.begin() as connection:
        new = NewJob(JobKind.ANSWER, archive_id, {"options": to_json(AnswerOptions())}, total=4, per_shard=4)
        job_id, _ = control.create(connection, new)
        answers.insert_questions(connection, job_id, ((n, n + 1, f"q{n}", f"question {n}?") for n in range(4)))
        results = [
            Answer(0, AnswerStatus.ANSWERED, "two", 0.9, reranked(images, 0.9, 0.8, 0.1), STAMP),
            Answer(1, AnswerStatus.NO_EVIDENCE, candidates=reranked(images, 0.2, 0.1), models=STAMP),
            Answer(2, AnswerStatus.FAILED, error_code="ScoreRejected", error="no number"),
        ]
        answers.insert_answers(connection, job_id, 1, 1, 1, results)
    client = Client(settings)
    yield Review(client, archive_id, job_id, images)
    client.close()
