"""Whether prompts about the same pictures may share a prefix with this model, and by which way: trials."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch.nn.functional import pad

from ragllava.errors import DeviceOutOfMemory, ScoreRejected
from ragllava.models.device import naming_device_errors
from ragllava.models.fitting import Prompt
from ragllava.models.mllm import Generated, Mllm
from ragllava.models.prefix.shared_prefix import WAYS, SharedPrompts, SharingWay

log = logging.getLogger(__name__)

TRIALS = 20  # questions of the trial
_TIMED = 3  # passes of each way, the best of which counts: one alone chose the slower way on a busy machine
_TOLERANCE_FP32, _TOLERANCE_HALF = 1e-4, 1e-2  # of a relevance, shared against alone
# What a family raises where a prefix is not what it expects (NotImplementedError is a RuntimeError).
_CANNOT = (RuntimeError, ValueError, TypeError, ScoreRejected)

T = TypeVar("T")
Shares = Callable[[torch.Tensor], torch.Tensor]  # logits of Yes and No (B, 2) → relevance (B,)


@dataclass(frozen=True, slots=True)
class Sharing:
    """The faster way, and the trial's mean numbers of tokens in a prefix and in an ending.

    `way` None: the network is elsewhere, and keeps prefixes by itself.
    """

    way: SharingWay | None
    prefix_tokens: float
    ending_tokens: float


class OncePerBase(Generic[T]):
    """What a trial found of a base, kept as long as that. A trial that lacked memory is made again the next time."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._found: WeakKeyDictionary[Mllm, T] = WeakKeyDictionary()

    def of(self, mllm: Mllm, trial: Callable[[], T], until_then: T) -> T:
        """What the trial says, or `until_then` where it found no room."""
        if mllm not in self._found:
            try:
                self._found[mllm] = trial()
            except DeviceOutOfMemory:
                _warn(mllm, "no memory is left to try whether prompts can share a prefix")
                return until_then
        return self._found[mllm]


def try_sharing(
    mllm: Mllm, shares: Shares, yes_no: Sequence[int], ask: Callable[[str, Image.Image], Prompt]
) -> Sharing | None:
    """Try both ways on a trial picture and take the faster of those whose scores are equal to each pair's alone.

    None for a family with none; the log says why. `ask` writes the prompt of a question. Raises
    DeviceOutOfMemory, which says nothing about the family, and DeviceLost.
    """
    trials = _trials(ask)
    shared = mllm.share(trials, answer_tokens=1)
    if shared is None:
        _warn(mllm, "prompts cannot share a prefix")
        return None
    rows = mllm.rows_that_fit(len(shared.prefix) + max(map(len, shared.endings)), TRIALS)

    def score(way: SharingWay) -> torch.Tensor:
        return shares(mllm.shared_logits(shared, way, rows, yes_no))

    with naming_device_errors():
        alone = torch.cat([shares(mllm.last_logits(mllm.prepare([trial], 1), yes_no)) for trial in trials])
        tolerance = _TOLERANCE_FP32
        if not _is_fp32(mllm):
            batch = shares(mllm.last_logits(mllm.prepare(trials[:rows], 1), yes_no))
            tolerance = _tolerance_half(float((batch - alone[:rows]).abs().max()))
        took = {name: _seconds(mllm, name, partial(score, way), alone, tolerance) for name, way in WAYS.items()}
    seconds = {name: some for name, some in took.items() if some is not None}
    if not seconds:
        return None
    fastest = min(seconds, key=seconds.__getitem__)
    log.info(f"{mllm.version}: prefix {fastest} ({seconds})", extra={"action": "prefix_shared"})
    return _as_sharing(shared, WAYS[fastest])


def assume_sharing(mllm: Mllm, ask: Callable[[str, Image.Image], Prompt]) -> Sharing | None:
    """The same for a network elsewhere: nothing is computed, so only the lengths are looked at."""
    shared = mllm.share(_trials(ask), answer_tokens=1)
    return None if shared is None else _as_sharing(shared, None)


