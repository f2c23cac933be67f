"""What the console keeps in a browser: the secret of the sign-in, the theme, a message for the next page."""

from __future__ import annotations

import hashlib
import hmac
import json
from urllib.parse import quote, unquote

from starlette.requests import Request
from starlette.responses import Response

from ragllava.client import Departure
from ragllava.console.page import ROOT, Done

SIGN_IN, THEME, MESSAGE = "ragllava_sign_in", "ragllava_theme", "ragllava_message"
DEPARTURE = "ragllava_departure"
THEMES = ("light", "dark")
_THEME_S = 365 * 24 * 3600
_MESSAGE_S = 60
_DEPARTURE_S = 600
_MESSAGE_CHARACTERS = 600
_MESSAGE_BYTES = 3_800  # as it is written in the cookie; browsers drop one of more than 4,096


def csrf_of(secret: str | None) -> str:
    """What the forms of a sign-in contain. Another site can read neither it nor the cookie that it is made of."""
    return hmac.new((secret or "").encode(), b"console form", hashlib.sha256).hexdigest() if secret else ""


def set_cookie(request: Request, response: Response, name: str, value: str, max_age_s: int | None = None) -> None:
    """For the console only, out of reach of scripts and of other sites; over TLS where browsers use it."""
    is_secure = request.url.scheme == "https"
    response.set_cookie(name, value, max_age_s, path=ROOT, secure=is_secure, httponly=True, samesite="lax")


def forget_cookie(response: Response, name: str) -> None:
    """Make the browser drop it."""
    response.delete_cookie(name, path=ROOT, httponly=True, samesite="lax")


def theme_of(request: Request) -> str:
    """`light` or `dark`; empty: as the system is."""
    theme = request.cookies.get(THEME, "")
    return theme if theme in THEMES else ""


def keep_theme(request: Request, response: Response, theme: str) -> None:
    """Remember a theme for a year; another value: as the system is."""
    if theme in THEMES:
        set_cookie(request, response, THEME, theme, _THEME_S)
    else:
        forget_cookie(response, THEME)


def keep_message(request: Request, response: Response, done: Done) -> None:
    """For the page that is shown next. A message that does not fit into a cookie is cut."""
    message = done.message[:_MESSAGE_CHARACTERS]
    while len(value := _written(message, done)) > _MESSAGE_BYTES:
        message = message[: len(message) * 9 // 10]
    set_cookie(request, response, MESSAGE, value, _MESSAGE_S)


def _written(message: str, done: Done) -> str:
    return quote(json.dumps([message, done.is_problem], ensure_ascii=False), errors="replace")


def kept_message(request: Request) -> tuple[str, bool] | None:
    """The message and whether it tells of a problem."""
    try:
        message, is_problem = json.loads(unquote(request.cookies[MESSAGE]))
    except (KeyError, ValueError, TypeError):
        return None
    return str(message)[:_MESSAGE_CHARACTERS], bool(is_problem)


def keep_departure(request: Request, response: Response, departure: Departure, to: str) -> None:
    """Until the browser comes back from the provider, and then goes to the path `to`."""
    kept = [departure.state, departure.nonce, departure.verifier, departure.return_url, to]
    set_cookie(request, response, DEPARTURE, quote(json.dumps(kept)), _DEPARTURE_S)


def kept_departure(request: Request) -> tuple[Departure, str] | None:
    """What `keep_departure` kept; None: nothing, or another thing."""
    try:
        state, nonce, verifier, return_url, to = json.loads(unquote(request.cookies[DEPARTURE]))
    except (KeyError, ValueError, TypeError):
        return None
    return Departure("", str(state), str(nonce), str(verifier), str(return_url)), str(to)
