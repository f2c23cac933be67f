"""Included by a real train worker, it makes every training short: what the console starts has the preset's settings."""

from __future__ import annotations

from dataclasses import replace

from ragllava.training.finetune.presets import PRESETS

QUICK = {
    name: replace(preset, rank=8, alpha=16, max_steps=40, learning_rate=0.02, dropout=0.0, steps_per_checkpoint=20)
    for name, preset in PRESETS.items()
}
PRESETS.update(QUICK)
