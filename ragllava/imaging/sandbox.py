"""A pool of child processes that decode pictures, each with a limit on memory and time (docs/reliability.md D14).

A picture that crashes, fills the memory or never ends takes its child with it and is rejected; the pool starts
another child and goes on. The children are plain `python -m ragllava.imaging.sandbox` over pipes, not multiprocessing,
because the pool also runs inside Celery's workers, which are daemons and may not have children of that kind.

A request is `shorter_side, length` and the file's bytes; an answer is the length of a JSON object, that object, and
the RGB bytes that it announces. A child ends when its standard input does, so none outlives its parent.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, TypeVar

from PIL import Image

from ragllava.errors import DecoderUnavailable, ImageRejected
from ragllava.imaging.decode import MAX_BYTES, MAX_SIDE, MEDIA_TYPES, TOO_MANY_BYTES, DecodedImage, decode, printable

T = TypeVar("T")

_REQUEST = struct.Struct(">II")  # shorter_side (0: none), bytes of the file
_ANSWER = struct.Struct(">I")  # bytes of the JSON object
_MAX_ANSWER_HEADER = 65_536
_READY = b"ready\n"
_AHEAD = 4  # pictures on their way for each child, so that it never waits for the consumer
_EXIT_SECONDS = 10.0  # for a child that has closed its pipe to be gone


class DecoderPool:
    """Child processes that decode pictures; a context manager. One consumer at a time.

    `memory_bytes` limits a child's address space, `cpu_seconds` its processor time and `wall_seconds` the time on
    the clock for each picture. Children start with the first picture and are replaced when they die.
    """

    def __init__(
        self,
        processes: int,
        memory_bytes: int = 2 * 1024**3,
        cpu_seconds: int = 20,
        wall_seconds: float = 60.0,
        *,
        allow_tiff: bool = False,
    ) -> None:
        self._limits = _Limits(memory_bytes, cpu_seconds, wall_seconds, allow_tiff)
        self._ahead = _AHEAD * processes
        self._children = [_Child(self._limits) for _ in range(processes)]
        # Last in, first out: a pool with little to do keeps using one child and never starts the others.
        self._idle: queue.LifoQueue[_Child] = queue.LifoQueue()
        for child in self._children:
            self._idle.put(child)
        # Twice as many, so that one picture is decoded while what comes after is done with another.
        self._threads = ThreadPoolExecutor(2 * processes, thread_name_prefix="decoder")

    def __enter__(self) -> DecoderPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the pictures being decoded and end the children."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for child in self._children:
            child.stop()

    def decode_all(
        self, items: Iterable[bytes | ImageRejected], shorter_side: int | None = None
    ) -> Iterator[DecodedImage | ImageRejected]:
        """Yield one result for each item, in order, as `images.decode` would return or raise it.

        An item that is a rejection already is passed through in its place. A bounded number of items is read
        ahead of the consumer. Raises DecoderUnavailable if a child cannot be started.
        """
        return self.decode_each(items, lambda decoded: decoded, shorter_side)

    def decode_each(
        self,
        items: Iterable[bytes | ImageRejected],
        use: Callable[[DecodedImage], T],
        shorter_side: int | None = None,
    ) -> Iterator[T | ImageRejected]:
        """As `decode_all`, but yield what `use` makes of each picture. It is called in the pool's threads, so
        that no more pictures are in memory than are on their way."""
        waiting: deque[Future[T | ImageRejected]] = deque()
        try:
            for item in items:
                waiting.append(self._threads.submit(self._use, item, use, shorter_side))
                if len(waiting) > self._ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _use(
        self, item: bytes | ImageRejected, use: Callable[[DecodedImage], T], shorter_side: int | None
    ) -> T | ImageRejected:
        result = self._decode(item, shorter_side)
        return result if isinstance(result, ImageRejected) else use(result)

    def _decode(self, item: bytes | ImageRejected, shorter_side: int | None) -> DecodedImage | ImageRejected:
        if isinstance(item, ImageRejected):
            return item
        child = self._idle.get()
        try:
            return child.decode(item, shorter_side)
        finally:
            self._idle.put(child)


@dataclass(frozen=True, slots=True)
class _Limits:
    """What a child may use for one picture, and how it is told so."""

    memory_bytes: int
    cpu_seconds: int
    wall_seconds: float
    allow_tiff: bool

    def arguments(self) -> list[str]:
        return [str(self.memory_bytes), str(self.cpu_seconds), str(self.wall_seconds), str(int(self.allow_tiff))]

    @classmethod
    def from_arguments(cls, arguments: list[str]) -> _Limits:
        memory_bytes, cpu_seconds, wall_seconds, allow_tiff = arguments
        return cls(int(memory_bytes), int(cpu_seconds), float(wall_seconds), bool(int(allow_tiff)))


class _Child:
    """One child process as its parent sees it. Used by one thread at a time."""

    def __init__(self, limits: _Limits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None

    def decode(self, data: bytes, shorter_side: int | None) -> DecodedImage | ImageRejected:
        if len(data) > MAX_BYTES:
            return ImageRejected(TOO_MANY_BYTES)
        # A child that somebody else killed (the kernel short of memory, an operator) says nothing about the
        # picture, so that one is tried once more.
        return (
            self._decode_once(data, shorter_side)
            or self._decode_once(data, shorter_side)
            or ImageRejected("its decoder was killed twice; is the machine short of memory?")
        )

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._gone(self._process)

    def _decode_once(self, data: bytes, shorter_side: int | None) -> DecodedImage | ImageRejected | None:
        """The result, or None if somebody else killed the child."""
        process = self._running()
        result = None
        deadline = _Deadline(process, self._limits.wall_seconds)
        with deadline, suppress(OSError, EOFError, ValueError, LookupError, TypeError, RecursionError):
            result = _ask(process, data, shorter_side)
        if result is None:
            return self._why_it_failed(process, deadline.passed)
        if deadline.passed:  # the answer came at the last moment, and the kill with it
            self._gone(process)
        return result

    def _why_it_failed(self, process: subprocess.Popen[bytes], too_long: bool) -> ImageRejected | None:
        ended_itself = self._gone(process)
        if too_long:
            return ImageRejected(f"decoding it takes longer than {self._limits.wall_seconds:g} seconds")
        if process.returncode == -signal.SIGPROF:
            return ImageRejected(f"decoding it takes more than {self._limits.cpu_seconds} s of processor time")
        if ended_itself and process.returncode == -signal.SIGKILL:
            return None
        return ImageRejected(f"the decoder crashed on it (exit status {process.returncode})")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._gone(self._process)
        if self._process is None:
            self._process = self._start()
        return self._process

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "ragllava.imaging.sandbox", *self._limits.arguments()]
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment())
        except OSError as error:
            raise DecoderUnavailable(f"cannot start a picture decoder: {error}") from error
        with _Deadline(process, self._limits.wall_seconds):
            greeting = _pipe(process.stdout).read(len(_READY))
        if greeting != _READY:
            process.kill()
            self._gone(process)
            raise DecoderUnavailable(
                f"a picture decoder ended with status {process.returncode} before its first picture; "
                "what it had to say is on standard error"
            )
        return process

    def _gone(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait until the process is gone; False if it had to be killed for that."""
        self._process = None
        ended_itself = True
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                _pipe(pipe).close()
        try:
            process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            ended_itself = False
            process.kill()
            process.wait()
        return ended_itself


