"""Work that arrives as a message: `ragllava.submit`, which any program can send with the S3 address of a file."""

from __future__ import annotations

import logging
from typing import Any

from ragllava.errors import InvalidInput, ObjectMissing, UsageError
from ragllava.records import AnswerOptions
from ragllava.stages.question_files import read_questions
from ragllava.stages.submit import Submission, record_refusal, submit_questions
from ragllava.stores.objects import ObjectStore
from workers.app import app, dispatch_now
from workers.runtime import runtime

log = logging.getLogger(__name__)


@app.task(name="ragllava.submit", queue="maint")
def submit(
    address: str,
    archive: str,
    options: dict[str, Any] | None = None,
    skip_invalid: bool = False,
    idempotency_key: str | None = None,
) -> None:
    """Make a job of the question file at `address` (`s3://bucket/key`).

    `options` may hold top_k, top_n, threshold and captions_in_answer. The address is the idempotency key unless
    another is given, so a message that arrives twice makes one job. When the file cannot be used, the reason is
    written beside it as `<key>.error.json`; nobody waits for a return value.
    """
    here = runtime()
    try:
        bucket, key = _parse(address)
        data = here.resources.objects.get_external(bucket, key)
        how = Submission(
            archive,
            AnswerOptions(**(options or {})),
            skip_invalid=skip_invalid,
            idempotency_key=idempotency_key or address,
        )
        job = submit_questions(here.engine, here.settings, read_questions(data, name=key), how)
    except (UsageError, ObjectMissing, TypeError) as error:
        _refuse(here.resources.objects, address, error)
        return
    log.info("submitted", extra={"action": "job_submitted", "job": job.job_id, "address": address})
    dispatch_now(here.engine, here.settings)


def _refuse(objects: ObjectStore, address: str, error: Exception) -> None:
    log.warning(str(error), extra={"action": "submission_refused", "address": address})
    errors = error.errors if isinstance(error, InvalidInput) else []
    try:
        record_refusal(objects, address, str(error), errors)
    except (UsageError, ObjectMissing) as unwritable:
        log.warning(str(unwritable), extra={"action": "refusal_not_written", "address": address})


def _parse(address: str) -> tuple[str, str]:
    bucket, _, key = address.removeprefix("s3://").partition("/")
    if not address.startswith("s3://") or not bucket or not key:
        raise UsageError(f"{address!r} is no address of the form s3://bucket/key")
    return bucket, key
