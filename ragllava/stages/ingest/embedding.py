"""Prepare pictures for retrievers, in the same way for new pictures and for a new index.

Also the two ends of the pipeline: while one sub-batch is embedded, the next one is prepared and the previous one is
committed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ragllava.errors import ImageRejected
from ragllava.imaging.decode import DecodedImage
from ragllava.metadata import Metadata
from ragllava.stages.resources import Resources

if TYPE_CHECKING:
    from ragllava.models.retriever import Pixels, Retriever

T = TypeVar("T")

# A picture is decoded with a shorter side of at least this many times the retriever's input size: large enough that
# the retriever's own resizing determines the pixels, small enough that a 50-megapixel JPEG costs little more than a
# small one.
DECODE_SCALE = 2

# The largest size of the files of one sub-batch (a larger file is a sub-batch on its own). Three sub-batches are in
# memory at once: one is prepared, one embedded, one committed.
STEP_BYTES = 64 * 2**20
_FIRST_FILES = 8


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """A decoded picture: `pixels` is the input of each retriever, by its version; width and height of the original.

    `embedded` is what the file says about itself (imaging/embedded.py); `note` is what is missing of the picture.
    """

    pixels: dict[str, Pixels]
    width: int
    height: int
    media_type: str
    embedded: Metadata
    note: str | None = None


def prepare_for(
    retrievers: Sequence[Retriever], contents: Iterable[bytes | ImageRejected], resources: Resources
) -> Iterator[PreparedImage | ImageRejected]:
    """Decode in the sandbox, at the size that the retriever with the largest input needs, and prepare for each of them.

    One result for each of `contents`, in order.
    """

    def prepare(decoded: DecodedImage) -> PreparedImage:
        pixels = {retriever.version: retriever.prepare_image(decoded.picture) for retriever in retrievers}
        embedded = dict(decoded.embedded)
        return PreparedImage(pixels, decoded.width, decoded.height, decoded.media_type, embedded, decoded.note)

    shorter_side = DECODE_SCALE * max((retriever.image_size for retriever in retrievers), default=1)
    return resources.decoder.decode_all(contents, prepare, shorter_side)


def in_steps(
    contents: Iterable[tuple[T, bytes | ImageRejected]], most_files: int, most_bytes: int = STEP_BYTES
) -> Iterator[list[tuple[T, bytes | ImageRejected]]]:
    """Split a stream of files into sub-batches of at most `most_files`; the file that reaches `most_bytes` ends one.

    The first ones are smaller, so that embedding starts early.
    """
    step: list[tuple[T, bytes | ImageRejected]] = []
    size_bytes, files = 0, min(_FIRST_FILES, most_files)
    for name, content in contents:
        step.append((name, content))
        size_bytes += len(content) if isinstance(content, bytes) else 0
        if len(step) >= files or size_bytes >= most_bytes:
            yield step
            step, size_bytes, files = [], 0, min(2 * files, most_files)
    if step:
        yield step


def one_ahead(make: Callable[[], T | None]) -> Generator[T, None, None]:
    """The results of `make` until it returns None; a thread makes the next one while the caller uses this one."""
    with ThreadPoolExecutor(1, thread_name_prefix="prepare") as thread:
        pending = thread.submit(make)
        while (result := pending.result()) is not None:
            pending = thread.submit(make)
            yield result


@contextmanager
def one_behind() -> Iterator[Callable[..., None]]:
    """A function `run(work, *args)` that does `work(*args)` in a thread, while the caller makes the next sub-batch.

    The works run in order, one at a time, and none after one that failed: its error is raised by the next `run`, or at
    the end of the block. The end waits for the last work, also when the block ends with an error.
    """
    pending: list[Future[None]] = []

    def wait() -> None:
        if pending:
            pending.pop().result()

    def run(work: Callable[..., None], *args: object) -> None:
        wait()
        pending.append(thread.submit(work, *args))

    with ThreadPoolExecutor(1, thread_name_prefix="finish") as thread:
        yield run
    wait()
