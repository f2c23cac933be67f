"""The settings of a fine-tuning, the reference's values under a name, and which of them a run changed
(docs/method.md 5)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ragllava.errors import SettingsError


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """What decides the weights that come out, beside the data.

    `rank`, `alpha` and `dropout` are LoRA's. `warmup_share` is that part of all steps in which the learning rate
    rises to its peak, before it falls along a cosine. A step learns from `global_batch` examples, `micro_batch` at
    a time on each device. `train_vision` adds LoRA layers to vision tower and projector, for pictures that look unlike
    those that the base learned from. `projector_learning_rate` adds them to the projector, which then learns at
    this rate and the rest at `learning_rate`. `token_weighting` turns on the noise loss (docs/method.md 6) with
    pictures diffused to `diffusion_step`. `max_steps` ends a run early.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    learning_rate: float = 4e-5
    weight_decay: float = 0.0
    warmup_share: float = 0.03
    max_gradient_norm: float = 1.0
    epochs: float = 1.0
    max_steps: int | None = None
    global_batch: int = 16
    micro_batch: int = 1
    gradient_checkpointing: bool = True
    with_captions: bool = True
    train_vision: bool = False
    projector_learning_rate: float | None = None
    token_weighting: bool = False
    diffusion_step: int = 500
    steps_per_checkpoint: int = 100
    seed: int = 0


# These trade time for memory or safety, and are not meant to change a result.
THRIFT_SETTINGS = frozenset({"micro_batch", "gradient_checkpointing", "steps_per_checkpoint"})

_ABOVE_0 = frozenset({"learning_rate", "projector_learning_rate", "epochs"})
_BELOW_1 = frozenset({"dropout", "warmup_share"})
# numpy takes no larger seed; a rank above 1024 is a typing error that would fill the memory. All others: from 1.
_WHOLE_RANGES = {"rank": (1, 1024), "seed": (0, 2**32 - 1), "diffusion_step": (0, 999)}


@dataclass(frozen=True, slots=True)
class ChosenSettings:
    """Settings, the preset that they come from, and the names of those that a run changed."""

    values: TrainingSettings
    preset: str
    overridden: frozenset[str]

    def as_json(self) -> dict[str, Any]:
        """Each value with its origin, as kept beside an adapter."""
        return {
            name: {"value": value, "origin": "overridden" if name in self.overridden else self.preset}
            for name, value in asdict(self.values).items()
        }


# The reference's; its language models of other makers than these two have no successor here that it was tried on.
PRESETS = {
    "llava-1.5-13b": TrainingSettings(
        rank=128, alpha=256, learning_rate=2e-4, projector_learning_rate=2e-5, epochs=2.0
    ),
    "internvl2-2b": TrainingSettings(rank=16, alpha=32, learning_rate=4e-5, weight_decay=0.01),
    # Ours, for the models in the package: small enough for a processor, so nothing is saved on memory.
    "mini": TrainingSettings(
        rank=16, alpha=32, learning_rate=1e-3, micro_batch=16, gradient_checkpointing=False, dropout=0.0
    ),
}


def choose_settings(preset: str, overrides: dict[str, Any] | None = None) -> ChosenSettings:
    """The preset's settings with some of them changed. Raises SettingsError for unknown names and impossible values."""
    if preset not in PRESETS:
        raise SettingsError(f"no training preset named {preset!r}; use one of {', '.join(PRESETS)}")
    types = {field.name: field.type for field in fields(TrainingSettings)}
    for name, value in (overrides or {}).items():
        if name not in types:
            raise SettingsError(f"unknown training setting {name!r}; the settings are {', '.join(types)}")
        _check(name, value, str(types[name]))
    base = PRESETS[preset]
    values = replace(base, **(overrides or {}))
    overridden = frozenset(name for name in (overrides or {}) if getattr(values, name) != getattr(base, name))
    return ChosenSettings(values, preset, overridden)


def accumulation_steps(settings: TrainingSettings, devices: int) -> int:
    """How many micro-batches of each device make one step. Raises SettingsError when they do not come out even."""
    together = settings.micro_batch * devices
    if settings.global_batch % together:
        raise SettingsError(
            f"global_batch={settings.global_batch} is not a multiple of micro_batch={settings.micro_batch} × {devices} "
            f"device{'' if devices == 1 else 's'}; change one of them"
        )
    return settings.global_batch // together


def _check(name: str, value: Any, kind: str) -> None:
    if value is None and "None" in kind:
        return
    if kind == "bool":
        fits, wanted = isinstance(value, bool), "true or false"
    elif kind.startswith("float"):
        fits, wanted = _check_number(name, value)
    else:
        fits, wanted = _check_whole(name, value)
    if not fits:
        raise SettingsError(
            f"training setting {name}={value!r} is not possible: use {wanted}{', or null' if 'None' in kind else ''}"
        )


def _check_number(name: str, value: Any) -> tuple[bool, str]:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
    if name in _ABOVE_0:
        return fits and value > 0, "a number above 0"
    if name in _BELOW_1:
        return fits and value < 1, "a number from 0 to below 1"
    return fits, "a number from 0 on"


def _check_whole(name: str, value: Any) -> tuple[bool, str]:
    low, high = _WHOLE_RANGES.get(name, (1, None))
    fits = isinstance(value, int) and not isinstance(value, bool) and low <= value and (high is None or value <= high)
    return fits, f"a whole number from {low} {'on' if high is None else f'to {high}'}"
