"""The mini LLaVA: ranking and answering are trained together, from packs, on picture features computed once."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface

from ragllava.lab.mini_recipe.examples import Pack, PackSampler
from ragllava.lab.mini_recipe.loop import StageTask
from ragllava.lab.mini_recipe.made_up_kinds import with_made_up_kinds
from ragllava.lab.mini_recipe.packing import IGNORED_LABEL, PackedBatch, Packer, packed_attention
from ragllava.lab.mini_recipe.pool import PicturePool
from ragllava.lab.mini_recipe.precision import autocast
from ragllava.lab.mini_recipe.vision import ATTRIBUTE_VALUES, attribute_labels, normalised
from ragllava.postcards.names import FIRST_YEAR, LAST_YEAR, NOTHING
from ragllava.postcards.questions import COUNT_WORDS

_PICTURES_PER_BATCH = 250
_PACKS_PER_BATCH = 25
_ATTENTION = "packed"
_HINTED_LAYER = 3
_PAIR_LAYER = 4
_MOST_PICTURES = 3
_COMPARE_GROUP = "compare"  # the group of packs that compare names
_MADE_UP_SHARE = 0.3  # of the other packs
_COMPARISONS = 3  # is it this picture, this name, this city
_LOSS_WEIGHTS = {"answer": 1.0, "looks": 0.5, "pointer": 0.3, "fits": 0.5, "asked": 0.3, "matches": 0.7, "same": 1.0}


class PackCounts(NamedTuple):
    """How many packs a step has: of one picture, of two (some with a third), of three, and of comparisons."""

    one: int = 8
    several: int = 6
    three: int = 0
    comparisons: int = 10


class PackedLlava(nn.Module):
    """transformers' LLaVA without its picture tower, which is frozen: the caller passes the tower's features."""

    def __init__(self, llava: Any, precision: torch.dtype) -> None:
        """Takes the projector and the language model of a LlavaForConditionalGeneration; they are changed in place."""
        super().__init__()
        self._precision = precision
        self.projector = llava.model.multi_modal_projector
        self.language_model = llava.model.language_model
        AttentionInterface.register(_ATTENTION, packed_attention)
        self.language_model.set_attn_implementation(_ATTENTION)
        self.image_token: int = llava.config.image_token_index

    def forward(self, batch: PackedBatch, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`at_labels` of a batch whose `batch.pictures` have these `features` (P, patches, width)."""
        return self.at_labels(self.hidden(batch, features)[-1], batch)

    def hidden(self, batch: PackedBatch, features: torch.Tensor | None) -> Sequence[torch.Tensor]:
        """The hidden states (B, T, width) before the first layer and after each one, the last one normalised.

        `features` is None for packs without pictures.
        """
        blocks = batch.blocks.to(self._precision)
        with autocast(self._precision):
            embedded = self.language_model.embed_tokens(batch.tokens).to(self._precision)
            if features is not None:
                pictures = self.projector(features).to(self._precision)
                is_picture = (batch.tokens == self.image_token).unsqueeze(-1)
                embedded = embedded.masked_scatter(is_picture, pictures.flatten(0, 1))
            states: Sequence[torch.Tensor] = self.language_model(
                inputs_embeds=embedded,
                # Complete masks are taken as they are; this one only keeps transformers from making its own.
                attention_mask=blocks.beginning_mask,
                blocks=blocks,
                position_ids=batch.positions,
                use_cache=False,
                output_hidden_states=True,
            ).hidden_states
        return states

    def at_labels(self, hidden: torch.Tensor, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits (L, V) float32 where the L labels are predicted, the labels (L,), and their weights (L,)."""
        labelled = batch.labels[:, 1:] != IGNORED_LABEL
        with autocast(self._precision):
            # The output layer is the embedding table: its weights are tied.
            logits = functional.linear(hidden[:, :-1][labelled], self.language_model.embed_tokens.weight)
        return logits.float(), batch.labels[:, 1:][labelled], batch.weights[:, 1:][labelled]


class HintedLlava(nn.Module):
    """The network and six additional targets (hints): five predicted from a middle layer, one from a later one.

    After each caption, linear heads predict every attribute of its picture and the year ("looks"). Where an answer
    begins, and after each name in a question to several pictures, a head predicts which picture it is about
    ("pointer"); after such a name, the heads of "looks" predict the attributes of its picture ("asked"). At every word
    for something visible in a question about one picture, a head predicts whether the picture shows it ("fits"). After
    each name or description in a question to one picture, a head predicts whether it is that picture's, and whether
    name and city are the caption's, misspelt or not ("matches"). After the second name in a question about two of
    several pictures, a head predicts from a later layer whether these two have the same color ("same"). So the caption
    connects name and appearance, an answer reads the right picture, the question is compared with the picture and its
    caption, and two pictures are compared where they are named, whatever is beside them.
    """

    def __init__(self, network: PackedLlava, width: int, tokenizer: Any) -> None:
        """`network` is changed in place."""
        super().__init__()
        self.network = network
        self.normalise = nn.LayerNorm(width)
        self.attributes = nn.ModuleDict({name: nn.Linear(width, len(v)) for name, v in ATTRIBUTE_VALUES.items()})
        self.year = nn.Linear(width, LAST_YEAR - FIRST_YEAR + 1)
        self.pointer = nn.Linear(width, _MOST_PICTURES)
        self.fits = nn.Linear(width, 1)
        self.matches = nn.Linear(width, _COMPARISONS)
        self.normalise_pairs = nn.LayerNorm(width)
        self.same = nn.Linear(width, 1)
        self._words = visible_words(tokenizer)

    def forward(
        self, batch: PackedBatch, features: torch.Tensor, attributes: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The losses by name; `attributes` are the labels of the whole pool."""
        states = self.network.hidden(batch, features)
        logits, labels, weights = self.network.at_labels(states[-1], batch)
        middle = self.normalise(states[_HINTED_LAYER].float())
        captions = middle[batch.caption_ends[:, 0], batch.caption_ends[:, 1]]
        looks = {name: labels[batch.pictures] for name, labels in attributes.items()}
        seen = [functional.cross_entropy(head(captions), looks[name]) for name, head in self.attributes.items()]
        seen.append(
            _mean_where(batch.years >= 0, functional.cross_entropy(self.year(captions), batch.years, reduction="none"))
        )
        fitting = fitting_words(batch, torch.stack([looks[name] for name in ATTRIBUTE_VALUES], dim=1), self._words)
        fitting[batch.kinds[:, 0], batch.kinds[:, 1]] = batch.kinds[:, 2]
        compared = fitting >= 0
        rows, columns, picture, *_ = batch.subjects.unbind(1)
        counts = torch.bincount(batch.caption_ends[:, 0], minlength=len(batch.tokens))
        first_picture = counts.cumsum(0) - counts
        is_alone = counts[rows] == 1
        subject = middle[rows, columns]
        chosen = ~is_alone & (picture >= 0)
        which = first_picture[rows[chosen]] + picture[chosen]
        pointing = torch.cat([batch.pointers, batch.subjects[chosen][:, :3]])
        at = middle[pointing[:, 0], pointing[:, 1]]
        asked = [
            functional.cross_entropy(head(subject[chosen]), looks[name][which], reduction="none")
            for name, head in self.attributes.items()
        ]
        second = second_of_pair(batch.subjects, batch.endings) & chosen
        color = looks["color"][(first_picture[rows] + picture).clamp(min=0)]
        later = self.normalise_pairs(states[_PAIR_LAYER][rows[second], columns[second]].float())
        targets = torch.cat([(picture >= 0).long().unsqueeze(1), batch.subjects[:, 3:]], dim=1)[is_alone]
        return {
            "answer": (functional.cross_entropy(logits, labels, reduction="none") * weights).sum()
            / weights.sum().clamp(min=1.0),
            "looks": torch.stack(seen).mean(),
            "pointer": functional.cross_entropy(self.pointer(at), pointing[:, 2], reduction="sum")
            / max(1, len(pointing)),
            "asked": torch.stack(asked).sum() / max(1, len(which) * len(asked)),
            "matches": _mean_where(
                targets >= 0,
                functional.binary_cross_entropy_with_logits(
                    self.matches(subject[is_alone]), targets.clamp(min=0).float(), reduction="none"
                ),
            ),
            "fits": functional.binary_cross_entropy_with_logits(
                self.fits(middle[compared])[:, 0], fitting[compared].float(), reduction="sum"
            )
            / max(1, int(compared.sum())),
            "same": functional.binary_cross_entropy_with_logits(
                self.same(later)[:, 0], (color == color.roll(1))[second].float(), reduction="sum"
            )
            / max(1, int(second.sum())),
        }


def second_of_pair(subjects: torch.Tensor, endings: torch.Tensor) -> torch.Tensor:
    """(S,) bool: whether a subject follows another one of the same question, and both are shown.

    `subjects` (S, 5) and `endings` (B, T) are those of a PackedBatch.
    """
    rows, columns, picture, *_ = subjects.unbind(1)
    ending = endings[rows, columns]
    follows = (rows == rows.roll(1)) & (ending == ending.roll(1)) & (picture >= 0) & (picture.roll(1) >= 0)
    follows[:1] = False
    return follows


def _mean_where(counted: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    """The mean of the losses that count; 0 if none does."""
    return losses[counted].sum() / max(1, int(counted.sum()))


def visible_words(tokenizer: Any) -> torch.Tensor:
    """(vocabulary, 2) int64: which attribute a token names (its index in ATTRIBUTE_VALUES) and which value; else -1.

    Words of several tokens are left out.
    """
    words = torch.full((len(tokenizer), 2), -1)
    for attribute, (name, values) in enumerate(ATTRIBUTE_VALUES.items()):
        for number, value in enumerate(values):
            for word in _words_for(name, value):
                token, *more = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
                if not more:
                    words[token] = torch.tensor([attribute, number])
    return words


def _words_for(attribute: str, value: Any) -> Sequence[str]:
    """How questions say it; a kind is a part of a name, with a capital letter, or of a description."""
    if value == NOTHING:
        return ("nothing",) if attribute == "beside" else ()
    if attribute == "count":
        return (COUNT_WORDS[value],)
    return (value.capitalize(), value) if attribute == "kind" else (value,)


def fitting_words(batch: PackedBatch, looks: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """(B, T) int64 at each visible word of a question after one picture: 1 if the picture shows it, 0 if not; else -1.

    `looks` (P, attributes) are the labels of `batch.pictures`.
    """
    pictures = torch.bincount(batch.caption_ends[:, 0], minlength=len(batch.tokens))
    looks_of_row = torch.zeros(len(batch.tokens), looks.shape[1], dtype=torch.long)
    looks_of_row[batch.caption_ends[:, 0]] = looks
    attribute, value = words[batch.tokens].unbind(-1)
    asked = (attribute >= 0) & (batch.endings > 0) & (batch.labels == IGNORED_LABEL) & (pictures == 1).unsqueeze(1)
    fits = looks_of_row.gather(1, attribute.clamp(min=0)) == value
    return fits.long().where(asked, -1)


@torch.inference_mode()
def tower_features(tower: Any, pool: PicturePool, precision: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The patches after the tower (N, patches, width), and all tokens before its last layer (N, 1 + P, width)."""
    patches, tokens = [], []
    for start in range(0, len(pool), _PICTURES_PER_BATCH):
        pixels = normalised(pool.pixels[start : start + _PICTURES_PER_BATCH])
        with autocast(precision):
            states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        patches.append(states[-1][:, 1:].to(precision, copy=True))
        tokens.append(states[-2].to(precision, copy=True))
    return torch.cat(patches), torch.cat(tokens)


def language_task(
    network: HintedLlava,
    packer: Packer,
    practice: tuple[PackSampler, torch.Tensor],
    held_out: tuple[PackSampler, torch.Tensor],
    packs_per_step: PackCounts,
    measured_packs: int,
) -> StageTask:
    """`packs_per_step` of each kind; both samplers come with their pictures' features.

    A share of the packs gets made-up kinds of landmarks. `measured_packs` of each kind that is trained, but for
    comparisons, are measured, from the held-out sampler, with the kinds that the pictures show.
    """
    sampler, features = practice
    attributes = attribute_labels(sampler.attributes)

    def backward(step: int) -> dict[str, float]:
        rng = random.Random(f"language {step}")  # noqa: S311 - repeatable on purpose
        figures: dict[str, float] = {}
        for group, count, draw in _kinds(sampler, packs_per_step):
            made_up_share = 0.0 if group == _COMPARE_GROUP else _MADE_UP_SHARE
            packs = [_practice_pack(draw, rng, made_up_share) for _ in range(count)]
            batch = packer.batch(packs)
            losses = network(batch, features[batch.pictures], attributes)
            loss = torch.stack([_LOSS_WEIGHTS[name] * value for name, value in losses.items()]).sum()
            torch.autograd.backward(loss * len(packs) / sum(packs_per_step))
            figures |= {f"loss_{group}_{name}": value.item() for name, value in losses.items()}
        return figures

    def measure() -> Mapping[str, float]:
        rng = random.Random("measure")  # noqa: S311 - repeatable on purpose
        held_out_sampler, held_out_features = held_out
        kinds = [draw for group, _, draw in _kinds(held_out_sampler, packs_per_step) if group != _COMPARE_GROUP]
        packs = [draw(rng) for draw in kinds for _ in range(measured_packs)]
        return measure_packs(network.network, packer, packs, held_out_features)

    return StageTask(backward, measure)


def _kinds(sampler: PackSampler, counts: PackCounts) -> list[tuple[str, int, Callable[[random.Random], Pack]]]:
    """The name, the number and the source of each kind of pack of which there are any."""
    kinds = (
        ("one", counts.one, sampler.one_picture_pack),
        ("several", counts.several, sampler.several_pictures_pack),
        ("three", counts.three, sampler.three_pictures_pack),
        (_COMPARE_GROUP, counts.comparisons, sampler.comparison_pack),
    )
    return [kind for kind in kinds if kind[1]]


def _practice_pack(draw: Callable[[random.Random], Pack], rng: random.Random, made_up_share: float) -> Pack:
    pack = draw(rng)
    return with_made_up_kinds(pack, rng) if rng.random() < made_up_share else pack


@torch.inference_mode()
def measure_packs(
    network: PackedLlava, packer: Packer, packs: Sequence[Pack], features: torch.Tensor | None
) -> Mapping[str, float]:
    """The share of endings whose tokens are all the likeliest ones, by task; `+` marks those with two pictures, `++`
    those with three.

    Where there are styles, also by style: `relevance misspelt` and `answer misspelt+`.
    `features` are those of the complete pool, None for packs without pictures.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(packs), _PACKS_PER_BATCH):
        part = packs[start : start + _PACKS_PER_BATCH]
        batch = packer.batch(part)
        hidden = network.hidden(batch, None if features is None else features[batch.pictures])[-1]
        logits, labels, _ = network.at_labels(hidden, batch)
        rows, columns = (batch.labels[:, 1:] != IGNORED_LABEL).nonzero(as_tuple=True)
        tokens = torch.stack([rows, batch.endings[rows, columns + 1], logits.argmax(-1) == labels], dim=1)
        endings: dict[tuple[int, int], bool] = defaultdict(lambda: True)
        for row, number, hit in tokens.tolist():
            endings[row, number] &= bool(hit)
        for (row, number), is_right in endings.items():
            ending = part[row].endings[number - 1]
            several = "+" * (len(part[row].shown) - 1)
            right[ending.task + several].append(is_right)
            if ending.style is not None:
                kind = ending.task if ending.judges_relevance else "answer"
                right[f"{kind} {ending.style}{several}"].append(is_right)
    return {task: sum(marks) / len(marks) for task, marks in sorted(right.items())}
