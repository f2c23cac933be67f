"""Reranking and answering compared with the reference implementation of the paper, with the same weights.

The reference is written from its description (docs/method.md 2): for every pair it prepares the picture again and calls
`generate`, and only the first step of the output is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ragllava.lab.bench.arithmetic import matmul_rate, operations_needed, operations_of_each_alone
from ragllava.lab.bench.rows import ROUNDS, BenchRow, Wanted, compare
from ragllava.lab.bench.shapes import random_llava
from ragllava.lab.bench.workload import Workload
from ragllava.models.generator import AnswerRequest, Generator
from ragllava.models.reranker import Pair, Reranker
from ragllava.postcards.archive import PostcardArchive

CANDIDATES = 20
_REFERENCE_TOKENS = 512  # that the reference generates for a pair at most
_FEW_PAIRS = 8  # an image, of the row between one question and a bulk job
_FEW_ANSWERS = 4  # from one picture


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The amount of work of one row: enough to time it, little enough for the slower way."""

    images: int  # of a bulk row
    candidates: int  # of the row of one question
    reference_pairs: int  # the reference scores each pair alone, so a few show its speed
    rounds: int
    new_tokens: int  # that the reference may generate for a pair
    answers: int
    answer_tokens: int  # at most


_MINI = _Sizes(8, CANDIDATES, 20, ROUNDS, _REFERENCE_TOKENS, 20, 32)
# Random weights never end an answer, so the reference generates two tokens: `Yes` and the end.
_RANDOM = _Sizes(8, CANDIDATES, 20, ROUNDS, 2, 20, 64)
# A pair of 600 tokens takes half a second on two cores, and the rounds differ little.
_RANDOM_CPU = _Sizes(2, 5, 4, 2, 2, 4, 16)


def rerank_rows(workload: Workload) -> list[BenchRow]:
    """The profile's model, then one of the requested shape with random weights."""
    rows = _rows_of(workload, workload.models.reranker, workload.models.generator, _MINI, workload.models.profile.name)
    if workload.shape is not None:
        workload.progress(f"rerank: drawing the weights of {workload.shape}")
        mllm = random_llava(workload.shape, workload.models.settings)
        sizes = _RANDOM_CPU if mllm.network.device.type == "cpu" else _RANDOM
        rows += _rows_of(workload, Reranker(mllm), Generator(mllm), sizes, workload.shape)
    return rows


def _rows_of(workload: Workload, reranker: Reranker, generator: Generator, sizes: _Sizes, model: str) -> list[BenchRow]:
    """A bulk job, in which the same pictures are candidates of many questions; one question alone; answers."""
    archive, on_gpu = workload.archive, reranker.mllm.network.device.type != "cpu"
    limit_per_s = matmul_rate(reranker.mllm)
    # Not timed: each process tests once which ways to share a prefix work.
    workload.progress(f"rerank: {model}, prefixes are {'' if reranker.sharing else 'not '}shared")
    rows = []
    for an_image in sorted({min(_FEW_PAIRS, workload.questions), workload.questions}):
        name = f"{model}, {an_image} pairs an image"
        workload.progress(f"rerank: {name}")
        pairs = _pairs(archive, sizes.images, an_image)
        wanted = Wanted(at_least=(30.0 if on_gpu else 10.0) if an_image >= CANDIDATES else None)
        rows.append(_rerank_row(reranker, pairs, sizes, f"rerank, {name}", wanted, limit_per_s))
    rows.append(_limit_row(rows[-1], name, limit_per_s, on_gpu))
    workload.progress(f"rerank: {model}, one question")
    pairs = _pairs(archive, sizes.candidates, 1)
    wanted = Wanted(at_least=8.0 if on_gpu else 1.0)
    name = f"rerank, {model}, one question (1 pair an image)"
    rows.append(_rerank_row(reranker, pairs, sizes, name, wanted, limit_per_s))
    workload.progress(f"rerank: {model}, answers")
    # Not timed, as above; it depends on the base model only.
    workload.progress(f"rerank: {model}, evidence is {'' if generator.shares_prefixes else 'not '}shared")
    return [*rows, *(_generate_row(generator, archive, sizes, model, a_picture) for a_picture in (1, _FEW_ANSWERS))]


