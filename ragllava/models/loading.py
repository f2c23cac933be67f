"""Load a multimodal LLM from files on this machine: with its weights, or for preparing prompts only."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError

from ragllava.errors import ModelUnavailable
from ragllava.models.checks import Manifest, check_model_folder, mllm_manifest, model_version
from ragllava.models.device import DevicePlan
from ragllava.models.mllm import Mllm
from ragllava.models.profiles import Profile, find_model
from ragllava.settings import Settings

log = logging.getLogger(__name__)

_LOCAL = {"trust_remote_code": False, "local_files_only": True}

# What transformers and safetensors raise for damaged or unknown files.
_LOAD_ERRORS = (
    RuntimeError, ValueError, OSError, KeyError, ImportError, TypeError, AttributeError, SafetensorError
)  # fmt: skip


def load_mllm(profile: Profile, plan: DevicePlan, settings: Settings) -> Mllm:
    """Load the profile's MLLM from files on this machine. Raises ModelUnavailable."""
    folder = find_model(profile.mllm, profile, settings)
    check_model_folder(folder.path)
    files = mllm_manifest(folder.path, settings.home / "cache", pad_pictures=profile.pad_pictures)
    version = model_version(folder, files)
    try:
        network, processor = _load(folder.path, plan)
        if profile.pad_pictures:
            processor.image_processor = _padding(folder.path, network)
    except _LOAD_ERRORS as error:
        raise ModelUnavailable(f"the model in {folder.path} cannot be loaded: {error}") from error
    log.info("mllm loaded: %s", version, extra={"action": "mllm_loaded"})
    return Mllm(network, processor, version, plan, files)


def load_without_weights(
    folder: Path, version: str, files: Manifest, plan: DevicePlan, *, pad_pictures: bool = False
) -> Mllm:
    """An Mllm that only prepares prompts, for an endpoint that computes. Raises ModelUnavailable."""
    import transformers

    check_model_folder(folder, needs_weights=False)
    try:
        processor = transformers.AutoProcessor.from_pretrained(folder, **_LOCAL)
        config = transformers.AutoConfig.from_pretrained(folder, **_LOCAL)
        with torch.device("meta"):  # shapes without memory
            network = transformers.AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
        if pad_pictures:
            processor.image_processor = _padding(folder, network)
        if (folder / "generation_config.json").is_file():
            network.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
        make_greedy(network)
    except _LOAD_ERRORS as error:
        raise ModelUnavailable(f"the model in {folder} cannot be read: {error}") from error
    return Mllm(network, processor, version, plan, files)


def _load(folder: Path, plan: DevicePlan) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    processor = AutoProcessor.from_pretrained(folder, **_LOCAL)
    network, report = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=plan.dtype, attn_implementation="sdpa", use_safetensors=True, output_loading_info=True, **_LOCAL
    )
    # transformers initialises missing weights at random.
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"its weights lack {missing[0]} ({len(missing)} missing)")
    make_greedy(network)
    return network.to(plan.device).eval(), processor


def _padding(folder: Path, network: Any) -> Any:
    """LLaVA-1.5's own image processor with its padding on.

    The checkpoint names CLIP's, which cuts everything outside the middle square away; LLaVA was trained on padded
    pictures. Raises ValueError for another family.
    """
    from transformers import LlavaImageProcessor

    if network.config.model_type != "llava":
        raise ValueError(f"pad_pictures is for LLaVA-1.5, not for {network.config.model_type}")
    return LlavaImageProcessor.from_pretrained(folder, do_pad=True, local_files_only=True)


def padded(picture: Image.Image, processor: Any) -> Image.Image:
    """The picture as a square, where the processor pads to one, else the picture itself.

    A processor without padding, such as that of an endpoint, then sees as much of it.
    """
    from transformers import LlavaImageProcessor

    images = processor.image_processor
    if not isinstance(images, LlavaImageProcessor) or not images.do_pad or picture.width == picture.height:
        return picture
    colour = tuple(int(255 * mean) for mean in images.image_mean)
    side = max(picture.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def make_greedy(network: Any) -> None:
    """Replace the checkpoint's sampling and penalties by greedy decoding. ValueError without an end token."""
    from transformers import GenerationConfig

    shipped = network.generation_config
    ends = shipped.eos_token_id if shipped.eos_token_id is not None else network.config.get_text_config().eos_token_id
    if ends is None:
        raise ValueError("its generation_config.json names no eos_token_id")
    first_end = ends if isinstance(ends, int) else ends[0]
    padding = shipped.pad_token_id if shipped.pad_token_id is not None else first_end
    network.generation_config = GenerationConfig(
        do_sample=False, num_beams=1, bos_token_id=shipped.bos_token_id, eos_token_id=ends, pad_token_id=padding
    )
