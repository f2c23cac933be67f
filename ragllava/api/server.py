"""What all requests of one process go through: threads, rates, roles, the audit. The console uses it as well."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ragllava import tracing
from ragllava.api.bodies import read_body, read_query
from ragllava.api.errors import answer_to
from ragllava.api.rates import Rates
from ragllava.api.route import Answer, Call, Endpoint, NoBody, Route, Threads, bearer_token
from ragllava.client import AccessRole, AuditEntry, Client, Principal, acting
from ragllava.errors import AccessDenied, RagllavaError
from ragllava.visible import visible

log = logging.getLogger(__name__)

THREADS = 40  # of blocking calls
WAITING_THREADS = 200  # that wait for answers; more requests wait for one of them
STRANGERS = 20  # of these, for those who are being signed in at a provider
FETCHING_THREADS = 16  # that fetch pictures of other hosts; they hold 8 pictures each at most
PROVIDER_THREADS = 8  # that ask the provider of tokens for its keys

NOBODY = Principal("nobody", AccessRole.READ, frozenset())
_SAFE_METHODS = ("GET", "HEAD")


class Server:
    """What the routes of one process share."""

    def __init__(self, client: Client) -> None:
        """The client belongs to whoever made it, who closes it; it must be one `for_tenants`."""
        self.client = client
        self.threads = Threads(*map(anyio.CapacityLimiter, (THREADS, WAITING_THREADS, FETCHING_THREADS)))
        self._providers = anyio.CapacityLimiter(PROVIDER_THREADS)
        self._rates = Rates()

    def endpoint(self, route: Route) -> Callable[[Request], Awaitable[Response]]:
        """The route as Starlette runs it."""

        async def run(request: Request) -> Response:
            request_id = str(request.scope["request_id"])
            principal = NOBODY
            try:
                principal = await self._admit(request, route)
                with acting(self.client.access.scope_of(principal)):
                    response = await self._call(request, route, principal, request_id)
            except Exception as error:  # noqa: BLE001 - the one place where errors become answers
                response = answer_to(error, request_id)
            with acting(principal.scope):
                await self.audit(request, route, principal, response.status_code)
            return response

        return run

    async def _admit(self, request: Request, route: Route) -> Principal:
        """Who calls. Raises NotAuthenticated, AccessDenied, QuotaExceeded."""
        if route.needs is None:
            return NOBODY
        token, access = bearer_token(request), self.client.access
        limiter = self._providers if access.asks_provider(token) else self.threads.short
        principal = await anyio.to_thread.run_sync(access.authenticate, token, limiter=limiter)
        self.admit(principal, route)
        return principal

    def admit(self, principal: Principal, endpoint: Endpoint) -> None:
        """Count a request and check the role. Raises AccessDenied, QuotaExceeded."""
        if endpoint.needs is not None:
            self._rates.admit(principal.owner, self.client.access.limits_of(principal).requests_per_minute or 0)
        self.require_role(principal, endpoint)

    def require_role(self, principal: Principal, endpoint: Endpoint) -> None:
        """Raises AccessDenied."""
        needs = endpoint.needs
        if needs is None:
            return
        if endpoint.of_all and principal.archives is not None and principal.role.includes(needs):
            raise AccessDenied("this call concerns all archives, and the key is bound to some")
        if not principal.role.includes(needs):
            raise AccessDenied(f"this needs the role {needs}, and the key has the role {principal.role}")

    async def _call(self, request: Request, route: Route, principal: Principal, request_id: str) -> Response:
        query = await read_query(request, route)
        # A handler of an upload reads its form itself.
        body = NoBody() if route.upload else await read_body(request, route)
        call = Call(request, self.client, principal, request_id, query, body, self.threads)
        return _response(await self.handle(route, call), route.status)

    async def handle(self, endpoint: Endpoint, call: Call[Any, Any]) -> Any:
        """What the handler returns; a plain function runs in a thread. A trace begins here, or that of the caller goes
        on."""
        name, caller = f"{endpoint.method} {endpoint.path}", call.request.headers.get("traceparent")
        with tracing.request(name, caller) if endpoint.needs is not None else nullcontext():
            if inspect.iscoroutinefunction(endpoint.handler):
                return await endpoint.handler(call)
            return await call.run(endpoint.handler, call)

    async def in_thread(self, work: Callable[..., Any], *args: Any) -> Any:
        """A blocking call in a thread of a bounded number."""
        return await anyio.to_thread.run_sync(work, *args, limiter=self.threads.short)

    async def audit(self, request: Request, endpoint: Endpoint, principal: Principal, status: int) -> None:
        """Note every change and every refusal of one; of reads, nothing. Without the database, only the log has it."""
        if endpoint.method in _SAFE_METHODS or principal is NOBODY:
            return
        request_id = str(request.scope["request_id"])
        # A path may have any character, and a NUL cannot be stored.
        action, target = f"{endpoint.method} {endpoint.path}", visible(request.url.path)[:500]
        facts = {"action": "api_call", "request": request_id, "caller": principal.owner, "status": status}
        log.info(f"{endpoint.method} {target}", extra=facts)
        try:
            entry = AuditEntry(principal.owner, action, target, status, request_id)
            await self.in_thread(self.client.access.audit, entry)
        except RagllavaError as error:
            log.warning(str(error), extra={"action": "not_audited", "request": request_id})


def _response(reply: Any, status: int) -> Response:
    if isinstance(reply, Response):
        return reply
    if isinstance(reply, Answer):
        return JSONResponse(reply.model_dump(mode="json", by_alias=True), status)
    if reply is None:
        return Response(status_code=204)
    raise TypeError(f"a handler returned {type(reply).__name__} instead of an Answer or a Response")
