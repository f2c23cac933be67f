"""`/v1/batches`, as OpenAI's clients use it: a batch is an answer job, its file the questions."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from ragllava.api.route import Answer, Body, Call, NoBody, NoQuery, Query, Routes
from ragllava.api.routes.native.shared import page_of
from ragllava.api.routes.openai_files import ExpiresAfter
from ragllava.client import AccessRole, BatchRequest, BatchView, Page, response_usage

routes = Routes("Batches")

Key = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Text = Annotated[str, StringConstraints(max_length=512)]


class BatchBody(Body):
    """A batch to be created. `metadata` names the archive, and how its questions are answered."""

    input_file_id: Annotated[str, StringConstraints(max_length=100)]
    endpoint: Literal["/v1/chat/completions", "/v1/responses"]
    completion_window: Annotated[str, StringConstraints(max_length=10)] = "24h"
    metadata: Annotated[dict[Key, Text], Field(max_length=16)] | None = None
    output_expires_after: ExpiresAfter | None = None


class BatchQuery(Query):
    """Which batches."""

    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class BatchError(Answer):
    """Why a batch has failed; `line` counts from 1."""

    code: str
    line: int | None
    message: str
    param: str | None


class BatchErrors(Answer):
    """All reasons, or the first hundred."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(Answer):
    """Lines of a batch; of an ended one they add up."""

    total: int
    completed: int
    failed: int


class InputDetails(Answer):
    """Of the tokens that were read."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Answer):
    """Of the tokens that were written."""

    reasoning_tokens: int


class BatchUsage(Answer):
    """The tokens that the generator read and wrote for all answers."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class BatchObject(Answer):
    """A batch; times are in seconds since 1970."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage | None
    metadata: dict[str, str] | None


class BatchList(Answer):
    """A page of batches."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


@routes.post(
    "/v1/batches", needs=AccessRole.ASK, body=BatchBody, answer=BatchObject, archive_in="body:metadata.archive"
)
def create_batch(call: Call[NoQuery, BatchBody]) -> BatchObject:
    """Ask all questions of a file.

    `metadata` may have `archive`, `top_k`, `top_n`, `threshold`, `retrieval`, `depth`, `captions_in_answer`, `where`
    and `skip_invalid`. Without `archive`, the model of the first line names it: `ragllava/<archive>`.
    """
    body = call.body
    request = BatchRequest(
        input_file_id=body.input_file_id,
        endpoint=body.endpoint,
        completion_window=body.completion_window,
        metadata=body.metadata,
        output_expires_s=body.output_expires_after.seconds if body.output_expires_after else None,
        idempotency_key=call.idempotency_key,
        is_retry=call.is_retry,
    )
    return batch_object(call.client.batches.create(call.principal, request))


@routes.get("/v1/batches", needs=AccessRole.READ, query=BatchQuery, answer=BatchList)
def list_batches(call: Call[BatchQuery, NoBody]) -> BatchList:
    """The batches that the caller may see, the newest first."""
    found, has_more = call.client.batches.list(Page(call.query.limit, call.query.after))
    return page_of(BatchList, [batch_object(view) for view in found], has_more)


@routes.get("/v1/batches/{batch_id}", needs=AccessRole.READ, answer=BatchObject, archive_in="path:batch_id")
def show_batch(call: Call[NoQuery, NoBody]) -> BatchObject:
    """One batch."""
    return batch_object(call.client.batches.get(call.path("batch_id")))


@routes.post("/v1/batches/{batch_id}/cancel", needs=AccessRole.ASK, answer=BatchObject, archive_in="path:batch_id")
def cancel_batch(call: Call[NoQuery, NoBody]) -> BatchObject:
    """Stop a batch. What is answered stays; the other questions stand in the error file."""
    return batch_object(call.client.batches.cancel(call.path("batch_id")))


def batch_object(view: BatchView) -> BatchObject:
    """A batch as clients see it."""
    batch = view.batch
    return BatchObject(
        id=batch.batch_id,
        endpoint=batch.endpoint,
        model=f"ragllava/{batch.archive}",
        errors=_errors(batch.errors),
        input_file_id=batch.input_file_id,
        completion_window=batch.completion_window,
        status=view.status.value,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        created_at=int(batch.created_at.timestamp()),
        in_progress_at=_seconds(batch.in_progress_at),
        expires_at=int(batch.expires_at.timestamp()),
        finalizing_at=_seconds(batch.finalizing_at or batch.job_finished_at),
        completed_at=_seconds(batch.completed_at),
        failed_at=_seconds(batch.failed_at),
        expired_at=_seconds(batch.expired_at),
        cancelling_at=_seconds(batch.cancelling_at),
        cancelled_at=_seconds(batch.cancelled_at),
        request_counts=RequestCounts(**view.counts),
        usage=_usage(batch.usage),
        metadata=batch.metadata,
    )


def _seconds(moment: datetime | None) -> int | None:
    return int(moment.timestamp()) if moment else None


def _usage(tokens: dict[str, int] | None) -> BatchUsage | None:
    stated = response_usage(tokens["input_tokens"], tokens["output_tokens"]) if tokens else None
    return BatchUsage(**stated) if stated else None


def _errors(errors: list[dict[str, Any]] | None) -> BatchErrors | None:
    return BatchErrors(data=[BatchError(**error) for error in errors]) if errors else None
