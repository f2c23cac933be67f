"""The limit that arithmetic sets: how many operations a piece of work needs, and how many the device does a second."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ragllava.models.mllm import Mllm
from ragllava.models.prefix.read_columns import narrowed_modules
from ragllava.models.reranker import Pair, Reranker

_SIDE = {"cuda": 8_192, "cpu": 1_536}  # of the square matrices that are multiplied: large enough to fill the device
_TRIALS = 5


def device_name(mllm: Mllm) -> str:
    """`cpu`, or what the accelerator calls itself."""
    device = mllm.network.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type)


def on_accelerator(mllm: Mllm) -> bool:
    """Whether the network runs on something else than the CPU."""
    return bool(mllm.network.device.type != "cpu")


def count_parameters(mllm: Mllm) -> int:
    """Of the whole network."""
    return sum(parameter.numel() for parameter in mllm.network.parameters())


@torch.inference_mode()
def matmul_rate(mllm: Mllm) -> float:
    """Operations per second of the best of some large matrix products, on the network's device in its precision."""
    device, dtype = mllm.network.device, mllm.network.dtype
    side = _SIDE.get(device.type, _SIDE["cpu"])
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(_TRIALS + 1):  # the first one warms up
        _synchronise(device)
        began = time.perf_counter()
        torch.mm(left, right)
        _synchronise(device)
        seconds.append(time.perf_counter() - began)
    return float(2 * side**3 / min(seconds[1:]))


def operations_needed(reranker: Reranker, pairs: Sequence[Pair]) -> int:
    """Tokens that must be read to score the pairs, times 2, times the parameters that each token meets.

    What the pairs of one picture have in common counts once: the picture in the vision tower, and its tokens and
    caption in the language model. Of the last layer, only keys and values are needed of tokens that do not answer.
    Attention is left out, as is usual; so the true need is a little higher.
    """
    met = _parameters(reranker.mllm.network)
    of_picture: dict[int, list[Pair]] = defaultdict(list)
    for pair in pairs:
        of_picture[id(pair.picture)].append(pair)
    operations = 2 * (met.head + met.answering) * len(pairs)
    for some in of_picture.values():
        text_tokens, picture_tokens = _tokens(reranker.mllm, some)
        operations += 2 * ((met.language - met.answering) * text_tokens + met.vision * picture_tokens)
    return operations


def operations_of_each_alone(reranker: Reranker, pairs: Sequence[Pair]) -> int:
    """The same when every pair is computed by itself, and every layer at every token."""
    met = _parameters(reranker.mllm.network)
    tokens = [_tokens(reranker.mllm, [pair]) for pair in pairs]
    return sum(2 * (met.language * text + met.vision * picture + met.head) for text, picture in tokens)


def _tokens(mllm: Mllm, pairs: Sequence[Pair]) -> tuple[int, int]:
    """Of pairs of one picture: tokens of the language model, and those of them that are the picture's."""
    prompts = [pair.prompt() for pair in pairs]
    shared = mllm.share(prompts, answer_tokens=1)
    image_token = mllm.processor.image_token_id
    if shared is not None:
        return len(shared.prefix) + sum(map(len, shared.endings)), shared.prefix.count(image_token)
    inputs = mllm.prepare(prompts, answer_tokens=1).tensors
    return int(inputs["attention_mask"].sum()), int((inputs["input_ids"][0] == image_token).sum())


@dataclass(frozen=True, slots=True)
class _Parameters:
    """How many parameters a token meets: on the vision side, in the language model's layers, and an answer's position
    alone in the head and in those parts of the last layer that are `answering` (they are part of `language`)."""

    vision: int
    language: int
    answering: int
    head: int


def _parameters(network: Any) -> _Parameters:
    head = network.get_output_embeddings().weight
    vision = language = 0
    for name, parameter in network.named_parameters():
        if parameter is head or "embed_tokens" in name:
            continue
        if "language_model" in name:
            language += parameter.numel()
        else:
            vision += parameter.numel()
    answering = sum(one.numel() for module in narrowed_modules(network) for one in module.parameters())
    return _Parameters(vision, language, answering, head.numel())


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
