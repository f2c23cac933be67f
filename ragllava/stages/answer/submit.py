"""From a question file to an answer job, and from an ended job to its refresh: its questions again, of which the
workers ask only those for which something has changed.

What has changed is found out by the answer stage (changes.py), because that takes a retriever, and a machine that only
submits may have none. Only the preview of a refresh needs one in the calling process.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from types import UnionType

from sqlalchemy import Connection, func, select

from ragllava.errors import InvalidInput, LineError, ObjectMissing, RagllavaError, UsageError
from ragllava.filters import metadata_keys, parse_where
from ragllava.imaging.decode import printable
from ragllava.jobs import control, views
from ragllava.jobs.control import NewJob
from ragllava.jobs.deadlines import NO_LIMITS, JobLimits
from ragllava.jobs.views import WITH_PICTURES, JobView
from ragllava.json_records import to_json
from ragllava.records import AnswerOptions, AnswerStatus, Depth, JobKind, Priority, Question, Retrieval
from ragllava.settings import Settings
from ragllava.stages.answer.estimating import estimate_job
from ragllava.stages.answer.question_files import QuestionFile
from ragllava.stages.record_files.layouts import UNSTORABLE
from ragllava.stages.results.outbox import Outbox
from ragllava.stores.access import asked_pictures
from ragllava.stores.archives import archive, blobs, filtering
from ragllava.stores.archives.archive import Archive
from ragllava.stores.jobs import answers, refreshes
from ragllava.stores.objects import ObjectStore
from ragllava.stores.sessions import OWNER

log = logging.getLogger(__name__)

MAX_TOP_K = 1_000
MAX_TOP_N = 20
_CHOICES: dict[str, type[StrEnum]] = {"retrieval": Retrieval, "depth": Depth}
_NEW = ("retrieval", "depth", "filter")  # options since version 0.3
MAX_KEY_BYTES = 2_000  # the database's index accepts about 2,700


@dataclass(frozen=True, slots=True)
class Submission:
    """How a question file is to be answered. With the same idempotency key, the same file makes one job.

    With an `outbox`, the result files are written there as well as into the deployment's own bucket.
    """

    archive: str
    options: AnswerOptions = field(default_factory=AnswerOptions)
    skip_invalid: bool = False
    idempotency_key: str | None = None
    priority: Priority = Priority.NORMAL
    outbox: Outbox | None = None
    name: str | None = None  # of the job, for people
    owner: str | None = None  # of the job; None: that of the session
    limits: JobLimits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class Submitted:
    """The result of a submit: the job, whether it is new, and the invalid lines, which end as `failed`.

    `notes` are remarks on how the file was read.
    """

    job_id: int
    is_new: bool
    total: int
    errors: list[LineError]
    notes: tuple[str, ...] = ()


def submit_questions(connection: Connection, settings: Settings, file: QuestionFile, how: Submission) -> Submitted:
    """Create an answer job of all lines of a file.

    Raises InvalidInput when lines are invalid, unless `skip_invalid`: then those lines become questions that end as
    `failed` with their reason, so that every input line still gives an output line. A line whose filter has a key that
    no image of the archive has is invalid, too. Raises UsageError for an unknown archive, for options out of range, for
    such a key in the job's filter, and for an idempotency key that was used with other content.
    """
    _check_key(how.idempotency_key)
    _require_valid(file, how)
    options = check_options(how.options)
    _check_pictures(file, options)
    digest = _digest(file, options)  # of the file alone, whatever the archive knows
    searched, options, file = check_questions(connection, file, how)
    _require_valid(file, how)
    if how.owner is not None:
        connection.execute(select(func.set_config(OWNER, how.owner, True)))
    delivery = {"outbox": to_json(how.outbox)} if how.outbox else {}
    estimate = None
    if how.priority < Priority.URGENT:
        number, archive_id = len(file.valid), searched.archive_id
        estimate = estimate_job(connection, settings, archive_id, options, number, how.priority).as_json()
    job_id, is_new = control.create(
        connection,
        NewJob(
            kind=JobKind.ANSWER,
            archive_id=searched.archive_id,
            spec={"options": to_json(options), "input": printable(file.name), **delivery, **_kept(file)},
            total=len(file.lines),
            per_shard=settings.questions_per_shard,
            priority=how.priority,
            idempotency_key=how.idempotency_key,
            content_digest=digest,
            name=how.name,
            limits=how.limits,
            estimate=estimate,
        ),
    )
    if is_new:
        _insert_lines(connection, job_id, file)
    return Submitted(job_id, is_new, len(file.lines), file.errors, file.notes)


def check_questions(
    connection: Connection, file: QuestionFile, how: Submission
) -> tuple[Archive, AnswerOptions, QuestionFile]:
    """What a submit would ask of which archive, with the lines that are invalid there; creates nothing.

    Raises UsageError as `submit_questions`, but for invalid lines.
    """
    options = check_options(how.options)
    searched = archive.get_archive(connection, how.archive)
    filtering.check_keys(connection, searched.archive_id, searched.name, options.filter)
    return searched, options, _with_known_keys(connection, searched, file)


def submit_refresh(connection: Connection, settings: Settings, earlier_job_id: int) -> tuple[int, bool]:
    """Create an answer job that refreshes an ended one; returns its id and whether it is new.

    It has the same lines and options. Lines without an answer keep their outcome: those are for a retry. While a
    refresh of that job is open, that refresh is returned. Raises UsageError when there is nothing to refresh.
    """
    open_refresh = refreshes.lock_earlier(connection, earlier_job_id)
    earlier = require_answered(views.view(connection, earlier_job_id))
    if open_refresh is not None:
        return open_refresh, False
    job_id, is_new = control.create(
        connection,
        NewJob(
            kind=JobKind.ANSWER,
            archive_id=archive.get_archive(connection, earlier.archive).archive_id,
            spec={
                "options": earlier.spec["options"],
                "input": earlier.spec.get("input"),
                "refreshes": earlier_job_id,
                **{name: earlier.spec[name] for name in ("columns", WITH_PICTURES) if name in earlier.spec},
            },
            total=earlier.progress.total,
            per_shard=settings.questions_per_shard,
            priority=Priority.NORMAL,
        ),
    )
    refreshes.copy_lines(connection, job_id, earlier_job_id, earlier.progress.total)
    if WITH_PICTURES in earlier.spec:
        asked_pictures.own_those_of(connection, job_id)
    return job_id, is_new


def require_answered(job: JobView) -> JobView:
    """The job, if it can be refreshed; else UsageError."""
    if job.kind != JobKind.ANSWER:
        raise UsageError(f"job {job.job_id} is of the kind {job.kind}; only an answer job can be refreshed")
    if not job.is_final:
        raise UsageError(f"job {job.job_id} is {job.state.value}; only an ended job can be refreshed")
    if not answered_lines(job):
        raise UsageError(
            f"job {job.job_id} has no answer to refresh; `ragllava jobs retry {job.job_id}` asks its questions again"
        )
    return job


def answered_lines(job: JobView) -> int:
    """How many lines have the outcome `answered` or `no_evidence`."""
    return sum(job.progress.by_status.get(status, 0) for status in (AnswerStatus.ANSWERED, AnswerStatus.NO_EVIDENCE))


def as_options(given: object) -> AnswerOptions:
    """Options from JSON; None stands for all defaults. Raises UsageError for unknown names. The values are checked when
    the job is made."""
    if given is None:
        return AnswerOptions()
    names = [field.name for field in fields(AnswerOptions)]
    if not isinstance(given, dict) or not given.keys() <= set(names):
        raise UsageError(f"options may contain only {', '.join(names)}, not {given!r}")
    choices = {name: _choice(kind, name, given[name]) for name, kind in _CHOICES.items() if name in given}
    return AnswerOptions(**given | choices)


def _choice(kind: type[StrEnum], name: str, value: object) -> StrEnum:
    if value not in list(kind):
        raise UsageError(f"{name} must be {' or '.join(kind)}, not {value!r}")
    return kind(str(value))


def record_refusal(objects: ObjectStore, report_address: str, address: str, error: RagllavaError) -> None:
    """Write at `report_address` why the file at `address` became no job, with each of its invalid lines.

    If it cannot be written there, that is only logged. Raises ServiceUnavailable.
    """
    log.warning(str(error), extra={"action": "submission_refused", "address": address})
    errors = error.errors if isinstance(error, InvalidInput) else []
    body = {"address": address, "message": str(error), "errors": to_json(errors)}
    try:
        objects.put_external(report_address, json.dumps(body, indent=2).encode(), "application/json")
    except (UsageError, ObjectMissing) as unwritable:
        log.warning(str(unwritable), extra={"action": "refusal_not_written", "address": address})


def _kept(file: QuestionFile) -> dict[str, object]:
    """What the results need to know of the file: its further columns, and whether a question has a picture."""
    kept: dict[str, object] = {"columns": file.columns} if file.columns else {}
    return kept | ({WITH_PICTURES: True} if any(question.picture for question in file.valid) else {})


def _check_pictures(file: QuestionFile, options: AnswerOptions) -> None:
    """Raises UsageError for pictures that nothing would look at."""
    if options.retrieval is Retrieval.CAPTION and any(question.picture for question in file.valid):
        raise UsageError("with the retrieval caption, no picture is looked at; ask with pictures by hybrid or picture")


def _insert_lines(connection: Connection, job_id: int, file: QuestionFile) -> None:
    pictures = sorted({question.picture for question in file.valid if question.picture})
    if pictures:
        blobs.make_live(connection, pictures)
        asked_pictures.own(connection, pictures)
    answers.insert_questions(
        connection,
        job_id,
        (
            (number, line.line, line.custom_id, line.text if isinstance(line, Question) else None)
            for number, line in enumerate(file.lines)
        ),
        own={q.question_no: q for q in file.valid if q.filter or q.note or q.given or q.picture},
    )
    answers.insert_refusals(
        connection,
        job_id,
        ((number, line.code, line.message) for number, line in enumerate(file.lines) if isinstance(line, LineError)),
    )


def _require_valid(file: QuestionFile, how: Submission) -> None:
    if not (how.skip_invalid and file.valid):
        file.require_valid()


def _with_known_keys(connection: Connection, searched: Archive, file: QuestionFile) -> QuestionFile:
    """The file, in which a line is invalid if its filter has a key that no image of the archive has."""
    named = dict.fromkeys(key for question in file.valid for key in metadata_keys(question.filter))
    unknown = filtering.unknown_keys(connection, searched.archive_id, named)
    if not unknown:
        return file
    existing = filtering.archive_keys(connection, searched.archive_id)
    messages = {key: filtering.unknown_key_message(key, searched.name, existing) for key in unknown}

    def checked(line: Question | LineError) -> Question | LineError:
        keys = metadata_keys(line.filter) if isinstance(line, Question) else []
        message = next((messages[key] for key in keys if key in messages), None)
        return LineError("unknown_filter_key", line.line, message, line.custom_id) if message else line

    return QuestionFile(file.name, [checked(line) for line in file.lines], notes=file.notes)


def check_options(options: AnswerOptions) -> AnswerOptions:
    """The options with the filter in its stored form.

    Raises UsageError. Other programs send options too, and a wrong one would end every question as dead.
    """
    for name, value, most in (("top_k", options.top_k, MAX_TOP_K), ("top_n", options.top_n, MAX_TOP_N)):
        if not _is_number(value, int) or not 1 <= value <= most:
            raise UsageError(f"{name} must be a whole number from 1 to {most}, not {value!r}")
    threshold = options.threshold
    if threshold is not None and (not _is_number(threshold, int | float) or not 0 <= threshold <= 1):
        raise UsageError(f"the threshold must be a number from 0 to 1, or none for the model's own, not {threshold!r}")
    for name, kind in _CHOICES.items():
        _choice(kind, name, getattr(options, name))
    if not isinstance(options.captions_in_answer, bool):
        raise UsageError(f"captions_in_answer must be true or false, not {options.captions_in_answer!r}")
    return replace(options, filter=parse_where(options.filter))


def _is_number(value: object, kind: type | UnionType) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)  # True is an int to Python


def _check_key(key: str | None) -> None:
    if key is None:
        return
    if not key or UNSTORABLE.search(key) or len(key.encode()) > MAX_KEY_BYTES:
        raise UsageError(f"an idempotency key is text of 1 to {MAX_KEY_BYTES:,} bytes, not {key[:80]!r}")


def _digest(file: QuestionFile, options: AnswerOptions) -> str:
    """The hash of questions and options, not of the file's address.

    Options that earlier versions did not have count only if they are not the defaults, so that a key of an earlier
    version still fits.
    """
    usual = to_json(AnswerOptions())
    stated = {name: value for name, value in to_json(options).items() if name not in _NEW or value != usual[name]}
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True).encode())
    for line in file.lines:
        text = line.text if isinstance(line, Question) else line.message
        own = [part for part in (line.filter, line.picture) if part] if isinstance(line, Question) else []
        digest.update(json.dumps([line.custom_id, text, *own]).encode())
    return digest.hexdigest()
