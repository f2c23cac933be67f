"""Connections from a port to a Unix socket, and those that are too many."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from ragllava.local.relay import Relay

WAIT_S = 30.0


def run_apart(work: Callable[[], Coroutine[object, object, None]]) -> None:
    """Run it in a thread of its own: tests with a browser leave a loop that runs in the main one."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(asyncio.wait_for(work(), WAIT_S))).result()


@asynccontextmanager
async def relaying(most: int) -> AsyncIterator[tuple[int, list[asyncio.StreamWriter]]]:
    """The port of a relay to a server that repeats what it is sent, and the connections that reach the server."""
    reached: list[asyncio.StreamWriter] = []

    async def repeat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(writer)
        while data := await reader.read(2**16):
            writer.write(data)
        writer.close()

    with tempfile.TemporaryDirectory(prefix="ragllava-tests-") as folder:
        path = Path(folder) / "server.sock"
        async with (
            await asyncio.start_unix_server(repeat, path),
            await asyncio.start_server(Relay(path, most).serve, "127.0.0.1", 0) as relay,
        ):
            yield relay.sockets[0].getsockname()[1], reached
            for writer in reached:
                writer.close()
            await _until_all_have_ended()


def test_all_bytes_pass_both_ways_and_both_ends_end() -> None:
    async def work() -> None:
        content = bytes(range(256)) * 4_000
        async with relaying(4) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            sending = asyncio.create_task(_send(writer, content))
            assert await reader.read(-1) == content
            await sending
            writer.close()

    run_apart(work)


async def _until_all_have_ended() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    waiting = {task for task in others if "serve" in repr(task) or "repeat" in repr(task)}
    if waiting:
        await asyncio.wait(waiting)


async def _send(writer: asyncio.StreamWriter, content: bytes) -> None:
    writer.write(content)
    await writer.drain()
    writer.write_eof()


def test_the_longest_silent_connection_makes_room_and_silent_ones_reach_no_server() -> None:
    async def work() -> None:
        async with relaying(4) as (port, reached):
            first_reader, first = await asyncio.open_connection("127.0.0.1", port)
            first.write(b"1")
            assert await first_reader.readexactly(1) == b"1"
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            first.write(b"2")
            assert await first_reader.readexactly(1) == b"2", "it was not silent"
            more = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            for reader, _ in silent:
                assert await reader.read(1) == b"", "it made room"
            first.write(b"3")
            assert await first_reader.readexactly(1) == b"3"
            assert len(reached) == 1
            for _, writer in [*silent, *more]:
                writer.close()
            first.close()

    run_apart(work)


def test_without_the_server_the_connection_ends() -> None:
    async def work() -> None:
        async with await asyncio.start_server(Relay(Path("/nowhere.sock")).serve, "127.0.0.1", 0) as relay:
            reader, writer = await asyncio.open_connection("127.0.0.1", relay.sockets[0].getsockname()[1])
            writer.write(b"hello")
            assert await reader.read(1) == b""
            writer.close()
            await _until_all_have_ended()

    run_apart(work)
