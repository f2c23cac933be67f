"""What the console keeps in a browser."""

from __future__ import annotations

from http.cookies import SimpleCookie

import pytest
from starlette.requests import Request
from starlette.responses import Response

from ragllava.console.cookies import MESSAGE, keep_message, kept_message
from ragllava.console.page import Done


def request_with(cookie: str = "") -> Request:
    headers = [(b"cookie", cookie.encode()), (b"host", b"localhost")]
    return Request({"type": "http", "scheme": "http", "path": "/", "query_string": b"", "headers": headers})


@pytest.mark.parametrize("letter", ["a", "é", "写", "🖼"])
def test_a_message_of_any_letters_fits_into_a_cookie(letter: str) -> None:
    response = Response()
    keep_message(request_with(), response, Done("Saved: " + letter * 1_000, "/console", is_problem=True))
    sent = response.headers["set-cookie"]
    assert len(sent.partition(";")[0]) <= 4_096
    value = SimpleCookie(sent)[MESSAGE].value
    kept = kept_message(request_with(f"{MESSAGE}={value}"))
    assert kept is not None
    message, is_problem = kept
    assert message.startswith(f"Saved: {letter * 200}") and is_problem
