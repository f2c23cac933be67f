"""Trials of whether prompts about the same pictures may share a prefix with a model, and in which way."""

from __future__ import annotations

import logging
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch.nn.functional import pad

from ragllava.errors import DeviceOutOfMemory, ScoreRejected
from ragllava.models.device import naming_device_errors
from ragllava.models.fitting import Prompt
from ragllava.models.mllm import Generated, Mllm
from ragllava.models.prefix.shared_prefix import WAYS, SharedPrompts, SharingWay
from ragllava.prompts import answer_prompt, rerank_prompt

log = logging.getLogger(__name__)

TRIALS = 20  # questions of the trial
_TIMED = 3  # passes of each way, of which the fastest counts; one pass chose the slower way on a busy machine
_TOLERANCE_FP32, _TOLERANCE_HALF = 1e-4, 1e-2  # of a relevance, shared against alone
# What a family raises if it cannot share a prefix (NotImplementedError is a RuntimeError).
_CANNOT = (RuntimeError, ValueError, TypeError, ScoreRejected)

T = TypeVar("T")
Shares = Callable[[torch.Tensor], torch.Tensor]  # logits of Yes and No (B, 2) → relevance (B,)


@dataclass(frozen=True, slots=True)
class Sharing:
    """The faster way, and the trial's mean numbers of tokens in a prefix and in an ending.

    `way` None: the network is at an endpoint, which has a prefix cache of its own.
    """

    way: SharingWay | None
    prefix_tokens: float
    ending_tokens: float


def once_per_base(results: WeakKeyDictionary[Mllm, T], mllm: Mllm, trial: Callable[[], T], default: T) -> T:
    """The trial's result for this base, from `results` if it was made before; an adapter does not change it.

    `default` if memory runs out; the trial is then made again the next time.
    """
    if mllm not in results:
        try:
            results[mllm] = trial()
        except DeviceOutOfMemory:
            _warn(mllm, "not enough memory to try whether prompts can share a prefix")
            return default
    return results[mllm]


def try_sharing(mllm: Mllm, shares: Shares, yes_no: Sequence[int]) -> Sharing | None:
    """The faster of the ways whose scores on a trial picture equal those of each pair alone.

    None if there is none; the log gives the reason. Raises DeviceOutOfMemory, which says nothing about the family, and
    DeviceLost.
    """
    trials = _trials()
    shared = mllm.share(trials, answer_tokens=1)
    if shared is None:
        _warn(mllm, "prompts cannot share a prefix")
        return None
    rows = mllm.rows_that_fit(len(shared.prefix) + max(map(len, shared.endings)), TRIALS)

    def score(way: SharingWay) -> torch.Tensor:
        return shares(mllm.shared_logits(shared, way, rows, yes_no))

    with naming_device_errors():
        alone = torch.cat([shares(mllm.last_logits(mllm.prepare([trial], 1), yes_no)) for trial in trials])
        difference = 0.0
        if not _is_fp32(mllm):
            batch = shares(mllm.last_logits(mllm.prepare(trials[:rows], 1), yes_no))
            difference = float((batch - alone[:rows]).abs().max())
        tolerance = _tolerance(mllm, difference)
        took = {name: _seconds(mllm, name, partial(score, way), alone, tolerance) for name, way in WAYS.items()}
    seconds = {name: fastest for name, fastest in took.items() if fastest is not None}
    if not seconds:
        return None
    fastest = min(seconds, key=seconds.__getitem__)
    log.info(f"{mllm.version}: prefix {fastest} ({seconds})", extra={"action": "prefix_shared"})
    return _as_sharing(shared, WAYS[fastest])


def assume_sharing(mllm: Mllm) -> Sharing | None:
    """The same for a network at an endpoint: nothing is computed, only the lengths are measured."""
    shared = mllm.share(_trials(), answer_tokens=1)
    return None if shared is None else _as_sharing(shared, None)


