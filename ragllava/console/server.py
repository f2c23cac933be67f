"""The console as it runs: who is signed in, that a change was meant, the page, what it says when something fails."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from ragllava.api.bodies import close_files, limited, read_fields, read_query
from ragllava.api.errors import Described, InvalidRequest, described
from ragllava.api.following import EVENTS
from ragllava.api.route import Body, NoBody
from ragllava.api.server import NOBODY, Server
from ragllava.client import Client, Principal, acting
from ragllava.console import cookies
from ragllava.console.page import ROOT, Done, Page, Shown, Visit
from ragllava.console.templates import render
from ragllava.errors import AccessDenied, NotAuthenticated, RagllavaError

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# `same-origin`: under the API's `no-referrer`, browsers send no origin with a form.
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
CSRF_FIELD, CSRF_HEADER = "csrf", "x-csrf-token"
SIGN_IN_PAGE = f"{ROOT}/sign-in"
_MOST_FIELDS = 1_000
_SAFE_METHODS = ("GET", "HEAD")


class ConsoleServer:
    """What the pages of one process share with each other, and with the API."""

    def __init__(self, server: Server, pages: Sequence[Page]) -> None:
        """`pages` are all that exist: the navigation is made of them."""
        self._server = server
        self._pages = pages
        self._is_reached_by_tls = urlsplit(server.client.settings.console_url or "").scheme == "https"

    @property
    def _client(self) -> Client:
        return self._server.client

    def endpoint(self, page: Page) -> Callable[[Request], Awaitable[Response]]:
        """The page as Starlette runs it."""

        async def run(request: Request) -> Response:
            if self._is_reached_by_tls:
                request.scope["scheme"] = "https"  # a proxy ends TLS, and need not say so
            principal = NOBODY
            secret = request.cookies.get(cookies.SIGN_IN)
            try:
                if page.method not in _SAFE_METHODS:
                    _require_own_origin(request)
                principal, secret = await self._signed_in(page, secret)
                if page.is_counted:
                    self._server.admit(principal, page)
                else:
                    self._server.require_role(principal, page)
                with acting(self._server.client.access.scope_of(principal)):
                    response = await self._visit(request, page, principal, secret)
            except Exception as error:  # noqa: BLE001 - the one place where errors become pages
                response = self.failed(request, error, page, principal, secret)
            if page.is_change:
                with acting(principal.scope):
                    await self._server.audit(request, page, principal, response.status_code)
            return _guarded(response)

        return run

    async def _signed_in(self, page: Page | None, secret: str | None) -> tuple[Principal, str | None]:
        """Whose browser this is. Raises NotAuthenticated for a page that needs to know."""
        is_use = page is None or page.is_counted
        find = partial(self._client.access.signed_in, is_use=is_use)
        principal = await self._server.in_thread(find, secret) if secret else None
        if principal is not None:
            return principal, secret
        if page is not None and page.needs is not None:
            raise NotAuthenticated("sign in first; the sign-in may have ended")
        return NOBODY, None

    async def _visit(self, request: Request, page: Page, principal: Principal, secret: str | None) -> Response:
        query = await read_query(request, page, is_form=True)
        fields, files = await _read_fields(request, page)
        try:
            if page.method not in _SAFE_METHODS and page.needs is not None:
                _require_csrf(request, fields, secret)
            body = _body_of(page, fields)
            visit: Visit[Any, Any] = Visit(
                request,
                self._client,
                principal,
                str(request.scope["request_id"]),
                query,
                body,
                self._server.threads,
                files,
                secret,
                cookies.csrf_of(secret),
                cookies.theme_of(request),
            )
            reply = await self._server.handle(page, visit)
            if isinstance(reply, Response):
                return reply
            if isinstance(reply, Done):
                return _done(request, reply)
            shown = reply if isinstance(reply, Shown) else Shown(reply)
            return await visit.run(self._shown, visit, page, shown)
        finally:
            await close_files(files)

    def _shown(self, visit: Visit[Any, Any], page: Page, shown: Shown) -> Response:
        template = shown.template or page.template
        if template is None:
            raise TypeError(f"{page.name} has no template and returned none")
        frame = self._frame(visit.request, page, visit.principal, visit.secret)
        response = HTMLResponse(render(template, frame | dict(shown.context)), shown.status, dict(shown.headers))
        # Parts that are fetched again and again must not use up what the next whole page is to say.
        if frame["message"] is not None and not template.startswith("_"):
            cookies.forget_cookie(response, cookies.MESSAGE)
        return response

    def _frame(self, request: Request, page: Page | None, principal: Principal, secret: str | None) -> dict[str, Any]:
        """What `base.html` shows around every page."""
        is_known = principal is not NOBODY
        menu = [listed for listed in self._pages if listed.menu and is_known and listed.may_be_used_by(principal)]
        return {
            "menu": menu,
            "section": page.section if page else "",
            "title": page.title if page else "",
            "principal": principal if is_known else None,
            "csrf": cookies.csrf_of(secret) if is_known else "",
            "theme": cookies.theme_of(request),
            "message": cookies.kept_message(request),
            "here": request.url.path,
        }

    async def lost(self, request: Request, error: Exception) -> Response:
        """Where there is no such page, or it takes no such method: as `failed`, for whoever is signed in."""
        try:
            principal, secret = await self._signed_in(None, request.cookies.get(cookies.SIGN_IN))
        except RagllavaError as problem:
            return self.failed(request, problem, None, NOBODY, None)
        return self.failed(request, error, None, principal, secret)

    def failed(
        self, request: Request, error: Exception, page: Page | None, principal: Principal, secret: str | None
    ) -> Response:
        """What a browser is shown of an error. Whoever is not signed in is asked to."""
        if isinstance(error, NotAuthenticated) and page is not None and page.needs is not None:
            return _asked_to_sign_in(request)
        said = described(error, str(request.scope.get("request_id", "")))
        if isinstance(error, ValidationError):
            said = Described(400, _invalid(error), said.type, said.code)
        is_part = request.headers.get("hx-request") == "true"
        context = self._frame(request, page, principal, secret) | {"error": said, "message": None, "title": "Error"}
        headers = dict(said.headers)
        if is_part:  # htmx puts it where messages are, and leaves the page as it is
            headers |= {"hx-retarget": "#messages", "hx-reswap": "innerHTML", "hx-reselect": "#problem"}
        html = render("_problem.html" if is_part else "error.html", context)
        return _guarded(HTMLResponse(html, said.status, headers))


def _guarded(response: Response) -> Response:
    """With the headers that make browsers careful, but those that the page has chosen itself."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _require_own_origin(request: Request) -> None:
    """Raises AccessDenied for a change that another site asks for, or a client that does not say where it is."""
    origin = request.headers.get("origin")
    if origin is not None:
        is_own = urlsplit(origin).netloc == request.headers.get("host")
    else:
        is_own = request.headers.get("sec-fetch-site") == "same-origin"
    if not is_own:
        raise AccessDenied("the request comes from another site; open the console itself, and try again there")


