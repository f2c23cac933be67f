"""Adapters with random weights for any base, in the form that a training leaves them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ragllava.models.checks import digest
from ragllava.prompts import ANSWER_VERSION, RERANK_VERSION
from ragllava.records import Role
from ragllava.stages.champions import publish_adapter
from ragllava.stores.learning import registry
from ragllava.stores.learning.registry import AdapterVersion, ModelVersion
from tests.support.workshop import Workshop

_LAYER = re.compile(r".*language_model.*\.(q_proj|v_proj)")


def write_random_adapter(folder: Path, network: Any, seed: int, rank: int = 2, scale: float = 0.5) -> Path:
    """Write an adapter for the base of `network`, on which others may lie; returns the folder."""
    random = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    for path, module in network.named_modules():
        name = path.removesuffix(".base_layer")
        if isinstance(module, nn.Linear) and _LAYER.fullmatch(name):
            rows, columns = module.weight.shape
            place = f"base_model.model.{name}"
            weights[f"{place}.lora_A.weight"] = torch.randn(rank, columns, generator=random) * scale
            weights[f"{place}.lora_B.weight"] = torch.randn(rows, rank, generator=random) * scale
    assert weights, "the network has no layer of these names"
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": _LAYER.pattern}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def promote_random_adapter(desk: Workshop, role: Role, name: str, seed: int, base: str | None = None) -> ModelVersion:
    """Publish, register and promote a random adapter that changes the scores a little."""
    models = desk.resources.models
    folder = desk.settings.home / name
    write_random_adapter(folder, models.reranker.mllm.network, seed, scale=0.1)
    files = publish_adapter(desk.resources.objects, folder)
    version = AdapterVersion(
        role=role,
        name=name,
        profile="mini",
        prompt=RERANK_VERSION if role is Role.RERANKER else ANSWER_VERSION,
        threshold=seed / 1000 if role is Role.RERANKER else None,
        threshold_curve=None,
        adapter_sha256=digest(files),
        manifest=files,
        base=base or models.base_version,
        training={},
    )
    with desk.engine.begin() as connection:
        registry.register_adapter(connection, version)
        return registry.promote(connection, "mini", role, name, "a test")
