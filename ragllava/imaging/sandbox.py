"""A pool of child processes that decode pictures, each confined and with a limit on memory and time
(docs/reliability.md D14).

A picture that crashes its child, fills the child's memory or takes too long is rejected, and the pool starts another
child. The children are plain `python -m ragllava.imaging.decoding` over pipes, because the pool also runs inside
Celery's workers, which are daemons: multiprocessing does not allow them children.
"""

from __future__ import annotations

import os
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from ragllava.errors import ImageRejected
from ragllava.imaging.children import Child, Limits, Reader, read_file, read_number, read_picture
from ragllava.imaging.decode import MODEL_SIDE, DecodedImage, PictureLimits, may_have_pages, middle

if TYPE_CHECKING:
    from ragllava.settings import Settings

T = TypeVar("T")

MAX_DECODERS = 8  # by default
_AHEAD = 4  # pictures in progress for each child, so that it never waits for the consumer


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
        limits = Limits(memory_bytes, cpu_seconds, wall_seconds, pictures or PictureLimits())
        self._children = [Child(limits) for _ in range(processes)]
        # Last in, first out: a pool with little to do keeps using one child and never starts the others.
        self._idle: queue.LifoQueue[Child] = queue.LifoQueue()
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
        result = self._ask(item, {"shorter_side": shorter_side}, read_picture)
        return result if isinstance(result, ImageRejected) else use(result)

    def decode(self, data: bytes, *, max_side: int | None = None) -> DecodedImage:
        """The picture in `data`, as `decode` of decode.py gives it. Thread-safe; waits while all children work.

        Raises ImageRejected, and DecoderUnavailable.
        """
        return _or_raise(self._ask(data, {"max_side": max_side}, read_picture))

    def decode_for_model(self, data: bytes) -> Image.Image:
        """The input of a multimodal LLM: at most MODEL_SIDE pixels on the longer side, and only the middle of a picture
        thinner than MODEL_THINNEST. Thread-safe. Raises ImageRejected, and DecoderUnavailable."""
        return middle(self.decode(data, max_side=MODEL_SIDE).picture)

    def count_pages(self, data: bytes) -> int:
        """How many pages a document has; 0 for a picture. Thread-safe. Raises ImageRejected, and DecoderUnavailable."""
        return _or_raise(self._ask(data, {"pages": True}, read_number)) if may_have_pages(data) else 0

    def page(self, data: bytes, page: int) -> bytes | ImageRejected:
        """A page of a document, numbered from 1, as a PNG file. Thread-safe. Raises DecoderUnavailable."""
        return self._ask(data, {"page": page}, read_file)

    def _ask(self, data: bytes, wanted: Mapping[str, Any], read: Reader[T]) -> T | ImageRejected:
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
    child = Child(Limits(memory_bytes=2 * 1024**3, cpu_seconds=20, wall_seconds=60.0, pictures=PictureLimits()))
    try:
        child.start()
    finally:
        child.stop()
    return child.protections
