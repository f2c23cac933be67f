"""A pool of child processes that decode pictures, each confined and with a limit on memory and time
(docs/reliability.md D14).

A picture that crashes its child, fills the child's memory or takes too long is rejected, and the pool starts another
child. The children are plain `python -m ragllava.imaging.sandbox` over pipes, because the pool also runs inside
Celery's workers, which are daemons: multiprocessing does not allow them children.

A request is `shorter_side, length` and the file's bytes. An answer is the length of a JSON value, that value (the
reason of a rejection, or sizes, media type and embedded metadata), and the RGB bytes. A child exits at the end of its
standard input, so none outlives its parent. Its first line names the protections that are in force.
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
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import IO, Any, TypeVar

from PIL import Image

from ragllava.errors import DecoderUnavailable, ImageRejected
from ragllava.imaging.confine import confine
from ragllava.imaging.decode import MAX_BYTES, MAX_SIDE, MEDIA_TYPES, TOO_MANY_BYTES, DecodedImage, decode, printable
from ragllava.metadata import clean_embedded

T = TypeVar("T")

_REQUEST = struct.Struct(">II")  # shorter_side (0: none), bytes of the file
_ANSWER = struct.Struct(">I")  # bytes of the JSON value
_MAX_ANSWER_HEADER = 2**21  # MAX_KEYS values of MAX_VALUE characters (ragllava/metadata.py), and some room
_READY = "ready"  # the first word of a child; the protections that are in force follow
_MAX_GREETING = 200
_AHEAD = 4  # pictures in progress for each child, so that it never waits for the consumer
_EXIT_SECONDS = 10.0  # for a child to exit after its pipes were closed


class DecoderPool:
    """Child processes that decode pictures; a context manager. One consumer at a time.

    `memory_bytes` limits a child's address space, `cpu_seconds` its processor time and `wall_seconds` the time on
    the clock for each picture. Children start with the first picture and are replaced when they die.
    """

    def __init__(
        self, processes: int, memory_bytes: int = 2 * 1024**3, cpu_seconds: int = 20, wall_seconds: float = 60.0
    ) -> None:
        self._ahead = _AHEAD * processes
        self._children = [_Child(_Limits(memory_bytes, cpu_seconds, wall_seconds)) for _ in range(processes)]
        # Last in, first out: a pool with little to do keeps using one child and never starts the others.
        self._idle: queue.LifoQueue[_Child] = queue.LifoQueue()
        for child in self._children:
            self._idle.put(child)
        # Twice as many as children, so that one picture is decoded while `use` works on another.
        self._threads = ThreadPoolExecutor(2 * processes, thread_name_prefix="decoder")

    def __enter__(self) -> DecoderPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the pictures being decoded and end the children."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for child in self._children:
            child.stop()

    def decode_all(
        self, items: Iterable[bytes | ImageRejected], use: Callable[[DecodedImage], T], shorter_side: int | None = None
    ) -> Iterator[T | ImageRejected]:
        """Yield, in order, `use` of each decoded picture, or the ImageRejected that `decode` would raise.

        An item that is a rejection already is yielded unchanged. A bounded number of items is read ahead of the
        consumer. `use` runs in the pool's threads, so that only pictures in progress are in memory. Raises
        DecoderUnavailable if a child cannot be started, and whatever `use` raises.
        """
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
        if isinstance(item, ImageRejected):
            return item
        child = self._idle.get()
        try:
            result = child.decode(item, shorter_side)
        finally:
            self._idle.put(child)
        return result if isinstance(result, ImageRejected) else use(result)


def active_protections() -> list[str]:
    """The protections that are in force in a child on this machine, besides its limits on memory and time.

    Starts a child. Raises DecoderUnavailable.
    """
    child = _Child(_Limits(memory_bytes=2 * 1024**3, cpu_seconds=20, wall_seconds=60.0))
    try:
        child.start()
    finally:
        child.stop()
    return child.protections


@dataclass(frozen=True, slots=True)
class _Limits:
    """What a child may use for one picture; its only argument, as JSON."""

    memory_bytes: int
    cpu_seconds: int
    wall_seconds: float


class _Child:
    """One child process as its parent sees it. Used by one thread at a time."""

    def __init__(self, limits: _Limits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self.protections: list[str] = []  # of the last process that was started

    def decode(self, data: bytes, shorter_side: int | None) -> DecodedImage | ImageRejected:
        if len(data) > MAX_BYTES:
            return ImageRejected(TOO_MANY_BYTES)
        # A child that was killed from outside (by the kernel short of memory, by an operator) says nothing about the
        # picture, which is tried once more.
        return (
            self._decode_once(data, shorter_side)
            or self._decode_once(data, shorter_side)
            or ImageRejected("its decoder was killed twice; is the machine short of memory?")
        )

    def start(self) -> None:
        """Start the process, if there is none. Raises DecoderUnavailable."""
        self._running()

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._wait(self._process)

    def _decode_once(self, data: bytes, shorter_side: int | None) -> DecodedImage | ImageRejected | None:
        """The result, or None if the child was killed from outside."""
        process = self._running()
        result = None
        with (
            _deadline(process, self._limits.wall_seconds) as passed,
            suppress(OSError, EOFError, ValueError, LookupError, TypeError, RecursionError),
        ):
            result = _request(process, data, shorter_side)
        if result is None:
            return self._why_it_failed(process, passed.is_set())
        if passed.is_set():  # the child was killed just after its answer
            self._wait(process)
        return result

    def _why_it_failed(self, process: subprocess.Popen[bytes], too_long: bool) -> ImageRejected | None:
        exited = self._wait(process)
        if too_long:
            return ImageRejected(f"decoding it takes longer than {self._limits.wall_seconds:g} seconds")
        if process.returncode == -signal.SIGPROF:
            return ImageRejected(f"decoding it takes more than {self._limits.cpu_seconds} s of processor time")
        if exited and process.returncode == -signal.SIGKILL:
            return None
        return ImageRejected(f"the decoder crashed on it (exit status {process.returncode})")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._wait(self._process)
        if self._process is None:
            self._process = self._start()
        return self._process

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "ragllava.imaging.sandbox", json.dumps(asdict(self._limits))]
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment())
        except OSError as error:
            raise DecoderUnavailable(f"cannot start a picture decoder: {error}") from error
        with _deadline(process, self._limits.wall_seconds):
            greeting = _pipe(process.stdout).readline(_MAX_GREETING).decode(errors="replace").split()
        if greeting[:1] != [_READY]:
            process.kill()
            self._wait(process)
            raise DecoderUnavailable(
                f"a picture decoder exited with status {process.returncode} before its first picture; "
                "its messages are on standard error"
            )
        self.protections = greeting[1:]
        return process

    def _wait(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait until the process has exited; False if it had to be killed for that."""
        self._process = None
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                _pipe(pipe).close()
        try:
            process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return False
        return True


