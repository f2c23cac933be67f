"""A pool of child processes that decode pictures, each confined and with a limit on memory and time
(docs/reliability.md D14).

A picture that crashes its child, fills the child's memory or takes too long is rejected, and the pool starts another
child. The children are plain `python -m ragllava.imaging.sandbox` over pipes, because the pool also runs inside
Celery's workers, which are daemons: multiprocessing does not allow them children.

A request is the lengths of a JSON value and of the file, that value, and the file's bytes. An answer is the lengths of
a JSON value and of what follows it, that value, and that: RGB bytes or a file. The value is the reason of a rejection,
or a list: of a picture the sizes, media type, embedded metadata and note; of a document the number of its pages. A
child exits at the end of its standard input, so none outlives its parent. Its first line names the protections that
are in force.

A child that was killed from outside, or that got too little of the processor within the time on the clock, says nothing
about the picture. It is tried once more; then DecoderUnavailable is raised, so that the shard is tried again later.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any, TypeVar

from PIL import Image

from ragllava.errors import DecoderUnavailable, ImageRejected
from ragllava.imaging.confine import confine
from ragllava.imaging.decode import (
    MAX_BYTES,
    MODEL_SIDE,
    TOO_MANY_BYTES,
    DecodedImage,
    PictureLimits,
    count_pages,
    decode,
    may_have_pages,
    middle,
    page_as_png,
    printable,
)
from ragllava.imaging.kinds import MEDIA_TYPES
from ragllava.imaging.rendering import MAX_PAGES, load_all
from ragllava.metadata import clean_embedded

if TYPE_CHECKING:
    from ragllava.settings import Settings

T = TypeVar("T")
_Reader = Callable[[list[Any], bytes, PictureLimits], T]  # makes the result of an answer

_REQUEST = struct.Struct(">II")  # bytes of the JSON value, bytes of the file
_ANSWER = struct.Struct(">II")  # bytes of the JSON value, bytes that follow it
_MAX_ANSWER_HEADER = 2**21  # MAX_KEYS values of MAX_VALUE characters (ragllava/metadata.py), and some room
_MAX_ANSWER = 2**31 - 1
_READY = "ready"  # the first word of a child; the protections that are in force follow
_MAX_GREETING = 200
MAX_DECODERS = 8  # by default
_AHEAD = 4  # pictures in progress for each child, so that it never waits for the consumer
_START_SECONDS = 60.0  # for a child to load its libraries
_PATIENCE = 5  # times `wall_seconds` for the second attempt at a picture
_EXIT_SECONDS = 10.0  # for a child to exit after its pipes were closed


class DecoderPool:
    """Child processes that decode pictures; a context manager. `decode_all` has one consumer at a time.

    `pictures` limits their sizes, `memory_bytes` a child's address space, `cpu_seconds` its processor time and
    `wall_seconds` the time on the clock for each picture, with more for a second attempt. Children start with the first
    picture and are replaced when they die.
    """

    def __init__(
        self,
        processes: int,
        memory_bytes: int = 2 * 1024**3,
        cpu_seconds: int = 20,
        wall_seconds: float = 60.0,
        pictures: PictureLimits | None = None,
    ) -> None:
        self._ahead = _AHEAD * processes
        limits = _Limits(memory_bytes, cpu_seconds, wall_seconds, pictures or PictureLimits())
        self._children = [_Child(limits) for _ in range(processes)]
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
        result = self._ask(item, {"shorter_side": shorter_side}, _read_picture)
        return result if isinstance(result, ImageRejected) else use(result)

    def decode(self, data: bytes, *, max_side: int | None = None) -> DecodedImage:
        """The picture in `data`, as `decode` of decode.py gives it. Thread-safe; waits while all children work.

        Raises ImageRejected, and DecoderUnavailable.
        """
        return _or_raise(self._ask(data, {"max_side": max_side}, _read_picture))

    def decode_for_model(self, data: bytes) -> Image.Image:
        """The input of a multimodal LLM: at most MODEL_SIDE pixels on the longer side, and only the middle of a picture
        thinner than MODEL_THINNEST. Thread-safe. Raises ImageRejected, and DecoderUnavailable."""
        return middle(self.decode(data, max_side=MODEL_SIDE).picture)

    def count_pages(self, data: bytes) -> int:
        """How many pages a document has; 0 for a picture. Thread-safe. Raises ImageRejected, and DecoderUnavailable."""
        return _or_raise(self._ask(data, {"pages": True}, _read_number)) if may_have_pages(data) else 0

    def page(self, data: bytes, page: int) -> bytes | ImageRejected:
        """A page of a document, numbered from 1, as a PNG file. Thread-safe. Raises DecoderUnavailable."""
        return self._ask(data, {"page": page}, _read_file)

    def _ask(self, data: bytes, wanted: Mapping[str, Any], read: _Reader[T]) -> T | ImageRejected:
        child = self._idle.get()
        try:
            return child.ask(data, wanted, read)
        finally:
            self._idle.put(child)


def _or_raise(result: T | ImageRejected) -> T:
    if isinstance(result, ImageRejected):
        raise result
    return result


def make_decoder(settings: Settings, processes: int | None = None) -> DecoderPool:
    """The child processes that the settings ask for, or `processes` of them."""
    limits = PictureLimits(settings.max_megapixels, settings.max_picture_side)
    return DecoderPool(processes or settings.decoders or default_decoders(), pictures=limits)


def default_decoders() -> int:
    """How many pictures are decoded at once by default: half of the processors, 8 at most."""
    return min(MAX_DECODERS, max(1, (os.cpu_count() or 1) // 2))


def active_protections() -> list[str]:
    """The protections that are in force in a child on this machine, besides its limits on memory and time.

    Starts a child. Raises DecoderUnavailable.
    """
    child = _Child(_Limits(memory_bytes=2 * 1024**3, cpu_seconds=20, wall_seconds=60.0, pictures=PictureLimits()))
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
    pictures: PictureLimits


@dataclass(frozen=True, slots=True)
class _Undecided:
    """A child failed for a reason that is not the picture's."""

    reason: str
    lacks: str


