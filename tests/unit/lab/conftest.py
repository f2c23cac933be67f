"""What tests of the recipe of the mini models share."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from ragllava.models.profiles import get_profile
from ragllava.postcards.names import Attributes, sample_attributes
from ragllava.settings import Settings


@pytest.fixture(scope="module")
def attributes() -> list[Attributes]:
    rng = random.Random(5)
    return [sample_attributes(rng) for _ in range(600)]


@pytest.fixture(scope="module")
def llava_and_processor() -> tuple[Any, Any]:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    folder = get_profile(Settings()).mllm
    llava = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return llava.eval(), AutoProcessor.from_pretrained(folder)
