"""Noise injection on token level (docs/method.md 6), as pure tensor functions. That on data level is in examples.py.

One more forward pass, without gradient, sees a diffused copy of the picture. An answer token whose logit
falls with the picture's blurring is one that the picture decides; it weighs more in the loss.

In `token_weights` and `weighted_loss` logits and labels are aligned: `logits[b, t]` predicts `labels[b, t]`. A causal
language model's logits are aligned by `logits[:, :-1]` with `labels[:, 1:]`.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

IGNORED_LABEL = -100  # positions that carry no loss: the prompt and padding
DIFFUSION_STEPS = 1000
DIFFUSION_STEP = 500
_FIRST_BETA, _LAST_BETA = 1e-5, 5e-3


def noise_schedule(steps: int = DIFFUSION_STEPS) -> torch.Tensor:
    """ᾱ_t for t = 0 … steps − 1, (steps,) float64: the share of the picture's variance left at diffusion step t.

    Counted from 0 as the reference does, so ᾱ_500 = 0.745: 0.863 of the picture, noise of spread 0.505.
    """
    ramp = torch.linspace(-6, 6, steps, dtype=torch.float64)
    betas = ramp.sigmoid() * (_LAST_BETA - _FIRST_BETA) + _FIRST_BETA
    return (1 - betas).cumprod(dim=0)


def diffuse(pixels: torch.Tensor, step: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """The normalised pixels, of any shape, at diffusion step `step`; the argument stays as it is.

    `generator` lives on the pixels' device; None draws from torch's own.
    """
    kept = float(noise_schedule()[step])
    noise = torch.empty_like(pixels).normal_(generator=generator)
    return math.sqrt(kept) * pixels + math.sqrt(1 - kept) * noise


def token_weights(
    logits: torch.Tensor,
    noisy_logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    low: float = 1.0,
    high: float = 5.0,
    window: int = 3,
) -> torch.Tensor:
    """How much the picture decides each answer token: (B, T) float32 in [low, high], 0 at ignored labels.

    `logits` and `noisy_logits` are (B, T, V), aligned with `labels` (B, T). Δ is the label's logit with the picture
    minus that with the noised one, clamped to [low, high]; each weight is the mean of the clamped Δ over the `window`
    positions (odd) around it that carry a label, so neither the prompt nor a row's end has a part in it. No gradient.
    """
    if window % 2 == 0:
        raise ValueError(f"window={window}: an even window has no middle")
    answered = (labels != IGNORED_LABEL).float()
    index = labels.clamp(min=0).unsqueeze(-1)
    with torch.no_grad():
        # Gathered first: as float32, the whole vocabulary would be the largest tensor of the step.
        difference = logits.gather(-1, index).squeeze(-1).float() - noisy_logits.gather(-1, index).squeeze(-1).float()
        clamped = difference.clamp(low, high) * answered
        return _window_sum(clamped, window) / _window_sum(answered, window).clamp(min=1) * answered


def weighted_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Σ w · (−log p(label)) / Σ w over all positions that carry a label, a scalar; with equal weights, cross-entropy.

    `logits` (B, T, V) are aligned with `labels` and `weights` (B, T); at least one position carries a label.
    """
    surprise = functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
    )
    counted = weights.flatten() * (labels.flatten() != IGNORED_LABEL)
    return (counted * surprise).sum() / counted.sum()


def _window_sum(values: torch.Tensor, window: int) -> torch.Tensor:
    """Sums over the window around each position of (B, T); beyond a row's ends stand zeros."""
    kernel = torch.ones(1, 1, window, device=values.device)
    return functional.conv1d(values.unsqueeze(1), kernel, padding=window // 2).squeeze(1)
