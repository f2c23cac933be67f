"""What profiles assume of real checkpoints, with their own tokenizers: which tokens say Yes and No, and where.

The networks are tiny and random; templates are those of the model pages. LLaVA-1.5's end in `ASSISTANT:`, so a space
belongs to the answer's token; Qwen3-VL's end in a line break, so none does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from ragllava.models.device import plan_device
from ragllava.models.mllm import Mllm
from ragllava.models.reranker import Pair, Reranker
from ragllava.settings import Settings
from tests.support import real_tokenizers
from tests.support.tiny_checkpoints import FAMILIES, noise_pictures

QWEN3_VL = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def with_tokenizer(family: str, tokenizer: Any, home: Path) -> Mllm:
    """The family's tiny network, with a vocabulary as large as this tokenizer's."""
    torch.manual_seed(1)
    network, processor = FAMILIES[family]()
    network.resize_token_embeddings(len(tokenizer))
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)  # else every pair would score 0.5
    tokenizer.image_token = processor.image_token
    processor.tokenizer = tokenizer
    image_id = tokenizer.convert_tokens_to_ids(processor.image_token)
    processor.image_token_id = network.config.image_token_id = image_id
    network.generation_config = transformers.GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    if family == "qwen3_vl":
        processor.chat_template = QWEN3_VL
        for name in ("vision_start", "vision_end"):
            setattr(network.config, f"{name}_token_id", tokenizer.convert_tokens_to_ids(f"<|{name}|>"))
    return Mllm(network.eval(), processor, f"tiny {family}", plan_device(Settings(home=home, device="cpu")))


def llava(home: Path) -> Mllm:
    return with_tokenizer("llava", real_tokenizers.llama("<image>", "<pad>"), home)


def qwen(home: Path) -> Mllm:
    return with_tokenizer("qwen3_vl", real_tokenizers.qwen3(), home)


def test_llava_answers_with_tokens_that_begin_with_a_space(tmp_path: Path) -> None:
    mllm = llava(tmp_path)
    assert mllm.render(("Is it?",)).endswith("ASSISTANT:")
    assert mllm.answer_token_ids(["Yes", "No"]) == [3869, 1939]
    assert mllm.tokenizer.convert_ids_to_tokens([3869, 1939]) == ["▁Yes", "▁No"]


def test_qwen_answers_with_the_bare_words(tmp_path: Path) -> None:
    mllm = qwen(tmp_path)
    assert mllm.render(("Is it?",)).endswith("<|im_start|>assistant\n")
    assert mllm.answer_token_ids(["Yes", "No"]) == [9454, 2753]
    control = ["<|endoftext|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>"]
    assert mllm.tokenizer.convert_tokens_to_ids(control) == [151643, 151645, 151652, 151655]
    assert mllm.answer_token_ids(["yes", "no"]) == [9693, 2152]  # those of Qwen3-VL-Reranker's own prompt


@pytest.mark.parametrize("build", [llava, qwen])
def test_a_pair_scores_the_same_alone_and_in_a_batch(build: Any, tmp_path: Path) -> None:
    """The tokens behind a shared prefix are those of the complete prompt, also with a real tokenizer."""
    reranker = Reranker(build(tmp_path))
    picture, other = noise_pictures()[:2]
    pairs = [Pair(text, "Harlow, 1932", picture) for text in ("What is it?", "Is the mill of Ansel red?", "Why?")]
    pairs.append(Pair("Why?", None, other))
    alone = [reranker.relevance([pair], batch_size=1)[0].value for pair in pairs]
    together = [score.value for score in reranker.relevance(pairs, batch_size=4)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len({round(value, 6) for value in alone}) == len(pairs)
