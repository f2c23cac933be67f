"""The picture tower: every token of it learns to know every attribute of the postcard.

The language model reads the patch tokens only, and reads best what each of them says plainly. So training-only heads
ask every token for every attribute (a count too), and every patch for the share of windows that lies in it: that dense
label is what lets a small tower learn to count at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ragllava.lab.mini_recipe.loop import Lesson
from ragllava.lab.mini_recipe.pool import PicturePool
from ragllava.postcards.drawing import PICTURE_SIDE
from ragllava.postcards.names import COLORS, COMPANIONS, KINDS, MAX_COUNT, NOTHING, ROOFS, SKIES, Attributes

ATTRIBUTE_VALUES: Mapping[str, tuple[Any, ...]] = {
    "kind": KINDS,
    "color": COLORS,
    "count": tuple(range(1, MAX_COUNT + 1)),
    "sky": SKIES,
    "roof": (*ROOFS, NOTHING),
    "beside": (*COMPANIONS, NOTHING),
}
# What OpenAI's CLIP was normalised with; the shipped preprocessor configs say the same.
_MEAN, _DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_DENSE_WEIGHT = 2.0
_ATTRIBUTE_WEIGHTS = {"roof": 3.0, "count": 1.5}  # a few pixels decide them
_LARGEST_SHIFT = 4  # pixels


class PictureHeads(nn.Module):
    """What is asked of the tower's tokens in training. Input (B, tokens, width), the CLS token first."""

    def __init__(self, width: int) -> None:
        """Linear heads behind one normalisation, the same for all tokens."""
        super().__init__()
        self.normalise = nn.LayerNorm(width)
        self.attributes = nn.ModuleDict({name: nn.Linear(width, len(v)) for name, v in ATTRIBUTE_VALUES.items()})
        self.counted = nn.Linear(width, 1)

    def forward(self, tokens: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Logits of each attribute (B, tokens, values), and the counted mass of each patch (B, patches)."""
        tokens = self.normalise(tokens)
        return {name: head(tokens) for name, head in self.attributes.items()}, self.counted(tokens[:, 1:])[..., 0]


class TowerWithHeads(nn.Module):
    """transformers' CLIPVisionModel and the heads, trained as one."""

    def __init__(self, tower: nn.Module, width: int, patch_size: int) -> None:
        """`tower` is changed in place."""
        super().__init__()
        self.tower = tower
        self.heads = PictureHeads(width)
        self.patch_size = patch_size

    def forward(self, pixels: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Normalised pixels (B, 3, 112, 112) → what PictureHeads returns, in float32."""
        with torch.autocast("cpu", torch.bfloat16):
            tokens = self.tower(pixel_values=pixels).last_hidden_state
        with torch.autocast("cpu", enabled=False):
            logits: tuple[dict[str, torch.Tensor], torch.Tensor] = self.heads(tokens.float())
        return logits


def normalised(pixels: np.ndarray[Any, Any]) -> torch.Tensor:
    """(B, 112, 112, 3) uint8 → (B, 3, 112, 112) float32 as the networks see it."""
    scaled = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255
    return (scaled - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_DEVIATION).view(3, 1, 1)


def attribute_labels(attributes: Sequence[Attributes]) -> dict[str, torch.Tensor]:
    """Place of each attribute's value among ATTRIBUTE_VALUES, (N,) int64 each."""
    return {
        name: torch.tensor([values.index(getattr(shown, name)) for shown in attributes])
        for name, values in ATTRIBUTE_VALUES.items()
    }


def counted_mass(places: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Spreads each window over the four patches around its middle, by nearness.

    places (B, 6, 2) in pixels, negative where there is no window. Returns (B, patches); each window adds up to 1.
    """
    side = PICTURE_SIDE // patch_size
    mass = torch.zeros(len(places), side * side)
    present = places[..., 0] >= 0
    at = places / patch_size - 0.5
    corner = at.floor()
    for step_x in (0, 1):
        for step_y in (0, 1):
            column, row = corner[..., 0] + step_x, corner[..., 1] + step_y
            share = (1 - (at[..., 0] - column).abs()) * (1 - (at[..., 1] - row).abs()) * present
            patch = row.clamp(0, side - 1) * side + column.clamp(0, side - 1)
            mass.scatter_add_(1, patch.long(), share)
    return mass


def varied(pixels: torch.Tensor, places: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Half of the pictures mirrored, all shifted by the same few pixels; the windows' places move along."""
    pixels, places = pixels.clone(), places.clone()
    present = places[..., :1] >= 0
    mirrored = torch.rand(len(pixels), generator=generator) < 0.5
    pixels[mirrored] = pixels[mirrored].flip(-1)
    places[mirrored, :, 0] = PICTURE_SIDE - places[mirrored, :, 0]
    shift = torch.randint(-_LARGEST_SHIFT, _LARGEST_SHIFT + 1, (2,), generator=generator)
    border = _LARGEST_SHIFT
    left, top = int(border + shift[0]), int(border + shift[1])
    padded = functional.pad(pixels, (border,) * 4, mode="replicate")
    pixels = padded[:, :, top : top + PICTURE_SIDE, left : left + PICTURE_SIDE]
    return pixels, torch.where(present, (places - shift).clamp(min=0), -1.0)


def tower_lesson(network: TowerWithHeads, pool: PicturePool, held_out: PicturePool, batch_size: int) -> Lesson:
    """Attributes and counted mass on random batches of the pool; measured on the held-out pictures."""
    labels = attribute_labels(pool.attributes)

    def backward(step: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(pool), (batch_size,), generator=generator)
        rows = np.sort(chosen.numpy())
        pixels, places = varied(normalised(pool.pixels[rows]), torch.from_numpy(pool.places[rows]), generator)
        logits, mass = network(pixels)
        wanted = {name: label[torch.from_numpy(rows)] for name, label in labels.items()}
        losses = {name: _mean_over_tokens(logits[name], wanted[name]) for name in logits}
        dense = functional.mse_loss(mass, counted_mass(places, network.patch_size), reduction="none").sum(1).mean()
        asked = torch.stack([_ATTRIBUTE_WEIGHTS.get(name, 1.0) * loss for name, loss in losses.items()]).sum()
        torch.autograd.backward(asked + _DENSE_WEIGHT * dense)
        return {"loss_" + name: loss.item() for name, loss in losses.items()} | {"loss_dense": dense.item()}

    return Lesson(backward, lambda: patch_accuracy(network, held_out))


def _mean_over_tokens(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), label.repeat_interleave(logits.shape[1]))


@torch.inference_mode()
def patch_accuracy(network: TowerWithHeads, held_out: PicturePool, pictures: int = 1000) -> dict[str, float]:
    """Share of pictures whose attribute the patches' mean logits get right, by attribute."""
    pictures = min(pictures, len(held_out))
    labels = attribute_labels(held_out.attributes[:pictures])
    right = dict.fromkeys(ATTRIBUTE_VALUES, 0)
    for start in range(0, pictures, 250):
        logits, _ = network(normalised(held_out.pixels[start : min(start + 250, pictures)]))
        for name, values in logits.items():
            guess = values[:, 1:].mean(1).argmax(-1)
            right[name] += int((guess == labels[name][start : start + len(guess)]).sum())
    return {name: count / pictures for name, count in right.items()}
