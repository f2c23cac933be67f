"""Answers as OpenAI's clients read them: chat completions, responses, and the lines of batch output.

What those formats have no place for rides along under keys of our own: `evidence`, `status`, `confidence`, `models` and
`note`, as in result files. A question without evidence has a `refusal` and no invented answer. `usage` has the tokens
that the generator read and wrote; null for an answer of an earlier version, which did not count them.
"""

from __future__ import annotations

from typing import Any

from ragllava.records import AnswerStatus
from ragllava.stages.results.results import ResultRow

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
ENDPOINTS = (CHAT, RESPONSES)

_OURS = ("status", "confidence", "evidence", "models", "note")
NO_EVIDENCE = "no picture of the archive shows this"


def is_answer(row: ResultRow) -> bool:
    """Whether the question was answered, if only by the statement that there is no evidence."""
    return row.status in (AnswerStatus.ANSWERED, AnswerStatus.NO_EVIDENCE)


def answer_body(row: ResultRow, endpoint: str, created: int) -> dict[str, Any]:
    """An answer as the body of an endpoint; `created` is in seconds since 1970."""
    return chat_completion(row, created) if endpoint == CHAT else response_object(row, created)


def chat_completion(row: ResultRow, created: int) -> dict[str, Any]:
    """As `/v1/chat/completions` answers."""
    message: dict[str, Any] = {"role": "assistant", "content": row.answer, "refusal": _refusal(row), "annotations": []}
    return {
        "id": f"chatcmpl-{_number(row)}",
        "object": "chat.completion",
        "created": created,
        "model": _model(row),
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": _chat_usage(row),
        **_ours(row),
    }


def completion_chunks(body: dict[str, Any], *, with_usage: bool = False) -> list[dict[str, Any]]:
    """A chat completion as the chunks of a stream: the role, the words, the reason of the end with what is ours.

    `with_usage` (`stream_options.include_usage`) adds a last chunk without choices.
    """
    message = body["choices"][0]["message"]
    head = {name: body[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return head | {"choices": [choice]}

    name = "content" if message["content"] is not None else "refusal"
    first = {"role": "assistant", "content": "" if name == "content" else None}
    return [
        chunk(first),
        *(chunk({name: word}) for word in _words(str(message[name]))),
        chunk({}, "stop") | {key: body[key] for key in _OURS},
        *([head | {"choices": [], "usage": body["usage"]}] if with_usage else []),
    ]


def response_events(body: dict[str, Any]) -> list[dict[str, Any]]:
    """A response as the events of a stream: what comes into being, its words, and what is complete, in this order."""
    [message] = body["output"]
    [part] = message["content"]
    is_text = part["type"] == "output_text"
    kind, text = ("output_text", part["text"]) if is_text else ("refusal", part["refusal"])
    begun = body | {"status": "in_progress", "output": [], "usage": None}
    empty = part | {"text": ""} if is_text else part | {"refusal": ""}
    item = {"output_index": 0}
    place = item | {"item_id": message["id"], "content_index": 0}
    logprobs: dict[str, Any] = {"logprobs": []} if is_text else {}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {"type": "response.output_item.added", **item, "item": message | {"status": "in_progress", "content": []}},
        {"type": "response.content_part.added", **place, "part": empty},
        *({"type": f"response.{kind}.delta", **place, "delta": word, **logprobs} for word in _words(text)),
        {"type": f"response.{kind}.done", **place, "text" if is_text else "refusal": text, **logprobs},
        {"type": "response.content_part.done", **place, "part": part},
        {"type": "response.output_item.done", **item, "item": message},
        {"type": "response.completed", "response": body},
    ]
    return [event | {"sequence_number": number} for number, event in enumerate(events)]


def _words(text: str) -> list[str]:
    """The pieces of a text that a stream sends one after the other."""
    words = [word + " " for word in text.split(" ")]
    return [*words[:-1], words[-1].removesuffix(" ")]


def response_object(row: ResultRow, created: int) -> dict[str, Any]:
    """As `/v1/responses` answers."""
    refusal = _refusal(row)
    text: dict[str, Any] = {"type": "output_text", "text": row.answer, "annotations": []}
    part = text if refusal is None else {"type": "refusal", "refusal": refusal}
    number = _number(row)
    message = {"type": "message", "id": f"msg_{number}", "status": "completed", "role": "assistant", "content": [part]}
    return {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": created,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": _model(row),
        "output": [message],
        "parallel_tool_calls": False,
        "temperature": 0.0,
        "tool_choice": "none",
        "tools": [],
        "top_p": 1.0,
        "usage": response_usage(row.prompt_tokens, row.completion_tokens),
        "evidence": _ours(row)["evidence"],
        "answer_status": row.status.value,  # `status` is that of the response
        **{name: value for name, value in _ours(row).items() if name not in ("status", "evidence")},
    }


def response_usage(read: int | None, written: int | None) -> dict[str, Any] | None:
    """Tokens as responses and batches state them; None where they were not counted."""
    if read is None or written is None:
        return None
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + written,
    }


def output_line(row: ResultRow, endpoint: str, created: int) -> dict[str, Any]:
    """A line of the output file of a batch."""
    number = _number(row)
    response = {"status_code": 200, "request_id": f"req_{number}", "body": answer_body(row, endpoint, created)}
    return {"id": f"batch_req_{number}", "custom_id": row.custom_id, "response": response, "error": None}


_STOPPED = {
    AnswerStatus.EXPIRED: ("batch_expired", "the time of the batch was over before this question was answered"),
    AnswerStatus.CANCELLED: ("batch_cancelled", "the batch was cancelled before this question was answered"),
}


def error_line(row: ResultRow) -> dict[str, Any]:
    """A line of the error file, also of a question that was not asked any more."""
    code, message = _STOPPED.get(row.status, (row.error_code, row.error))
    error = {"code": code or "failed", "message": message, "param": None, "line": row.line}
    return {"id": f"batch_req_{_number(row)}", "custom_id": row.custom_id, "response": None, "error": error}


def _number(row: ResultRow) -> str:
    """The same whenever it is written, so that a file that is written again has the same bytes."""
    return f"{row.job_id}-{row.line}"


def _model(row: ResultRow) -> str:
    return f"ragllava/{row.archive}"


def _chat_usage(row: ResultRow) -> dict[str, int] | None:
    if row.prompt_tokens is None or row.completion_tokens is None:
        return None
    total = row.prompt_tokens + row.completion_tokens
    return {
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "total_tokens": total,
    }


def _refusal(row: ResultRow) -> str | None:
    return (row.note or NO_EVIDENCE) if row.status is AnswerStatus.NO_EVIDENCE else None


def _ours(row: ResultRow) -> dict[str, Any]:
    values = row.as_json()
    return {name: values[name] for name in _OURS}
