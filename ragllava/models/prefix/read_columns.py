"""Compute the end of the network only where it is read: the last layer at the answer positions, and the logits of the
answer tokens.

A pass that scores is read at one position for each question. Every layer but the last must be computed at all
positions, because the next layer attends to them; the last layer needs only its keys and values there. Its query and
output projections and its feed-forward block are most of its products, so a model of L layers saves almost 1 / L of its
work. Of the vocabulary, two tokens are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

# Of the last layer; each maps every position on its own, so omitting positions does not change the others. A family
# with other names (one projection for queries, keys and values) computes them at all positions.
_BY_POSITION = ("self_attn.q_proj", "self_attn.o_proj", "mlp")


@contextmanager
def last_layer_at(network: Any, columns: torch.Tensor) -> Iterator[None]:
    """Passes of `network` compute the last layer only at `columns` (C,) int64 of the sequence; elsewhere it is zero.

    Only the logits at these columns and the cache may be used.
    """
    hooks = [hook for module in narrowed_modules(network) for hook in _narrow(module, columns)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def logits_of(network: Any, tokens: Sequence[int]) -> Iterator[None]:
    """Passes of `network` give the logits of `tokens` only, in that order, as float32.

    In float32 even if the network is not: the step of bfloat16 from 16 to 32 is an eighth, so relevances would have
    steps of 0.03 and ties, and others in another batch.
    """
    head = network.get_output_embeddings()
    if type(head) is not torch.nn.Linear:  # for example with an adapter
        hook = head.register_forward_hook(lambda _, __, logits: logits[..., list(tokens)].float())
        try:
            yield
        finally:
            hook.remove()
        return
    rows = head.weight[list(tokens)].float()
    bias = None if head.bias is None else head.bias[list(tokens)].float()
    vars(head)["forward"] = lambda hidden: linear(hidden.float(), rows, bias)
    try:
        yield
    finally:
        del vars(head)["forward"]  # restores the method of the class


def narrowed_modules(network: Any) -> list[torch.nn.Module]:
    """The parts of the last layer that are computed only where they are read; none if a family's layers are unknown."""
    layers = getattr(network.get_decoder(), "layers", None)
    if layers is None:
        return []
    present = dict(layers[-1].named_modules())
    return [present[name] for name in _BY_POSITION if name in present]


def _narrow(module: torch.nn.Module, columns: torch.Tensor) -> tuple[RemovableHandle, RemovableHandle]:
    length = 0

    def narrow(_: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal length
        length = inputs[0].shape[1]
        return (inputs[0].index_select(1, columns), *inputs[1:])

    def widen(_: torch.nn.Module, __: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        widened = output.new_zeros(output.shape[0], length, *output.shape[2:])
        return widened.index_copy_(1, columns, output)

    return module.register_forward_pre_hook(narrow), module.register_forward_hook(widen)
