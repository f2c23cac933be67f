"""Many questions behind the same pictures: the prefix [system, picture, caption] is computed once for all of them.

There are two ways. `packed_logits`: the endings stand one after another behind the prefix in one sequence, a mask lets
each see the prefix and itself, and its positions go on where the prefix ends. `cached_logits`: the prefix leaves a
cache that is repeated for a batch of endings. Both compute every ending as if it stood there alone; which is faster
depends on device and model, so the reranker tries.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ragllava.models.device import DevicePlan, to_device
from ragllava.models.prefix.block_attention import attending_by_blocks, can_attend_by_blocks, plan_blocks
from ragllava.models.prefix.read_columns import reading_only


@dataclass(frozen=True, slots=True)
class SharedPrompts:
    """Prompts of the same pictures, as tokens: `prefix` is common to all, `endings` are what comes after it.

    `first` holds the pictures' own tensors (pixels, grid, …) and all tokens of the first prompt.
    """

    prefix: list[int]
    endings: list[list[int]]
    first: dict[str, Any]


def common_length(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with; every row keeps at least one of its own."""
    shortest = min(map(len, rows)) - 1
    for place in range(shortest):
        if len({row[place] for row in rows}) > 1:
            return place
    return shortest


def packed_logits(network: Any, shared: SharedPrompts, plan: DevicePlan, batch_size: int) -> torch.Tensor:
    """Logits of the first answer position behind each ending, (endings, vocabulary) on the device.

    One sequence and one pass for `batch_size` endings. Call it under `torch.inference_mode()`, as `cached_logits`.
    """
    whole = positions_of(network, shared)
    rows = [_packed(network, shared, batch, whole, plan) for batch in _batches(shared.endings, batch_size)]
    return torch.cat(rows)


def cached_logits(network: Any, shared: SharedPrompts, plan: DevicePlan, batch_size: int) -> torch.Tensor:
    """The same by a cache of the prefix, repeated for each batch of endings: fewer products, more copies."""
    whole = positions_of(network, shared)
    cache = prefix_cache(network, shared, whole, plan)
    batches = _batches(shared.endings, batch_size)
    rows = []
    for number, batch in enumerate(batches):
        # A pass lengthens its cache, so all but the last take a copy.
        own = cache if number == len(batches) - 1 else copy.deepcopy(cache)
        rows.append(_behind_cache(network, own, shared, batch, whole, plan))
    return torch.cat(rows)


def prefix_cache(network: Any, shared: SharedPrompts, whole: torch.Tensor, plan: DevicePlan) -> Any:
    """The keys and values that the prefix leaves, of one row; `whole` are the first prompt's positions."""
    length = len(shared.prefix)
    tensors = {
        **_picture_tensors(shared.first, length),
        "input_ids": torch.tensor([shared.prefix]),
        "attention_mask": torch.ones(1, length, dtype=torch.long),
        "position_ids": whole[..., :length],
    }
    with reading_only(network, column(length - 1, plan.device)):
        return network(**to_device(tensors, plan), logits_to_keep=1, use_cache=True).past_key_values


def _packed(
    network: Any, shared: SharedPrompts, endings: Sequence[list[int]], whole: torch.Tensor, plan: DevicePlan
) -> torch.Tensor:
    lengths = [len(ending) for ending in endings]
    tokens = [*shared.prefix, *(token for ending in endings for token in ending)]
    ends = (torch.tensor(lengths).cumsum(0) + len(shared.prefix) - 1).to(plan.device)
    behind = [positions_behind(whole, shared, torch.arange(length)[None]) for length in lengths]
    tensors = {
        **_picture_tensors(shared.first, len(tokens)),
        "input_ids": torch.tensor([tokens]),
        "position_ids": torch.cat([whole[..., : len(shared.prefix)], *behind], dim=-1),
    }
    with _looking_apart(network, lengths, len(shared.prefix), plan) as mask, reading_only(network, ends):
        tensors = to_device(tensors | {"attention_mask": mask}, plan)
        output = network(**tensors, logits_to_keep=ends, use_cache=False)
    logits: torch.Tensor = output.logits[0]
    return logits


