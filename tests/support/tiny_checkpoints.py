"""Tiny random checkpoints of every supported family: the real classes, processors and template shapes.

Each builder returns a network of a few thousand parameters and its processor. The tokenizer is a small byte-level
BPE with the family's control tokens; picture sizes are those of the family's scheme, made small.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ragllava.models.device import plan_device
from ragllava.models.loading import load_mllm
from ragllava.models.mllm import Mllm
from ragllava.models.profiles import LOCAL_DIR, Profile, RetrieverSource
from ragllava.settings import Settings

_CORPUS = [
    "Image Caption: Harlow Lighthouse, Port Ansel, 1932",
    "Question: How many windows does the red lighthouse have? Yes No",
    "Based on the image and its caption, is the image relevant to the question? Answer 'Yes' or 'No'.",
    "USER: ASSISTANT: Yes ASSISTANT: No User: Assistant: Yes Assistant: No\nYes\nNo",
    "Answer the question using a single word or phrase.",
] * 20
_IMAGES_FIRST = (
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
)


def _in_order(image: str) -> str:
    return (
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '" + image + "' }}"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    )


def _template(before: str, content: str, after: str, answer: str) -> str:
    turn = before + content + after
    return (
        "{% for message in messages %}" + turn + "{% endfor %}{% if add_generation_prompt %}" + answer + "{% endif %}"
    )


_CHAT_ML = "{{ '<|im_start|>' + message['role'] + '\n' }}"
_CHAT_ML_ANSWER = "{{ '<|im_start|>assistant\n' }}"
_VICUNA = _template("{{ message['role'] | upper }}: ", _IMAGES_FIRST, " ", "ASSISTANT:")
_MISTRAL = _template("[INST] ", _IMAGES_FIRST, " [/INST]", "")
_ONEVISION = _template(
    "{{ '<|im_start|>' + message['role'] + ' ' }}", _IMAGES_FIRST, "{{ '<|im_end|>' }}", _CHAT_ML_ANSWER
)
_INTERNVL = _template(_CHAT_ML, _in_order("<IMG_CONTEXT>\\n"), "{{ '<|im_end|>\n' }}", _CHAT_ML_ANSWER)
_QWEN = _template(
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}" + _CHAT_ML,
    _in_order("<|vision_start|><|image_pad|><|vision_end|>"),
    "{{ '<|im_end|>\n' }}",
    _CHAT_ML_ANSWER,
)
_IDEFICS = "<|im_start|>" + _template(
    "{{ message['role'] | capitalize }}:", _in_order("<image>"), "{{ '<end_of_utterance>\n' }}", "Assistant:"
)

_PLAIN_CONTROL = ["<pad>", "<s>", "</s>", "<image>", "<video>"]
_CHAT_CONTROL = ["<pad>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
_QWEN_CONTROL = [*_CHAT_CONTROL, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_INTERN_CONTROL = [*_CHAT_CONTROL, "<img>", "</img>", "<IMG_CONTEXT>"]
_IDEFICS_CONTROL = [
    *_CHAT_CONTROL,
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
]


def build_tokenizer(control: list[str], end: str, **named: str) -> Any:
    """A byte-level BPE of 400 entries; `named` become attributes, as in `image_token="<image>"`."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=end, pad_token="<pad>", model_max_length=2048, extra_special_tokens=named
    )


def _llama(tokenizer: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _vision(model_type: str, image_size: int, patch_size: int) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": image_size,
        "patch_size": patch_size,
    }


def _clip_pictures(side: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}


