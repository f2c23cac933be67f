"""Reranking and answering against the reference's way, one `generate` for each, with the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ragllava.lab.bench.arithmetic import (
    count_parameters,
    matmul_rate,
    on_accelerator,
    operations_needed,
    operations_of_each_alone,
)
from ragllava.lab.bench.reference import MAX_NEW_TOKENS, reference_relevance
from ragllava.lab.bench.rows import ROUNDS, BenchRow, Side, Wanted, compare
from ragllava.lab.bench.shapes import random_llava
from ragllava.lab.bench.workload import Workload, picture_of
from ragllava.models.generator import AnswerRequest, Generator
from ragllava.models.reranker import Pair, Reranker
from ragllava.postcards.archive import PostcardArchive

CANDIDATES = 20
_FEW_PAIRS = 8  # an image, of the row between one question and a bulk job
_FEW_ANSWERS = 4  # from one picture
_RANDOM_NEW_TOKENS = 2  # of the reference with random weights, which never end an answer: `Yes` and the end


@dataclass(frozen=True, slots=True)
class _Sizes:
    """How much one row does: enough to time it, little enough for the slowest side."""

    images: int  # of a bulk row
    candidates: int  # of the row of one question
    reference_pairs: int  # the reference takes every pair alone, so a few show its rate
    rounds: int
    new_tokens: int  # that the reference may generate for a pair
    answers: int
    answer_tokens: int  # at most


_MINI = _Sizes(8, CANDIDATES, 20, ROUNDS, MAX_NEW_TOKENS, 20, 32)
_RANDOM = _Sizes(8, CANDIDATES, 20, ROUNDS, _RANDOM_NEW_TOKENS, 20, 64)
# A pair of 600 tokens takes half a second on two cores, and the rounds differ little.
_RANDOM_CPU = _Sizes(2, 5, 4, 2, _RANDOM_NEW_TOKENS, 4, 16)


def rerank_rows(workload: Workload) -> list[BenchRow]:
    """The profile's model, then one of the shape asked for with random weights."""
    rows = _rows_of(workload, workload.models.reranker, workload.models.generator, _MINI, workload.models.profile.name)
    if workload.shape is not None:
        workload.progress(f"rerank: drawing the weights of {workload.shape}")
        mllm = random_llava(workload.shape, workload.models.settings)
        sizes = _RANDOM if on_accelerator(mllm) else _RANDOM_CPU
        rows += _rows_of(workload, Reranker(mllm), Generator(mllm), sizes, workload.shape)
    return rows


def _rows_of(workload: Workload, reranker: Reranker, generator: Generator, sizes: _Sizes, model: str) -> list[BenchRow]:
    """A bulk job, in which the same pictures are candidates of many questions; one question alone; answers."""
    archive, is_cuda = workload.archive, on_accelerator(reranker.mllm)
    limit_per_s = matmul_rate(reranker.mllm)
    # Not timed: the ways to share a prefix are tried once in the life of a process.
    workload.progress(f"rerank: {model}, prefixes are {'' if reranker.sharing else 'not '}shared")
    rows = []
    for an_image in sorted({min(_FEW_PAIRS, workload.questions), workload.questions}):
        workload.progress(f"rerank: {model}, {an_image} pairs an image")
        pairs = _pairs(archive, sizes.images, an_image)
        wanted = Wanted(at_least=30.0 if is_cuda else 10.0) if an_image >= CANDIDATES else Wanted()
        row = _rerank_row(reranker, pairs, sizes, f"rerank, {model}, {an_image} pairs an image", wanted, limit_per_s)
        rows.append(row)
    rows.append(_limit_row(row, f"{model}, {an_image} pairs an image", limit_per_s, is_cuda))
    workload.progress(f"rerank: {model}, one question")
    one = _pairs(archive, sizes.candidates, 1)
    wanted = Wanted(at_least=8.0 if is_cuda else 1.0)
    name = f"rerank, {model}, one question (1 pair an image)"
    rows.append(_rerank_row(reranker, one, sizes, name, wanted, limit_per_s))
    workload.progress(f"rerank: {model}, answers")
    # Not timed, as above; it depends on the base alone.
    workload.progress(f"rerank: {model}, evidence is {'' if generator.shares_prefixes else 'not '}shared")
    return [*rows, *(_generate_row(generator, archive, sizes, model, a_picture) for a_picture in (1, _FEW_ANSWERS))]


