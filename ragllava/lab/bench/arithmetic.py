"""The arithmetic limit: the operations that a piece of work needs, and those per second of the device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.benchmark import Timer

from ragllava.models.mllm import Mllm
from ragllava.models.prefix.read_columns import narrowed_modules
from ragllava.models.reranker import Pair, Reranker

_SIDE = {"cuda": 8_192, "cpu": 1_536}  # of the square matrices that are multiplied: large enough to fill the device
_TRIALS = 5


def matmul_rate(mllm: Mllm) -> float:
    """Operations per second of the fastest of several large matrix products, on the network's device in its dtype."""
    device, dtype = mllm.network.device, mllm.network.dtype
    side = _SIDE.get(device.type, _SIDE["cpu"])
    matrices = {name: torch.randn(side, side, device=device, dtype=dtype) for name in ("left", "right")}
    timer = Timer("torch.mm(left, right)", globals=matrices | {"torch": torch}, num_threads=torch.get_num_threads())
    return 2 * side**3 / min(timer.timeit(1).mean for _ in range(_TRIALS))


def operations_needed(reranker: Reranker, pairs: Sequence[Pair]) -> int:
    """Tokens that must be read to score the pairs, times 2, times the parameters that each token is multiplied with.

    What the pairs of one picture have in common counts once: the picture in the vision tower, and its tokens and
    caption in the language model. In the last layer, tokens that do not answer need keys and values only. Attention is
    left out, as usual, so the true need is slightly higher.
    """
    parameters = _parameters(reranker.mllm.network)
    of_picture: dict[int, list[Pair]] = defaultdict(list)
    for pair in pairs:
        of_picture[id(pair.picture)].append(pair)
    operations = 2 * (parameters.head + parameters.answering) * len(pairs)
    for group in of_picture.values():
        text, picture = _tokens(reranker.mllm, group)
        operations += 2 * ((parameters.language - parameters.answering) * text + parameters.vision * picture)
    return operations


def operations_of_each_alone(reranker: Reranker, pairs: Sequence[Pair]) -> int:
    """The same if every pair is computed separately, and every layer at every token."""
    parameters = _parameters(reranker.mllm.network)
    tokens = [_tokens(reranker.mllm, [pair]) for pair in pairs]
    return sum(
        2 * (parameters.language * text + parameters.vision * picture + parameters.head) for text, picture in tokens
    )


def _tokens(mllm: Mllm, pairs: Sequence[Pair]) -> tuple[int, int]:
    """For pairs of one picture: the tokens of the language model, and how many of them are the picture's."""
    prompts = [pair.prompt() for pair in pairs]
    shared = mllm.share(prompts, answer_tokens=1)
    image_token = mllm.processor.image_token_id
    if shared is not None:
        return len(shared.prefix) + sum(map(len, shared.endings)), shared.prefix.count(image_token)
    inputs = mllm.prepare(prompts, answer_tokens=1).tensors
    return int(inputs["attention_mask"].sum()), int((inputs["input_ids"][0] == image_token).sum())


@dataclass(frozen=True, slots=True)
class _Parameters:
    """How many parameters a token is multiplied with: on the vision side and in the layers of the language model. Only
    the position of an answer uses the head and those parts of the last layer that are `answering` (they are part of
    `language`)."""

    vision: int
    language: int
    answering: int
    head: int


def _parameters(network: Any) -> _Parameters:
    head = network.get_output_embeddings().weight
    counts = {"vision": 0, "language": 0}
    for name, parameter in network.named_parameters():
        if parameter is not head and "embed_tokens" not in name:
            counts["language" if "language_model" in name else "vision"] += parameter.numel()
    answering = sum(parameter.numel() for module in narrowed_modules(network) for parameter in module.parameters())
    return _Parameters(**counts, answering=answering, head=head.numel())
