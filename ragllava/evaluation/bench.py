"""How fast this machine is, always as a ratio to a reference that is measured in the same run.

Both sides of a row take turns, several rounds long, and each side's best round counts: these are rates of the
machine when nobody disturbs it.
"""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ragllava.evaluation.postcards import KnownQuestion, Postcard, draw_archive
from ragllava.images import decode
from ragllava.models.bundle import ModelBundle
from ragllava.models.reranker import Pair

if TYPE_CHECKING:
    from PIL.Image import Image

CANDIDATES = 20
ROUNDS = 3


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


def run_bench(models: ModelBundle, *, questions: int = 4, images: int = 200, seed: int = 5) -> list[BenchRow]:
    """Measure reranking and embedding on postcards with the given models."""
    archive = draw_archive(seed, images, questions, two_image_share=0.0)
    return [_rerank_row(models, archive.postcards, archive.questions), _embed_row(models, archive.postcards)]


def _rerank_row(models: ModelBundle, postcards: Sequence[Postcard], questions: Sequence[KnownQuestion]) -> BenchRow:
    from ragllava.models.reference import reference_relevance

    rng = random.Random(0)  # noqa: S311 - the same candidates in every run
    pairs = [
        Pair(question.text, postcard.caption, _picture(postcard))
        for question in questions
        for postcard in rng.sample(postcards, CANDIDATES)
    ]
    reranker = models.reranker

    def ours() -> list[float]:
        return [score.value for score in reranker.relevance(pairs, batch_size=CANDIDATES)]

    def reference() -> list[float]:
        return reference_relevance(reranker, pairs)

    return _compare("rerank", "one `generate` for each pair", "pairs", len(pairs), ours, reference)


def _embed_row(models: ModelBundle, postcards: Sequence[Postcard]) -> BenchRow:
    files = [_png(_picture(postcard)) for postcard in postcards]
    pictures = [decode(data).picture for data in files]
    retriever = models.retriever

    def ours() -> list[float]:
        return retriever.embed_images([decode(data).picture for data in files], batch_size=64).ravel().tolist()

    def reference() -> list[float]:
        return retriever.embed_images(pictures, batch_size=64).ravel().tolist()

    return _compare("decode + embed", "embedding alone", "pictures", len(files), ours, reference)


def _compare(
    name: str,
    reference_name: str,
    items: str,
    count: int,
    ours: Callable[[], list[float]],
    reference: Callable[[], list[float]],
) -> BenchRow:
    ours_s: list[float] = []
    reference_s: list[float] = []
    for _ in range(ROUNDS):
        for run, times in ((ours, ours_s), (reference, reference_s)):
            started = time.perf_counter()
            result = run()
            times.append(time.perf_counter() - started)
            if run is ours:
                mine = result
    difference = float(np.abs(np.subtract(mine, result)).max())
    return BenchRow(name, reference_name, items, count / min(ours_s), count / min(reference_s), difference)


def _picture(postcard: Postcard) -> Image:
    from PIL import Image

    return Image.fromarray(postcard.draw().pixels)


def _png(picture: Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
