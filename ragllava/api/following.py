"""Server-sent events of what changes: a look again and again, and an event for each new state."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ragllava.api.route import Call, bearer_token
from ragllava.client import acting, pause_between_views
from ragllava.errors import QuotaExceeded, RagllavaError

log = logging.getLogger(__name__)

EVENTS = "text/event-stream"
_LOOK_S = 1.0  # between two looks, at least
_HEARTBEAT_S = 15.0  # proxies close a connection on which nothing comes
_OF_CALLER = 100  # streams at the same time: one for each job that a caller may have open
_OF_ALL = 400  # of the 1,000 connections of a process (ragllava/api/serving.py): the others stay for requests
_RETRY_S = 15.0


@dataclass(frozen=True, slots=True)
class Sight:
    """What a look has seen: an id that is the same for the same state, its JSON; `is_last`: it cannot change again."""

    event_id: str
    data: str
    is_last: bool = False


Look = Callable[[], Awaitable[Sight | None]]  # None: there is nothing to see any more


@dataclass
class Followers:
    """Who follows something in this process. For one thread: the loop."""

    of_caller: int = _OF_CALLER
    of_all: int = _OF_ALL
    _streams: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def joined(self, owner: str) -> Iterator[None]:
        """While a caller follows something. Raises QuotaExceeded for too many streams."""
        if self._streams[owner] >= self.of_caller:
            raise QuotaExceeded(f"this caller may follow {self.of_caller} things at the same time; ask again", _RETRY_S)
        if self._streams.total() >= self.of_all:
            raise QuotaExceeded("the server has too many followers; ask again later", _RETRY_S)
        self._streams[owner] += 1
        try:
            yield
        finally:
            self._streams[owner] -= 1
            if not self._streams[owner]:
                del self._streams[owner]


class _Followed(StreamingResponse):
    """A stream of events that takes one of its caller's places, and frees it at the end, even if it never began."""

    media_type = EVENTS

    def __init__(self, events: AsyncIterator[str], joined: ExitStack) -> None:
        super().__init__(events, headers={"x-accel-buffering": "no"})  # else a proxy may hold the events back
        self._joined = joined

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._joined:
            await super().__call__(scope, receive, send)


async def follow_while_admitted(call: Call[Any, Any], look: Callable[[], Sight]) -> Response:
    """The events of what `look` sees, with the rights that the key or token of the request has at each look."""
    access, token = call.client.access, bearer_token(call.request)

    async def looked() -> Sight:
        principal = await call.run(access.authenticate, token)
        with acting(access.scope_of(principal)):
            return await call.run(look)

    return await follow(call, looked)


async def follow(call: Call[Any, Any], look: Look) -> Response:
    """`progress` when something has changed, `end` as the last event; a comment every 15 seconds.

    A client that comes back with `Last-Event-ID` is not told again what it knows; after the end it gets 204. The stream
    ends as well when the server stops. Raises what the first look raises, and QuotaExceeded.
    """
    request: Request = call.request
    followers: Followers = request.app.state.followers
    with ExitStack() as joining:
        joining.enter_context(followers.joined(call.principal.owner))
        sight = await look()
        last = request.headers.get("last-event-id", "")
        if sight is None or (sight.is_last and sight.event_id == last):
            return Response(status_code=204)
        stopping: anyio.Event = request.app.state.stopping
        return _Followed(_events(stopping, look, sight, last), joining.pop_all())


async def _events(stopping: anyio.Event, look: Look, first: Sight, last: str) -> AsyncIterator[str]:
    sight: Sight | None = first
    quiet_s, pause_s = 0.0, _LOOK_S
    while sight is not None:
        if sight.event_id != last:
            yield f"id: {sight.event_id}\nevent: {'end' if sight.is_last else 'progress'}\ndata: {sight.data}\n\n"
            last, quiet_s = sight.event_id, 0.0
        elif quiet_s >= _HEARTBEAT_S:
            yield ": nothing new\n\n"
            quiet_s = 0.0
        if sight.is_last:
            return
        slept_s = min(pause_s, _HEARTBEAT_S)
        with anyio.move_on_after(slept_s):
            await stopping.wait()
            return
        quiet_s, pause_s = quiet_s + slept_s, pause_s - slept_s
        if pause_s > 0:  # a heartbeat is due before the next look
            continue
        began = time.monotonic()
        try:
            sight = await look()
        except RagllavaError as error:  # a client that comes back is told by the status of the answer
            log.info(str(error), extra={"action": "following_ended"})
            return
        pause_s = pause_between_views(time.monotonic() - began, _LOOK_S)
