"""How fast this machine is, always as a ratio to a reference that is measured in the same run.

Both sides of a row take turns, several rounds long, and each side's best round counts: these are rates of the
machine when nobody disturbs it.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ragllava.evaluation.postcards import Postcard, PostcardArchive, draw_archive
from ragllava.images import decode
from ragllava.models.bundle import ModelBundle
from ragllava.models.reference import MAX_NEW_TOKENS, reference_relevance
from ragllava.models.reranker import Pair, Reranker
from ragllava.models.shapes import random_llava

if TYPE_CHECKING:
    from PIL.Image import Image

CANDIDATES = 20
ROUNDS = 3
_BULK_IMAGES = 8
_REFERENCE_PAIRS = 20
_RANDOM_NEW_TOKENS = 2  # of the reference with random weights, which never end an answer: `Yes` and the end

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One comparison: items per second of ours and of the reference, and how far the results differ at most."""

    name: str
    reference: str
    items: str
    ours_per_s: float
    reference_per_s: float
    largest_difference: float

    @property
    def ratio(self) -> float:
        """Above 1: ours is faster."""
        return self.ours_per_s / self.reference_per_s


def run_bench(
    models: ModelBundle, *, questions: int = 20, images: int = 200, seed: int = 5, shape: str | None = None
) -> list[BenchRow]:
    """Measure reranking and embedding on postcards with the given models.

    `shape` adds the reranking rows of a model of that shape with random weights (models/shapes.py).
    """
    archive = draw_archive(seed, images, questions, two_image_share=0.0)
    rows = _rerank_rows(models.reranker, archive, MAX_NEW_TOKENS, "")
    if shape is not None:
        rows += _rerank_rows(Reranker(random_llava(shape, models.settings)), archive, _RANDOM_NEW_TOKENS, f", {shape}")
    return [*rows, _embed_row(models, archive.postcards)]


def _rerank_rows(reranker: Reranker, archive: PostcardArchive, new_tokens: int, name: str) -> list[BenchRow]:
    """A bulk job, in which the same pictures are candidates of many questions, and one question alone."""
    pictures = [_picture(postcard) for postcard in archive.postcards[:CANDIDATES]]
    few = range(min(_BULK_IMAGES, len(pictures)))
    bulk = [
        Pair(question.text, archive.postcards[place].caption, pictures[place])
        for question in archive.questions
        for place in few
    ]
    one = [Pair(archive.questions[0].text, card.caption, pictures[n]) for n, card in enumerate(archive.postcards[:20])]
    return [
        _rerank_row(reranker, bulk, new_tokens, f"rerank, {len(archive.questions)} questions an image{name}"),
        _rerank_row(reranker, one, new_tokens, f"rerank, one question{name}"),
    ]


def _rerank_row(reranker: Reranker, pairs: Sequence[Pair], new_tokens: int, name: str) -> BenchRow:
    # The reference takes every pair alone, so a few of them show its rate.
    some = pairs[:: max(1, len(pairs) // _REFERENCE_PAIRS)]

    def ours() -> list[float]:
        return [score.value for score in reranker.relevance(pairs, batch_size=CANDIDATES)]

    def reference() -> list[float]:
        return reference_relevance(reranker, some, new_tokens)

    return _compare(name, "one `generate` for each pair", "pairs", (pairs, ours), (some, reference))


def _embed_row(models: ModelBundle, postcards: Sequence[Postcard]) -> BenchRow:
    files = [_png(_picture(postcard)) for postcard in postcards]
    pictures = [decode(data).picture for data in files]
    retriever = models.retriever

    def ours() -> list[float]:
        return retriever.embed_images([decode(data).picture for data in files], batch_size=64).ravel().tolist()

    def reference() -> list[float]:
        return retriever.embed_images(pictures, batch_size=64).ravel().tolist()

    return _compare("decode + embed", "embedding alone", "pictures", (files, ours), (files, reference))


def _compare(
    name: str,
    reference_name: str,
    items: str,
    ours: tuple[Sequence[T], Callable[[], list[float]]],
    reference: tuple[Sequence[T], Callable[[], list[float]]],
) -> BenchRow:
    """Both sides in turns; each comes with its items. The reference may have every n-th of ours only."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    results: dict[bool, list[float]] = {}
    for _ in range(ROUNDS):
        for is_ours, (_, run) in ((True, ours), (False, reference)):
            started = time.perf_counter()
            results[is_ours] = run()
            seconds[is_ours].append(time.perf_counter() - started)
    every = -(-len(results[True]) // len(results[False]))  # rounded up, as slicing by steps does
    mine = results[True][::every][: len(results[False])]
    difference = float(np.abs(np.subtract(mine, results[False])).max())
    rates = {
        is_ours: len(all_items) / min(seconds[is_ours])
        for is_ours, (all_items, _) in ((True, ours), (False, reference))
    }
    return BenchRow(name, reference_name, items, rates[True], rates[False], difference)


def _picture(postcard: Postcard) -> Image:
    from PIL import Image

    return Image.fromarray(postcard.draw().pixels)


def _png(picture: Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