def _looking_apart(
    network: Any, lengths: Sequence[int], prefix: int, plan: DevicePlan
) -> AbstractContextManager[torch.Tensor]:
    """Where each ending sees the prefix and itself; gives the mask to pass on."""
    if can_attend_by_blocks(network):
        return attending_by_blocks(network, plan_blocks(prefix, lengths, plan))
    return nullcontext(block_mask(prefix, lengths, plan.dtype))


def _behind_cache(
    network: Any,
    cache: Any,
    shared: SharedPrompts,
    endings: Sequence[list[int]],
    whole: torch.Tensor,
    plan: DevicePlan,
) -> torch.Tensor:
    cache.batch_repeat_interleave(len(endings))
    longest = max(map(len, endings))
    # Padded on the left, so that every answer begins behind the last column.
    tokens = torch.tensor([[0] * (longest - len(ending)) + ending for ending in endings])
    mask = torch.tensor([[0] * (longest - len(ending)) + [1] * len(ending) for ending in endings])
    tensors = {
        "input_ids": tokens,
        "attention_mask": torch.cat([torch.ones(len(endings), len(shared.prefix), dtype=torch.long), mask], dim=1),
        "position_ids": positions_behind(whole, shared, (mask.cumsum(dim=1) - 1).clamp(min=0)),
    }
    with reading_only(network, column(longest - 1, plan.device)):
        output = network(**to_device(tensors, plan), past_key_values=cache, logits_to_keep=1, use_cache=True)
    logits: torch.Tensor = output.logits[:, -1]
    return logits


def column(place: int, device: torch.device) -> torch.Tensor:
    """One column to read, as `reading_only` wants it."""
    return torch.tensor([place], device=device)


def _batches(endings: Sequence[list[int]], batch_size: int) -> list[Sequence[list[int]]]:
    return [endings[start : start + batch_size] for start in range(0, len(endings), batch_size)]


def block_mask(prefix: int, lengths: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """An additive mask (1, 1, T, T) of T = prefix + Σ lengths tokens: 0 where a token may look, else the lowest number.

    The prefix looks at itself, an ending at the prefix and at itself, both only backwards.
    """
    block = torch.cat([torch.zeros(prefix, dtype=torch.long)] + [
        torch.full((length,), number) for number, length in enumerate(lengths, 1)
    ])  # fmt: skip
    backwards = torch.ones(len(block), len(block), dtype=torch.bool).tril()
    visible = backwards & ((block[None, :] == 0) | (block[:, None] == block[None, :]))
    return torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)[None, None]


SharingWay = Callable[[Any, SharedPrompts, DevicePlan, int], torch.Tensor]
WAYS: dict[str, SharingWay] = {"packed": packed_logits, "cached": cached_logits}


def positions_of(network: Any, shared: SharedPrompts) -> torch.Tensor:
    """Of the first prompt: (1, T), or (3, 1, T) of families whose pictures have three-part positions."""
    first = shared.first
    if not hasattr(network.model, "get_rope_index"):
        return torch.arange(first["input_ids"].shape[1])[None]
    names = ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw")
    whole: torch.Tensor = network.model.get_rope_index(**{name: first[name] for name in names if name in first})[0]
    return whole


def positions_behind(whole: torch.Tensor, shared: SharedPrompts, steps: torch.Tensor) -> torch.Tensor:
    """Positions `steps` (rows, T) behind the prefix; text after a picture counts on by one in all three parts alike."""
    begin = whole[..., len(shared.prefix)]  # (1,) or (3, 1)
    return begin[..., None] + steps if begin.ndim == 1 else begin[..., None] + steps[None]


def _picture_tensors(first: dict[str, Any], tokens: int) -> dict[str, Any]:
    """What the network wants of a picture beside its tokens; kinds of tokens are made as long as the sequence."""
    text_only = ("input_ids", "attention_mask", "position_ids")
    kept = {name: value for name, value in first.items() if name not in text_only}
    kinds = kept.get("mm_token_type_ids")
    if kinds is not None:
        length = min(tokens, kinds.shape[1])
        kept["mm_token_type_ids"] = torch.nn.functional.pad(kinds[:, :length], (0, tokens - length))
    return kept
