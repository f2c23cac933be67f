"""`/v1/chat/completions` and `/v1/responses`: one question now, before all bulk jobs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, StringConstraints
from starlette.responses import JSONResponse, Response, StreamingResponse

from ragllava.api.errors import InvalidRequest
from ragllava.api.route import Body, Call, NoQuery, Routes
from ragllava.api.routes.openai_batches import Key, Text
from ragllava.api.routes.openai_models import archive_of_model
from ragllava.client import (
    CHAT,
    MODEL,
    RESPONSES,
    AccessRole,
    ResultRow,
    answer_body,
    asked_in,
    completion_chunks,
    options_of,
    response_events,
)

routes = Routes("Answers")

_BAD_QUESTION = ("failed", "dead")
_MAX_BODY_BYTES = 32 * 2**20  # a picture of 20 MiB as base64
_DECLARED: dict[str, Any] = {
    "needs": AccessRole.ASK,
    "streams": "text/event-stream",
    "archive_in": "body:model",
    "max_body_bytes": _MAX_BODY_BYTES,
}


class AnswerBody(Body):
    """What both routes have. `metadata` names the archive if the model does not, and how the question is answered."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    metadata: Annotated[dict[Key, Text], Field(max_length=16)] | None = None
    stream: bool | None = None


class StreamOptions(Body):
    """What a stream has besides the answer."""

    include_usage: bool | None = None


class ChatBody(AnswerBody):
    """A chat of which the last message of the user is the question."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=10_000)]
    n: int | None = None
    stream_options: StreamOptions | None = None


class ResponseBody(AnswerBody):
    """A question as text, or a list of messages."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None


@routes.post(CHAT, body=ChatBody, **_DECLARED)
async def create_chat_completion(call: Call[NoQuery, ChatBody]) -> Response:
    """Answer the last message of the user from an archive: the model `ragllava/<archive>`.

    With `stream`, the answer comes as events when it is there. Without evidence the message has a `refusal`.
    The question may have a picture (`image_url`, or `file` with a `file_id`): pictures like it are looked at first.
    """
    if call.body.n not in (None, 1):
        raise InvalidRequest("there is one answer to a question; n must be 1", "n")
    row = await _ask(call, CHAT)
    body = answer_body(row, CHAT, int(time.time()))
    if call.body.stream:
        options = call.body.stream_options
        chunks = completion_chunks(body, with_usage=bool(options and options.include_usage))
        return StreamingResponse(_chunks(chunks), media_type="text/event-stream")
    return JSONResponse(body)


@routes.post(RESPONSES, body=ResponseBody, **_DECLARED)
async def create_response(call: Call[NoQuery, ResponseBody]) -> Response:
    """As a chat completion, in the form of `/v1/responses`; a picture is `input_image`. Nothing is kept of it."""
    row = await _ask(call, RESPONSES)
    body = answer_body(row, RESPONSES, int(time.time())) | {"metadata": call.body.metadata or {}}
    if call.body.stream:
        return StreamingResponse(_named_events(response_events(body)), media_type="text/event-stream")
    return JSONResponse(body)


async def _ask(call: Call[NoQuery, Any], url: str) -> ResultRow:
    """The answer. Raises AnswerTimeout; InvalidRequest for what cannot be answered."""
    job_id = await call.run(_begin, call, url)
    row = await call.wait(call.client.questions.wait_for_answer, job_id, call.settings.api_answer_timeout_s)
    if row.status.value in _BAD_QUESTION:
        raise InvalidRequest(row.error or "the question cannot be answered", code=row.error_code or "failed")
    return row


def _begin(call: Call[NoQuery, Any], url: str) -> int:
    metadata = dict(call.body.metadata or {})
    name = archive_of_model(call.body.model) or metadata.get("archive")
    if name is None:
        raise InvalidRequest(f"no archive is named: use the model {MODEL}/<archive>, or metadata.archive", "model")
    archive = call.archive(name)
    asked = asked_in(call.body.model_dump(), url)
    options = options_of(metadata)
    count_bytes = call.client.access.count_bytes(call.principal)
    with call.client.access.admitted(call.principal, 1):
        return call.client.questions.begin(asked.text, archive, options, picture=asked.picture, count_bytes=count_bytes)


def _named_events(events: list[dict[str, Any]]) -> Iterator[str]:
    for event in events:
        yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"


def _chunks(chunks: list[dict[str, Any]]) -> Iterator[str]:
    for chunk in chunks:
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"
