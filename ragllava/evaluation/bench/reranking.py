"""Reranking against the reference's loop, one `generate` for each pair, with the same weights."""

from __future__ import annotations

from collections.abc import Sequence

from ragllava.evaluation.bench.rows import BenchRow, Side, Wanted, compare
from ragllava.evaluation.bench.workload import Workload, picture_of
from ragllava.evaluation.postcards import PostcardArchive
from ragllava.models.reference import MAX_NEW_TOKENS, reference_relevance
from ragllava.models.reranker import Pair, Reranker
from ragllava.models.shapes import random_llava

CANDIDATES = 20
_BULK_IMAGES = 8
_REFERENCE_PAIRS = 20
_RANDOM_NEW_TOKENS = 2  # of the reference with random weights, which never end an answer: `Yes` and the end


def rerank_rows(workload: Workload) -> list[BenchRow]:
    """The profile's model, then one of the shape asked for with random weights."""
    rows = _rows_of(workload.models.reranker, workload.archive, MAX_NEW_TOKENS, "")
    if workload.shape is not None:
        random = Reranker(random_llava(workload.shape, workload.models.settings))
        rows += _rows_of(random, workload.archive, _RANDOM_NEW_TOKENS, f", {workload.shape}")
    return rows


def _rows_of(reranker: Reranker, archive: PostcardArchive, new_tokens: int, name: str) -> list[BenchRow]:
    """A bulk job, in which the same pictures are candidates of many questions, and one question alone."""
    pictures = [picture_of(postcard) for postcard in archive.postcards[:CANDIDATES]]
    few = range(min(_BULK_IMAGES, len(pictures)))
    bulk = [
        Pair(question.text, archive.postcards[place].caption, pictures[place])
        for question in archive.questions
        for place in few
    ]
    one = [Pair(archive.questions[0].text, card.caption, pictures[n]) for n, card in enumerate(archive.postcards[:20])]
    return [
        _row(reranker, bulk, new_tokens, f"rerank, {len(archive.questions)} questions an image{name}"),
        _row(reranker, one, new_tokens, f"rerank, one question{name}"),
    ]


def _row(reranker: Reranker, pairs: Sequence[Pair], new_tokens: int, name: str) -> BenchRow:
    # The reference takes every pair alone, so a few of them show its rate.
    some = pairs[:: max(1, len(pairs) // _REFERENCE_PAIRS)]

    def ours() -> list[float]:
        return [score.value for score in reranker.relevance(pairs, batch_size=CANDIDATES)]

    def reference() -> list[float]:
        return reference_relevance(reranker, some, new_tokens)

    found = compare(Side(len(pairs), ours), Side(len(some), reference))
    return BenchRow(
        "rerank", name, "one `generate` for each pair", "pairs/s", found.ours_per_s, found.reference_per_s,
        Wanted(at_least=1.0), {"largest_difference": found.largest_difference},
    )  # fmt: skip
