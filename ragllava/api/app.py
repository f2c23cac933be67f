"""The HTTP API as an ASGI application: each request is identified, limited, run in the scope of its caller, audited."""

from __future__ import annotations

import inspect
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ragllava.api.bodies import read_body, read_query
from ragllava.api.errors import answer_to, handle
from ragllava.api.rates import Rates
from ragllava.api.route import Answer, Call, NoBody, Route
from ragllava.api.routes import ALL_ROUTES
from ragllava.client import AccessRole, AuditEntry, Client, Principal, acting
from ragllava.errors import AccessDenied, NotAuthenticated, RagllavaError

log = logging.getLogger(__name__)

THREADS = 40  # of blocking calls
WAITING_THREADS = 200  # that wait for answers; more requests wait for one of them
POOL = 16  # connections to the database

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NOBODY = Principal("nobody", AccessRole.READ, frozenset())
_SAFE_METHODS = ("GET", "HEAD")
_SAFE_HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store", "referrer-policy": "no-referrer"}


class Server:
    """What the routes of one process share."""

    def __init__(self, client: Client) -> None:
        """The client belongs to whoever made it, who closes it; it must be one `for_tenants`."""
        self._client = client
        self._rates = Rates()
        self._threads = anyio.CapacityLimiter(THREADS)
        self._waiting = anyio.CapacityLimiter(WAITING_THREADS)

    def endpoint(self, route: Route) -> Callable[[Request], Awaitable[Response]]:
        """The route as Starlette runs it."""

        async def run(request: Request) -> Response:
            request_id = str(request.scope["request_id"])
            principal = _NOBODY
            try:
                principal = await self._admit(request, route)
                with acting(self._client.access.scope_of(principal)):
                    response = await self._call(request, route, principal, request_id)
            except Exception as error:  # noqa: BLE001 - the one place where errors become answers
                response = answer_to(error, request_id)
            with acting(principal.scope):
                await self._audit(request, route, principal, response.status_code, request_id)
            return response

        return run

    async def _admit(self, request: Request, route: Route) -> Principal:
        """Who calls. Raises NotAuthenticated, AccessDenied, QuotaExceeded."""
        if route.needs is None:
            return _NOBODY
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise NotAuthenticated("the request has no key: send the header Authorization: Bearer KEY")
        principal: Principal = await self._in_thread(self._client.access.authenticate, token.strip())
        self._rates.admit(principal.owner, self._client.access.limits_of(principal).requests_per_minute or 0)
        if route.of_all and principal.archives is not None and principal.role.includes(route.needs):
            raise AccessDenied("this call concerns all archives, and the key is bound to some")
        if not principal.role.includes(route.needs):
            raise AccessDenied(f"this needs the role {route.needs}, and the key has the role {principal.role}")
        return principal

    async def _call(self, request: Request, route: Route, principal: Principal, request_id: str) -> Response:
        query = await read_query(request, route)
        # A handler of an upload reads its form itself.
        body = NoBody() if route.upload else await read_body(request, route)
        call = Call(request, self._client, principal, request_id, query, body, self._threads, self._waiting)
        if inspect.iscoroutinefunction(route.handler):
            reply = await route.handler(call)
        else:
            reply = await self._in_thread(route.handler, call)
        return _response(reply, route.status)

    async def _in_thread(self, work: Callable[..., Any], *args: Any) -> Any:
        return await anyio.to_thread.run_sync(work, *args, limiter=self._threads)

    async def _audit(self, request: Request, route: Route, principal: Principal, status: int, request_id: str) -> None:
        """Note every change and every refusal of one; of reads, nothing. Without the database, only the log has it."""
        if route.method in _SAFE_METHODS or principal is _NOBODY:
            return
        action, target = f"{route.method} {route.path}", request.url.path[:500]
        facts = {"action": "api_call", "request": request_id, "caller": principal.owner, "status": status}
        log.info(f"{route.method} {target}", extra=facts)
        try:
            entry = AuditEntry(principal.owner, action, target, status, request_id)
            await self._in_thread(self._client.access.audit, entry)
        except RagllavaError as error:
            log.warning(str(error), extra={"action": "not_audited", "request": request_id})


def make_app(client: Client, routes: Sequence[Route] = ALL_ROUTES) -> Starlette:
    """The HTTP API on a client `for_tenants`."""
    server = Server(client)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        yield

    listed = [
        StarletteRoute(route.path, server.endpoint(route), methods=[route.method], name=route.name) for route in routes
    ]
    app = Starlette(routes=listed, lifespan=lifespan, exception_handlers={HTTPException: handle})
    app.add_middleware(Identified)
    return app


class Identified:
    """Gives each request an id, which the answer and the log have; and headers that make browsers careful."""

    def __init__(self, app: ASGIApp) -> None:
        """Around the application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        scope["request_id"] = request_id
        started = time.monotonic()

        async def send_identified(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = str(round((time.monotonic() - started) * 1000))
                for name, value in _SAFE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_identified)


def _response(reply: Any, status: int) -> Response:
    if isinstance(reply, Response):
        return reply
    if isinstance(reply, Answer):
        return JSONResponse(reply.model_dump(mode="json", by_alias=True), status)
    if reply is None:
        return Response(status_code=204)
    raise TypeError(f"a handler returned {type(reply).__name__} instead of an Answer or a Response")