def reference_relevance(reranker: Reranker, pairs: Sequence[Pair], max_new_tokens: int) -> list[float]:
    """P("Yes") of each pair, from one `generate` for each; equal to Reranker.relevance except for rounding."""
    mllm = reranker.mllm
    scores = []
    for pair in pairs:
        inputs = mllm.prepare([pair.prompt()], answer_tokens=1)
        room = mllm.context_tokens - inputs.tensors["input_ids"].shape[1]
        first_step = mllm.generate(inputs, min(max_new_tokens, room)).first_logits[0]
        scores.append(float(first_step[reranker.yes_no].softmax(dim=-1)[0]))
    return scores


def _pairs(archive: PostcardArchive, images: int, an_image: int) -> list[Pair]:
    """The first questions with each of the first images, question by question."""
    cards = [(card.caption, card.picture()) for card in archive.postcards[:images]]
    return [
        Pair(question.text, caption, picture) for question in archive.questions[:an_image] for caption, picture in cards
    ]


def _rerank_row(
    reranker: Reranker, pairs: Sequence[Pair], sizes: _Sizes, name: str, wanted: Wanted, limit_per_s: float
) -> BenchRow:
    every = max(1, len(pairs) // sizes.reference_pairs)

    def ours() -> list[float]:
        return [score.value for score in reranker.relevance(pairs, batch_size=CANDIDATES)]

    reference = partial(reference_relevance, reranker, pairs[::every], sizes.new_tokens)
    speeds = compare(ours, reference, sizes.rounds, every)
    needed = operations_needed(reranker, pairs)
    figures = {
        "largest_difference": speeds.largest_difference,
        # The most that arithmetic allows: operations of all pairs alone divided by those that are needed.
        "operations_saved": operations_of_each_alone(reranker, pairs) / needed,
        "share_of_limit": needed / len(pairs) * speeds.ours_per_s / limit_per_s,
        "parameters": float(reranker.mllm.network.num_parameters()),
    }
    return BenchRow(
        "rerank", name, "one `generate` for each pair", "pairs/s", speeds.ours_per_s, speeds.reference_per_s,
        wanted, figures,
    )  # fmt: skip


def _limit_row(row: BenchRow, name: str, limit_per_s: float, on_gpu: bool) -> BenchRow:
    """The same time compared with the least that arithmetic allows."""
    reached = row.figures["share_of_limit"] * limit_per_s
    return BenchRow(
        "rerank", f"rerank, arithmetic, {name}", "a large matrix product on this device", "GFLOP/s",
        reached / 1e9, limit_per_s / 1e9, Wanted(at_least=0.5 if on_gpu else None),
        note="operations needed: tokens × 2 × parameters, what pairs of one picture share counted once",
    )  # fmt: skip


def _generate_row(
    generator: Generator, archive: PostcardArchive, sizes: _Sizes, model: str, a_picture: int
) -> BenchRow:
    """Answers in a batch compared with one after the other; `a_picture` of them from each picture."""
    shown = [(card.caption, card.picture()) for card in archive.postcards[: sizes.answers // a_picture]]
    requests = [
        AnswerRequest(archive.questions[number % len(archive.questions)].text, (caption,), (picture,))
        for number, (caption, picture) in enumerate(shown * a_picture)
    ]
    tokens = 0

    def answer(batch_size: int) -> list[float]:
        nonlocal tokens
        answers = generator.answer(requests, max_tokens=sizes.answer_tokens, with_captions=True, batch_size=batch_size)
        tokens = sum(answer.tokens for answer in answers)
        return [answer.confidence for answer in answers]

    speeds = compare(partial(answer, len(requests)), partial(answer, 1), sizes.rounds)
    an_answer = tokens / len(requests)
    name = f"generate, {model}, {len(requests)} answers in a batch" + (f", {a_picture} a picture" * (a_picture > 1))
    return BenchRow(
        "rerank", name, "one answer after the other", "tokens/s",
        speeds.ours_per_s * an_answer, speeds.reference_per_s * an_answer,
        figures={"largest_difference": speeds.largest_difference, "tokens_an_answer": an_answer},
    )  # fmt: skip
