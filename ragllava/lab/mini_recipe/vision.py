"""The picture tower: each of its tokens learns every attribute of the postcard.

The language model reads only the patch tokens, and reads best what each of them contains. So additional heads predict
every attribute (the count, too) from every token, and the share of windows in each patch. Without this dense label, a
small tower does not learn to count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ragllava.lab.mini_recipe.loop import StageTask
from ragllava.lab.mini_recipe.pool import PicturePool
from ragllava.lab.mini_recipe.precision import autocast
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
# The normalisation of OpenAI's CLIP; the shipped preprocessor configurations have the same.
_MEAN, _DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_DENSE_WEIGHT = 2.0
_ATTRIBUTE_WEIGHTS = {"roof": 3.0, "count": 1.5}  # these depend on a few pixels
_LARGEST_SHIFT = 4  # pixels


class TowerWithHeads(nn.Module):
    """transformers' CLIPVisionModel and linear heads after a normalisation, the same for all tokens."""

    def __init__(self, tower: nn.Module, width: int, patch_size: int, precision: torch.dtype) -> None:
        """`tower` is changed in place."""
        super().__init__()
        self._precision = precision
        self.tower = tower
        self.normalise = nn.LayerNorm(width)
        self.attributes = nn.ModuleDict({name: nn.Linear(width, len(v)) for name, v in ATTRIBUTE_VALUES.items()})
        self.counted = nn.Linear(width, 1)
        self.patch_size = patch_size

    def forward(self, pixels: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Normalised pixels (B, 3, 112, 112) → float32 logits of each attribute (B, tokens, values), the CLS token
        first, and the counted mass of each patch (B, patches)."""
        with autocast(self._precision):
            tokens = self.tower(pixel_values=pixels).last_hidden_state
        with torch.autocast("cpu", enabled=False):
            tokens = self.normalise(tokens.float())
            logits = {name: head(tokens) for name, head in self.attributes.items()}
            return logits, self.counted(tokens[:, 1:])[..., 0]


def normalised(pixels: np.ndarray[Any, Any]) -> torch.Tensor:
    """(B, 112, 112, 3) uint8 → (B, 3, 112, 112) float32 as the networks see it."""
    scaled = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255
    return (scaled - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_DEVIATION).view(3, 1, 1)


def attribute_labels(attributes: Sequence[Attributes]) -> dict[str, torch.Tensor]:
    """The index of each attribute's value in ATTRIBUTE_VALUES, (N,) int64 each."""
    return {
        name: torch.tensor([values.index(getattr(shown, name)) for shown in attributes])
        for name, values in ATTRIBUTE_VALUES.items()
    }


def counted_mass(places: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Spread each window over the four patches around its center, by distance.

    places (B, 6, 2) in pixels, negative where there is no window. Returns (B, patches); the shares of a window add up
    to 1.
    """
    side = PICTURE_SIDE // patch_size
    mass = torch.zeros(len(places), side * side)
    present = places[..., 0] >= 0
    at = places / patch_size - 0.5
    corner = at.floor()
    for step in product((0, 1), repeat=2):
        cell = corner + torch.tensor(step)
        share = (1 - (at - cell).abs()).prod(-1) * present
        column, row = cell.clamp(0, side - 1).unbind(-1)
        mass.scatter_add_(1, (row * side + column).long(), share)
    return mass


def varied(pixels: torch.Tensor, places: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Mirror half of the pictures and shift all by the same few pixels, with the places of the windows."""
    pixels, places = pixels.clone(), places.clone()
    present = places[..., :1] >= 0
    mirrored = torch.rand(len(pixels), generator=generator) < 0.5
    pixels[mirrored] = pixels[mirrored].flip(-1)
    places[mirrored, :, 0] = PICTURE_SIDE - places[mirrored, :, 0]
    shift = torch.randint(-_LARGEST_SHIFT, _LARGEST_SHIFT + 1, (2,), generator=generator)
    left, top = (shift + _LARGEST_SHIFT).tolist()
    padded = functional.pad(pixels, (_LARGEST_SHIFT,) * 4, mode="replicate")
    pixels = padded[:, :, top : top + PICTURE_SIDE, left : left + PICTURE_SIDE]
    return pixels, torch.where(present, (places - shift).clamp(min=0), -1.0)


def tower_task(network: TowerWithHeads, pool: PicturePool, held_out: PicturePool, batch_size: int) -> StageTask:
    """Attributes and counted mass on random batches of the pool; measured on the held-out pictures."""
    labels = attribute_labels(pool.attributes)

    def backward(step: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(pool), (batch_size,), generator=generator)
        rows = np.sort(chosen.numpy())
        pixels, places = varied(normalised(pool.pixels[rows]), torch.from_numpy(pool.places[rows]), generator)
        logits, mass = network(pixels)
        losses = {name: _mean_over_tokens(logits[name], labels[name][torch.from_numpy(rows)]) for name in logits}
        dense = functional.mse_loss(mass, counted_mass(places, network.patch_size), reduction="none").sum(1).mean()
        total = torch.stack([_ATTRIBUTE_WEIGHTS.get(name, 1.0) * loss for name, loss in losses.items()]).sum()
        torch.autograd.backward(total + _DENSE_WEIGHT * dense)
        return {"loss_" + name: loss.item() for name, loss in losses.items()} | {"loss_dense": dense.item()}

    return StageTask(backward, lambda: patch_accuracy(network, held_out))


def _mean_over_tokens(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), label.repeat_interleave(logits.shape[1]))


@torch.inference_mode()
def patch_accuracy(network: TowerWithHeads, held_out: PicturePool, pictures: int = 1000) -> dict[str, float]:
    """Share of pictures whose attribute the patches' mean logits get right, by attribute."""
    pixels, labels = held_out.pixels[:pictures], attribute_labels(held_out.attributes[:pictures])
    guesses: dict[str, list[torch.Tensor]] = defaultdict(list)
    for start in range(0, len(pixels), 250):
        for name, logits in network(normalised(pixels[start : start + 250]))[0].items():
            guesses[name].append(logits[:, 1:].mean(1).argmax(-1))
    return {name: int((torch.cat(parts) == labels[name]).sum()) / len(pixels) for name, parts in guesses.items()}
