"""Frozen records that pass between rooms. No behaviour beyond what their fields imply, no database objects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any


class JobKind(StrEnum):
    """The names of the kinds of job; jobs/kinds.py has the record of each."""

    INGEST = "ingest"
    ANSWER = "answer"
    TRAIN = "train"
    REINDEX = "reindex"
    MAINTENANCE = "maintenance"
    REQUEST = "request"


class Priority(IntEnum):
    """Which jobs are dispatched first; jobs of equal priority take turns. A submitter chooses one of the first three.

    `URGENT` is a single question that somebody waits for: a running shard of another job gives way to it.
    """

    LOW = -5
    NORMAL = 0
    HIGH = 5
    URGENT = 10


PRIORITIES = {priority.name.lower(): priority for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH)}


class AnswerStatus(StrEnum):
    """How a question ended. Every question of a finished job has exactly one."""

    ANSWERED = "answered"
    NO_EVIDENCE = "no_evidence"  # no candidate reached the threshold; nothing is invented
    FAILED = "failed"  # this question cannot be answered, and a retry would not help
    DEAD = "dead"  # its shard killed or failed its workers too often, even alone
    EXPIRED = "expired"  # the deadline or the budget of its job was reached before
    CANCELLED = "cancelled"


class Change(StrEnum):
    """What has changed since an answer was made, so that a refresh asks its question again."""

    PICTURES = "pictures"  # other images are retrieved for it
    CAPTIONS = "captions"  # the same images, but another caption, or another reading of a misspelt name
    RERANKER = "reranker"
    GENERATOR = "generator"
    PROMPT = "prompt"
    THRESHOLD = "threshold"
    DEPTH = "depth"  # a limit of the earlier job cut the candidates that were reranked
    UNKNOWN = "unknown"  # the earlier job has no answer, or did not store what it was made from


class TrainingStatus(StrEnum):
    """How a training ended."""

    PROMOTED = "promoted"  # it passed the gate and is champion
    CHALLENGER = "challenger"  # it passed the gate and was not promoted yet
    REFUSED = "refused"  # the gate found it no better, or worse in something; kept as a candidate
    FAILED = "failed"  # it cannot be done, and a retry would not help
    DEAD = "dead"
    CANCELLED = "cancelled"


class ReindexStatus(StrEnum):
    """How an item of a reindex job ended: an image, or the gate at its end."""

    EMBEDDED = "embedded"
    SKIPPED = "skipped"  # the image had its vector already, or was retired meanwhile
    UNREADABLE = "unreadable"  # its picture is missing from the store, or damaged
    SWITCHED = "switched"  # the gate passed: questions are answered from the new index
    KEPT = "kept"  # the gate passed; there is nothing to switch, or the switch was not requested
    REFUSED = "refused"  # the gate found the new index worse; the old one stays
    FAILED = "failed"
    DEAD = "dead"
    CANCELLED = "cancelled"


class Selection(StrEnum):
    """Which images of an archive a reindexing embeds."""

    MISSING = "missing"  # those without a vector in the active index
    FAILED = "failed"  # those of them that the latest reindexing could not embed
    STALE = "stale"  # all, if the active index was made by another version of its retriever than there is now
    ALL = "all"  # all, into a new index beside the active one


class GapReason(StrEnum):
    """Why an image has no vector in the active index of its archive."""

    NO_INDEX = "no_index"
    WAITING = "waiting"  # a job will embed it
    UNREADABLE = "unreadable"  # its picture is missing from the store, or damaged
    FAILED = "failed"  # a job gave it up
    CANCELLED = "cancelled"
    NEVER_TRIED = "never_tried"
    LOST = "lost"  # it had one


class MailingState(StrEnum):
    """What became of a notice of an event for a target."""

    WAITING = "waiting"
    SENDING = "sending"  # the receiver may have it already
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


class TaskStatus(StrEnum):
    """How a maintenance task ended."""

    DONE = "done"
    FAILED = "failed"  # it cannot be done, and a retry would not help
    DEAD = "dead"
    CANCELLED = "cancelled"


class RequestStatus(StrEnum):
    """How a request ended that somebody waits for: a search, or relevances."""

    DONE = "done"
    FAILED = "failed"  # it cannot be done, and a retry would not help
    DEAD = "dead"
    CANCELLED = "cancelled"


class TaskName(StrEnum):
    """Maintenance that a schedule or a person asks for; each has one function in stages/maintenance/stage.py."""

    SCAN = "scan"  # compare bound buckets with what is known of them
    GAPS = "gaps"  # name every image without a current embedding, and why
    FIND_NOISY = "find-noisy"  # look for noisy cases in answers that were not looked at
    GC = "gc"  # objects that nothing refers to
    RETENTION = "retention"  # drop what is older than the settings keep
    VACUUM = "vacuum"  # vacuum the tables that churn, and check the recall of graphs
    BACKUP = "backup"  # save everything where `settings.backup_to` says


class ScheduleAction(StrEnum):
    """What a schedule may begin: a maintenance task by its name, a training, or a reindexing."""

    SCAN = TaskName.SCAN.value
    GAPS = TaskName.GAPS.value
    FIND_NOISY = TaskName.FIND_NOISY.value
    GC = TaskName.GC.value
    RETENTION = TaskName.RETENTION.value
    VACUUM = TaskName.VACUUM.value
    BACKUP = TaskName.BACKUP.value
    RETRAIN = "retrain"
    REINDEX = "reindex"


class FileFormat(StrEnum):
    """Tables of rows that we read (questions) and write (results)."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"
    XLSX = "xlsx"  # only read


