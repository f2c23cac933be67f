"""From a picture's bytes to what a retriever embeds, the same way for new pictures and for those of a new index; and
the two ends of a pipeline: sub-batches made one ahead of the one that is embedded, and finished one behind it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from ragllava.errors import ImageRejected
from ragllava.imaging.decode import DecodedImage
from ragllava.stages.resources import Resources

if TYPE_CHECKING:
    from ragllava.models.retriever import Pixels, Retriever

T = TypeVar("T")

# A picture's shorter side keeps at least this many times the retriever's own size before that resizes it: enough that
# its own resizing decides the pixels, little enough that a 50-megapixel JPEG costs not much more than a small one.
DECODE_SCALE = 2

# No more bytes of files than these come into one sub-batch (a single larger file is one of its own): three of them
# are in memory at once, being prepared, embedded and finished.
STEP_BYTES = 64 * 2**20
_FIRST_FILES = 8


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """A picture without its pixels of its own size: `pixels` are those that each retriever takes, by its version."""

    pixels: dict[str, Pixels]
    width: int
    height: int
    media_type: str


def prepare_for(
    retrievers: Sequence[Retriever], contents: Iterable[bytes | ImageRejected], resources: Resources
) -> Iterator[PreparedImage | ImageRejected]:
    """Decode in the sandbox, as large as the most demanding retriever needs it, and prepare for each of them.

    One result for each of `contents`, in order.
    """

    def prepare(decoded: DecodedImage) -> PreparedImage:
        pixels = {retriever.version: retriever.prepare_image(decoded.picture) for retriever in retrievers}
        return PreparedImage(pixels, decoded.width, decoded.height, decoded.media_type)

    shorter_side = DECODE_SCALE * max((retriever.image_size for retriever in retrievers), default=1)
    return resources.decoder.decode_all(contents, prepare, shorter_side)


def in_steps(
    contents: Iterable[tuple[T, bytes | ImageRejected]], most_files: int, most_bytes: int = STEP_BYTES
) -> Iterator[list[tuple[T, bytes | ImageRejected]]]:
    """Cut a stream of read files into sub-batches: at most `most_files` each, and no file after `most_bytes`.

    The first ones are smaller: nothing is embedded before the first is prepared.
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
    """What `make` returns until that is None; the next one is made in a thread while the last one is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="prepare") as thread:
        waiting = thread.submit(make)
        while (made := waiting.result()) is not None:
            waiting = thread.submit(make)
            yield made


class OneBehind:
    """Does what follows a sub-batch in a thread, while the next one is embedded; a context manager.

    In order, one at a time, and nothing after one that failed: its error comes out of the next `run`, or of the end
    of the block. The end waits for the last one, also when the block ends with an error of its own.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="finish")
        self._running: Future[None] | None = None

    def run(self, work: Callable[[], None]) -> None:
        """Wait for the work before and raise its error, or begin this one."""
        self._wait()
        self._running = self._thread.submit(work)

    def __enter__(self) -> OneBehind:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.shutdown()
        if error is None:
            self._wait()

    def _wait(self) -> None:
        if self._running is not None:
            self._running.result()