def llava() -> tuple[Any, Any]:
    """LLaVA-1.5: one CLIP grid for each picture."""
    tokenizer = build_tokenizer(_PLAIN_CONTROL, "</s>", image_token="<image>")
    config = transformers.LlavaConfig(
        vision_config=_vision("clip_vision_model", 28, 7),
        text_config=_llama(tokenizer),
        image_token_id=tokenizer.image_token_id,
        image_seq_length=16,
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(**_clip_pictures(28)),
        tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_VICUNA,
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    """LLaVA-NeXT: the number of tiles follows the shape of the picture."""
    grid = [[28, 56], [56, 28], [56, 56]]
    tokenizer = build_tokenizer(_PLAIN_CONTROL, "</s>", image_token="<image>")
    config = transformers.LlavaNextConfig(
        vision_config=_vision("clip_vision_model", 28, 7),
        text_config=_llama(tokenizer),
        image_token_id=tokenizer.image_token_id,
        image_grid_pinpoints=grid,
        image_seq_length=16,
    )
    processor = transformers.LlavaNextProcessor(
        transformers.LlavaNextImageProcessor(image_grid_pinpoints=grid, **_clip_pictures(28)),
        tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_MISTRAL,
    )
    return transformers.LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    """LLaVA-OneVision: tiles for one picture, a plain grid for several."""
    grid = [[28, 28], [28, 56], [56, 28], [56, 56]]
    tokenizer = build_tokenizer(_CHAT_CONTROL, "<|im_end|>", image_token="<image>", video_token="<video>")
    config = transformers.LlavaOnevisionConfig(
        vision_config={**_vision("siglip_vision_model", 28, 7), "vision_use_head": False},
        text_config={**_llama(tokenizer), "model_type": "qwen2"},
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        image_grid_pinpoints=grid,
        vision_aspect_ratio="anyres_max_9",
    )
    processor = transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(image_grid_pinpoints=grid, size={"height": 28, "width": 28}),
        tokenizer,
        transformers.LlavaOnevisionVideoProcessor(size={"height": 28, "width": 28}),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=_ONEVISION,
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    """InternVL: tiles of one size, and a thumbnail."""
    tokenizer = build_tokenizer(
        _INTERN_CONTROL,
        "<|im_end|>",
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    vision = {**_vision("internvl_vision", 28, 7), "image_size": [28, 28], "patch_size": [7, 7]}
    config = transformers.InternVLConfig(
        vision_config=vision,
        text_config={**_llama(tokenizer), "model_type": "qwen2"},
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
    )
    processor = transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=4),
        tokenizer,
        transformers.InternVLVideoProcessor(size={"height": 28, "width": 28}),
        image_seq_length=4,
        chat_template=_INTERNVL,
    )
    return transformers.InternVLForConditionalGeneration(config), processor


def _qwen_parts(image_processor: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    tokenizer = build_tokenizer(_QWEN_CONTROL, "<|im_end|>")
    pictures = transformers.Qwen2VLImageProcessor(min_pixels=14 * 14, max_pixels=56 * 56, **image_processor)
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(text)
        for name, text in {
            "image": "<|image_pad|>",
            "video": "<|video_pad|>",
            "vision_start": "<|vision_start|>",
            "vision_end": "<|vision_end|>",
        }.items()
    }
    return tokenizer, pictures, ids


def _mrope(tokenizer: Any, model_type: str) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    return {**_llama(tokenizer), "model_type": model_type, "rope_parameters": rope}


