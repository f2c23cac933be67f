"""Sign in with a key, a token or a link; sign out; the theme."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints
from starlette.responses import RedirectResponse, Response

from ragllava.api.route import Body, NoBody, NoQuery, Query
from ragllava.client import AccessRole
from ragllava.console import cookies
from ragllava.console.page import ROOT, Context, Pages, Shown, Visit
from ragllava.errors import NotAuthenticated

pages = Pages("Sign in")

SIGN_IN = f"{ROOT}/sign-in"
_FORM_BYTES = 32 * 2**10  # of those who are not signed in
# A path of the console and nothing else: no other host, no backslash that browsers read as a slash.
OwnPath = Annotated[
    str, StringConstraints(pattern=r"^/console(/[^\\\x00-\x20]*)?(\?[^\\\x00-\x20]*)?$", max_length=2_000)
]


class SignInQuery(Query):
    """Where to go afterwards."""

    next: OwnPath = ROOT


class SignInForm(Body):
    """A key of `ragllava keys create`, or a token of the provider."""

    key: Annotated[str, Field(min_length=1, max_length=8_000)]
    next: OwnPath = ROOT


class ThemeForm(Body):
    """`system`: as the system is. `next` is the page on which the switch was."""

    theme: Literal["light", "dark", "system"]
    next: OwnPath = ROOT


@pages.get(SIGN_IN, needs=None, query=SignInQuery, template="sign_in.html", title="Sign in")
def show_sign_in(visit: Visit[SignInQuery, NoBody]) -> Context:
    """The form."""
    return _form(visit, visit.query.next)


@pages.post(SIGN_IN, needs=None, body=SignInForm, max_body_bytes=_FORM_BYTES, template="sign_in.html", title="Sign in")
def sign_in(visit: Visit[NoQuery, SignInForm]) -> Response | Shown:
    """Sign in with a key or a token."""
    try:
        secret, _ = visit.client.access.sign_in(visit.body.key.strip())
    except NotAuthenticated as error:
        return Shown(_form(visit, visit.body.next, str(error)), status=401)
    return _enter(visit, secret, visit.body.next)


@pages.get(f"{SIGN_IN}/{{link}}", needs=None, query=SignInQuery, template="sign_in.html", title="Sign in")
def follow_link(visit: Visit[SignInQuery, NoBody]) -> Response | Shown:
    """Sign in by a link that `ragllava console` has printed; it works once."""
    try:
        secret, _ = visit.client.access.sign_in_by_link(visit.path("link"))
    except NotAuthenticated as error:
        return Shown(_form(visit, visit.query.next, str(error)), status=401)
    return _enter(visit, secret, visit.query.next)


@pages.post(f"{ROOT}/sign-out", needs=AccessRole.READ)
def sign_out(visit: Visit[NoQuery, NoBody]) -> Response:
    """End the sign-in of this browser."""
    if visit.secret is not None:
        visit.client.access.sign_out(visit.secret)
    response = RedirectResponse(SIGN_IN, 303)
    cookies.forget_cookie(response, cookies.SIGN_IN)
    return response


@pages.post(f"{ROOT}/theme", needs=None, body=ThemeForm, max_body_bytes=_FORM_BYTES, is_change=False)
def choose_theme(visit: Visit[NoQuery, ThemeForm]) -> Response:
    """Light, dark, or as the system is."""
    response = RedirectResponse(visit.body.next, 303)
    cookies.keep_theme(visit.request, response, visit.body.theme)
    return response


def _form(visit: Visit[Any, Any], to: str, problem: str | None = None) -> Context:
    return {"next": to, "problem": problem, "takes_tokens": visit.settings.oidc_issuer is not None}


def _enter(visit: Visit[Any, Any], secret: str, to: str) -> Response:
    response = RedirectResponse(to, 303)
    cookies.set_cookie(visit.request, response, cookies.SIGN_IN, secret)
    return response