def _pairs(archive: PostcardArchive, images: int, an_image: int) -> list[Pair]:
    """The first questions with each of the first images, question by question."""
    cards = [(card.caption, picture_of(card)) for card in archive.postcards[:images]]
    return [
        Pair(question.text, caption, picture) for question in archive.questions[:an_image] for caption, picture in cards
    ]


def _rerank_row(
    reranker: Reranker, pairs: Sequence[Pair], sizes: _Sizes, name: str, wanted: Wanted, limit_per_s: float
) -> BenchRow:
    every = max(1, len(pairs) // sizes.reference_pairs)
    some = pairs[::every]

    def ours() -> list[float]:
        return [score.value for score in reranker.relevance(pairs, batch_size=CANDIDATES)]

    def reference() -> list[float]:
        return reference_relevance(reranker, some, sizes.new_tokens)

    found = compare(Side(len(pairs), ours), Side(len(some), reference), sizes.rounds, every)
    needed = operations_needed(reranker, pairs)
    figures = {
        "largest_difference": found.largest_difference,
        # What arithmetic allows at most: operations of all pairs alone by those that are needed.
        "operations_saved": operations_of_each_alone(reranker, pairs) / needed,
        "share_of_limit": needed / len(pairs) * found.ours_per_s / limit_per_s,
    }
    return BenchRow(
        "rerank", name, "one `generate` for each pair", "pairs/s", found.ours_per_s, found.reference_per_s,
        wanted, figures | {"parameters": float(count_parameters(reranker.mllm))},
    )  # fmt: skip


def _limit_row(row: BenchRow, name: str, limit_per_s: float, is_cuda: bool) -> BenchRow:
    """The same time beside the least that arithmetic allows."""
    reached = row.figures["share_of_limit"] * limit_per_s
    return BenchRow(
        "rerank", f"rerank, arithmetic, {name}", "a large matrix product on this device", "GFLOP/s",
        reached / 1e9, limit_per_s / 1e9, Wanted(at_least=0.5) if is_cuda else Wanted(),
        note="operations needed: tokens × 2 × parameters, what pairs of one picture share counted once",
    )  # fmt: skip


def _generate_row(
    generator: Generator, archive: PostcardArchive, sizes: _Sizes, model: str, a_picture: int
) -> BenchRow:
    """Answers in a batch against one after the other, so many of them from each picture."""
    shown = [(card.caption, picture_of(card)) for card in archive.postcards[: sizes.answers // a_picture]]
    requests = [
        AnswerRequest(archive.questions[number % len(archive.questions)].text, (caption,), (picture,))
        for number, (caption, picture) in enumerate(shown * a_picture)
    ]
    tokens = 0

    def answer(batch_size: int) -> list[float]:
        nonlocal tokens
        found = generator.answer(requests, max_tokens=sizes.answer_tokens, with_captions=True, batch_size=batch_size)
        tokens = sum(one.tokens for one in found)
        return [one.confidence for one in found]

    found = compare(
        Side(len(requests), lambda: answer(len(requests))), Side(len(requests), lambda: answer(1)), sizes.rounds
    )
    an_answer = tokens / len(requests)
    name = f"generate, {model}, {len(requests)} answers in a batch" + (f", {a_picture} a picture" * (a_picture > 1))
    return BenchRow(
        "rerank", name, "one answer after the other", "tokens/s",
        found.ours_per_s * an_answer, found.reference_per_s * an_answer,
        figures={"largest_difference": found.largest_difference, "tokens_an_answer": an_answer},
    )  # fmt: skip
