"""The two shipped folders: half-precision safetensors in the layouts of open_clip and of transformers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_CLIP_WEIGHTS = "open_clip_model.safetensors"
_OPEN_CLIP_NAMES = {  # by the parts of transformers' names
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding": "conv1",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm": "ln_pre",  # the spelling of transformers
    "encoder.layers": "transformer.resblocks",
    "self_attn": "attn",
    "layer_norm": "ln_",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def as_open_clip(tower: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of transformers' CLIPVisionModel under the names of open_clip's `visual`; the same network.

    The last normalisation is left out: no caller of the tower's hidden states uses it, and CLIP has its own.
    """
    renamed: dict[str, torch.Tensor] = {}
    for name, weight in tower.items():
        if name.endswith(("q_proj.weight", "q_proj.bias")):  # open_clip joins the three projections
            joined = torch.cat([tower[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            renamed[_open_clip_name(name).replace("q_proj.", "in_proj_")] = joined
        elif not name.startswith("post_layernorm") and "k_proj" not in name and "v_proj" not in name:
            renamed[_open_clip_name(name)] = weight
    return renamed


def _open_clip_name(name: str) -> str:
    for part, renamed in _OPEN_CLIP_NAMES.items():
        name = name.replace(part, renamed)
    return name


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
