"""Work that arrives as a message: `ragllava.submit`, which any program can send with the S3 address of a file."""

from __future__ import annotations

import logging
from typing import Any

from ragllava.errors import InvalidInput, UsageError
from ragllava.records import AnswerOptions
from ragllava.stages.question_files import read_questions
from ragllava.stages.submit import Submission, record_refusal, submit_questions
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
    except (UsageError, TypeError) as error:
        errors = error.errors if isinstance(error, InvalidInput) else []
        log.warning(str(error), extra={"action": "submission_refused", "address": address})
        record_refusal(here.resources.objects, address, str(error), errors)
        return
    log.info("submitted", extra={"action": "job_submitted", "job": job.job_id, "address": address})
    dispatch_now(here.engine, here.settings)


def _parse(address: str) -> tuple[str, str]:
    bucket, _, key = address.removeprefix("s3://").partition("/")
    if not address.startswith("s3://") or not bucket or not key:
        raise UsageError(f"{address!r} is no address of the form s3://bucket/key")
    return bucket, key
