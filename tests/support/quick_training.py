"""Included by a real train worker, it makes every training short: what the console starts has the preset's settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ragllava.training.finetune.presets import PRESETS

_LEARNING: dict[str, Any] = {"rank": 8, "alpha": 16, "max_steps": 40, "learning_rate": 0.02, "steps_per_checkpoint": 20}
_SPEED: dict[str, Any] = {"micro_batch": 16, "gradient_checkpointing": False}

PRESETS.update({name: replace(preset, **_LEARNING, **_SPEED) for name, preset in PRESETS.items()})
