"""From a picture's bytes to its vector, the same way for new pictures and for those of a new index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from ragllava.errors import ImageRejected
from ragllava.images import DecodedImage
from ragllava.stages.resources import Resources

if TYPE_CHECKING:
    from ragllava.models.retriever import Retriever

T = TypeVar("T")

# Pictures are reduced to this many times the retriever's own size before it sees them: enough that its own
# resizing decides the pixels, little enough that a 50-megapixel picture costs no more than a small one.
DECODE_SCALE = 4


def decode_for(
    retriever: Retriever, contents: Iterable[bytes | ImageRejected], resources: Resources
) -> Iterator[DecodedImage | ImageRejected]:
    """Decode in the sandbox, as large as the retriever needs it; one result for each of `contents`, in order."""
    return resources.decoder.decode_all(contents, DECODE_SCALE * retriever.image_size)


def one_ahead(make: Callable[[], T | None]) -> Iterator[T]:
    """What `make` returns until that is None; the next one is made in a thread while the last one is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="prepare") as thread:
        waiting = thread.submit(make)
        while (made := waiting.result()) is not None:
            waiting = thread.submit(make)
            yield made
