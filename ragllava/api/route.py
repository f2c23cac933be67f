"""How a route of the HTTP API is declared: one record, from which the server, its description and its tests are made.

    routes = Routes("Jobs")

    @routes.post("/jobs/{job_id}/cancel", needs=AccessRole.WRITE, answer=JobBody)
    def cancel_job(call: Call[NoQuery, NoBody]) -> JobBody:
        '''Stop a job.'''
        return job_body(call.client.jobs.get(call.number("job_id")))

A handler calls the client and holds no logic. A plain function runs in a thread; a coroutine runs in the loop and sends
blocking calls to threads by `call.run`. What it returns is the answer: of the declared model, or a Response.

A call that has to fetch a picture of another host begins again in another thread (`Threads`), so until then it may do
only what can be repeated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

import anyio
import anyio.to_thread
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from ragllava.client import AccessRole, Client, Principal, fetching_nothing
from ragllava.errors import AccessDenied, FetchNeeded, NotAuthenticated, NotFound

if TYPE_CHECKING:
    from ragllava.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")

MAX_BODY_BYTES = 16 * 2**20  # of JSON; routes that take files have limits of their own


class Body(BaseModel):
    """A body that a client sends. What it does not know is passed over: clients of other services send more."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class Query(BaseModel):
    """The query of a request. Names that it does not know are refused: a mistyped filter must not be passed over."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(BaseModel):
    """A body that the server sends."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class NoBody(Body):
    """Of a route without a body; some clients send an empty one."""


class NoQuery(Query):
    """Of a route without a query."""


Q = TypeVar("Q", bound=Query)
B = TypeVar("B", bound=Body)


@dataclass(frozen=True)
class Threads:
    """How many threads the calls of one process may have: short ones, those that wait for answers, and those that fetch
    pictures of other hosts. A slow host thus holds up none but calls that fetch as well."""

    short: anyio.CapacityLimiter
    waiting: anyio.CapacityLimiter
    fetching: anyio.CapacityLimiter

    async def run(self, work: Callable[[], T], limiter: anyio.CapacityLimiter) -> T:
        """What a blocking call returns, in a thread of `limiter`; if it has to fetch, it begins again in another."""
        with suppress(FetchNeeded), fetching_nothing():
            return await anyio.to_thread.run_sync(work, limiter=limiter)
        # Behind the block: the error would keep what the first thread had in memory, and show its address in the log.
        return await anyio.to_thread.run_sync(work, limiter=self.fetching)


@dataclass(frozen=True)
class Call(Generic[Q, B]):
    """A request that has been checked: who calls, what was sent. `query` and `body` are as the route declares them."""

    request: Request
    client: Client
    principal: Principal
    request_id: str
    query: Q
    body: B
    threads: Threads

    @property
    def settings(self) -> Settings:
        """Those of the server."""
        return self.client.settings

    def path(self, name: str) -> str:
        """A part of the path."""
        return str(self.request.path_params[name])

    def number(self, name: str) -> int:
        """A part of the path that is an id. Raises NotFound for one that cannot exist."""
        value = self.path(name)
        if not (value.isascii() and value.isdigit() and len(value) < 19):
            raise NotFound(f"there is no {name.removesuffix('_id')} {value[:40]!r}")
        return int(value)

    def archive(self, name: str) -> str:
        """The name of an archive that the caller may see. Raises NotFound."""
        self.client.access.visible_archive(self.principal, name)
        return name

    def require_all_archives(self) -> None:
        """Raises AccessDenied for a caller that is bound to archives: the call concerns the whole system."""
        if self.principal.archives is not None:
            raise AccessDenied("this call concerns all archives, and the key is bound to some")

    @property
    def idempotency_key(self) -> str | None:
        """What the caller calls this request, so that a repetition makes nothing twice; unique for each caller."""
        given = self.request.headers.get("idempotency-key")
        return f"{self.principal.owner}: {given}" if given else None

    @property
    def is_retry(self) -> bool:
        """Whether the client says that it repeats a request (the openai SDK counts its repetitions)."""
        count = self.request.headers.get("x-stainless-retry-count", "0")
        return count.isdigit() and int(count) > 0

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A blocking call in a thread of a bounded number."""
        return await self.threads.run(partial(work, *args, **kwargs), self.threads.short)

    async def wait(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run`, for a call that waits for a worker: it takes no thread from the others."""
        return await self.threads.run(partial(work, *args, **kwargs), self.threads.waiting)


