"""Answers to many questions about the same pictures: what precedes the questions is computed once for all of them.

The prefix of each set of pictures gives a cache. The caches, padded on the left to one length, become the rows of a
batch, one for each question. The batch is continued greedily; a row whose answer has ended leaves it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.functional import pad

from ragllava.models.device import DevicePlan, to_device
from ragllava.models.prefix.read_columns import last_layer_at
from ragllava.models.prefix.shared_prefix import (
    SharedPrompts,
    left_padded,
    positions_behind,
    positions_of,
    prefix_cache,
)

Layers = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values (rows, heads, tokens, width) of each layer


def continue_greedily(
    network: Any, groups: Sequence[SharedPrompts], plan: DevicePlan, max_tokens: int, ends: Collection[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(tokens (B, T) int64, log-probability of each (B, T), logits of the first step (B, vocabulary)) on the device.

    B counts the endings of all groups, in order. Behind its end token, a row is padded with it, of log-probability 0.
    Call it under `torch.inference_mode()`. Raises NotImplementedError if the network has another kind of cache.
    """
    firsts = [positions_of(network, shared) for shared in groups]
    cache, prefix_mask = _as_rows(network, groups, firsts, plan)
    tokens, mask = left_padded([ending for shared in groups for ending in shared.endings])
    steps = torch.split((mask.cumsum(dim=1) - 1).clamp(min=0), [len(shared.endings) for shared in groups])
    positions = [positions_behind(*group) for group in zip(firsts, groups, steps, strict=True)]
    tensors = {
        "input_ids": tokens,
        "attention_mask": torch.cat([prefix_mask, mask], dim=1),
        "position_ids": torch.cat(positions, dim=-2),
    }
    return _continue(network, cache, to_device(tensors, plan), max_tokens, sorted(ends))


def _as_rows(
    network: Any, groups: Sequence[SharedPrompts], firsts: Sequence[torch.Tensor], plan: DevicePlan
) -> tuple[Any, torch.Tensor]:
    """The groups' caches as one, a row for each ending; and 1 for each column with a token, (B, longest prefix)."""
    from transformers import DynamicCache

    caches = [_layers(prefix_cache(network, shared, first, plan)) for shared, first in zip(groups, firsts, strict=True)]
    rows = [len(shared.endings) for shared in groups]
    _, mask = left_padded([shared.prefix for shared in groups])

    def joined(layer: int, part: int) -> torch.Tensor:
        return torch.cat([
            pad(layers[layer][part], (0, 0, mask.shape[1] - layers[layer][part].shape[-2], 0)).expand(count, -1, -1, -1)
            for layers, count in zip(caches, rows, strict=True)
        ])  # fmt: skip

    cache = DynamicCache([(joined(layer, 0), joined(layer, 1)) for layer in range(len(caches[0]))])
    return cache, mask.repeat_interleave(torch.tensor(rows), dim=0)


def _layers(cache: Any) -> Layers:
    from transformers.cache_utils import DynamicLayer

    # A sliding window, or a state in place of keys and values, cannot be padded.
    if not all(type(layer) is DynamicLayer for layer in getattr(cache, "layers", [None])):
        raise NotImplementedError("the network does not keep all keys and values")
    return [(layer.keys, layer.values) for layer in cache.layers]


def _continue(
    network: Any, cache: Any, tensors: dict[str, Any], max_tokens: int, ends: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    count, device = len(tensors["input_ids"]), tensors["input_ids"].device
    end_tokens = torch.tensor(ends, device=device)
    tokens = torch.full((count, max_tokens), ends[0], device=device)
    log_probabilities = torch.zeros(count, max_tokens, device=device)
    first_logits: torch.Tensor | None = None
    alive = torch.arange(count, device=device)
    for step in range(max_tokens):
        width = tensors["input_ids"].shape[1]
        with last_layer_at(network, torch.tensor([width - 1], device=device)) if width > 1 else nullcontext():
            output = network(**tensors, past_key_values=cache, logits_to_keep=1, use_cache=True)
        logits = output.logits[:, -1].float()
        first_logits = logits if first_logits is None else first_logits
        chosen = logits.argmax(dim=-1, keepdim=True)
        tokens[alive, step] = chosen[:, 0]
        log_probabilities[alive, step] = logits.log_softmax(-1).gather(1, chosen)[:, 0]
        going = (~torch.isin(chosen[:, 0], end_tokens)).nonzero()[:, 0]
        if not len(going) or step + 1 == max_tokens:
            break
        if len(going) < len(alive):
            alive = alive[going]
            cache.batch_select_indices(going)
        tensors = {
            "input_ids": chosen[going],
            "attention_mask": pad(tensors["attention_mask"][going], (0, 1), value=1),
            "position_ids": tensors["position_ids"].index_select(-2, going)[..., -1:] + 1,
        }
    assert first_logits is not None, "max_tokens is at least 1"  # noqa: S101 - for the type checker
    return tokens[:, : step + 1], log_probabilities[:, : step + 1], first_logits
