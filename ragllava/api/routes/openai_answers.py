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
)

routes = Routes("Answers")

_BAD_QUESTION = ("failed", "dead")


class AnswerBody(Body):
    """What both routes have. `metadata` names the archive if the model does not, and how the question is answered."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    metadata: Annotated[dict[Key, Text], Field(max_length=16)] | None = None
    stream: bool | None = None


class ChatBody(AnswerBody):
    """A chat of which the last message of the user is the question."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=10_000)]
    n: int | None = None


class ResponseBody(AnswerBody):
    """A question as text, or a list of messages."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None


@routes.post(CHAT, needs=AccessRole.ASK, body=ChatBody, streams="text/event-stream", archive_in="body:model")
async def create_chat_completion(call: Call[NoQuery, ChatBody]) -> Response:
    """Answer the last message of the user from an archive: the model `ragllava/<archive>`.

    With `stream`, the answer comes as events when it is there. Without evidence the message has a `refusal`.
    """
    if call.body.n not in (None, 1):
        raise InvalidRequest("there is one answer to a question; n must be 1", "n")
    row = await _ask(call, CHAT)
    body = answer_body(row, CHAT, int(time.time()))
    if call.body.stream:
        return StreamingResponse(_events(completion_chunks(body)), media_type="text/event-stream")
    return JSONResponse(body)


@routes.post(RESPONSES, needs=AccessRole.ASK, body=ResponseBody, archive_in="body:model")
async def create_response(call: Call[NoQuery, ResponseBody]) -> Response:
    """As a chat completion, in the form of `/v1/responses`. It does not stream, and nothing is kept of it."""
    if call.body.stream:
        raise InvalidRequest("responses are not streamed; chat completions are", "stream")
    row = await _ask(call, RESPONSES)
    return JSONResponse(answer_body(row, RESPONSES, int(time.time())) | {"metadata": call.body.metadata or {}})


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
    with call.client.access.admitted(call.principal, 1):
        return call.client.questions.begin(asked.text, archive, options, picture=asked.picture)


def _events(chunks: list[dict[str, Any]]) -> Iterator[str]:
    for chunk in chunks:
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"