def bearer_token(request: Request) -> str:
    """The key or token that a request has. Raises NotAuthenticated for none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise NotAuthenticated("the request has no key: send the header Authorization: Bearer KEY")
    return token.strip()


Handler = Callable[[Call[Any, Any]], Any | Awaitable[Any]]
H = TypeVar("H", bound=Callable[[Any], Any])


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a route of the API and a page of the console have in common: how a request is read, and who may send it.

    `needs` is the least role that may call it; None: anybody, without a key. `upload` is the limit of a multipart body
    in bytes; its fields are those of `body`. `archive_in` says which part of the request names an archive or what
    belongs to one (`path:job_id`, `body:model`), for the tests of the boundary. With `of_all`, the call concerns all
    archives: a caller that is bound to some is refused.
    """

    method: str
    path: str
    handler: Handler
    needs: AccessRole | None
    query: type[Query] = NoQuery
    body: type[Body] = NoBody
    upload: int | None = None
    max_body_bytes: int = MAX_BODY_BYTES
    archive_in: str | None = None
    of_all: bool = False

    @property
    def name(self) -> str:
        """Unique: the name of the handler."""
        return self.handler.__name__


E = TypeVar("E", bound=Endpoint)


@dataclass(frozen=True, slots=True)
class Route(Endpoint):
    """One route of the API; `tag` is its heading in the description.

    `answer_also` is the type of another answer, where the request chooses it.
    `streams` is the media type of an answer that is sent piece by piece, besides `answer` where that may be chosen.
    """

    tag: str = ""
    answer: type[Answer] | None = None
    answer_also: Any = None
    status: int = 200
    streams: str | None = None

    @property
    def summary(self) -> str:
        """The first line of what the handler's docstring says."""
        return (self.handler.__doc__ or "").strip().split("\n")[0]

    @property
    def description(self) -> str:
        """All of it."""
        lines = (self.handler.__doc__ or "").strip().split("\n")
        return "\n".join(line.strip() for line in lines)


class Declared(ABC, Generic[E]):
    """The endpoints of one module, which decorators of their handlers declare."""

    def __init__(self, heading: str) -> None:
        """`heading`: what they have in common, for people."""
        self.heading = heading
        self.listed: list[E] = []

    @abstractmethod
    def made(self, method: str, path: str, handler: Handler, needs: AccessRole | None, **declared: Any) -> E:
        """One endpoint."""

    def add(self, method: str, path: str, *, needs: AccessRole | None, **declared: Any) -> Callable[[H], H]:
        """A decorator of handlers; `declared` are the other fields of the endpoint."""

        def declare(handler: H) -> H:
            self.listed.append(self.made(method, path, handler, needs, **declared))
            return handler

        return declare

    def get(self, path: str, *, needs: AccessRole | None, **declared: Any) -> Callable[[H], H]:
        """As `add`."""
        return self.add("GET", path, needs=needs, **declared)

    def post(self, path: str, *, needs: AccessRole | None, **declared: Any) -> Callable[[H], H]:
        """As `add`."""
        return self.add("POST", path, needs=needs, **declared)


class Routes(Declared[Route]):
    """The routes of one module; the heading is that of the description."""

    def made(self, method: str, path: str, handler: Handler, needs: AccessRole | None, **declared: Any) -> Route:
        """One route."""
        return Route(method, path, handler, needs, tag=self.heading, **declared)

    def patch(self, path: str, *, needs: AccessRole | None, **declared: Any) -> Callable[[H], H]:
        """As `add`."""
        return self.add("PATCH", path, needs=needs, **declared)

    def delete(self, path: str, *, needs: AccessRole | None, **declared: Any) -> Callable[[H], H]:
        """As `add`."""
        return self.add("DELETE", path, needs=needs, **declared)


Reply = Response | Answer | None
