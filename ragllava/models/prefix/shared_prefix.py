"""Many questions about the same pictures: the prefix [system, picture, caption] is computed once for all of them.

There are two ways. `packed_logits`: the endings follow the prefix in one sequence; each attends to the prefix and to
itself, and its positions continue those of the prefix. `cached_logits`: the cache of the prefix is repeated for a batch
of endings. Both compute every ending as if it were the only one; which is faster depends on device and model, so the
reranker measures both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch

from ragllava.models.device import DevicePlan, to_device
from ragllava.models.prefix.block_attention import block_attention, plan_blocks
from ragllava.models.prefix.read_columns import last_layer_at


@dataclass(frozen=True, slots=True)
class SharedPrompts:
    """Prompts of the same pictures, as tokens: `prefix` is common to all, `endings` follow it.

    `first` holds the tensors of the pictures (pixels, grid, …) and all tokens of the first prompt.
    """

    prefix: list[int]
    endings: list[list[int]]
    first: dict[str, Any]


def common_length(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with; at least one token of every row is not counted."""
    same = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False))
    return min(len(list(same)), min(map(len, rows)) - 1)


def packed_logits(network: Any, shared: SharedPrompts, plan: DevicePlan, batch_size: int) -> torch.Tensor:
    """Logits of the first answer position behind each ending, (endings, vocabulary) on the device.

    One sequence and one pass for `batch_size` endings. Call it under `torch.inference_mode()`, as `cached_logits`.
    """
    first = positions_of(network, shared)
    return torch.cat([_packed(network, batch, first, plan) for batch in _batches(shared, batch_size)])


def cached_logits(network: Any, shared: SharedPrompts, plan: DevicePlan, batch_size: int) -> torch.Tensor:
    """As `packed_logits`, but the prefix leaves a cache that a batch of endings shares: fewer products, more copies."""
    first = positions_of(network, shared)
    cache = prefix_cache(network, shared, first, plan)
    rows, batches = [], _batches(shared, batch_size)
    for batch in batches:
        # A pass extends its cache, so all but the last take a copy.
        own = cache if batch is batches[-1] else copy.deepcopy(cache)
        rows.append(_cached(network, own, batch, first, plan))
    return torch.cat(rows)


def prefix_cache(network: Any, shared: SharedPrompts, first: torch.Tensor, plan: DevicePlan) -> Any:
    """The keys and values of the prefix, for one row; `first` are the positions of the first prompt."""
    length = len(shared.prefix)
    tensors = {
        **_picture_tensors(shared.first, length),
        "input_ids": torch.tensor([shared.prefix]),
        "attention_mask": torch.ones(1, length, dtype=torch.long),
        "position_ids": first[..., :length],
    }
    with last_layer_at(network, torch.tensor([length - 1], device=plan.device)):
        return network(**to_device(tensors, plan), logits_to_keep=1, use_cache=True).past_key_values


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows as (B, T) int64, padded with 0 on the left so that all end in the last column; and 1 for each token."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[0] * (longest - len(row)) + [*row] for row in rows])
    return tokens, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])


def _packed(network: Any, shared: SharedPrompts, first: torch.Tensor, plan: DevicePlan) -> torch.Tensor:
    prefix, lengths = len(shared.prefix), [len(ending) for ending in shared.endings]
    tokens = [*shared.prefix, *(token for ending in shared.endings for token in ending)]
    ends = (torch.tensor(lengths).cumsum(0) + prefix - 1).to(plan.device)
    behind = [positions_behind(first, shared, torch.arange(length)[None]) for length in lengths]
    tensors = {
        **_picture_tensors(shared.first, len(tokens)),
        "input_ids": torch.tensor([tokens]),
        "position_ids": torch.cat([first[..., :prefix], *behind], dim=-1),
    }
    with block_attention(network, plan_blocks(prefix, lengths, plan)) as mask, last_layer_at(network, ends):
        tensors = to_device(tensors | {"attention_mask": mask}, plan)
        output = network(**tensors, logits_to_keep=ends, use_cache=False)
    logits: torch.Tensor = output.logits[0]
    return logits


def _cached(network: Any, cache: Any, shared: SharedPrompts, first: torch.Tensor, plan: DevicePlan) -> torch.Tensor:
    rows = len(shared.endings)
    cache.batch_repeat_interleave(rows)
    tokens, mask = left_padded(shared.endings)
    tensors = {
        "input_ids": tokens,
        "attention_mask": torch.cat([torch.ones(rows, len(shared.prefix), dtype=torch.long), mask], dim=1),
        "position_ids": positions_behind(first, shared, (mask.cumsum(dim=1) - 1).clamp(min=0)),
    }
    with last_layer_at(network, torch.tensor([tokens.shape[1] - 1], device=plan.device)):
        output = network(**to_device(tensors, plan), past_key_values=cache, logits_to_keep=1, use_cache=True)
    logits: torch.Tensor = output.logits[:, -1]
    return logits


def _batches(shared: SharedPrompts, batch_size: int) -> list[SharedPrompts]:
    starts = range(0, len(shared.endings), batch_size)
    return [replace(shared, endings=shared.endings[start : start + batch_size]) for start in starts]


SharingWay = Callable[[Any, SharedPrompts, DevicePlan, int], torch.Tensor]
WAYS: dict[str, SharingWay] = {"packed": packed_logits, "cached": cached_logits}


def positions_of(network: Any, shared: SharedPrompts) -> torch.Tensor:
    """Positions of the first prompt: (1, T), or (3, 1, T) in families whose pictures have positions of three parts."""
    first = shared.first
    if not hasattr(network.model, "get_rope_index"):
        return torch.arange(first["input_ids"].shape[1])[None]
    names = ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw")
    positions: torch.Tensor = network.model.get_rope_index(**{name: first[name] for name in names if name in first})[0]
    return positions


def positions_behind(first: torch.Tensor, shared: SharedPrompts, steps: torch.Tensor) -> torch.Tensor:
    """Positions `steps` (rows, T) behind the prefix, given those of the first prompt: (rows, T) or (3, rows, T).

    All three parts of the positions of text behind a picture grow by one with each token.
    """
    return first[..., len(shared.prefix), None] + steps  # (1, 1) or (3, 1, 1), and (rows, T)


def _picture_tensors(first: dict[str, Any], tokens: int) -> dict[str, Any]:
    """The inputs of the pictures beside their tokens; types of tokens are made as long as the sequence."""
    text_only = ("input_ids", "attention_mask", "position_ids")
    kept = {name: value for name, value in first.items() if name not in text_only}
    if "mm_token_type_ids" in kept:
        types = kept["mm_token_type_ids"]  # a negative padding cuts
        kept["mm_token_type_ids"] = torch.nn.functional.pad(types, (0, tokens - types.shape[1]))
    return kept
