"""LLaVA and CLIP in the shapes of real models with random weights, to measure speed without the real weights.

Scores of random weights have no meaning, but they take as long as real ones. Tokenizer and template of LLaVA are those
of the mini model, so prompts are about as long as for the real model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ragllava.errors import UsageError
from ragllava.models.device import DevicePlan, plan_device
from ragllava.models.loading import make_greedy
from ragllava.models.mllm import Mllm
from ragllava.models.profiles import LOCAL_DIR, RetrieverSource, get_profile
from ragllava.settings import Settings


def _widths(width: int, layers: int, heads: int, inner_width: int) -> dict[str, int]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return dict(zip(names, (width, layers, heads, inner_width), strict=True))


# Configurations of the vision tower and of the language model. Pictures have 336 px, patches 14 px: 576 tokens.
SHAPES = {
    "llava-35m": (_widths(256, 6, 4, 1024), _widths(512, 8, 8, 1408) | {"vocab_size": 1_024}),
    "llava-1.5-7b": (_widths(1024, 24, 16, 4096), _widths(4096, 32, 32, 11_008) | {"vocab_size": 32_064}),
    "llava-1.5-13b": (_widths(1024, 24, 16, 4096), _widths(5120, 40, 40, 13_824) | {"vocab_size": 32_064}),
}

CLIP_SHAPE = "ViT-B-32"  # the most common first retriever

_SIDE, _PATCH = 336, 14  # pixels
_CLIP_SEED = 5


def random_llava(name: str, settings: Settings) -> Mllm:
    """A LLaVA of the shape `name`, one of SHAPES, with weights drawn on the device."""
    from transformers import AutoProcessor

    plan = plan_device(settings)
    mini = get_profile(settings.model_copy(update={"profile": "mini"})).mllm
    processor = AutoProcessor.from_pretrained(mini, local_files_only=True)
    processor.patch_size = _PATCH
    processor.image_processor.size = {"shortest_edge": _SIDE}
    processor.image_processor.crop_size = {"height": _SIDE, "width": _SIDE}
    processor.tokenizer.model_max_length = 2_048
    return Mllm(_network(name, processor.image_token_id, plan), processor, f"random {name}", plan)


def require_shape(name: str) -> None:
    """Raise UsageError for an unknown shape."""
    if name not in SHAPES:
        raise UsageError(f"there is no shape {name!r}; there are: {', '.join(SHAPES)}")


def write_random_clip(folder: Path) -> RetrieverSource:
    """Write an open_clip model of CLIP_SHAPE with weights from a fixed seed; an existing one is kept."""
    import open_clip

    source = RetrieverSource(f"{LOCAL_DIR}{folder}")
    config = folder / "open_clip_config.json"
    if config.exists():
        return source
    folder.mkdir(parents=True, exist_ok=True)
    shape = open_clip.get_model_config(CLIP_SHAPE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_CLIP_SEED)
        network = open_clip.CLIP(**shape)
    weights = {name: weight.contiguous() for name, weight in network.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    config.write_text(json.dumps({"model_cfg": shape, "preprocess_cfg": preprocess}), encoding="utf-8")
    return source


def _network(name: str, image_token_id: int, plan: DevicePlan) -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    vision, text = SHAPES[name]
    tokens = {"max_position_embeddings": 4_096, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": _SIDE, "patch_size": _PATCH, **vision},
        text_config={"model_type": "llama", **text, **tokens},
        image_token_id=image_token_id,
        image_seq_length=(_SIDE // _PATCH) ** 2,
        vision_feature_layer=-2,
    )
    with plan.device:
        network = LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa", dtype=plan.dtype)
    make_greedy(network)
    return network.eval()
