"""The one place where errors become answers. Nothing of a stack trace leaves the server."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from ragllava.errors import (
    AccessDenied,
    AnswerTimeout,
    Conflict,
    InvalidInput,
    JobRefused,
    KeyReused,
    ModelUnavailable,
    NotAuthenticated,
    NotFound,
    ObjectMissing,
    QuotaExceeded,
    RagllavaError,
    SchemaMismatch,
    ServiceUnavailable,
    SettingsError,
    TooLarge,
    UsageError,
)

log = logging.getLogger(__name__)

# Status, type and code of each class of error; a class that is not listed has those of the nearest above it.
STATUSES: dict[type[Exception], tuple[int, str, str]] = {
    NotAuthenticated: (401, "authentication_error", "invalid_api_key"),
    AccessDenied: (403, "permission_error", "forbidden"),
    NotFound: (404, "invalid_request_error", "not_found"),
    ObjectMissing: (404, "invalid_request_error", "not_found"),
    Conflict: (409, "invalid_request_error", "conflict"),
    TooLarge: (413, "invalid_request_error", "too_large"),
    KeyReused: (422, "invalid_request_error", "idempotency_key_reused"),
    QuotaExceeded: (429, "rate_limit_error", "quota_exceeded"),
    InvalidInput: (400, "invalid_request_error", "invalid_input"),
    UsageError: (400, "invalid_request_error", "invalid_request"),
    # Not the caller's fault, and a repetition does not help.
    SettingsError: (500, "server_error", "misconfigured"),
    SchemaMismatch: (503, "server_error", "unavailable"),
    ModelUnavailable: (503, "server_error", "model_unavailable"),
    JobRefused: (503, "server_error", "job_refused"),
    ServiceUnavailable: (503, "server_error", "unavailable"),
    AnswerTimeout: (504, "server_error", "answer_timeout"),
    RagllavaError: (500, "server_error", "server_error"),
}

_HIDDEN = "the server cannot do this now; its log says more under the request id"
# These name settings, addresses and tables: for whoever runs the server, not for callers.
_INTERNAL = (SettingsError, SchemaMismatch, ServiceUnavailable, ObjectMissing)
_NO_RETRY = {"x-should-retry": "false"}
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}


class InvalidRequest(UsageError):
    """A part of the request is wrong; `param` names it."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_request") -> None:
        """`message` is a sentence for the caller."""
        super().__init__(message)
        self.param, self.code = param, code


def error_body(message: str, type: str, code: str, param: str | None = None) -> dict[str, Any]:
    """As OpenAI's clients expect it."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def error_answer(
    status: int, message: str, type: str, code: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """An error as an answer."""
    return JSONResponse(error_body(message, type, code, param), status, dict(headers or {}))


@dataclass(frozen=True, slots=True)
class Described:
    """What an answer says of an error."""

    status: int
    message: str
    type: str
    code: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def answer_to(error: Exception, request_id: str) -> Response:
    """The answer to an error of any class, as JSON."""
    said = described(error, request_id)
    return error_answer(said.status, said.message, said.type, said.code, said.param, said.headers)


def described(error: Exception, request_id: str) -> Described:
    """What may be said of an error of any class; one that nobody expects is logged with its trace."""
    if isinstance(error, HTTPException):
        return _of_http(error)
    if isinstance(error, ValidationError):
        return _of_validation(error)
    if isinstance(error, ClientDisconnect):
        return Described(408, "the body of the request is incomplete", "invalid_request_error", "incomplete")
    for base in type(error).__mro__:
        if base in STATUSES:
            return _of_class(error, STATUSES[base], request_id)
    log.exception("unexpected error", exc_info=error, extra={"action": "request_failed", "request": request_id})
    return Described(500, _HIDDEN, "server_error", "server_error")


def _of_class(error: Exception, known: tuple[int, str, str], request_id: str) -> Described:
    status, type, code = known
    message, headers, param = str(error), dict[str, str](), None
    if status >= 500 or isinstance(error, _INTERNAL):
        log.warning(message, extra={"action": "request_failed", "request": request_id, "status": status})
    if isinstance(error, _INTERNAL):
        message = _HIDDEN if status >= 500 else "the object does not exist"
    if isinstance(error, QuotaExceeded):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, NotAuthenticated):
        headers["www-authenticate"] = "Bearer"
    if status in (409, 504) or (status == 500 and isinstance(error, UsageError)):
        headers |= _NO_RETRY  # clients repeat these statuses otherwise
    if isinstance(error, InvalidRequest):
        param, code = error.param, error.code
    return Described(status, message, type, code, param, headers)


def _of_http(error: HTTPException) -> Described:
    sentences = {404: "the path does not exist", 405: "the path does not accept this method"}
    message = sentences.get(error.status_code, str(error.detail))
    code = _CODES.get(error.status_code, "invalid_request")
    return Described(error.status_code, message, "invalid_request_error", code, headers=error.headers or {})


def _of_validation(error: ValidationError) -> Described:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ".".join(map(str, first["loc"])) or None
    message = f"{param or 'the request'}: {first['msg']}"
    return Described(400, message, "invalid_request_error", "invalid_request", param)


async def handle(request: Request, error: Exception) -> Response:
    """Starlette's handler of every error outside a route: no such path, no such method."""
    return answer_to(error, str(request.scope.get("request_id", "")))
