"""The loss of a batch: cross-entropy on the answers' tokens, where asked weighed by what the picture decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ragllava.training.finetune.batches import Batch
from ragllava.training.finetune.noise import IGNORED_LABEL, diffuse, token_weights, weighted_loss

_TILE_DIMENSIONS = 5  # (B, tiles, channels, height, width): rows with fewer tiles end in empty ones


@dataclass(frozen=True, slots=True)
class BatchLoss:
    """The loss, a scalar with gradient, and the mean weight of the answers' tokens: 1 without noise."""

    loss: torch.Tensor
    mean_weight: float


def plain_loss(network: Any, batch: Batch, dtype: torch.dtype) -> BatchLoss:
    """Cross-entropy averaged over the batch's answer tokens. `dtype` is that of the network's pixels."""
    labels = batch["labels"]
    weights = torch.ones(labels.shape, device=labels.device)
    return BatchLoss(weighted_loss(answer_logits(network, batch, dtype), labels, weights), 1.0)


def noise_weighted_loss(
    network: Any, batch: Batch, dtype: torch.dtype, diffusion_step: int, *, undistributed: Any = None
) -> BatchLoss:
    """The loss weighed by how much each token's logit falls when the pictures are noised to `diffusion_step`.

    `undistributed` is the network inside a data-parallel `network`: the pass without gradient must not count as a
    step there.
    """
    labels = batch["labels"]
    noisy = noised(batch, diffusion_step)
    devices = [labels.device.index] if labels.device.type == "cuda" else []
    # Both passes draw the same dropout, else its chance would show in the difference as well.
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        noisy_logits = answer_logits(undistributed or network, noisy, dtype)
    logits = answer_logits(network, batch, dtype)
    weights = token_weights(logits, noisy_logits, labels)
    mean_weight = float(weights.sum() / (labels != IGNORED_LABEL).sum())
    return BatchLoss(weighted_loss(logits, labels, weights), mean_weight)


def answer_logits(network: Any, batch: Batch, dtype: torch.dtype) -> torch.Tensor:
    """The logits that predict `labels`, (B, A, V), aligned with them; no others are computed."""
    length = batch["labels"].shape[1]
    logits = []
    for part in batch["parts"]:
        inputs = {name: _cast(value, dtype) for name, value in part.items()}
        output = network(**inputs, logits_to_keep=length + 1, use_cache=False)
        logits.append(output.logits[:, -length - 1 : -1])
    return torch.cat(logits)


def noised(batch: Batch, diffusion_step: int) -> Batch:
    """The batch with every picture noised; empty tiles stay empty, as families tell them by that."""
    parts = [
        {name: _noise(value, diffusion_step) if name.startswith("pixel_values") else value for name, value in p.items()}
        for p in batch["parts"]
    ]
    return {**batch, "parts": parts}


def _noise(pixels: torch.Tensor, diffusion_step: int) -> torch.Tensor:
    noisy = diffuse(pixels, diffusion_step)
    if pixels.dim() < _TILE_DIMENSIONS:
        return noisy
    filled = (pixels != 0).flatten(-3).any(dim=-1)[..., None, None, None]
    return noisy.where(filled, pixels)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
