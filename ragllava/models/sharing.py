"""Whether prompts about the same pictures may share a prefix with this model, and by which way: trials."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from PIL import Image

from ragllava.errors import ScoreRejected
from ragllava.models.fitting import Prompt
from ragllava.models.mllm import Mllm
from ragllava.models.shared_prefix import WAYS, SharedPrompts, SharingWay

log = logging.getLogger(__name__)

TRIALS = 20  # questions of the trial
_TIMED = 3  # passes of each way, the best of which counts: one alone chose the slower way on a busy machine
_TOLERANCE_FP32, _TOLERANCE_HALF = 1e-4, 1e-2  # of a relevance, shared against alone
# What a family raises where a prefix is not what it expects (NotImplementedError is a RuntimeError).
_CANNOT = (RuntimeError, ValueError, TypeError, ScoreRejected)

Shares = Callable[[torch.Tensor], torch.Tensor]  # logits (B, vocabulary) → relevance (B,)


@dataclass(frozen=True, slots=True)
class Sharing:
    """The faster way, and the trial's mean numbers of tokens in a prefix and in an ending.

    `way` None: the network is elsewhere, and keeps prefixes by itself.
    """

    way: SharingWay | None
    prefix_tokens: float
    ending_tokens: float


def try_sharing(mllm: Mllm, shares: Shares, ask: Callable[[str, Image.Image], Prompt]) -> Sharing | None:
    """Try both ways on a trial picture and take the faster of those whose scores are equal to each pair's alone.

    None for a family with none; the log says why (USERS R1, R2). `ask` writes the prompt of a question.
    """
    trials = _trials(ask)
    shared = mllm.share(trials, answer_tokens=1)
    if shared is None:
        _warn(mllm, "prompts cannot share a prefix")
        return None
    alone = torch.cat([shares(mllm.last_logits(mllm.prepare([trial], 1))) for trial in trials])
    seconds = {name: took for name, way in WAYS.items() if (took := _seconds(mllm, shared, name, way, shares, alone))}
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
    the log says why. `ask` writes the prompt of a question.
    """
    try:
        differences = [_answers_apart(mllm, ask, pictures) for pictures in (1, 2)]
    except torch.AcceleratorError:
        raise
    except _CANNOT as error:
        _warn(mllm, f"answers behind one prefix do not work here: {error}")
        return False
    if max(differences) > _tolerance(mllm):
        _warn(mllm, f"answers behind one prefix differ by {max(differences):.1e} from those alone")
        return False
    return True


def _answers_apart(mllm: Mllm, ask: Callable[[str, Sequence[Image.Image]], Prompt], pictures: int) -> float:
    """By how much probabilities of answers about so many pictures differ when three questions share them."""
    shown = [Image.new("RGB", (64, 48), shade) for shade in ("gray", "navy")[:pictures]]
    trials = [ask(f"How many {'big ' * number}windows does tower {number} have?", shown) for number in range(3)]
    shared = mllm.share(trials, answer_tokens=2)
    if shared is None:
        raise NotImplementedError("its prompts fall into other tokens behind a picture")
    together, alone = mllm.generate_shared([shared], 2), mllm.generate(mllm.prepare(trials, 2), 2)
    apart = float((together.first_logits.softmax(-1) - alone.first_logits.softmax(-1)).abs().max())
    steps = min(together.tokens.shape[1], alone.tokens.shape[1])
    if steps == 2:
        first = together.tokens[:, 0]
        compared = (together.tokens == alone.tokens).all(dim=1) & ~torch.isin(
            first, torch.tensor([*mllm.end_token_ids])
        )
        seconds = together.log_probabilities[:, 1].exp() - alone.log_probabilities[:, 1].exp()
        apart = max(apart, float((seconds.abs() * compared).max()))
    return apart


def _warn(mllm: Mllm, why: str) -> None:
    log.warning(f"{mllm.version}: {why}", extra={"action": "prefix_not_shared"})


def _tolerance(mllm: Mllm) -> float:
    return _TOLERANCE_FP32 if mllm.network.dtype == torch.float32 else _TOLERANCE_HALF


def _trials(ask: Callable[[str, Image.Image], Prompt]) -> list[Prompt]:
    picture = Image.new("RGB", (64, 48), "gray")
    return [ask(f"How many {'big ' * (n % 5)}windows does tower {n} have, and why?", picture) for n in range(TRIALS)]


def _as_sharing(shared: SharedPrompts, way: SharingWay | None) -> Sharing:
    return Sharing(way, len(shared.prefix), fmean(map(len, shared.endings)))


def _seconds(
    mllm: Mllm, shared: SharedPrompts, name: str, way: SharingWay, shares: Shares, alone: torch.Tensor
) -> float | None:
    """How long this way takes; None when it does not work here, or not as it should."""
    try:
        difference = float((shares(mllm.shared_logits(shared, way, TRIALS)) - alone).abs().max())
    except torch.AcceleratorError:
        raise
    except _CANNOT as error:
        _warn(mllm, f"a {name} prefix does not work here: {error}")
        return None
    if difference > _tolerance(mllm):
        _warn(mllm, f"scores behind a {name} prefix differ by {difference:.1e} from those alone")
        return None
    seconds = []
    for _ in range(_TIMED):
        began = time.perf_counter()
        mllm.shared_logits(shared, way, TRIALS)
        seconds.append(time.perf_counter() - began)
    return min(seconds)
