"""The first stage from random weights: the language model learns to match names in plain text.

With pictures, captions and questions from the start, ranking stays at chance for a long time. It improves with text
only, a short question, and an additional training target at each token of a name in the question: does this token
occur in the caption?
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ragllava.lab.mini_recipe.examples import Pack, PackSampler
from ragllava.lab.mini_recipe.language import PackedLlava, measure_packs
from ragllava.lab.mini_recipe.loop import StageTask
from ragllava.lab.mini_recipe.packing import IGNORED_LABEL, PackedBatch, Packer
from ragllava.postcards.names import KINDS, TRAIN_WORDS

_HINT_WEIGHT = 0.5


class Reader(nn.Module):
    """The language model and the linear head of the additional target, trained together."""

    def __init__(self, network: PackedLlava, width: int) -> None:
        """`network` is changed in place."""
        super().__init__()
        self.network = network
        self.event = nn.Linear(width, 1)

    def forward(self, batch: PackedBatch, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of the answers and that of the additional target; `targets` are those of `event_targets`."""
        hidden = self.network.hidden(batch, None)[-1]
        logits, labels, _ = self.network.at_labels(hidden, batch)
        asked = targets >= 0
        guesses = self.event(hidden[asked].float())[:, 0]
        event = functional.binary_cross_entropy_with_logits(guesses, targets[asked].float())
        return functional.cross_entropy(logits, labels), event


def reading_task(
    reader: Reader,
    processor: Any,
    practice: PackSampler,
    held_out: PackSampler,
    packs_per_step: int,
    measured_packs: int,
) -> StageTask:
    """Relevance by caption only."""
    packer = Packer(processor, tokens_per_picture=0, text_only=True)
    names = name_tokens(processor.tokenizer)

    def backward(step: int) -> dict[str, float]:
        rng = random.Random(f"reading {step}")  # noqa: S311 - repeatable on purpose
        batch = packer.batch([reading_pack(practice, rng) for _ in range(packs_per_step)])
        answers, event = reader(batch, event_targets(batch, names))
        torch.autograd.backward(answers + _HINT_WEIGHT * event)
        return {"loss": answers.item(), "loss_hint": event.item()}

    def measure() -> Mapping[str, float]:
        rng = random.Random("measure reading")  # noqa: S311 - repeatable on purpose
        packs = [reading_pack(held_out, rng) for _ in range(measured_packs)]
        return measure_packs(reader.network, packer, packs, None)

    return StageTask(backward, measure)


def reading_pack(sampler: PackSampler, rng: random.Random) -> Pack:
    """A pack of relevance questions whose caption contains the kind, so that no picture is needed."""
    pack = sampler.one_picture_pack(rng)
    (shown,) = pack.shown
    entity = replace(shown.landmark.entity, caption_names_kind=True)
    shown = replace(shown, landmark=replace(shown.landmark, entity=entity))
    return Pack((shown,), tuple(replace(ending, subjects=()) for ending in pack.endings if ending.judges_relevance))


def name_tokens(tokenizer: Any) -> torch.Tensor:
    """(vocabulary,) bool: the tokens of names and kinds."""
    words = [*TRAIN_WORDS, *(kind.capitalize() for kind in KINDS)]
    ids = {token for word in words for token in tokenizer(" " + word, add_special_tokens=False)["input_ids"]}
    table = torch.zeros(len(tokenizer), dtype=torch.bool)
    table[list(ids)] = True
    return table


def event_targets(batch: PackedBatch, names: torch.Tensor) -> torch.Tensor:
    """(B, T) int64: 1 at name tokens of questions that occur in the beginning, 0 at the others, -1 elsewhere."""
    in_beginning = torch.zeros(len(batch.tokens), len(names), dtype=torch.bool)
    in_beginning.scatter_(1, batch.tokens.where(batch.endings == 0, batch.tokens[:, :1]), True)
    asked = names[batch.tokens] & (batch.endings > 0) & (batch.labels == IGNORED_LABEL)
    return in_beginning.gather(1, batch.tokens).long().where(asked, -1)