def can_share_answers(mllm: Mllm) -> bool:
    """Whether answers behind one prefix equal those of each prompt alone, tried with one picture and with two.

    Compares the probabilities of the first token and, if it is the same and not an end token, that of the second. The
    log gives the reason if they differ. Raises as `try_sharing`.
    """
    try:
        with naming_device_errors():
            differences = [_answers_apart(mllm, pictures) for pictures in (1, 2)]
    except _CANNOT as error:
        _warn(mllm, f"answers cannot share a prefix: {error}")
        return False
    for apart, of_a_batch in differences:
        if apart > _tolerance(mllm, of_a_batch):
            _warn(mllm, f"answers behind one prefix differ by {apart:.1e} from those alone")
            return False
    return True


def _answers_apart(mllm: Mllm, count: int) -> tuple[float, float]:
    """How much the probabilities of three answers about so many pictures differ from those of each alone: behind one
    prefix, and in a batch."""
    pictures = tuple(Image.new("RGB", (64, 48), shade) for shade in ("gray", "navy")[:count])
    questions = [f"How many {'big ' * number}windows does tower {number} have?" for number in range(3)]
    trials = [Prompt(question, ("a caption",) * count, pictures, answer_prompt) for question in questions]
    shared = mllm.share(trials, answer_tokens=2)
    if shared is None:
        raise NotImplementedError("the text behind a picture has other tokens than in the complete prompt")
    together, batch = mllm.generate_shared([shared], 2), mllm.generate(mllm.prepare(trials, 2), 2)
    if _is_fp32(mllm):
        return _apart(mllm, together, batch), 0.0
    alone = [mllm.generate(mllm.prepare([trial], 2), 2) for trial in trials]
    right = Generated(
        torch.cat([pad(row.tokens, (0, 2 - row.tokens.shape[1])) for row in alone]),
        torch.cat([pad(row.log_probabilities, (0, 2 - row.tokens.shape[1])) for row in alone]),
        torch.cat([row.first_logits for row in alone]),
    )
    return _apart(mllm, together, right), _apart(mllm, batch, right)


def _apart(mllm: Mllm, answers: Generated, right: Generated) -> float:
    apart = float((answers.first_logits.softmax(-1) - right.first_logits.softmax(-1)).abs().max())
    steps = min(answers.tokens.shape[1], right.tokens.shape[1])
    if steps == 2:
        first = answers.tokens[:, 0]
        compared = (answers.tokens == right.tokens).all(dim=1) & ~torch.isin(first, torch.tensor([*mllm.end_token_ids]))
        seconds = answers.log_probabilities[:, 1].exp() - right.log_probabilities[:, 1].exp()
        apart = max(apart, float((seconds.abs() * compared).max()))
    return apart


def _warn(mllm: Mllm, why: str) -> None:
    log.warning(f"{mllm.version}: {why}", extra={"action": "prefix_not_shared"})


def _is_fp32(mllm: Mllm) -> bool:
    return bool(mllm.network.dtype == torch.float32)


def _tolerance(mllm: Mllm, of_a_batch: float) -> float:
    """In half precision a batch differs from each row alone, too; a prefix need not be better."""
    return _TOLERANCE_FP32 if _is_fp32(mllm) else max(_TOLERANCE_HALF, 2 * of_a_batch)


def _trials() -> list[Prompt]:
    pictures = (Image.new("RGB", (64, 48), "gray"),)
    questions = [f"How many {'big ' * (n % 5)}windows does tower {n} have, and why?" for n in range(TRIALS)]
    return [Prompt(question, ("a caption",), pictures, rerank_prompt) for question in questions]


def _as_sharing(shared: SharedPrompts, way: SharingWay | None) -> Sharing:
    return Sharing(way, len(shared.prefix), fmean(map(len, shared.endings)))


def _seconds(
    mllm: Mllm, name: str, score: Callable[[], torch.Tensor], alone: torch.Tensor, tolerance: float
) -> float | None:
    """How long this way takes; None if it fails or gives other scores."""
    try:
        with naming_device_errors():
            difference = float((score() - alone).abs().max())
    except _CANNOT as error:
        _warn(mllm, f"a {name} prefix fails: {error}")
        return None
    if difference > tolerance:
        _warn(mllm, f"scores behind a {name} prefix differ by {difference:.1e} from those alone")
        return None
    return min(timeit.repeat(score, number=1, repeat=_TIMED))
