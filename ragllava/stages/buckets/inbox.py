"""The inbox: a question file that is put under a bound prefix becomes a job, whose results appear in the outbox.

An event only says that a file may be there. It may come twice, late, or for a file that has changed since. So the
file's address and the ETag that was read with its bytes are the idempotency key: the same version makes one job,
however often it is taken in, and another version makes another job.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from sqlalchemy import Engine

from ragllava.errors import ObjectMissing, ServiceUnavailable, SettingsError, UsageError
from ragllava.jobs import control
from ragllava.settings import Settings
from ragllava.stages.answer.question_files import format_by_extension, read_questions
from ragllava.stages.answer.submit import Submission, as_options, record_refusal, submit_questions
from ragllava.stages.results.outbox import Outbox
from ragllava.stores.buckets.bindings import Binding
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import ExternalContent, ObjectStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of an object under an inbox: its job, or the reason why there is none."""

    job_id: int | None
    reason: str | None


def take_in(engine: Engine, settings: Settings, objects: ObjectStore, binding: Binding, key: str, etag: str) -> Taken:
    """Make an answer job of the question file `s3://<binding.bucket>/<key>`, which was seen with this ETag.

    Invalid lines end as `failed` in the results, unless the binding says `skip_invalid: false`. A file that cannot be
    used gets an error file in the outbox; one that is no question file, or is gone, is left alone. Any number may take
    in the same file at once. Raises ServiceUnavailable when a service is away, or refuses to let us read the file.
    """
    outbox = _outbox(binding, key, etag)
    if isinstance(outbox, str):
        return Taken(None, outbox)
    if known := _job_of(engine, outbox):
        return Taken(known, None)
    try:
        found = _read(objects, binding, key)
        outbox = replace(outbox, etag=found.etag)  # it may have changed since it was seen
        job_id = _job_of(engine, outbox) or _submit(engine, settings, binding, outbox, found.data)
    except ObjectMissing:
        return Taken(None, "it was removed before it was read")
    except UsageError as error:
        record_refusal(objects, outbox.error_address, outbox.source, error)
        return Taken(None, str(error))
    return Taken(job_id, None)


def _outbox(binding: Binding, key: str, etag: str) -> Outbox | str:
    """Where the results of an object under the inbox go, or why it is left alone."""
    inbox, source = f"s3://{binding.bucket}/{binding.prefix}", f"s3://{binding.bucket}/{key}"
    outbox = binding.options["outbox"].rstrip("/") + "/"
    # Results are question files by their form. An outbox around the inbox does no harm.
    if outbox.startswith(inbox) and source.startswith(outbox):
        return "it lies in the outbox"
    form = format_by_extension(key)
    if form is None:
        return "it is no question file: its name does not end in .jsonl, .ndjson, .csv, .tsv or .parquet"
    return Outbox(f"{outbox}{key.removeprefix(binding.prefix).lstrip('/')}/", source, etag, form)


def _job_of(engine: Engine, outbox: Outbox) -> int | None:
    """The job that this version of the file has become."""
    return in_transaction(engine, control.find_job, outbox.version)


def _read(objects: ObjectStore, binding: Binding, key: str) -> ExternalContent:
    try:
        return objects.read_external(binding.bucket, key)
    except SettingsError as error:  # no fault of the file, which can be read once our key may
        raise ServiceUnavailable(str(error)) from error


def _submit(engine: Engine, settings: Settings, binding: Binding, outbox: Outbox, content: bytes) -> int:
    how = Submission(
        binding.archive,
        as_options(binding.options.get("answer")),
        skip_invalid=binding.options.get("skip_invalid", True),
        idempotency_key=outbox.version,
        outbox=outbox,
    )
    job_id = submit_questions(engine, settings, read_questions(content, name=outbox.source), how).job_id
    log.info("taken in", extra={"action": "job_submitted", "job": job_id, "address": outbox.source})
    return job_id
