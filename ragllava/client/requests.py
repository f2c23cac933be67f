"""What the answer workers compute while somebody waits: relevances, and searches of callers without a retriever."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from ragllava.client.connections import Namespace
from ragllava.client.jobs import Jobs
from ragllava.errors import AnswerTimeout, Conflict, JobRefused, NotFound, RagllavaError, UsageError
from ragllava.filters import parse_where
from ragllava.imaging.decode import MAX_BYTES
from ragllava.json_records import from_json, to_json
from ragllava.records import AnswerOptions, FoundImage, Question, RequestStatus, Retrieval, StoredImage
from ragllava.stages.answer.asked_pictures import CountBytes, put_pictures
from ragllava.stages.answer.estimating import TimedSample
from ragllava.stages.answer.submit import check_options
from ragllava.stages.requests.scoring import ScorePair, ScoreRequest, Scores
from ragllava.stages.requests.submit import submit_request
from ragllava.stores.archives import archive, filtering
from ragllava.stores.database import read_at_once
from ragllava.stores.jobs import requests
from ragllava.stores.jobs.requests import Fault, Operation, Outcome

MAX_PAIRS = 1_000


@dataclass(frozen=True, slots=True)
class Document:
    """What a question is compared with: a text, a picture by the hash of its bytes, or a picture with its caption."""

    caption: str | None = None
    sha256: str | None = None


class Requests(Namespace):
    """Relevances, searches and timed samples. Each waits for an answer worker, and raises AnswerTimeout when none is
    free in time."""

    def relevances(
        self, pairs: Sequence[tuple[str, Document]], archive_id: int | None, timeout_s: float = 120.0
    ) -> Scores:
        """The relevance of each document for its question, as an answer job would find it.

        The archive says whose work it is; None: that of somebody who may see all. Raises UsageError for no pair, too
        many of them, and a picture that cannot be read; JobRefused.
        """
        if not 1 <= len(pairs) <= MAX_PAIRS:
            raise UsageError(f"1 to {MAX_PAIRS:,} pairs of a question and a document are scored, not {len(pairs):,}")
        listed = (ScorePair(text, number, said.caption, said.sha256) for number, (text, said) in enumerate(pairs))
        body = to_json(ScoreRequest(tuple(listed)))
        scores = from_json(Scores, self._run(Operation.SCORE, body, archive_id, timeout_s))
        if len(scores.relevances) != len(pairs):  # one in, one out, or nothing
            raise RagllavaError(f"{len(pairs)} pairs but {len(scores.relevances)} relevances; ask again")
        return scores

    def search(
        self,
        name: str,
        text: str,
        *,
        limit: int = 20,
        retrieval: Retrieval = Retrieval.HYBRID,
        where: Any = None,
        picture: str | None = None,
        timeout_s: float = 120.0,
    ) -> list[FoundImage]:
        """As `Archives.search`, by a worker: this process loads no model.

        With a `picture`, its sha256 as `Questions.store_picture` returns it, those that are most like it take turns
        with those that fit the text, which may be empty; the retrieval `picture` passes over the text. Raises
        UsageError, also for a picture that cannot be read, JobRefused.
        """
        archive_id, options = self.check_search(
            name, limit=limit, retrieval=retrieval, where=where, with_picture=picture is not None
        )
        body = {"text": text, "options": to_json(options)} | ({"picture": picture} if picture else {})
        result = self._run(Operation.SEARCH, body, archive_id, timeout_s)
        return read_at_once(self._connections.engine, _with_images, result["found"])

    def check_search(
        self,
        name: str,
        *,
        limit: int = 20,
        retrieval: Retrieval = Retrieval.HYBRID,
        where: Any = None,
        with_picture: bool = False,
    ) -> tuple[int, AnswerOptions]:
        """The id of the archive and the options of a search, which is not begun. Raises UsageError as `search`."""
        if with_picture and retrieval is Retrieval.CAPTION:
            raise UsageError("a picture is not searched for by captions: choose the retrieval picture or hybrid")
        options = check_options(AnswerOptions(limit, retrieval=retrieval, filter=parse_where(where)))
        return self._of_archive(name, _check_filter, name, options), options

    def time_questions(
        self, name: str, questions: Sequence[Question], options: AnswerOptions, timeout_s: float = 120.0
    ) -> TimedSample:
        """How long a worker takes for these questions, at most 64 of them: it answers them, and stores no answer.

        Raises UsageError, JobRefused.
        """
        asked = [Question(number, question.line, question.custom_id, question.text, question.filter)
                 for number, question in enumerate(questions)]  # fmt: skip
        body = {"options": to_json(options), "questions": to_json(asked)}
        archive_id = self._of_archive(name, _check_filter, name, options)
        return from_json(TimedSample, self._run(Operation.TIME, body, archive_id, timeout_s))

    def stored_documents(self, image_ids: Sequence[int]) -> dict[int, Document]:
        """Stored pictures with their captions, by id. Raises NotFound for one that is not there, or not visible."""
        images = self._do(archive.load_images, image_ids)
        missing = [image_id for image_id in image_ids if image_id not in images]
        if missing:
            raise NotFound(f"there is no image {missing[0]}")
        return {image_id: Document(image.caption, image.sha256) for image_id, image in images.items()}

    def store_pictures(self, pictures: Sequence[bytes], count_bytes: CountBytes | None = None) -> list[Document]:
        """Put pictures, each as its bytes, into the object store for a request, for an hour; `count_bytes` as in
        `Questions.submit`, once for all of them.

        Raises UsageError for too many bytes of one; then nothing is stored. Whether they are pictures, the worker finds
        out.
        """
        too_large = next((data for data in pictures if len(data) > MAX_BYTES), None)
        if too_large is not None:
            raise UsageError(f"a picture may have at most {MAX_BYTES:,} bytes, and one has {len(too_large):,}")
        hashes = [hashlib.sha256(data).hexdigest() for data in pictures]
        by_hash = dict(zip(hashes, pictures, strict=True))
        put_pictures(self._connections.engine, self._connections.objects, by_hash, count_bytes)
        return [Document(sha256=sha256) for sha256 in hashes]

    def _run(
        self, operation: Operation, body: Mapping[str, Any], archive_id: int | None, timeout_s: float
    ) -> dict[str, Any]:
        """The result of a request. One that nobody waits for any more is cancelled."""
        jobs = Jobs(self._connections)
        job_id = self._do(submit_request, operation, body, archive_id)
        self._dispatch()
        if not jobs.has_ended(job_id, timeout_s):
            self._give_up(jobs, job_id)
            raise AnswerTimeout(f"no result within {timeout_s:g} s: no answer worker is free or running; try again")
        return self._result(job_id)

    def _give_up(self, jobs: Jobs, job_id: int) -> None:
        try:
            jobs.cancel(job_id)
        except Conflict:  # it ended a moment ago
            return

    def _result(self, job_id: int) -> dict[str, Any]:
        outcome: Outcome = read_at_once(self._connections.engine, requests.load_outcome, job_id)
        if outcome.status is RequestStatus.DONE and outcome.result is not None:
            return outcome.result
        reason = outcome.reason or "the request was cancelled"
        if outcome.status is RequestStatus.FAILED and outcome.code is Fault.OF_REQUEST:
            raise UsageError(reason)
        # The queue itself ends the request of a job that was refused.
        raise JobRefused(reason) if outcome.status is RequestStatus.FAILED else RagllavaError(reason)


def _check_filter(connection: Connection, archive_id: int, name: str, options: AnswerOptions) -> int:
    filtering.check_keys(connection, archive_id, name, options.filter)
    return archive_id


def _with_images(connection: Connection, found: Sequence[Mapping[str, Any]]) -> list[FoundImage]:
    """The images as they are now; those that were removed since are left out."""
    ids = [row["image_id"] for row in found]
    images: dict[int, StoredImage] = archive.load_images(connection, ids)
    metadata = archive.load_metadata(connection, ids)
    names = ("picture_rank", "retrieval_score", "caption_rank", "caption_score")
    return [
        FoundImage(images[row["image_id"]], **{name: row[name] for name in names}, metadata=metadata[row["image_id"]])
        for row in found
        if row["image_id"] in images
    ]