def _require_csrf(request: Request, fields: Mapping[str, Any], secret: str | None) -> None:
    """Raises AccessDenied for a form that this sign-in did not get."""
    given = request.headers.get(CSRF_HEADER) or fields.get(CSRF_FIELD)
    if not isinstance(given, str) or not hmac.compare_digest(given.encode(), cookies.csrf_of(secret).encode()):
        raise AccessDenied("the form is from another sign-in; load the page again, and send the form again")


async def _read_fields(request: Request, page: Page) -> tuple[dict[str, Any], dict[str, UploadFile]]:
    """The fields of a form, and its files. A name that is repeated, or ends with [], is a list; an empty field is none.

    Raises TooLarge, InvalidRequest, ClientDisconnect.
    """
    if page.method in _SAFE_METHODS:
        return {}, {}
    if page.upload is not None:
        fields, files = await read_fields(request, page.upload)
        return {name: value for name, value in fields.items() if value not in ("", [])}, files
    data = bytearray()
    async for piece in limited(request, page.max_body_bytes):
        data += piece
    try:
        pairs = parse_qsl(bytes(data).decode(), max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise InvalidRequest("the form cannot be read") from None
    listed: dict[str, Any] = {}
    for name, value in pairs:
        plain = name.removesuffix("[]")
        if plain in listed or plain != name:
            before = listed.get(plain, [])
            listed[plain] = [*(before if isinstance(before, list) else [before]), value]
        else:
            listed[plain] = value
    return listed, {}


def _body_of(page: Page, fields: Mapping[str, Any]) -> Body:
    """Raises ValidationError."""
    return NoBody() if page.body is NoBody else page.body.model_validate(fields)


def _done(request: Request, done: Done) -> Response:
    response = RedirectResponse(done.to, 303)
    cookies.keep_message(request, response, done)
    return response


def _asked_to_sign_in(request: Request) -> Response:
    is_read = request.method in _SAFE_METHODS and request.headers.get("hx-request") != "true"
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    to = SIGN_IN_PAGE if not is_read or here == ROOT else f"{SIGN_IN_PAGE}?next={quote(here)}"
    if request.headers.get("hx-request") == "true":
        return Response(status_code=401, headers={"hx-redirect": to})
    if request.headers.get("accept") == EVENTS:  # the page finds out by its next request
        return Response(status_code=401)
    return RedirectResponse(to, 303)


def _invalid(error: ValidationError) -> str:
    """One sentence of the first problem, for whoever fills in a form."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = " ".join(str(part).replace("_", " ") for part in first["loc"])
    return f"{name}: {first['msg']}" if name else str(first["msg"])
