"""The HTTP API as an ASGI application: each request is identified, limited, run in the scope of its caller, audited."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ragllava.api.errors import handle
from ragllava.api.following import Followers
from ragllava.api.route import Route
from ragllava.api.routes import ALL_ROUTES
from ragllava.api.server import STRANGERS, THREADS, Server
from ragllava.client import Client

POOL = 16  # connections to the database

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SAFE_HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store", "referrer-policy": "no-referrer"}

ErrorHandler = Callable[[Request, Exception], Awaitable[Response]]


def make_app(client: Client, routes: Sequence[Route] = ALL_ROUTES) -> Starlette:
    """The HTTP API on a client `for_tenants`."""
    return assemble(api_routes(Server(client), routes), handle)


def api_routes(server: Server, routes: Sequence[Route] = ALL_ROUTES) -> list[BaseRoute]:
    """The routes as Starlette knows them."""
    return [
        StarletteRoute(route.path, server.endpoint(route), methods=[route.method], name=route.name) for route in routes
    ]


def assemble(routes: Sequence[BaseRoute], on_error: ErrorHandler) -> Starlette:
    """The application of these routes; `on_error` answers where none of them does: no such path, no such method."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.followers = Followers()
        app.state.strangers = anyio.CapacityLimiter(STRANGERS)
        app.state.stopping = anyio.Event()  # set when the server begins to stop (ragllava/api/serving.py)
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        yield

    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: on_error})
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
