"""Passes the bytes of TCP connections on to a Unix socket, whatever number of connections are opened."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

BACKLOG = 32  # connections that wait to be accepted: fewer than are kept, so that none is closed before it is read
_MOST_LINKS = 64
_CHUNK_BYTES = 2**16


class Relay:
    """Leads to one socket. When there are too many connections, the one that was silent for longest is closed.

    The server is connected to at the first bytes of a client, so it never sees connections that send nothing.
    """

    def __init__(self, path: Path, most: int = _MOST_LINKS) -> None:
        """Nothing is opened."""
        self._path = str(path)
        self._most = most
        self._clients: dict[asyncio.StreamWriter, None] = {}  # the longest silent one first

    async def serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """One connection, until both sides have ended."""
        if len(self._clients) >= self._most:
            longest_silent = next(iter(self._clients))
            del self._clients[longest_silent]  # its own end comes later
            longest_silent.transport.abort()
        self._heard(client)
        server: asyncio.StreamWriter | None = None
        try:
            with suppress(OSError):
                if first := await reader.read(_CHUNK_BYTES):
                    answers, server = await asyncio.open_unix_connection(self._path)
                    server.write(first)
                    await asyncio.gather(self._pass_on(client, reader, server), self._pass_on(client, answers, client))
        finally:
            self._clients.pop(client, None)
            for writer in (client, server):
                if writer is not None:
                    writer.transport.abort() if writer.is_closing() else writer.close()

    def _heard(self, client: asyncio.StreamWriter) -> None:
        self._clients.pop(client, None)
        self._clients[client] = None

    async def _pass_on(
        self, client: asyncio.StreamWriter, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            if client in self._clients:
                self._heard(client)
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
