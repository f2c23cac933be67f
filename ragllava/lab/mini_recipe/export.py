"""The two shipped folders: half-precision safetensors in the layouts of open_clip and of transformers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_CLIP_WEIGHTS = "open_clip_model.safetensors"
_NAMES_OUTSIDE_LAYERS = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm": "ln_pre",  # transformers' own spelling
    "post_layernorm": "ln_post",
}
_NAMES_IN_LAYERS = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def as_open_clip(tower: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of transformers' CLIPVisionModel under the names of open_clip's `visual`; the same network.

    The last normalisation is left out: no caller of the tower's hidden states uses it, and CLIP has its own.
    """
    renamed = {
        _open_clip_name(name): weight
        for name, weight in tower.items()
        if not name.startswith("post_layernorm") and (".self_attn." not in name or "out_proj" in name)
    }
    layers = {name.split(".")[2] for name in tower if name.startswith("encoder.layers.")}
    for layer in layers:
        attention = f"encoder.layers.{layer}.self_attn"
        for part in ("weight", "bias"):
            joined = torch.cat([tower[f"{attention}.{projection}_proj.{part}"] for projection in "qkv"])
            renamed[f"transformer.resblocks.{layer}.attn.in_proj_{part}"] = joined
    return renamed


def _open_clip_name(name: str) -> str:
    if not name.startswith("encoder.layers."):
        stem, _, ending = name.rpartition(".")
        return _NAMES_OUTSIDE_LAYERS.get(name) or f"{_NAMES_OUTSIDE_LAYERS[stem]}.{ending}"
    _, _, layer, inside = name.split(".", 3)
    stem, _, ending = inside.rpartition(".")
    return f"transformer.resblocks.{layer}.{_NAMES_IN_LAYERS[stem]}.{ending}"


def export_clip(clip: Any, shipped: Path, target: Path) -> None:
    """Write the weights of an open_clip model, with the configuration and tokenizer of the shipped folder."""
    _copy_small_files(shipped, target)
    weights = {name: weight.detach().half().contiguous() for name, weight in clip.state_dict().items()}
    save_file(weights, target / _CLIP_WEIGHTS)
    _make_readable(target)


def export_llava(llava: Any, shipped: Path, target: Path) -> None:
    """Write the weights of a LlavaForConditionalGeneration, with processor and tokenizer of the shipped folder.

    The model itself is converted to half precision.
    """
    _copy_small_files(shipped, target)
    llava.half().save_pretrained(target)
    # Files of the shipped folder take precedence: save_pretrained records the attention used in training.
    _copy_small_files(shipped, target)
    _make_readable(target)


def _make_readable(folder: Path) -> None:
    """safetensors creates files for the current user only, but a package is for all users."""
    for path in folder.iterdir():
        path.chmod(0o644)


def _copy_small_files(source: Path, target: Path) -> None:
    weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(source, target, ignore=weights, copy_function=shutil.copy, dirs_exist_ok=True)
