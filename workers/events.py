"""Submissions by message: `ragllava.submit`, which any program can send with the S3 address of a question file.

The program needs none of our code. It puts the file into a part of a bucket that is bound to an archive, or that
RAGLLAVA_SUBMIT_PREFIXES allows, and sends a Celery task to the Redis that the workers use:

    app = Celery(broker="redis://:password@host:6379/0")
    app.conf.broker_transport_options = {"global_keyprefix": "ragllava:"}
    app.send_task("ragllava.submit", args=["s3://inbox/questions.jsonl", "holidays"], queue="maint")

Four things must be right: the key prefix, the queue `maint`, the task's name, and JSON, which is Celery's default
serializer. The arguments are those of `submit` below, positional or by name.

There is no return value. The answer is written beside the file: `questions.jsonl.job.json` names the job and the
addresses of its results, `questions.jsonl.error.json` says why there is no job. The results are complete as soon as the
manifest exists, because it is written last.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any, TypeVar

from ragllava.errors import ObjectMissing, UsageError
from ragllava.records import PRIORITIES, Priority
from ragllava.stages.answer.question_files import read_questions
from ragllava.stages.answer.submit import Submission, Submitted, as_options, record_refusal, submit_questions
from ragllava.stages.buckets.binding import require_submittable
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import ObjectStore
from workers.app import app, dispatch_now
from workers.runtime import runtime

log = logging.getLogger(__name__)
T = TypeVar("T")

_ADDRESS = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<key>[^\x00]+)", re.DOTALL)


@app.task(name="ragllava.submit")
def submit(
    address: str,
    archive: str,
    options: dict[str, Any] | None = None,
    skip_invalid: bool = False,
    idempotency_key: str | None = None,
    priority: str = "normal",
) -> None:
    """Make a job of the question file at `address` (`s3://bucket/key`).

    `options` may hold top_k, top_n, threshold, captions_in_answer, retrieval, depth and filter; `priority` is low,
    normal or high. The address is the idempotency key unless another is given, so a message that arrives twice makes
    one job.
    """
    process = runtime()
    objects = process.resources.objects
    match = _ADDRESS.fullmatch(str(address))
    try:
        if match is None:
            raise UsageError(f"{address!r} is not an address of the form s3://bucket/key")
        in_transaction(process.engine, require_submittable, process.settings, match["bucket"], match["key"])
    except UsageError as error:  # nothing is written to such an address
        log.warning(str(error), extra={"action": "submission_refused", "address": address})
        return
    try:
        submission = Submission(
            _checked("archive", archive, str, "text"),
            as_options(options),
            skip_invalid=_checked("skip_invalid", skip_invalid, bool, "true or false"),
            idempotency_key=_checked("idempotency_key", idempotency_key or address, str, "text"),
            priority=_priority(priority),
        )
        content = objects.read_external(match["bucket"], match["key"]).data
        questions = read_questions(content, name=match["key"])
        job = in_transaction(process.engine, submit_questions, process.settings, questions, submission)
    except (UsageError, ObjectMissing) as error:
        record_refusal(objects, f"{address}.error.json", address, error)
        return
    log.info("submitted", extra={"action": "job_submitted", "job": job.job_id, "address": address})
    dispatch_now(process.engine, process.settings)
    _acknowledge(objects, address, job)


def _acknowledge(objects: ObjectStore, address: str, job: Submitted) -> None:
    folder = f"s3://{objects.bucket}/jobs/{job.job_id}"
    receipt = {
        "address": address,
        "job": job.job_id,
        "total": job.total,
        "invalid_lines": len(job.errors),
        "results": f"{folder}/results.jsonl",
        "manifest": f"{folder}/manifest.json",
    }
    try:
        objects.put_external(f"{address}.job.json", json.dumps(receipt, indent=2).encode(), "application/json")
    except (UsageError, ObjectMissing) as error:
        log.warning(str(error), extra={"action": "receipt_not_written", "address": address})


def _priority(name: object) -> Priority:
    if name not in PRIORITIES:
        raise UsageError(f"priority must be {', '.join(PRIORITIES)}, not {name!r}")
    return PRIORITIES[str(name)]


def _checked(name: str, value: object, kind: type[T], description: str) -> T:
    if not isinstance(value, kind):
        raise UsageError(f"{name} must be {description}, not {value!r}")
    return value
