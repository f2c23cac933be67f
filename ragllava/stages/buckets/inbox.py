"""The inbox: a question file that is put under a bound prefix becomes a job, whose results are written to the outbox.

An event only reports that a file may exist. It may arrive twice, late, or for a file that has changed since. So the
file's address and the ETag that was read with its bytes are the idempotency key: the same version makes one job,
however often it is submitted, and another version makes another job.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from sqlalchemy import Engine

from ragllava.errors import ObjectMissing, ServiceUnavailable, SettingsError, UsageError
from ragllava.jobs import views
from ragllava.records import PRIORITIES, FileFormat
from ragllava.settings import Settings
from ragllava.stages.answer.asked_pictures import AskedPictures
from ragllava.stages.answer.question_files import read_questions
from ragllava.stages.answer.remote_pictures import RemotePictures
from ragllava.stages.answer.submit import Submission, as_options, record_refusal, submit_questions
from ragllava.stages.record_files.opening import format_by_extension
from ragllava.stages.results.outbox import LONGEST_NAME, Outbox
from ragllava.stores.buckets.bindings import Binding
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import MAX_KEY_BYTES, ObjectStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class InboxResult:
    """The job of an object under an inbox, or the reason why there is none."""

    job_id: int | None
    reason: str | None


def submit_question_file(
    engine: Engine, settings: Settings, objects: ObjectStore, binding: Binding, key: str, etag: str
) -> InboxResult:
    """Create an answer job of the question file `s3://<binding.bucket>/<key>`, which was observed with this ETag.

    Invalid lines end as `failed` in the results, unless the binding has `skip_invalid: false`. For an unusable question
    file an error file is written to the outbox; other files and missing ones are ignored. Concurrent calls for the
    same file make one job. Raises ServiceUnavailable when a service is unavailable, or the access key may not read the
    file.
    """
    outbox = _outbox(binding, key, etag)
    if isinstance(outbox, str):
        return InboxResult(None, outbox)
    if job_id := in_transaction(engine, views.find_job, outbox.version):
        return InboxResult(job_id, None)
    try:
        content = objects.read_external(binding.bucket, key)
        outbox = replace(outbox, etag=content.etag)  # the file may have changed since it was observed
        job_id = in_transaction(engine, views.find_job, outbox.version)
        job_id = job_id or _submit(engine, settings, objects, binding, outbox, content.data)
    except SettingsError as error:  # not the file's fault: it can be read as soon as the access key may
        raise ServiceUnavailable(str(error)) from error
    except ObjectMissing:
        return InboxResult(None, "it was removed before it was read")
    except UsageError as error:
        # Another worker may have read it at the same time, and have got a picture of another host: it was first.
        if job_id := in_transaction(engine, views.find_job, outbox.version):
            return InboxResult(job_id, None)
        record_refusal(objects, outbox.error_address, outbox.source, error)
        return InboxResult(None, str(error))
    return InboxResult(job_id, None)


def _outbox(binding: Binding, key: str, etag: str) -> Outbox | str:
    """Where the results of an object under the inbox are written, or the reason why it is ignored."""
    inbox, source = f"s3://{binding.bucket}/{binding.prefix}", f"s3://{binding.bucket}/{key}"
    outbox = binding.options["outbox"].rstrip("/") + "/"
    # Results have the form of question files. An outbox that contains the inbox does no harm.
    if outbox.startswith(inbox) and source.startswith(outbox):
        return "it is in the outbox"
    file_format = format_by_extension(key)
    if file_format is None:
        return "it is not a question file: its name does not end in .jsonl, .json, .csv, .tsv, .xlsx or .parquet"
    if file_format is FileFormat.XLSX:  # it is only read
        file_format = FileFormat.CSV
    folder = f"{outbox}{key.removeprefix(binding.prefix).lstrip('/')}/"
    size = len(folder.removeprefix("s3://").partition("/")[2].encode()) + LONGEST_NAME
    if size > MAX_KEY_BYTES:
        return f"the keys of its results would have up to {size:,} bytes, and S3 allows {MAX_KEY_BYTES:,}"
    return Outbox(folder, source, etag, file_format)


def _submit(
    engine: Engine, settings: Settings, objects: ObjectStore, binding: Binding, outbox: Outbox, content: bytes
) -> int:
    submission = Submission(
        binding.archive,
        as_options(binding.options.get("answer")),
        skip_invalid=binding.options.get("skip_invalid", True),
        idempotency_key=outbox.version,
        priority=PRIORITIES[binding.options.get("priority", "normal")],
        outbox=outbox,
    )
    pictures = AskedPictures(engine, objects, binding.archive, RemotePictures.of(settings))
    with pictures.storing() as store_picture:
        questions = read_questions(content, name=outbox.source, store_picture=store_picture)
    job_id = in_transaction(engine, submit_questions, settings, questions, submission).job_id
    log.info("question file submitted", extra={"action": "job_submitted", "job": job_id, "address": outbox.source})
    return job_id
