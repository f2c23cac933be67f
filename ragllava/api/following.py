"""Server-sent events of what changes: a look again and again, and an event for each new state."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import anyio
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ragllava.client import pause_between_views
from ragllava.errors import RagllavaError

log = logging.getLogger(__name__)

EVENTS = "text/event-stream"
_LOOK_S = 1.0  # between two looks, at least
_HEARTBEAT_S = 15.0  # proxies close a connection on which nothing comes


@dataclass(frozen=True, slots=True)
class Sight:
    """What a look has seen: an id that is the same for the same state, its JSON; `is_last`: it cannot change again."""

    event_id: str
    data: str
    is_last: bool = False


Look = Callable[[], Awaitable[Sight | None]]  # None: there is nothing to see any more


async def follow(request: Request, look: Look) -> Response:
    """`progress` when something has changed, `end` as the last event; a comment every 15 seconds.

    A client that comes back with `Last-Event-ID` is not told again what it knows; after the end it gets 204. The stream
    ends as well when the server stops. Raises what the first look raises.
    """
    sight = await look()
    last = request.headers.get("last-event-id", "")
    if sight is None or (sight.is_last and sight.event_id == last):
        return Response(status_code=204)
    headers = {"x-accel-buffering": "no"}  # else a proxy may hold the events back
    stopping: anyio.Event = request.app.state.stopping
    return StreamingResponse(_events(stopping, look, sight, last), headers=headers, media_type=EVENTS)


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
