"""Reading before looking: from random weights the language model first learns to match names in plain text.

Ranking stays at chance for a long time when picture, caption and question all come at once. What breaks the plateau
is text alone, a short question, and a hint that only training sees: at each token of a name in the question, does this
token occur in the caption?
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ragllava.lab.mini_recipe.examples import Pack, Shown, World
from ragllava.lab.mini_recipe.language import PackedLlava, measure_packs
from ragllava.lab.mini_recipe.loop import Lesson
from ragllava.lab.mini_recipe.packing import IGNORED_LABEL, PackedBatch, Packer
from ragllava.postcards.names import KINDS, TRAIN_WORDS

_HINT_WEIGHT = 0.5


class Reader(nn.Module):
    """The language model and the hint's linear head, trained as one."""

    def __init__(self, network: PackedLlava, width: int) -> None:
        """`network` is changed in place."""
        super().__init__()
        self.network = network
        self.event = nn.Linear(width, 1)

    def forward(self, batch: PackedBatch, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of the answers and that of the hint; `targets` as `event_targets` gives them."""
        hidden = self.network.hidden(batch, None)
        logits, labels, _ = self.network.at_labels(hidden, batch)
        asked = targets >= 0
        guesses = self.event(hidden[asked].float())[:, 0]
        event = functional.binary_cross_entropy_with_logits(guesses, targets[asked].float())
        return functional.cross_entropy(logits, labels), event


def reading_lesson(
    reader: Reader, processor: Any, worlds: tuple[World, World], packs_per_step: int, measured_packs: int
) -> Lesson:
    """Relevance by caption alone, in the practised world; measured in the held-out one (the second)."""
    packer = Packer(processor, tokens_per_picture=0, text_only=True)
    names = name_tokens(processor.tokenizer)

    def backward(step: int) -> dict[str, float]:
        rng = random.Random(f"reading {step}")  # noqa: S311 - repeatable on purpose
        batch = packer.batch([reading_pack(worlds[0], rng) for _ in range(packs_per_step)])
        answers, event = reader(batch, event_targets(batch, names))
        torch.autograd.backward(answers + _HINT_WEIGHT * event)
        return {"loss": answers.item(), "loss_hint": event.item()}

    def measure() -> Mapping[str, float]:
        rng = random.Random("measure reading")  # noqa: S311 - repeatable on purpose
        packs = [reading_pack(worlds[1], rng) for _ in range(measured_packs)]
        return measure_packs(reader.network, packer, packs, None)

    return Lesson(backward, measure)


def reading_pack(world: World, rng: random.Random) -> Pack:
    """A pack of relevance questions whose caption tells the kind, so that no picture is needed."""
    pack = world.one_picture_pack(rng)
    shown = tuple(_with_kind_in_caption(one) for one in pack.shown)
    return Pack(shown, tuple(ending for ending in pack.endings if ending.judges_relevance))


def name_tokens(tokenizer: Any) -> torch.Tensor:
    """(vocabulary,) bool: the tokens that names and kinds are made of."""
    words = [*TRAIN_WORDS, *(kind.capitalize() for kind in KINDS)]
    ids = {token for word in words for token in tokenizer(" " + word, add_special_tokens=False)["input_ids"]}
    table = torch.zeros(len(tokenizer), dtype=torch.bool)
    table[list(ids)] = True
    return table


def event_targets(batch: PackedBatch, names: torch.Tensor) -> torch.Tensor:
    """(B, T) int64: 1 or 0 at the name tokens of questions, as they occur in the beginning or not; -1 elsewhere."""
    in_beginning = torch.zeros(len(batch.tokens), len(names), dtype=torch.bool)
    in_beginning.scatter_(1, batch.tokens.where(batch.endings == 0, batch.tokens[:, :1]), True)
    asked = names[batch.tokens] & (batch.endings > 0) & (batch.labels == IGNORED_LABEL)
    return in_beginning.gather(1, batch.tokens).long().where(asked, -1)


def _with_kind_in_caption(shown: Shown) -> Shown:
    entity = replace(shown.landmark.entity, caption_names_kind=True)
    return replace(shown, landmark=replace(shown.landmark, entity=entity))
