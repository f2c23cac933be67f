"""What a pass that scores computes of the network's end: the last layer at the answer positions alone, and the logits
of the answer tokens alone.

Of a pass that scores, one position of each question is read. Every layer but the last has to be computed everywhere,
for the next one looks at all positions; of the last, only the keys and values have to. Its query and output projections
and its feed-forward block are most of its products, so a model of L layers is spared almost 1 / L of its work. Of the
vocabulary, two tokens are asked about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.functional import linear

# Of the last layer; each maps every position by itself, so leaving positions out changes no other one. A family that
# names them otherwise (one projection for queries, keys and values) computes them everywhere.
_BY_POSITION = ("self_attn.q_proj", "self_attn.o_proj", "mlp")


@contextmanager
def reading_only(network: Any, columns: torch.Tensor) -> Iterator[None]:
    """Passes of `network` compute the last layer only at `columns` (C,) int64 of the sequence; elsewhere it is zero.

    Logits may be asked for at these columns only, and no other output than them and the cache may be used.
    """
    with ExitStack() as hooks:
        for module in narrowed_modules(network):
            hooks.enter_context(_narrowed(module, columns))
        yield


@contextmanager
def asking_for(network: Any, tokens: Sequence[int]) -> Iterator[None]:
    """Passes of `network` give the logits of `tokens` only, in that order, as float32.

    In float32 also where the network is not: bfloat16 has an eighth between logits of 16 to 32, and a relevance would
    come out in steps of 0.03, with ties, and other ones in another batch.
    """
    head = network.get_output_embeddings()
    if type(head) is not torch.nn.Linear:  # an adapter lies on it, say
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
        del vars(head)["forward"]  # the class's own is behind it


def narrowed_modules(network: Any) -> list[torch.nn.Module]:
    """The parts of the last layer that are computed only where they are read; none in a family that names no layers."""
    layers = getattr(network.get_decoder(), "layers", None)
    if layers is None:
        return []
    last = layers[-1]
    present = dict(last.named_modules())
    return [present[name] for name in _BY_POSITION if name in present]


@contextmanager
def _narrowed(module: torch.nn.Module, columns: torch.Tensor) -> Iterator[None]:
    length = 0

    def narrow(_: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal length
        length = inputs[0].shape[1]
        return (inputs[0].index_select(1, columns), *inputs[1:])

    def widen(_: torch.nn.Module, __: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        whole = output.new_zeros(output.shape[0], length, *output.shape[2:])
        return whole.index_copy_(1, columns, output)

    before, after = module.register_forward_pre_hook(narrow), module.register_forward_hook(widen)
    try:
        yield
    finally:
        before.remove()
        after.remove()