class _Deadline:
    """Kills a process that is not done with a picture in time; `passed` says after the block whether it did."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self.passed = False
        self._process = process
        self._timer = threading.Timer(seconds, self._kill)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        self._timer.join()  # from here on it kills nothing, and `passed` is final

    def _kill(self) -> None:
        self.passed = True
        self._process.kill()


def _environment() -> dict[str, str]:
    """What a child needs to start, and none of the passwords that the environment may hold."""
    wanted = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
    return {name: os.environ[name] for name in wanted if name in os.environ}


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None, "the process was started with pipes"  # noqa: S101 - for the type checker
    return pipe


def _ask(process: subprocess.Popen[bytes], data: bytes, shorter_side: int | None) -> DecodedImage | ImageRejected:
    """Send one picture and read the answer; OSError, EOFError or ValueError if the child fails at it."""
    requests, answers = _pipe(process.stdin), _pipe(process.stdout)
    requests.write(_REQUEST.pack(shorter_side or 0, len(data)))
    requests.write(data)
    requests.flush()
    (length,) = _ANSWER.unpack(_read_exactly(answers, _ANSWER.size))
    if length > _MAX_ANSWER_HEADER:
        raise ValueError("an answer's header is too long")
    header: dict[str, Any] = json.loads(_read_exactly(answers, length))
    if "rejected" in header:
        return ImageRejected(printable(str(header["rejected"])))
    width, height, columns, rows = (int(header[name]) for name in ("width", "height", "columns", "rows"))
    # The child has met hostile bytes: its word is not taken either.
    if not all(0 < side <= MAX_SIDE for side in (width, height, columns, rows)):
        raise ValueError("an answer's sizes make no sense")
    if header["media_type"] not in MEDIA_TYPES.values():
        raise ValueError("an answer's media type makes no sense")
    picture = Image.frombytes("RGB", (columns, rows), _read_exactly(answers, 3 * columns * rows))
    return DecodedImage(picture, width, height, header["media_type"])


def _read_exactly(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


# From here on: inside the child.


def main() -> None:
    """Decode pictures from standard input to standard output until the input ends."""
    limits = _Limits.from_arguments(sys.argv[1:])
    # A Ctrl-C or a stop of the whole process group is the parent's to handle: it still wants its picture.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints must not become an answer
    _limit(limits)
    answers.write(_READY)
    answers.flush()
    with suppress(EOFError, BrokenPipeError):
        while True:
            shorter_side, length = _REQUEST.unpack(_read_exactly(requests, _REQUEST.size))
            data = _read_exactly(requests, length)
            _allow_processor_time(limits.cpu_seconds)
            _answer(answers, data, shorter_side or None, limits.allow_tiff)


def _limit(limits: _Limits) -> None:
    Image.init()  # load the decoders once, before there are limits
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "darwin":  # macOS refuses to limit the address space
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))


def _allow_processor_time(seconds: int) -> None:
    """Let the process use `seconds` from now on; the kernel ends it after that.

    A timer and not RLIMIT_CPU, because that one counts from the start of the process and by ticks of the clock:
    it was seen to run a fifth ahead of the time that the process can read, and would end a long-lived child with
    a picture that has done nothing wrong.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _answer(answers: IO[bytes], data: bytes, shorter_side: int | None, allow_tiff: bool) -> None:
    pixels = b""
    try:
        decoded = decode(data, shorter_side=shorter_side, allow_tiff=allow_tiff)
        columns, rows = decoded.picture.size
        pixels = decoded.picture.tobytes()
        header: dict[str, Any] = {
            "width": decoded.width,
            "height": decoded.height,
            "media_type": decoded.media_type,
            "columns": columns,
            "rows": rows,
        }
    except ImageRejected as error:
        header = {"rejected": str(error)[:2000]}
    except MemoryError:
        header = {"rejected": "decoding it takes more memory than allowed"}
    encoded = json.dumps(header).encode()
    answers.write(_ANSWER.pack(len(encoded)))
    answers.write(encoded)
    answers.write(pixels)
    answers.flush()


if __name__ == "__main__":
    main()
