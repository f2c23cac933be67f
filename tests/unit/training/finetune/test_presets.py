"""Settings of trainings: presets, overrides, and what is impossible."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ragllava.errors import SettingsError
from ragllava.training.finetune.presets import accumulation_steps, choose_settings


@pytest.mark.parametrize(
    ("preset", "overrides", "message"),
    [
        ("llava-2", {}, "no training preset named 'llava-2'"),
        ("mini", {"rnak": 8}, "unknown training setting 'rnak'"),
        ("mini", {"rank": 0}, "rank=0 is not possible: use a whole number from 1 to 1024"),
        ("mini", {"rank": 1025}, "rank=1025 is not possible: use a whole number from 1 to 1024"),
        ("mini", {"micro_batch": 0}, "micro_batch=0 is not possible"),
        ("mini", {"epochs": 0}, "epochs=0 is not possible: use a number above 0"),
        ("mini", {"epochs": math.inf}, "epochs=inf is not possible"),
        ("mini", {"learning_rate": 0.0}, "learning_rate=0.0 is not possible: use a number above 0"),
        ("mini", {"learning_rate": -1e-4}, "learning_rate=-0.0001 is not possible"),
        ("mini", {"learning_rate": math.nan}, "learning_rate=nan is not possible"),
        ("mini", {"weight_decay": math.inf}, "weight_decay=inf is not possible: use a number from 0 on"),
        ("mini", {"warmup_share": 1}, "warmup_share=1 is not possible: use a number from 0 to below 1"),
        ("mini", {"max_steps": 0}, "max_steps=0 is not possible: use a whole number from 1 on, or null"),
        ("mini", {"seed": 2**32}, "seed=4294967296 is not possible: use a whole number from 0 to 4294967295"),
        ("mini", {"with_captions": "no"}, "with_captions='no' is not possible: use true or false"),
        ("mini", {"rank": "8"}, "rank='8' is not possible"),
        ("mini", {"dropout": 1.0}, "dropout=1.0 is not possible"),
        ("mini", {"diffusion_step": 1000}, "diffusion_step=1000 is not possible"),
        ("mini", {"projector_learning_rate": 0.0}, "use a number above 0, or null"),
        ("mini", {"token_weighting": 1}, "token_weighting=1 is not possible"),
    ],
)
def test_impossible_settings_are_told(preset: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        choose_settings(preset, overrides)


def test_the_references_settings_have_names() -> None:
    chosen = choose_settings("llava-1.5-13b", {"epochs": 3, "rank": 128})
    assert (chosen.values.rank, chosen.values.alpha, chosen.values.learning_rate) == (128, 256, 2e-4)
    assert choose_settings("llava-1.5-13b").values.epochs == 2
    assert chosen.values.projector_learning_rate == 2e-5
    assert choose_settings("llava-1.5-13b", {"projector_learning_rate": None}).values.projector_learning_rate is None
    assert chosen.overridden == {"epochs"}, "the same value is no change"
    assert accumulation_steps(chosen.values, devices=4) == 4
    with pytest.raises(SettingsError, match="not a multiple of micro_batch=1 × 3 devices"):
        accumulation_steps(chosen.values, devices=3)
