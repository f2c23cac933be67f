"""Answers as OpenAI's clients read them: chat completions, responses, and the lines of batch output.

What those formats have no place for rides along under keys of our own: `evidence`, `status`, `confidence`, `models` and
`note`, as in result files. A question without evidence has a `refusal` and no invented answer. Tokens are not counted,
so `usage` is null.
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
        "usage": None,
        **_ours(row),
    }


def completion_chunks(body: dict[str, Any]) -> list[dict[str, Any]]:
    """A chat completion as the chunks of a stream: the role, the words, the reason of the end with what is ours."""
    message = body["choices"][0]["message"]
    head = {name: body[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return head | {"choices": [choice]}

    name = "content" if message["content"] is not None else "refusal"
    words = [word + " " for word in str(message[name]).split(" ")]
    words[-1] = words[-1].removesuffix(" ")
    first = {"role": "assistant", "content": "" if name == "content" else None}
    return [
        chunk(first),
        *(chunk({name: word}) for word in words),
        chunk({}, "stop") | {key: body[key] for key in _OURS},
    ]


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
        "usage": None,
        "evidence": _ours(row)["evidence"],
        "answer_status": row.status.value,  # `status` is that of the response
        **{name: value for name, value in _ours(row).items() if name not in ("status", "evidence")},
    }


def output_line(row: ResultRow, endpoint: str, created: int) -> dict[str, Any]:
    """A line of the output file of a batch."""
    number = _number(row)
    response = {"status_code": 200, "request_id": f"req_{number}", "body": answer_body(row, endpoint, created)}
    return {"id": f"batch_req_{number}", "custom_id": row.custom_id, "response": response, "error": None}


def error_line(row: ResultRow, stopped: tuple[str, str]) -> dict[str, Any]:
    """A line of the error file; `stopped` are the code and the sentence of a question that was not asked any more."""
    code, message = (row.error_code, row.error) if row.status is not AnswerStatus.CANCELLED else stopped
    error = {"code": code or "failed", "message": message, "param": None, "line": row.line}
    return {"id": f"batch_req_{_number(row)}", "custom_id": row.custom_id, "response": None, "error": error}


def _number(row: ResultRow) -> str:
    """The same whenever it is written, so that a file that is written again has the same bytes."""
    return f"{row.job_id}-{row.line}"


def _model(row: ResultRow) -> str:
    return f"ragllava/{row.archive}"


def _refusal(row: ResultRow) -> str | None:
    return (row.note or NO_EVIDENCE) if row.status is AnswerStatus.NO_EVIDENCE else None


def _ours(row: ResultRow) -> dict[str, Any]:
    values = row.as_json()
    return {name: values[name] for name in _OURS}