def can_share_answers(mllm: Mllm, ask: Callable[[str, Sequence[Image.Image]], Prompt]) -> bool:
    """Whether answers behind one prefix are those of each prompt alone, tried with one picture and with two.

    Compared are the probabilities of the first token and, where it is the same and no end, that of the second. If not,
    the log says why. `ask` writes the prompt of a question. Raises as `try_sharing`.
    """
    try:
        with naming_device_errors():
            differences = [_answers_apart(mllm, ask, pictures) for pictures in (1, 2)]
    except _CANNOT as error:
        _warn(mllm, f"answers behind one prefix do not work here: {error}")
        return False
    for apart, of_a_batch in differences:
        if apart > (_TOLERANCE_FP32 if _is_fp32(mllm) else _tolerance_half(of_a_batch)):
            _warn(mllm, f"answers behind one prefix differ by {apart:.1e} from those alone")
            return False
    return True


def _answers_apart(
    mllm: Mllm, ask: Callable[[str, Sequence[Image.Image]], Prompt], pictures: int
) -> tuple[float, float]:
    """By how much probabilities of answers about so many pictures differ from those alone when three questions share
    them, and when they are merely a batch."""
    shown = [Image.new("RGB", (64, 48), shade) for shade in ("gray", "navy")[:pictures]]
    trials = [ask(f"How many {'big ' * number}windows does tower {number} have?", shown) for number in range(3)]
    shared = mllm.share(trials, answer_tokens=2)
    if shared is None:
        raise NotImplementedError("its prompts fall into other tokens behind a picture")
    together, batch = mllm.generate_shared([shared], 2), mllm.generate(mllm.prepare(trials, 2), 2)
    if _is_fp32(mllm):
        return _apart(mllm, together, batch), 0.0
    alone = [mllm.generate(mllm.prepare([trial], 2), 2) for trial in trials]
    right = Generated(
        torch.cat([pad(one.tokens, (0, 2 - one.tokens.shape[1])) for one in alone]),
        torch.cat([pad(one.log_probabilities, (0, 2 - one.tokens.shape[1])) for one in alone]),
        torch.cat([one.first_logits for one in alone]),
    )
    return _apart(mllm, together, right), _apart(mllm, batch, right)


def _apart(mllm: Mllm, found: Generated, right: Generated) -> float:
    apart = float((found.first_logits.softmax(-1) - right.first_logits.softmax(-1)).abs().max())
    steps = min(found.tokens.shape[1], right.tokens.shape[1])
    if steps == 2:
        first = found.tokens[:, 0]
        compared = (found.tokens == right.tokens).all(dim=1) & ~torch.isin(first, torch.tensor([*mllm.end_token_ids]))
        seconds = found.log_probabilities[:, 1].exp() - right.log_probabilities[:, 1].exp()
        apart = max(apart, float((seconds.abs() * compared).max()))
    return apart


def _warn(mllm: Mllm, why: str) -> None:
    log.warning(f"{mllm.version}: {why}", extra={"action": "prefix_not_shared"})


def _is_fp32(mllm: Mllm) -> bool:
    return bool(mllm.network.dtype == torch.float32)


def _tolerance_half(of_a_batch: float) -> float:
    """In half precision a plain batch differs from each row alone, too; no more is asked of a prefix."""
    return max(_TOLERANCE_HALF, 2 * of_a_batch)


def _trials(ask: Callable[[str, Image.Image], Prompt]) -> list[Prompt]:
    picture = Image.new("RGB", (64, 48), "gray")
    return [ask(f"How many {'big ' * (n % 5)}windows does tower {n} have, and why?", picture) for n in range(TRIALS)]


def _as_sharing(shared: SharedPrompts, way: SharingWay | None) -> Sharing:
    return Sharing(way, len(shared.prefix), fmean(map(len, shared.endings)))


def _seconds(
    mllm: Mllm, name: str, score: Callable[[], torch.Tensor], alone: torch.Tensor, tolerance: float
) -> float | None:
    """How long this way takes; None when it does not work here, or not as it should."""
    try:
        with naming_device_errors():
            difference = float((score() - alone).abs().max())
    except _CANNOT as error:
        _warn(mllm, f"a {name} prefix does not work here: {error}")
        return None
    if difference > tolerance:
        _warn(mllm, f"scores behind a {name} prefix differ by {difference:.1e} from those alone")
        return None
    seconds = []
    for _ in range(_TIMED):
        began = time.perf_counter()
        score()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
