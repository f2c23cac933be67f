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

    The last normalisation, which no caller of the tower's hidden states passes, is left out: CLIP has its own.
    """
    renamed: dict[str, torch.Tensor] = {}
    for name, weight in tower.items():
        if name.startswith("post_layernorm") or (".self_attn." in name and "out_proj" not in name):
            continue
        renamed[_open_clip_name(name)] = weight
    layers = {name.split(".")[2] for name in tower if name.startswith("encoder.layers.")}
    for layer in layers:
        attention = f"encoder.layers.{layer}.self_attn"
        for part in ("weight", "bias"):
            joined = torch.cat([tower[f"{attention}.{which}_proj.{part}"] for which in "qkv"])
            renamed[f"transformer.resblocks.{layer}.attn.in_proj_{part}"] = joined
    return renamed


def _open_clip_name(name: str) -> str:
    if not name.startswith("encoder.layers."):
        stem, _, ending = name.rpartition(".")
        return _NAMES_OUTSIDE_LAYERS.get(name) or f"{_NAMES_OUTSIDE_LAYERS[stem]}.{ending}"
    _, _, layer, rest = name.split(".", 3)
    stem, _, ending = rest.rpartition(".")
    return f"transformer.resblocks.{layer}.{_NAMES_IN_LAYERS[stem]}.{ending}"


def export_clip(clip: Any, shipped: Path, target: Path) -> None:
    """Writes the weights of an open_clip model, beside the configuration and tokenizer of the shipped folder."""
    _copy_small_files(shipped, target)
    weights = {name: weight.detach().half().contiguous() for name, weight in clip.state_dict().items()}
    save_file(weights, target / _CLIP_WEIGHTS)
    _make_readable(target)


def export_llava(llava: Any, shipped: Path, target: Path) -> None:
    """Writes the weights of a LlavaForConditionalGeneration, beside processor and tokenizer of the shipped folder.

    The model itself becomes half precision on the way.
    """
    _copy_small_files(shipped, target)
    llava.half().save_pretrained(target)
    # Files of the shipped folder win: save_pretrained notes the attention that trained.
    _copy_small_files(shipped, target)
    _make_readable(target)


def _make_readable(folder: Path) -> None:
    """safetensors writes for its own user only, but a package is for everybody."""
    for path in folder.iterdir():
        path.chmod(0o644)


def _copy_small_files(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, target / path.name)