class Retrieval(StrEnum):
    """By what the first stage finds candidates."""

    HYBRID = "hybrid"  # the nearest pictures, and images that their captions make sure of
    PICTURE = "picture"  # the nearest pictures alone, as in the paper
    CAPTION = "caption"  # the words of captions, metadata and file names alone


class Depth(StrEnum):
    """How many of the candidates are reranked."""

    NEED = "need"  # the strongest first, until the evidence suffices
    FIXED = "fixed"  # all of them, as in the paper


class Origin(StrEnum):
    """Which search found a candidate."""

    PICTURE = "picture"
    CAPTION = "caption"
    BOTH = "both"
    ASKED_PICTURE = "asked_picture"  # the nearest to the picture that the question is asked with


class Role(StrEnum):
    """What a model version is used for."""

    RERANKER = "reranker"
    GENERATOR = "generator"


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image of an archive as the stages see it. `sha256` (hex) is also its address in the object store.

    `uri` is set in results if another image of the archive has the same `source`: it tells which of the two it is.
    """

    image_id: int
    sha256: str
    source: str
    caption: str | None
    uri: str | None = None

    @property
    def full_name(self) -> str:
        """The source, or where it was read from if another image of the archive has that source."""
        return self.source if self.uri is None else self.uri.removeprefix("file://")


@dataclass(frozen=True, slots=True)
class Question:
    """One valid question of a job. `question_no` counts input lines from 0; `line` from 1, as editors do.

    `filter` is its own filter as JSON, which holds beside that of its job. `note` says what of its line is not used,
    and `given` are the further columns of its line, which its result repeats. `picture` is the sha256 (hex) of the
    picture that it is asked with.
    """

    question_no: int
    line: int
    custom_id: str
    text: str
    filter: dict[str, Any] | None = None
    note: str | None = None
    given: dict[str, Any] | None = None
    picture: str | None = None


@dataclass(frozen=True, slots=True, order=True)
class Spelling:
    """A misspelt word of a question, and the word of a caption that is surely meant, both as words.py writes them."""

    asked: str
    meant: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image that retrieval found for a question.

    `retrieval_rank` is its place among the candidates: the nearest pictures first, then those found by words alone.
    `retrieval_score` is the cosine of the image and of what found it: the text of the question, or its picture.
    `caption_rank` and `caption_score` (BM25) are None for one that was not found by words. `relevance` is P("Yes") of
    the reranker, in [0, 1], None for one that was not reranked; `evidence_no` is 0, 1, … for the kept ones in rank
    order, None for the others. Two fields are not stored (stages/answer/candidates.py): `shares`, for each thing that
    the question names, how well the caption names it; and `spellings`, what the caption corrects in the question.
    """

    image: StoredImage
    retrieval_rank: int
    retrieval_score: float
    relevance: float | None
    evidence_no: int | None = None
    origin: Origin = Origin.PICTURE
    caption_rank: int | None = None
    caption_score: float | None = None
    shares: tuple[float, ...] = ()
    spellings: tuple[Spelling, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image that a search found. `picture_rank` and `caption_rank` count from 0 in the rankings by picture and by
    words, None where it is not among the first; the scores are those of a Candidate."""

    image: StoredImage
    picture_rank: int | None
    retrieval_score: float
    caption_rank: int | None
    caption_score: float | None
    metadata: dict[str, Any] | None = None

    @property
    def origin(self) -> Origin:
        """Which search found it."""
        if self.caption_rank is None:
            return Origin.PICTURE
        return Origin.CAPTION if self.picture_rank is None else Origin.BOTH


def by_retrieval(candidates: Iterable[Candidate]) -> list[Candidate]:
    """In the order in which they were retrieved."""
    return sorted(candidates, key=lambda candidate: candidate.retrieval_rank)


def by_relevance(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The most relevant first, ties by retrieval rank; those that were not reranked come last."""

    def order(candidate: Candidate) -> tuple[float, int]:
        return 1.0 if candidate.relevance is None else -candidate.relevance, candidate.retrieval_rank

    return sorted(candidates, key=order)


def evidence_of(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The kept candidates in rank order."""
    kept = [candidate for candidate in candidates if candidate.evidence_no is not None]
    return sorted(kept, key=lambda candidate: candidate.evidence_no or 0)


@dataclass(frozen=True, slots=True)
class ModelStamp:
    """Which makers produced a result. Stored beside every answer.

    `retrieval` and `depth` name the rules by which candidates were found and reranked, with their versions; the
    defaults are those of version 0.2 and earlier, which did not store them.
    """

    index: str
    reranker: str
    generator: str
    prompt: str
    threshold: float
    retrieval: str = "picture-1"
    depth: str = "fixed-1"


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one question.

    `confidence` is exp of the mean log-probability of the answer's tokens (docs/method.md 4), None without an answer.
    `note` is a remark on a good result (a caption was cut); `error` says why there is none.
    `changes` is set in a refresh: why the question was asked again. `prompt_tokens` and `completion_tokens` are those
    that the generator read and wrote: 0 where it was not used, None where they were not counted.
    """

    question_no: int
    status: AnswerStatus
    text: str | None = None
    confidence: float | None = None
    candidates: tuple[Candidate, ...] = ()
    models: ModelStamp | None = None
    note: str | None = None
    error_code: str | None = None
    error: str | None = None
    changes: tuple[Change, ...] | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What a submitter may choose for a job. `threshold` None means the reranker version's own η.

    `filter` restricts the images that may be candidates, as JSON (ragllava/filters.py); None: all of the archive.
    """

    top_k: int = 20
    top_n: int = 2
    threshold: float | None = None
    captions_in_answer: bool = True
    retrieval: Retrieval = Retrieval.HYBRID
    depth: Depth = Depth.NEED
    filter: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Counts of a job by outcome; `done` counts every input that has one."""

    total: int
    by_status: dict[str, int] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Inputs with a final outcome."""
        return sum(self.by_status.values())


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """What is right for one question: its answer and the sources of all pictures that it rests on."""

    custom_id: str
    answer: str
    type: str
    relevant: tuple[str, ...]
