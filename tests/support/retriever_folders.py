"""Other retrievers than the shipped one, in its own form: folders of an open_clip model."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ragllava.models.profiles import LOCAL_DIR, RetrieverSource, get_profile
from ragllava.settings import Settings

_WEIGHTS = "open_clip_model.safetensors"


def write_retriever(folder: Path, *, noise: float, only: tuple[str, ...] = ("",), seed: int = 1) -> RetrieverSource:
    """The shipped retriever with noise in the weights whose name begins with `only`, as a share of their spread.

    A little makes a retriever as good as the shipped one with other vectors, much one that knows nothing.
    """
    shipped = Path(get_profile(Settings()).retriever.reference)
    shutil.copytree(shipped, folder)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, weight in load_file(folder / _WEIGHTS).items():
        spread = weight.float().std(correction=0) if name.startswith(only) and weight.dim() > 1 else torch.tensor(0.0)
        shift = noise * spread * torch.randn(weight.shape, generator=generator)
        weights[name] = (weight.float() + shift).to(weight.dtype)
    save_file(weights, folder / _WEIGHTS)
    return RetrieverSource(f"{LOCAL_DIR}{folder}")
