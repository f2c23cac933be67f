"""LoRA layers on the language model of any family, or on all of it: added, saved as an adapter, and removed."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ragllava.errors import ModelUnavailable
from ragllava.models.checks import ADAPTER_KEYS
from ragllava.models.mllm import Mllm
from ragllava.training.finetune.presets import TrainingSettings

_PROJECTORS = frozenset({"multi_modal_projector", "connector", "merger"})  # of LLaVA and InternVL, Idefics, Qwen
_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


def linear_layers(network: Any, *, with_vision: bool = False, with_projector: bool = False) -> str:
    """A pattern for the names of the language model's linear layers (docs/method.md 5), or also those that see.

    Vision tower, projector and lm_head are outside the language model; `with_vision` adds the first two,
    `with_projector` the second alone. Raises ModelUnavailable.
    """
    decoder = network.get_decoder()
    prefix = next((name for name, module in network.named_modules() if module is decoder), None)
    if not prefix:
        raise ModelUnavailable(f"{type(network).__name__}: no language model is found in it to train")
    kinds = sorted(
        {name.rsplit(".", 1)[-1] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    )
    pattern = rf"{re.escape(prefix)}\..*\.({'|'.join(map(re.escape, kinds))})"
    if not (with_vision or with_projector):
        return pattern
    head = network.get_output_embeddings()
    seeing = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and not re.fullmatch(pattern, name)
        and (with_vision or is_projector(name))
    ]
    if not seeing:
        raise ModelUnavailable(f"{type(network).__name__}: no projector is found in it to train")
    return "|".join([pattern, *map(re.escape, seeing)])


def is_projector(name: str) -> bool:
    """Whether a module or parameter belongs to what translates pictures for the language model, in any family."""
    return any(part in _PROJECTORS for part in name.split("."))


@contextmanager
def trainable_lora(mllm: Mllm, settings: TrainingSettings) -> Iterator[Any]:
    """Inside the `with`, the base is frozen and has new LoRA layers; yields the network to train.

    Afterwards the base is as it was. It must have no adapter before.
    """
    from peft import LoraConfig, get_peft_model

    network = mllm.network
    needed_gradient = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    use_cache = network.config.use_cache if hasattr(network.config, "use_cache") else None
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=linear_layers(
            network,
            with_vision=settings.train_vision,
            with_projector=settings.projector_learning_rate is not None,
        ),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(settings.seed)  # of the fresh layers
    with warnings.catch_warnings():
        # peft reads an attribute that transformers has renamed; nothing a user could do about it.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        trained = get_peft_model(network, config)
    try:
        yield trained
    finally:
        network.activation_checkpointing_disable()
        trained.unload()
        if use_cache is not None:
            network.config.use_cache = use_cache
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in needed_gradient)
        network.eval()


def save_adapter(checkpoint: Path, folder: Path, base: str) -> None:
    """Write the adapter of a peft checkpoint into `folder`, with the settings alone that we load (models/checks.py).

    `base` names the model that it was trained on; a path of this machine has no place in it.
    """
    folder.mkdir(parents=True)
    (folder / _WEIGHTS).write_bytes((checkpoint / _WEIGHTS).read_bytes())
    saved = json.loads((checkpoint / _CONFIG).read_text())
    kept = {key: value for key, value in saved.items() if key in ADAPTER_KEYS and value not in (None, {}, [])}
    kept |= {"base_model_name_or_path": base, "task_type": saved["task_type"]}
    (folder / _CONFIG).write_text(json.dumps(kept, indent=1, sort_keys=True))
