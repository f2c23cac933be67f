"""A proxy between Unix sockets, as a network that can be cut, silent, half open, or slow."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHUNK = 2**16
_CALL_S = 10.0


@dataclass(eq=False, slots=True)
class _Link:
    """A connection from a client through us to the service. Nothing passes while `flows` is not set."""

    flows: asyncio.Event
    writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]

    def abort(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        self.flows.set()  # nobody waits for a broken connection


class Proxy:
    """Listens at the socket `path` and leads to the socket `upstream`, which need not exist yet.

    It runs in a thread of its own. Its methods return when they have taken effect.
    """

    def __init__(self, path: Path, upstream: Path) -> None:
        self._upstream = upstream
        self._links: set[_Link] = set()
        self._deaf: set[_Link] = set()  # silent for ever
        self._is_cut = False
        self._delay_s = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._accepts: asyncio.Event = self._call(_set_event())
        self._server = self._call(asyncio.start_unix_server(self._serve, path))

    def cut(self) -> None:
        """Break every connection, and refuse new ones until `heal`."""

        async def work() -> None:
            self._is_cut = True
            self._abort_all()

        self._call(work())

    def silence(self) -> None:
        """Let nothing pass until `heal`; then what was held up goes on, and nothing is missing."""

        async def work() -> None:
            self._accepts.clear()
            for link in self._links:
                link.flows.clear()

        self._call(work())

    def slow_down(self, delay_s: float) -> None:
        """Hold everything up for so long from now on, in each direction; a question and its answer take twice that."""

        async def work() -> None:
            self._delay_s = delay_s

        self._call(work())

    def heal(self, *, half_open: bool = False) -> None:
        """Let everything pass. With `half_open`, connections from before stay silent for ever, and look open."""

        async def work() -> None:
            self._is_cut = False
            self._accepts.set()
            if half_open:
                self._deaf |= self._links
                self._links.clear()
            for link in self._links:
                link.flows.set()

        self._call(work())

    def close(self) -> None:
        """Break every connection, and listen no more."""

        async def work() -> None:
            self._server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._call(work())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_S)
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_S)

    def _abort_all(self) -> None:
        for link in list(self._links):
            link.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        await self._accepts.wait()
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(self._upstream)
        except OSError:
            writer.transport.abort()
            return
        flows = asyncio.Event()
        flows.set()
        link = _Link(flows, (writer, far_writer))
        self._links.add(link)
        try:
            await asyncio.gather(self._pass_on(link, reader, far_writer), self._pass_on(link, far_reader, writer))
        finally:
            self._links.discard(link)
            self._deaf.discard(link)
            link.abort()

    async def _pass_on(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(_CHUNK):
                    await link.flows.wait()
                    await asyncio.sleep(self._delay_s)
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.close()  # also when the other end died: its partner must notice


async def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event