class _Child:
    """One child process as its parent sees it. Used by one thread at a time."""

    def __init__(self, limits: _Limits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self.protections: list[str] = []  # of the last process that was started

    def ask(self, data: bytes, wanted: Mapping[str, Any], read: _Reader[T]) -> T | ImageRejected:
        if len(data) > MAX_BYTES:
            return ImageRejected(TOO_MANY_BYTES)
        result = self._ask_once(data, wanted, read, self._limits.wall_seconds)
        if isinstance(result, _Undecided):
            result = self._ask_once(data, wanted, read, _PATIENCE * self._limits.wall_seconds)
        if isinstance(result, _Undecided):
            raise DecoderUnavailable(
                f"a picture decoder {result.reason}, twice; is the machine short of {result.lacks}?"
            )
        return result

    def start(self) -> None:
        """Start the process, if there is none. Raises DecoderUnavailable."""
        self._running()

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._wait(self._process)

    def _ask_once(
        self, data: bytes, wanted: Mapping[str, Any], read: _Reader[T], seconds: float
    ) -> T | ImageRejected | _Undecided:
        process = self._running()
        result: T | ImageRejected | None = None
        with (
            _deadline(process, seconds) as passed,
            suppress(OSError, EOFError, ValueError, LookupError, TypeError, RecursionError),
        ):
            result = _request(process, data, wanted, read, self._limits.pictures)
        if result is None:
            return self._why_it_failed(process, seconds if passed.is_set() else None)
        if passed.is_set():  # the child was killed just after its answer
            self._wait(process)
        return result

    def _why_it_failed(
        self, process: subprocess.Popen[bytes], passed_seconds: float | None
    ) -> ImageRejected | _Undecided:
        exited = self._wait(process)
        if passed_seconds is not None:
            # A picture that takes long is stopped by its limit on processor time, which is the lower one.
            return _Undecided(f"took longer than {passed_seconds:g} seconds", "processors")
        if process.returncode == -signal.SIGPROF:
            return ImageRejected(f"decoding it takes more than {self._limits.cpu_seconds} s of processor time")
        if exited and process.returncode == -signal.SIGKILL:
            return _Undecided("was killed", "memory")
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
        with _deadline(process, _START_SECONDS):
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


def _request(
    process: subprocess.Popen[bytes],
    data: bytes,
    wanted: Mapping[str, Any],
    read: _Reader[T],
    limits: PictureLimits,
) -> T | ImageRejected:
    """Send one file and read the answer; OSError, EOFError or ValueError if the child fails."""
    requests, answers = _pipe(process.stdin), _pipe(process.stdout)
    encoded = json.dumps(wanted).encode()
    requests.write(_REQUEST.pack(len(encoded), len(data)))
    requests.write(encoded)
    requests.write(data)
    requests.flush()
    header_length, length = _ANSWER.unpack(_read_exactly(answers, _ANSWER.size))
    if header_length > _MAX_ANSWER_HEADER or length > _MAX_ANSWER:
        raise ValueError("an answer is too long")
    header = json.loads(_read_exactly(answers, header_length))
    content = _read_exactly(answers, length)
    if isinstance(header, str):
        return ImageRejected(printable(header))
    # The child has read hostile bytes, so its answer is not trusted either.
    return read(header, content, limits)


def _read_picture(header: list[Any], content: bytes, limits: PictureLimits) -> DecodedImage:
    width, height, columns, rows = sizes = [int(size) for size in header[:4]]
    media_type, embedded, note = header[4:]
    if not all(0 < size <= limits.side for size in sizes) or media_type not in MEDIA_TYPES:
        raise ValueError("an answer's sizes or media type are invalid")
    if not isinstance(embedded, dict):
        raise TypeError("an answer's metadata are not an object")
    picture = Image.frombytes("RGB", (columns, rows), content)
    return DecodedImage(
        picture, width, height, media_type, clean_embedded(embedded), printable(note[:200]) if note else None
    )


def _read_number(header: list[Any], content: bytes, limits: PictureLimits) -> int:
    number = int(header[0])
    if not 0 <= number <= MAX_PAGES or content:
        raise ValueError("an answer's number of pages is invalid")
    return number


def _read_file(header: list[Any], content: bytes, limits: PictureLimits) -> bytes:
    if header or not content or len(content) > MAX_BYTES:
        raise ValueError("an answer's page is invalid")
    return content


def _read_exactly(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


# Below: inside the child.


def main() -> None:
    """Decode pictures from standard input to standard output until the input ends."""
    given = json.loads(sys.argv[1])
    limits = _Limits(**given | {"pictures": PictureLimits(**given["pictures"])})
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
            header_length, length = _REQUEST.unpack(_read_exactly(requests, _REQUEST.size))
            wanted = json.loads(_read_exactly(requests, header_length))
            data = _read_exactly(requests, length)
            _allow_processor_time(limits.cpu_seconds)
            _answer(answers, data, wanted, limits.pictures)


def _limit_memory(memory_bytes: int) -> None:
    Image.init()  # load the decoders before there is a limit
    load_all()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "darwin":  # macOS refuses to limit the address space
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _allow_processor_time(seconds: int) -> None:
    """Let the process use `seconds` from now on; the kernel kills it after that.

    A timer, because RLIMIT_CPU counts from the start of the process and in ticks of the clock, up to a fifth ahead of
    the real processor time: it would kill a long-lived child at a harmless picture.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _answer(answers: IO[bytes], data: bytes, wanted: Mapping[str, Any], limits: PictureLimits) -> None:
    header: str | list[Any]
    content = b""
    try:
        header, content = _result(data, wanted, limits)
    except ImageRejected as error:
        header = str(error)[:2000]
    except MemoryError:
        header = "decoding it takes more memory than allowed"
    encoded = json.dumps(header).encode()
    answers.write(_ANSWER.pack(len(encoded), len(content)))
    answers.write(encoded)
    answers.write(content)
    answers.flush()


def _result(data: bytes, wanted: Mapping[str, Any], limits: PictureLimits) -> tuple[list[Any], bytes]:
    if "pages" in wanted:
        return [count_pages(data)], b""
    if "page" in wanted:
        return [], page_as_png(data, wanted["page"], limits)
    decoded = decode(data, **wanted, with_embedded=True, limits=limits)
    sizes = [decoded.width, decoded.height, *decoded.picture.size]
    return [*sizes, decoded.media_type, decoded.embedded, decoded.note], decoded.picture.tobytes()


if __name__ == "__main__":
    main()
