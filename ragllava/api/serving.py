"""The HTTP servers of the receiver and of the API, with limits for clients that need not have a key."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

HEADERS_S = 10.0  # for a complete request line and all headers
MAX_HEADER_BYTES = 16 * 2**10
MAX_CONNECTIONS = 100
_IDLE_S = 5  # between two requests of a connection
_API_CONNECTIONS = 1_000
# Longer than clients keep idle connections (httpx: 5 s): else a request may meet a connection that is being closed.
_API_IDLE_S = 15
_API_STOP_S = 30  # in which answers that are being sent may end


class LimitedProtocol(H11Protocol):
    """Closes a connection that sends no complete header for a time, and the longest silent one when there are too many:
    a client that asks something is answered, however many connections others open. uvicorn limits only the time after a
    response, and keeps connections that wait for nothing while it refuses those that ask.
    """

    _seen: RequestResponseCycle | None = None
    _check: asyncio.TimerHandle | None = None
    _heard_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first header has HEADERS_S seconds."""
        # uvicorn refuses requests from the limit on.
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency - 1:
            self._close_longest_silent()
        self._heard_at = self.loop.time()
        super().connection_made(transport)
        self._check = self.loop.call_later(HEADERS_S, self._close_without_request)

    def data_received(self, data: bytes) -> None:
        """It is not silent."""
        self._heard_at = self.loop.time()
        super().data_received(data)

    def _close_longest_silent(self) -> None:
        silent = (other for other in self.connections if isinstance(other, LimitedProtocol) and not other._has_request)
        longest = min(silent, key=lambda other: other._heard_at, default=None)
        if longest is not None:
            longest.transport.abort()
            self.connections.discard(longest)  # which the end of its transport does only later

    @property
    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is checked any more."""
        if self._check is not None:
            self._check.cancel()
        super().connection_lost(exc)

    def _close_without_request(self) -> None:
        if not self._has_request and self.cycle is self._seen:
            self.transport.close()
            return
        self._seen = self.cycle
        self._check = self.loop.call_later(HEADERS_S, self._close_without_request)


def server_config(app: Starlette, host: str, port: int, unix_socket: str | None = None) -> uvicorn.Config:
    """The configuration of uvicorn for the receiver, at a port or a Unix socket."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        uds=unix_socket,
        http=LimitedProtocol,
        ws="none",
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        limit_concurrency=MAX_CONNECTIONS,
        backlog=MAX_CONNECTIONS // 2,  # accepted at once: none of them is closed before it is read
        timeout_keep_alive=_IDLE_S,
        server_header=False,
        log_config=None,
        log_level="warning",
        access_log=False,
    )


def api_server_config(app: Starlette, host: str, port: int) -> uvicorn.Config:
    """The configuration of uvicorn for the API: more connections, and time to end what is being answered."""
    config = server_config(app, host, port)
    config.limit_concurrency = _API_CONNECTIONS
    config.backlog = _API_CONNECTIONS // 2
    config.timeout_keep_alive = _API_IDLE_S
    config.timeout_graceful_shutdown = _API_STOP_S
    return config


class ApiServer(uvicorn.Server):
    """Serves the API. When it is told to stop, those who follow jobs are let go, and only other answers may end."""

    def __init__(self, app: Starlette, host: str, port: int) -> None:
        """An application of `assemble`."""
        super().__init__(api_server_config(app, host, port))
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """In the loop of the application."""
        self._app.state.stopping.set()
        await super().shutdown(sockets)