def qwen2_vl() -> tuple[Any, Any]:
    """Qwen2-VL: pictures in their own size, three-part positions."""
    tokenizer, pictures, ids = _qwen_parts({"patch_size": 7, "merge_size": 2})
    config = transformers.Qwen2VLConfig(
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 7},
        text_config=_mrope(tokenizer, "qwen2_vl_text"),
        **ids,
    )
    videos = transformers.Qwen2VLVideoProcessor(patch_size=7)
    processor = transformers.Qwen2VLProcessor(pictures, tokenizer, videos, chat_template=_QWEN)
    return transformers.Qwen2VLForConditionalGeneration(config), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    """Qwen2.5-VL: windowed attention in the vision tower."""
    tokenizer, pictures, ids = _qwen_parts({"patch_size": 7, "merge_size": 2})
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 32,
        "num_heads": 4,
        "patch_size": 7,
        "window_size": 28,
        "fullatt_block_indexes": [1],
    }
    config = transformers.Qwen2_5_VLConfig(
        vision_config=vision, text_config=_mrope(tokenizer, "qwen2_5_vl_text"), **ids
    )
    videos = transformers.Qwen2VLVideoProcessor(patch_size=7)
    processor = transformers.Qwen2_5_VLProcessor(pictures, tokenizer, videos, chat_template=_QWEN)
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl() -> tuple[Any, Any]:
    """Qwen3-VL: features of several vision layers enter the first language layers."""
    tokenizer, pictures, ids = _qwen_parts({"patch_size": 7, "merge_size": 2})
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 32,
        "num_heads": 4,
        "patch_size": 7,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    text = {**_mrope(tokenizer, "qwen3_vl_text"), "head_dim": 8}
    config = transformers.Qwen3VLConfig(vision_config=vision, text_config=text, **ids)
    videos = transformers.Qwen3VLVideoProcessor(patch_size=7)
    processor = transformers.Qwen3VLProcessor(pictures, tokenizer, videos, chat_template=_QWEN)
    return transformers.Qwen3VLForConditionalGeneration(config), processor


def idefics3() -> tuple[Any, Any]:
    """Idefics3: pictures split into tiles with row and column marks."""
    tokenizer = build_tokenizer(_IDEFICS_CONTROL, "<end_of_utterance>")
    config = transformers.Idefics3Config(
        vision_config=_vision("idefics3_vision", 28, 7),
        text_config=_llama(tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    pictures = transformers.Idefics3ImageProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    processor = transformers.Idefics3Processor(pictures, tokenizer, image_seq_len=4, chat_template=_IDEFICS)
    return transformers.Idefics3ForConditionalGeneration(config), processor


def smolvlm() -> tuple[Any, Any]:
    """SmolVLM: Idefics3's scheme with a small language model."""
    tokenizer = build_tokenizer(_IDEFICS_CONTROL, "<end_of_utterance>", image_token="<image>")
    config = transformers.SmolVLMConfig(
        vision_config=_vision("smolvlm_vision", 28, 7),
        text_config=_llama(tokenizer),
        image_token_id=tokenizer.image_token_id,
        scale_factor=2,
    )
    pictures = transformers.SmolVLMImageProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    videos = transformers.SmolVLMVideoProcessor(size={"longest_edge": 28}, max_image_size={"longest_edge": 28})
    processor = transformers.SmolVLMProcessor(pictures, tokenizer, videos, image_seq_len=4, chat_template=_IDEFICS)
    return transformers.SmolVLMForConditionalGeneration(config), processor


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    build.__name__: build
    for build in (
        llava,
        llava_next,
        llava_onevision,
        internvl,
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        smolvlm,
        idefics3,
    )
}


def save_family(name: str, folder: Path, seed: int = 7) -> Path:
    """Write a checkpoint of the family, as `save_pretrained` would for a real one."""
    torch.manual_seed(seed)
    network, processor = FAMILIES[name]()
    # The default spread of random weights is so narrow that every pair would score 0.5.
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def noise_pictures(seed: int = 0) -> list[Image.Image]:
    """Six pictures of different sizes and shapes, no two alike."""
    random = np.random.default_rng(seed)
    sizes = [(30, 40), (90, 40), (112, 112), (40, 120), (56, 56), (25, 31)]
    return [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def load_family(name: str, folder: Path, home: Path) -> Mllm:
    """Save a tiny checkpoint and load it through the profile, as any own model."""
    save_family(name, folder)
    return load_folder(folder, home)


def load_folder(folder: Path, home: Path) -> Mllm:
    """Load a checkpoint's folder through the profile."""
    settings = Settings(home=home, device="cpu")
    profile = Profile("tiny", RetrieverSource(f"{LOCAL_DIR}{folder}"), str(folder))
    return load_mllm(profile, plan_device(settings), settings)
