"""Sign in with a key, a token, a link or at the provider; sign out; the theme."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, ValidationError
from starlette.responses import RedirectResponse, Response

from ragllava.api.route import Body, NoBody, NoQuery, Query
from ragllava.client import AccessRole, Arrival
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


class ArrivalQuery(Query):
    """What the provider adds to the address; it may add more."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    code: Annotated[str, Field(max_length=4_000)] = ""
    state: Annotated[str, Field(max_length=200)] = ""
    iss: Annotated[str, Field(max_length=1_000)] | None = None
    error: Annotated[str, Field(max_length=200)] = ""
    error_description: Annotated[str, Field(max_length=1_000)] = ""


class LinkForm(Body):
    """Where to go after signing in by a link."""

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
async def sign_in(visit: Visit[NoQuery, SignInForm]) -> Response | Shown:
    """Sign in with a key or a token."""
    key, access = visit.body.key.strip(), visit.client.access
    try:
        secret, _ = await (visit.wait_as_stranger if access.asks_provider(key) else visit.run)(access.sign_in, key)
    except NotAuthenticated as error:
        return Shown(_form(visit, visit.body.next, str(error)), status=401)
    return _enter(visit, secret, visit.body.next)


@pages.get(f"{SIGN_IN}/provider", needs=None, query=SignInQuery, template="sign_in.html", title="Sign in")
async def go_to_provider(visit: Visit[SignInQuery, NoBody]) -> Response | Shown:
    """Send the browser to the provider."""
    begin = visit.client.access.begin_at_provider
    try:
        departure = await visit.wait_as_stranger(begin, str(visit.request.base_url))
    except NotAuthenticated as error:
        return Shown(_form(visit, visit.query.next, str(error)), status=401)
    response = RedirectResponse(departure.address, 303)
    cookies.keep_departure(visit.request, response, departure, visit.query.next)
    return response


@pages.get(f"{SIGN_IN}/provider/return", needs=None, query=ArrivalQuery, template="sign_in.html", title="Sign in")
async def come_from_provider(visit: Visit[ArrivalQuery, NoBody]) -> Response | Shown:
    """Sign in with what the provider has given the browser."""
    query, kept = visit.query, cookies.kept_departure(visit.request)
    sign_in_there = visit.client.access.sign_in_at_provider
    arrival = Arrival(query.code, query.state, query.iss, query.error_description or query.error)
    try:
        if kept is None:
            raise NotAuthenticated("this sign-in was not begun in this browser, or too long ago; begin again")
        to = SignInQuery(next=kept[1]).next
        secret, _ = await visit.wait_as_stranger(sign_in_there, arrival, kept[0])
    except NotAuthenticated as error:
        return Shown(_form(visit, ROOT, str(error)), status=401)
    except ValidationError:
        return Shown(_form(visit, ROOT, "what the browser kept of this sign-in is damaged; begin again"), status=401)
    response = _enter(visit, secret, to)
    cookies.forget_cookie(response, cookies.DEPARTURE)
    return response


@pages.get(f"{SIGN_IN}/{{link}}", needs=None, query=SignInQuery, template="sign_in_link.html", title="Sign in")
def show_link(visit: Visit[SignInQuery, NoBody]) -> Context:
    """A button: programs that look at links before people do must not use them up."""
    return {"next": visit.query.next}


@pages.post(
    f"{SIGN_IN}/{{link}}",
    needs=None,
    body=LinkForm,
    max_body_bytes=_FORM_BYTES,
    template="sign_in.html",
    title="Sign in",
)
def follow_link(visit: Visit[NoQuery, LinkForm]) -> Response | Shown:
    """Sign in by a link that `ragllava console` has printed; it works once."""
    try:
        secret, _ = visit.client.access.sign_in_by_link(visit.path("link"))
    except NotAuthenticated as error:
        return Shown(_form(visit, visit.body.next, str(error)), status=401)
    return _enter(visit, secret, visit.body.next)


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
    return {
        "next": to,
        "problem": problem,
        "takes_tokens": visit.settings.oidc_issuer is not None,
        "provider": visit.client.access.provider_name,
    }


def _enter(visit: Visit[Any, Any], secret: str, to: str) -> Response:
    response = RedirectResponse(to, 303)
    cookies.set_cookie(visit.request, response, cookies.SIGN_IN, secret)
    return response
