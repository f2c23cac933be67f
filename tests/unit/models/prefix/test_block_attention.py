"""Attention by blocks sees exactly what a mask of the complete sequence shows."""

from __future__ import annotations

import random

import pytest
import torch

from ragllava.models.device import DevicePlan
from ragllava.models.mllm import Mllm
from ragllava.models.prefix import shared_prefix
from ragllava.models.prefix.block_attention import Blocks, plan_blocks
from ragllava.models.prefix.shared_prefix import SharedPrompts, packed_logits
from ragllava.models.reranker import Pair
from tests.support.tiny_checkpoints import load_family, noise_pictures

PLAN = DevicePlan(torch.device("cpu"), torch.float32, "test")


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def mllm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mllm:
    return load_family(request.param, tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("home"))


def seen_by_blocks(blocks: Blocks) -> torch.Tensor:
    """(T, T) bool: which token looks at which, collected from the groups. The prefix is computed apart."""
    seen = torch.zeros(blocks.tokens, blocks.tokens, dtype=torch.bool)
    seen[: blocks.prefix, : blocks.prefix] = torch.ones(blocks.prefix, blocks.prefix, dtype=torch.bool).tril()
    width = blocks.columns.shape[1]
    for token, row in enumerate(blocks.rows.tolist(), blocks.prefix):
        group, index = divmod(row, width)
        keys = torch.cat([torch.arange(blocks.prefix), blocks.columns[group]])
        visible = blocks.mask[group, 0, index] == 0
        assert blocks.columns[group, index] == token, "rows come in the order of the sequence"
        seen[token, keys[visible]] = True
    return seen


def visible_by_definition(prefix: int, lengths: list[int]) -> torch.Tensor:
    """(T, T) bool: the prefix looks at itself, an ending at the prefix and at itself, both only backwards."""
    owner = torch.tensor([0] * prefix + [number for number, length in enumerate(lengths, 1) for _ in range(length)])
    backwards = torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    return backwards & ((owner[None, :] == 0) | (owner[:, None] == owner[None, :]))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("group_tokens", [1, 24, 10_000])
def test_the_groups_see_what_the_mask_shows(seed: int, group_tokens: int) -> None:
    chance = random.Random(seed)
    prefix = chance.randint(1, 30)
    lengths = [chance.randint(1, 20) for _ in range(chance.randint(1, 9))]
    blocks = plan_blocks(prefix, lengths, PLAN, group_tokens)
    assert torch.equal(seen_by_blocks(blocks), visible_by_definition(prefix, lengths))
    groups, width = blocks.columns.shape
    assert len(blocks.rows) == sum(lengths) and width <= max(group_tokens, *lengths)
    assert groups == {1: len(lengths), 10_000: 1}.get(group_tokens, groups)
    assert -(-sum(lengths) // width) <= groups <= len(lengths)


def test_the_pass_computes_the_blocks(mllm: Mllm, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = prompts_of(mllm)
    monkeypatch.setattr(shared_prefix, "plan_blocks", lambda *_: plan_blocks(1, [1], PLAN))  # of another sequence
    with pytest.raises(RuntimeError, match="where 2 tokens were expected"):
        logits(mllm, shared)


def test_afterwards_the_network_attends_as_before(mllm: Mllm) -> None:
    config = mllm.network.config.get_text_config()
    shared = prompts_of(mllm)
    logits(mllm, shared)
    assert config._attn_implementation == "sdpa"
    broken = SharedPrompts(shared.prefix, [[10**9]], shared.first)  # no such token
    with pytest.raises(IndexError):
        logits(mllm, broken)
    assert config._attn_implementation == "sdpa"


def prompts_of(mllm: Mllm) -> SharedPrompts:
    texts = ["What is it?", "How many windows does the red lighthouse in Port Ansel have?", "Why?", "Is it night?"]
    picture = noise_pictures()[0]
    shared = mllm.share([Pair(text, "Harlow", picture).prompt() for text in texts], answer_tokens=1)
    assert shared is not None
    return shared


def logits(mllm: Mllm, shared: SharedPrompts) -> torch.Tensor:
    return mllm.shared_logits(shared, packed_logits, 20, range(50))
