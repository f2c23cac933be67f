"""The process that decodes pictures: `python -m ragllava.imaging.decoding LIMITS`, confined, one picture after another.

Its parent is `ragllava.imaging.children`, which says what a request and an answer are.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any

from PIL import Image

from ragllava.errors import ImageRejected, Rejection
from ragllava.imaging.children import ANSWER, READY, REQUEST, Limits, read_exactly
from ragllava.imaging.confine import confine
from ragllava.imaging.decode import TOO_MUCH_MEMORY, PictureLimits, count_pages, decode, page_as_png
from ragllava.imaging.rendering import load_all

_MAX_REASON = 2000  # characters


def main() -> None:
    """Decode pictures from standard input to standard output until the input ends."""
    given = json.loads(sys.argv[1])
    limits = Limits(**given | {"pictures": PictureLimits(**given["pictures"])})
    # The parent handles a Ctrl-C or a stop of the process group; it still needs its picture.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints must not become an answer
    _limit_memory(limits.memory_bytes)
    answers.write(" ".join([READY, *confine()]).encode() + b"\n")
    answers.flush()
    with suppress(EOFError, BrokenPipeError):
        while True:
            header_length, length = REQUEST.unpack(read_exactly(requests, REQUEST.size))
            wanted = json.loads(read_exactly(requests, header_length))
            data = read_exactly(requests, length)
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
    header: list[Any] | dict[str, str]
    content = b""
    try:
        header, content = _result(data, wanted, limits)
    except ImageRejected as error:
        header = _described(error.rejection)
    except MemoryError:
        header = _described(TOO_MUCH_MEMORY)
    encoded = json.dumps(header).encode()
    answers.write(ANSWER.pack(len(encoded), len(content)))
    answers.write(encoded)
    answers.write(content)
    answers.flush()


def _described(rejection: Rejection) -> dict[str, str]:
    return rejection._replace(reason=rejection.reason[:_MAX_REASON])._asdict()


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
