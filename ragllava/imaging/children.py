"""A child process that decodes pictures, as its parent sees it (the child itself: `ragllava.imaging.decoding`).

A request is the lengths of a JSON value and of the file, that value, and the file's bytes. An answer is the lengths of
a JSON value and of what follows it, that value, and that: RGB bytes or a file. The value is an object with the class
and the reason of a rejection, or a list: of a picture the sizes, media type, embedded metadata and note; of a document
the number of its pages. A child exits at the end of its standard input, so none outlives its parent. Its first line
names the protections that are in force.

A child that was killed from outside, or that got too little of the processor within the time on the clock, says nothing
about the picture. It is tried once more; then DecoderUnavailable is raised, so that the shard is tried again later.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import IO, Any, TypeVar

from PIL import Image

from ragllava.errors import DecoderUnavailable, ImageRejected, RejectionClass
from ragllava.imaging.decode import MAX_BYTES, TOO_MANY_BYTES, DecodedImage, PictureLimits, printable
from ragllava.imaging.kinds import MEDIA_TYPES
from ragllava.imaging.rendering import MAX_PAGES
from ragllava.metadata import clean_embedded

T = TypeVar("T")
Reader = Callable[[list[Any], bytes, PictureLimits], T]  # makes the result of an answer

REQUEST = struct.Struct(">II")  # bytes of the JSON value, bytes of the file
ANSWER = struct.Struct(">II")  # bytes of the JSON value, bytes that follow it
READY = "ready"  # the first word of a child; the protections that are in force follow
_MAX_ANSWER_HEADER = 2**21  # MAX_KEYS values of MAX_VALUE characters (ragllava/metadata.py), and some room
_MAX_ANSWER = 2**31 - 1
_MAX_GREETING = 200
_START_SECONDS = 60.0  # for a child to load its libraries
_PATIENCE = 5  # times `wall_seconds` for the second attempt at a picture
_EXIT_SECONDS = 10.0  # for a child to exit after its pipes were closed


@dataclass(frozen=True, slots=True)
class Limits:
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


class Child:
    """One child process as its parent sees it. Used by one thread at a time."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self.protections: list[str] = []  # of the last process that was started

    def ask(self, data: bytes, wanted: Mapping[str, Any], read: Reader[T]) -> T | ImageRejected:
        """What `read` makes of the answer, or why the picture is rejected. Raises DecoderUnavailable."""
        if len(data) > MAX_BYTES:
            return ImageRejected(*TOO_MANY_BYTES)
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
        self, data: bytes, wanted: Mapping[str, Any], read: Reader[T], seconds: float
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
            return ImageRejected(
                RejectionClass.TOO_LARGE, f"decoding it takes more than {self._limits.cpu_seconds} s of processor time"
            )
        if exited and process.returncode == -signal.SIGKILL:
            return _Undecided("was killed", "memory")
        return ImageRejected(RejectionClass.DAMAGED, f"the decoder crashed on it (exit status {process.returncode})")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._wait(self._process)
        if self._process is None:
            self._process = self._start()
        return self._process

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "ragllava.imaging.decoding", json.dumps(asdict(self._limits))]
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment())
        except OSError as error:
            raise DecoderUnavailable(f"cannot start a picture decoder: {error}") from error
        with _deadline(process, _START_SECONDS):
            greeting = _pipe(process.stdout).readline(_MAX_GREETING).decode(errors="replace").split()
        if greeting[:1] != [READY]:
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
    read: Reader[T],
    limits: PictureLimits,
) -> T | ImageRejected:
    """Send one file and read the answer; OSError, EOFError or ValueError if the child fails."""
    requests, answers = _pipe(process.stdin), _pipe(process.stdout)
    encoded = json.dumps(wanted).encode()
    requests.write(REQUEST.pack(len(encoded), len(data)))
    requests.write(encoded)
    requests.write(data)
    requests.flush()
    header_length, length = ANSWER.unpack(read_exactly(answers, ANSWER.size))
    if header_length > _MAX_ANSWER_HEADER or length > _MAX_ANSWER:
        raise ValueError("an answer is too long")
    header = json.loads(read_exactly(answers, header_length))
    content = read_exactly(answers, length)
    # The child has read hostile bytes, so its answer is not trusted either.
    if isinstance(header, dict):
        return ImageRejected(RejectionClass(header["rejection_class"]), printable(str(header["reason"])))
    return read(header, content, limits)


def read_picture(header: list[Any], content: bytes, limits: PictureLimits) -> DecodedImage:
    """A picture. Raises what an invalid answer leads to: ValueError, TypeError."""
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


def read_number(header: list[Any], content: bytes, limits: PictureLimits) -> int:
    """A number of pages. Raises ValueError."""
    number = int(header[0])
    if not 0 <= number <= MAX_PAGES or content:
        raise ValueError("an answer's number of pages is invalid")
    return number


def read_file(header: list[Any], content: bytes, limits: PictureLimits) -> bytes:
    """A page as a file. Raises ValueError."""
    if header or not content or len(content) > MAX_BYTES:
        raise ValueError("an answer's page is invalid")
    return content


def read_exactly(stream: IO[bytes], length: int) -> bytes:
    """So many bytes. Raises EOFError."""
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data
