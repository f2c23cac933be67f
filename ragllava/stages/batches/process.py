"""What the tick does for batches: read their files, keep their time, write the files of their results.

Each step is repeated until it has succeeded, and repeating it changes nothing: the id of a batch is the idempotency key
of its job, and a batch ends in one transaction, with the rows of its files. One worker at a time reads a batch. One
that has lost its claim without noticing may read on, and pictures may be there for it alone: who is first decides what
becomes of the batch.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from datetime import UTC
from functools import partial
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Connection, Engine

from ragllava.errors import Conflict, FetchNeeded, InvalidInput, LineError, ObjectMissing, SettingsError, UsageError
from ragllava.jobs import control, deadlines
from ragllava.jobs.deadlines import JobLimits
from ragllava.jobs.ending import end_job
from ragllava.jobs.isolation import Isolation, LeftToAnother
from ragllava.jobs.states import STOPPING_JOB_STATES, JobState
from ragllava.json_records import from_json
from ragllava.records import AnswerOptions, AnswerStatus, FileFormat
from ragllava.settings import Settings
from ragllava.stages.answer.asked_pictures import AskedPictures
from ragllava.stages.answer.question_files import BatchRules, QuestionFile, read_questions
from ragllava.stages.answer.remote_pictures import RemotePictures, fetching_nothing
from ragllava.stages.answer.slow_reads import SlowReads
from ragllava.stages.answer.submit import Submission, submit_questions
from ragllava.stages.batches.bodies import error_line, is_answer, output_line
from ragllava.stages.batches.state import is_job_ended
from ragllava.stages.batches.submit import MODEL, flag
from ragllava.stages.results.finalize import result_rows
from ragllava.stages.results.results import ResultRow
from ragllava.stores.access import batches, uploads, usage
from ragllava.stores.access.batches import Batch
from ragllava.stores.access.uploads import NewUpload, Upload, new_file_id
from ragllava.stores.database import in_transaction, locked_outside
from ragllava.stores.objects import ObjectStore
from ragllava.whole_files import file_sha256

log = logging.getLogger(__name__)

_ERRORS_SHOWN = 100
_STOPPING_S = 5.0
_EXPIRED_AT_ONCE = 100
_OUTPUT, _ERRORS = "output", "errors"


def process_batches(engine: Engine, settings: Settings, objects: ObjectStore, slow: SlowReads) -> int:
    """Do for every open batch what is due; returns for how many something was done.

    A batch with which something fails holds up no other; it is postponed with its reason. One with pictures of other
    hosts is left to the threads of `slow`. Files whose time is over are deleted.
    """
    done = 0
    subjects = {f"batch {batch_id}": batch_id for batch_id in in_transaction(engine, batches.open_batches)}
    isolation = Isolation(engine, "batches", subjects)
    for subject, batch_id in subjects.items():
        if isolation.is_postponed(subject) or slow.has(subject):
            continue
        process = partial(_process, engine, settings, objects, batch_id)
        try:
            with fetching_nothing():
                done += isolation.run(subject, process) or 0
        except FetchNeeded:
            slow.begin(subject, isolation, process)
    delete_expired(engine, objects)
    return done


def delete_expired(engine: Engine, objects: ObjectStore) -> int:
    """Delete some files whose time is over, their bytes first; returns how many."""
    expired = in_transaction(engine, uploads.expired_uploads, _EXPIRED_AT_ONCE)
    for upload in expired:
        objects.delete(upload.object_key)
        in_transaction(engine, uploads.delete_upload, upload.file_id)
    return len(expired)


def _process(engine: Engine, settings: Settings, objects: ObjectStore, batch_id: str) -> int:
    batch = in_transaction(engine, batches.get_batch, batch_id)
    if batch.ended_at is not None:
        return 0
    if batch.job_id is None:
        return _begin_alone(engine, settings, objects, batch_id)
    if is_job_ended(batch):
        return _finish(engine, objects, batch) if batch.has_result else 0
    if batch.cancelling_at is not None or batch.is_overdue:
        return _stop(engine, batch)
    return 0


def _begin_alone(engine: Engine, settings: Settings, objects: ObjectStore, batch_id: str) -> int:
    """As `_begin`, unless another worker has read the batch meanwhile: its pictures are fetched once.

    Raises LeftToAnother while another worker reads it.
    """
    with locked_outside(engine, "batch that is read", batch_id, wait=False) as is_held:
        if not is_held:
            raise LeftToAnother
        batch = in_transaction(engine, batches.get_batch, batch_id)
        if batch.job_id is not None or batch.ended_at is not None:
            return 0
        return _begin(engine, settings, objects, batch)


def _begin(engine: Engine, settings: Settings, objects: ObjectStore, batch: Batch) -> int:
    """Make the job of a batch, or let the batch fail with its invalid lines."""
    if batch.in_progress_at is not None:
        _fail(engine, batch, [_error("job_removed", "the job of the batch was removed")])
        return 1
    try:
        file = _read(engine, settings, objects, batch)
        in_transaction(engine, _submit, settings, batch, file)
    except InvalidInput as error:
        _fail(engine, batch, _line_errors(error.errors))
    except _Decided:
        return 0
    except SettingsError:  # of this machine, not of the file
        raise
    except (UsageError, ObjectMissing) as error:
        _fail(engine, batch, [_error("invalid_batch", str(error))])
    return 1


class _Decided(Exception):
    """Another worker has let the batch fail, so no job is made of it."""


def _read(engine: Engine, settings: Settings, objects: ObjectStore, batch: Batch) -> QuestionFile:
    upload = in_transaction(engine, uploads.get_upload, batch.input_file_id)
    rules = BatchRules(batch.endpoint, f"{MODEL}/{batch.archive}")

    def find_upload(file_id: str) -> Upload:
        return in_transaction(engine, _upload_of_owner, batch, file_id)

    pictures = AskedPictures(engine, objects, batch.archive, RemotePictures.of(settings), find_upload)
    with tempfile.TemporaryDirectory() as folder, pictures.storing() as store_picture:
        path = Path(folder) / "batch.jsonl"
        objects.fetch(upload.object_key, path)
        return read_questions(
            path,
            name=upload.filename,
            format=FileFormat.JSONL,
            rules=rules,
            store_picture=store_picture,
            fetch_ahead=pictures.fetch_ahead,
        )


def _upload_of_owner(connection: Connection, batch: Batch, file_id: str) -> Upload:
    """A file that the owner of a batch may use; this process sees all. Raises NotFound."""
    upload = uploads.get_upload(connection, file_id)
    archives = uploads.archives_of(connection, file_id)
    if upload.owner != batch.owner and archives != [batch.archive_id]:
        raise uploads.unknown_file(file_id)
    return upload


def _submit(connection: Connection, settings: Settings, batch: Batch, file: QuestionFile) -> None:
    how = Submission(
        batch.archive,
        from_json(AnswerOptions, batch.options),
        skip_invalid=flag("skip_invalid", (batch.metadata or {}).get("skip_invalid", "false")),
        idempotency_key=f"batch {batch.batch_id}",
        name=batch.batch_id,
        owner=batch.owner,
        limits=JobLimits(at=batch.expires_at),
    )
    submitted = submit_questions(connection, settings, file, how)
    if not batches.set_job(connection, batch.batch_id, submitted.job_id) and submitted.is_new:
        raise _Decided
    log.info("batch submitted", extra={"action": "batch_submitted", "batch": batch.batch_id, "job": submitted.job_id})


def _stop(engine: Engine, batch: Batch) -> int:
    """Stop the job; the answers that it has stay. The job has the deadline of the batch, so that it stops by itself
    when the time is over; then this only notes it."""
    job_id, _ = _job_of(batch)
    if batch.cancelling_at is None:
        in_transaction(engine, _expire, batch, job_id)
    elif batch.job_state not in STOPPING_JOB_STATES:
        try:
            in_transaction(engine, control.cancel, job_id)
        except Conflict:  # it has ended meanwhile
            return 0
    end_job(engine, job_id, _STOPPING_S)
    return 1


def _expire(connection: Connection, batch: Batch, job_id: int) -> None:
    """In one transaction, so that no batch is overdue whose job goes on."""
    deadlines.expire_if_due(connection, job_id, batch.expires_at)
    batches.set_overdue(connection, batch.batch_id)


def _finish(engine: Engine, objects: ObjectStore, batch: Batch) -> int:
    """Write the files of a batch whose job has ended, then end the batch in one transaction."""
    ended = _ended_as(batch)
    with tempfile.TemporaryDirectory() as folder:
        lines, tokens = _write_lines(engine, batch, Path(folder))
        files = {kind: _store(objects, batch, Path(folder), kind, count) for kind, count in lines.items() if count}
    return int(in_transaction(engine, _end, batch, ended, files, lines, tokens))


def _end(
    connection: Connection,
    batch: Batch,
    ended: str,
    files: dict[str, NewUpload],
    lines: dict[str, int],
    tokens: dict[str, int] | None,
) -> bool:
    counts = {"total": sum(lines.values()), "completed": lines[_OUTPUT], "failed": lines[_ERRORS]}
    ids = {kind: upload.file_id for kind, upload in files.items()}
    values: dict[str, Any] = {
        "counts": counts,
        "usage": tokens,
        "output_file_id": ids.get(_OUTPUT),
        "error_file_id": ids.get(_ERRORS),
        "finalizing_at": batch.job_finished_at,
    }
    if ended == "completed" and not lines[_OUTPUT]:
        ended, values["errors"] = "failed", [_error("no_answers", "no line of the batch could be answered")]
    if not batches.end_batch(connection, batch.batch_id, f"{ended}_at", **values):
        return False
    for upload in files.values():
        uploads.insert_upload(connection, upload)
    log.info("batch ended", extra={"action": "batch_ended", "batch": batch.batch_id, "as": ended, **counts})
    return True


def _ended_as(batch: Batch) -> str:
    """A batch whose last question was answered in time is completed, whatever was asked for afterwards."""
    if batch.job_state == JobState.CANCELLED:
        return "cancelled"
    return "expired" if (batch.job_counts or {}).get(AnswerStatus.EXPIRED) else "completed"


def _write_lines(engine: Engine, batch: Batch, folder: Path) -> tuple[dict[str, int], dict[str, int] | None]:
    """The lines of the two files; returns how many each has, and the tokens of all answers if they were counted."""
    lines = {_OUTPUT: 0, _ERRORS: 0}
    tokens: dict[str, int] | None = {"input_tokens": 0, "output_tokens": 0}
    with (folder / _OUTPUT).open("w") as output, (folder / _ERRORS).open("w") as errors:
        for row in _rows(engine, batch):
            kind, file = (_OUTPUT, output) if is_answer(row) else (_ERRORS, errors)
            _write_line(file, batch, row)
            lines[kind] += 1
            tokens = _added(tokens, row) if kind == _OUTPUT else tokens
    return lines, tokens


def _added(tokens: dict[str, int] | None, row: ResultRow) -> dict[str, int] | None:
    """The sums with those of another answer; None as soon as one is not known."""
    read, written = row.prompt_tokens, row.completion_tokens
    if tokens is None or read is None or written is None:
        return None
    return {"input_tokens": tokens["input_tokens"] + read, "output_tokens": tokens["output_tokens"] + written}


def _write_line(file: IO[str], batch: Batch, row: ResultRow) -> None:
    created = _job_of(batch)[1]
    line = output_line(row, batch.endpoint, created) if is_answer(row) else error_line(row)
    file.write(json.dumps(line) + "\n")


def _rows(engine: Engine, batch: Batch) -> Iterator[ResultRow]:
    with engine.connect() as connection:
        yield from result_rows(connection, _job_of(batch)[0])


def _job_of(batch: Batch) -> tuple[int, int]:
    """The job of a batch that has one, and when it ended: seconds since 1970, 0 for an open one."""
    if batch.job_id is None:
        raise AssertionError("the batch has no job yet")
    return batch.job_id, int(batch.job_finished_at.timestamp()) if batch.job_finished_at else 0


def _store(objects: ObjectStore, batch: Batch, folder: Path, kind: str, lines: int) -> NewUpload:
    """In the folder of the job, with which the files are removed."""
    path, key = folder / kind, f"jobs/{batch.job_id}/batch/{kind}.jsonl"
    size = path.stat().st_size
    with path.open("rb") as stream:
        objects.put_stream(key, stream, size, "application/x-ndjson")
    return NewUpload(
        file_id=new_file_id(),
        owner=batch.owner,
        archives=frozenset([batch.archive_id]),
        filename=f"{batch.batch_id}_{kind}.jsonl",
        purpose="batch_output",
        size_bytes=size,
        lines=lines,
        sha256=file_sha256(path),
        object_key=key,
        job_id=batch.job_id,
        expires_s=batch.output_expires_s,
    )


def _fail(engine: Engine, batch: Batch, errors: list[dict[str, Any]]) -> None:
    if in_transaction(engine, _failed, batch, errors):
        facts = {"action": "batch_failed", "batch": batch.batch_id, "code": errors[0]["code"]}
        log.info(errors[0]["message"], extra=facts)


def _failed(connection: Connection, batch: Batch, errors: list[dict[str, Any]]) -> bool:
    """It asks nothing, so it uses up nothing of its owner's quota."""
    counts = {"total": 0, "completed": 0, "failed": 0}
    if not batches.fail_without_job(connection, batch.batch_id, errors=errors, counts=counts):
        return False
    usage.give_back_questions(connection, batch.owner, batch.questions, batch.created_at.astimezone(UTC).date())
    return True


def _line_errors(errors: list[LineError]) -> list[dict[str, Any]]:
    shown = [_error(error.code, error.message, error.line or None) for error in errors[:_ERRORS_SHOWN]]
    more = len(errors) - len(shown)
    if more:
        shown.append(_error("more_errors", f"{more:,} more lines are invalid"))
    return shown


def _error(code: str, message: str, line: int | None = None) -> dict[str, Any]:
    return {"code": code, "line": line, "message": message, "param": None}