@contextmanager
def _deadline(process: subprocess.Popen[bytes], seconds: float) -> Iterator[threading.Event]:
    """Kill the process if the block takes longer than that; after the block, the event says whether this happened."""
    passed = threading.Event()

    def kill() -> None:
        passed.set()
        process.kill()

    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.start()
    try:
        yield passed
    finally:
        timer.cancel()
        timer.join()  # from here on it kills nothing, and `passed` is final


def _environment() -> dict[str, str]:
    """The variables that a child needs to start; the environment may also hold passwords."""
    wanted = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
    given = {name: os.environ[name] for name in wanted if name in os.environ}
    # Threads that a library starts early would escape the restrictions, which hold for the thread that asks for them.
    return {**given, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None, "the process was started with pipes"  # noqa: S101 - for the type checker
    return pipe


def _request(process: subprocess.Popen[bytes], data: bytes, shorter_side: int | None) -> DecodedImage | ImageRejected:
    """Send one picture and read the answer; OSError, EOFError or ValueError if the child fails."""
    requests, answers = _pipe(process.stdin), _pipe(process.stdout)
    requests.write(_REQUEST.pack(shorter_side or 0, len(data)))
    requests.write(data)
    requests.flush()
    (length,) = _ANSWER.unpack(_read_exactly(answers, _ANSWER.size))
    if length > _MAX_ANSWER_HEADER:
        raise ValueError("an answer's header is too long")
    header = json.loads(_read_exactly(answers, length))
    if isinstance(header, str):
        return ImageRejected(printable(header))
    # The child has read hostile bytes, so its answer is not trusted either.
    width, height, columns, rows = sizes = [int(size) for size in header[:4]]
    media_type, embedded = header[4:]
    if not all(0 < size <= MAX_SIDE for size in sizes) or media_type not in MEDIA_TYPES.values():
        raise ValueError("an answer's sizes or media type are invalid")
    if not isinstance(embedded, dict):
        raise TypeError("an answer's metadata are not an object")
    picture = Image.frombytes("RGB", (columns, rows), _read_exactly(answers, 3 * columns * rows))
    return DecodedImage(picture, width, height, media_type, clean_embedded(embedded))


def _read_exactly(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


# Below: inside the child.


def main() -> None:
    """Decode pictures from standard input to standard output until the input ends."""
    limits = _Limits(**json.loads(sys.argv[1]))
    # The parent handles a Ctrl-C or a stop of the process group; it still needs its picture.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints must not become an answer
    _limit_memory(limits.memory_bytes)
    answers.write(" ".join([_READY, *confine()]).encode() + b"\n")
    answers.flush()
    with suppress(EOFError, BrokenPipeError):
        while True:
            shorter_side, length = _REQUEST.unpack(_read_exactly(requests, _REQUEST.size))
            data = _read_exactly(requests, length)
            _allow_processor_time(limits.cpu_seconds)
            _answer(answers, data, shorter_side or None)


def _limit_memory(memory_bytes: int) -> None:
    Image.init()  # load the decoders before there is a limit
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "darwin":  # macOS refuses to limit the address space
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _allow_processor_time(seconds: int) -> None:
    """Let the process use `seconds` from now on; the kernel kills it after that.

    A timer, because RLIMIT_CPU counts from the start of the process and in ticks of the clock, up to a fifth ahead of
    the real processor time: it would kill a long-lived child at a harmless picture.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _answer(answers: IO[bytes], data: bytes, shorter_side: int | None) -> None:
    header: str | list[Any]
    pixels = b""
    try:
        decoded = decode(data, shorter_side=shorter_side, with_embedded=True)
        header = [decoded.width, decoded.height, *decoded.picture.size, decoded.media_type, decoded.embedded]
        pixels = decoded.picture.tobytes()
    except ImageRejected as error:
        header = str(error)[:2000]
    except MemoryError:
        header = "decoding it takes more memory than allowed"
    encoded = json.dumps(header).encode()
    answers.write(_ANSWER.pack(len(encoded)))
    answers.write(encoded)
    answers.write(pixels)
    answers.flush()


if __name__ == "__main__":
    main()
