"""Attention of endings that are packed behind one prefix, without the products that a mask would discard.

An ending attends to the prefix and to itself only; with a mask over the complete sequence, most products of twenty
questions about one picture would be wasted. Here the prefix attends to itself, and groups of endings attend to the
prefix and to each other. The sums are the same.

transformers finds an attention function by its name in the text model's configuration; `block_attention` sets the name
of the function below for one pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ragllava.models.device import DevicePlan

_NAME = "ragllava_blocks"
# Tokens of a group of endings: larger groups mask more products, smaller ones copy the prefix more often. From 48 to
# 520, this was the best for a prefix of 70 tokens and among the best for one of 590.
_GROUP_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a sequence of a prefix and endings is divided into groups of endings.

    `columns` (groups, R) int64: the positions in the sequence of each group's tokens, padded with 0. `mask` (groups, 1,
    R, prefix + R), additive: what a group's tokens see of the prefix and of each other. `rows` (Σ lengths) int64: which
    of the groups · R computed rows are tokens, in the order of the sequence.
    """

    prefix: int
    tokens: int
    columns: torch.Tensor
    mask: torch.Tensor
    rows: torch.Tensor


def plan_blocks(prefix: int, lengths: Sequence[int], plan: DevicePlan, group_tokens: int = _GROUP_TOKENS) -> Blocks:
    """The groups for endings of these lengths behind `prefix` tokens, on the plan's device in its precision."""
    groups = _groups(lengths, group_tokens)
    widest = max(sum(group) for group in groups)
    columns = torch.zeros(len(groups), widest, dtype=torch.long)
    owner = torch.zeros(len(groups), widest, dtype=torch.long)  # which ending a token belongs to; 0 is padding
    begin = prefix
    for number, group in enumerate(groups):
        total = sum(group)
        columns[number, :total] = torch.arange(begin, begin + total)
        owner[number, :total] = torch.arange(1, len(group) + 1).repeat_interleave(torch.tensor(group))
        begin += total
    own = (owner[:, :, None] == owner[:, None, :]) & torch.ones(widest, widest, dtype=torch.bool).tril()
    visible = torch.cat([torch.ones(len(groups), widest, prefix, dtype=torch.bool), own], dim=2)
    mask = torch.zeros(visible.shape, dtype=plan.dtype).masked_fill(~visible, torch.finfo(plan.dtype).min)
    rows = (owner > 0).flatten().nonzero()[:, 0]
    return Blocks(prefix, begin, columns.to(plan.device), mask[:, None].to(plan.device), rows.to(plan.device))


@contextmanager
def block_attention(network: Any, blocks: Blocks) -> Iterator[torch.Tensor]:
    """Passes of `network` over a sequence with the layout of `blocks` compute attention group by group.

    Pass them the mask that this yields: its values are ignored, but without a mask transformers would make one.
    """
    config = network.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = _NAME
    token = _BLOCKS.set(blocks)
    try:
        yield torch.zeros(1, 1, 1, 1)
    finally:
        _BLOCKS.reset(token)
        config._attn_implementation = before


_BLOCKS: ContextVar[Blocks | None] = ContextVar("blocks", default=None)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The signature that transformers requires: query (1, heads, T, width) → (1, T, heads, width)."""
    blocks = _BLOCKS.get()
    if blocks is None or not query.shape[2] == key.shape[2] == blocks.tokens:
        expected = f"{blocks.tokens} tokens" if blocks else "no blocks"
        raise RuntimeError(f"attention of {query.shape[2]} tokens to {key.shape[2]} where {expected} were expected")
    del attention_mask, is_causal  # the blocks have masks of their own
    prefix = blocks.prefix
    front = (tensor[:, :, :prefix] for tensor in (query, key, value))
    of_prefix: torch.Tensor = sdpa_attention_forward(module, *front, None, is_causal=True, **options)[0]
    keys, values = (_behind_prefix(tensor, blocks) for tensor in (key, value))
    of_endings: torch.Tensor = sdpa_attention_forward(
        module, _grouped(query, blocks), keys, values, blocks.mask, is_causal=False, **options
    )[0]
    return torch.cat([of_prefix[0], of_endings.flatten(0, 1).index_select(0, blocks.rows)])[None], None


def _grouped(tensor: torch.Tensor, blocks: Blocks) -> torch.Tensor:
    """(1, heads, T, width) → (groups, heads, R, width)."""
    heads, width = tensor.shape[1], tensor.shape[3]
    # Several times as fast as indexing by `columns` itself.
    chosen = tensor[0].index_select(1, blocks.columns.flatten())
    return chosen.view(heads, *blocks.columns.shape, width).transpose(0, 1)


def _behind_prefix(tensor: torch.Tensor, blocks: Blocks) -> torch.Tensor:
    """(1, heads, T, width) → (groups, heads, prefix + R, width)."""
    own = _grouped(tensor, blocks)
    return torch.cat([tensor[:, :, : blocks.prefix].expand(len(own), -1, -1, -1), own], dim=2)


def _groups(lengths: Sequence[int], group_tokens: int) -> list[list[int]]:
    """Neighbours in groups of at most `group_tokens`; at least one ending in each group."""
    groups: list[list[int]] = []
    for length in lengths:
        if groups and sum(groups[-1]) + length <= group_tokens:
            groups[-1].append(length)
        else:
            groups.append([length])
    return groups


AttentionInterface.register(_NAME, _attention)
