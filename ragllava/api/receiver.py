"""The receiver of bucket events: object stores post the changes of their objects here (docs/reliability.md D13).

It only writes change events, and answers 200 after they are committed. A sender must present the token. The content of
a message is never trusted: a change event makes the object itself be checked.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from sqlalchemy import Connection, Engine, text
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ragllava.errors import ServiceUnavailable, SettingsError, UsageError
from ragllava.settings import Settings
from ragllava.stages.buckets.notifications import read_notification
from ragllava.stages.buckets.received import record_events, without_own_bucket
from ragllava.stores.buckets import change_events
from ragllava.stores.database import in_transaction

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 4 * 2**20  # a store puts one or a few events into a message
THREADS = 6  # each uses one connection of the pool
_BODY_S = 30.0
_COUNT_S = 1.0


class Receiver:
    """The two endpoints. Messages that need no change event are only counted; the counts are written every second."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        """Raises SettingsError without a token: everybody could write to an open receiver."""
        if settings.events_token is None or not settings.events_token.get_secret_value():
            raise SettingsError("the receiver has no token: set RAGLLAVA_EVENTS_TOKEN, here and in the object store")
        self._token = settings.events_token.get_secret_value().encode()
        self._settings = settings
        self._engine = engine
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()

    async def events(self, request: Request) -> Response:
        """Take one message."""
        if not self._is_authorised(request):
            return self._refuse("refused", 401, "the token is missing or wrong")
        try:
            async with asyncio.timeout(_BODY_S):
                body = await _body(request)
        except (TimeoutError, ClientDisconnect):
            return self._refuse("unreadable", 408, "the message is incomplete")
        if body is None:
            return self._refuse("unreadable", 413, f"a message has at most {MAX_BODY_BYTES:,} bytes")
        return await run_in_threadpool(self._take, body)

    def healthz(self, _request: Request) -> Response:
        """Whether change events can be written."""
        try:
            in_transaction(self._engine, _read_change_events)
        except ServiceUnavailable as error:
            return _error(503, str(error))
        return JSONResponse({"status": "ok"})

    def write_counts(self) -> None:
        """Write what was counted since the last call; it is kept for the next call when the database is unavailable."""
        with self._counting:
            counts, self._counts = self._counts, Counter()
        if not counts:
            return
        try:
            in_transaction(self._engine, change_events.add_totals, counts)
        except ServiceUnavailable as error:
            log.warning(str(error), extra={"action": "counts_kept"})
            with self._counting:
                self._counts.update(counts)

    def _is_authorised(self, request: Request) -> bool:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(token.strip().encode(), self._token)
        return scheme.lower() == "bearer" and same

    def _take(self, body: bytes) -> Response:
        try:
            named = without_own_bucket(read_notification(body), self._settings)
        except UsageError as error:
            return self._refuse("unreadable", 400, str(error))
        if not named:  # folders, and the objects of our own bucket
            self._count("ignored")
            return JSONResponse({"change_events": 0})
        try:
            noted = in_transaction(self._engine, record_events, named)
        except ServiceUnavailable as error:
            log.warning(str(error), extra={"action": "event_not_taken"})
            return _error(503, "the database is unavailable; send the message again")
        return JSONResponse({"change_events": noted.new + noted.repeated})

    def _refuse(self, count: str, status: int, sentence: str) -> Response:
        self._count(count)
        return _error(status, sentence)

    def _count(self, name: str) -> None:
        with self._counting:
            self._counts[name] += 1


def needed_settings(settings: Settings) -> Settings:
    """The settings without the secrets that the receiver does not need: it has a network port, and no use for them."""
    secrets = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    others = (secrets | {"s3_access_key", "backup_s3_access_key"}) - {"database_url", "events_token"}
    return settings.model_copy(update=dict.fromkeys(others))


def make_app(engine: Engine, settings: Settings) -> Starlette:
    """The receiver as an ASGI application. Raises SettingsError without a token."""
    receiver = Receiver(engine, settings)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        counting = asyncio.create_task(_write_counts_regularly(receiver))
        try:
            yield
        finally:
            counting.cancel()
            await asyncio.to_thread(receiver.write_counts)

    routes = [
        Route("/events", receiver.events, methods=["POST"]),
        Route("/healthz", receiver.healthz, methods=["GET"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


async def _write_counts_regularly(receiver: Receiver) -> None:
    while True:
        await asyncio.sleep(_COUNT_S)
        await run_in_threadpool(receiver.write_counts)


def _read_change_events(connection: Connection) -> None:
    connection.execute(text("SELECT 1 FROM change_events LIMIT 1"))


async def _body(request: Request) -> bytes | None:
    """The body of a message, or None as soon as it is too long, whatever its header says."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


def _error(status: int, sentence: str) -> Response:
    return JSONResponse({"error": sentence}, status_code=status)
