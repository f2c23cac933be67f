"""Attention by blocks sees exactly what the mask of the whole sequence lets it see, and nothing is computed twice."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from ragllava.models.device import DevicePlan
from ragllava.models.mllm import Mllm
from ragllava.models.prefix import shared_prefix
from ragllava.models.prefix.block_attention import Blocks, plan_blocks
from ragllava.models.prefix.shared_prefix import SharedPrompts, block_mask, packed_logits
from ragllava.models.reranker import Pair
from tests.support.tiny_checkpoints import load_family, noise_pictures

PLAN = DevicePlan(torch.device("cpu"), torch.float32, "test")


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def mllm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mllm:
    return load_family(request.param, tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("home"))


def seen_by_blocks(blocks: Blocks) -> torch.Tensor:
    """(T, T) bool: which token looks at which, put together from the groups. The prefix is computed apart."""
    seen = torch.zeros(blocks.tokens, blocks.tokens, dtype=torch.bool)
    seen[: blocks.prefix, : blocks.prefix] = torch.ones(blocks.prefix, blocks.prefix, dtype=torch.bool).tril()
    width = blocks.places.shape[1]
    for token, row in enumerate(blocks.rows.tolist(), blocks.prefix):
        group, place = divmod(row, width)
        keys = torch.cat([torch.arange(blocks.prefix), blocks.places[group]])
        visible = blocks.mask[group, 0, place] == 0
        assert blocks.places[group, place] == token, "rows come in the order of the sequence"
        seen[token, keys[visible]] = True
    return seen


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("group_tokens", [1, 24, 10_000])
def test_the_groups_see_what_the_mask_shows(seed: int, group_tokens: int) -> None:
    chance = random.Random(seed)
    prefix = chance.randint(1, 30)
    lengths = [chance.randint(1, 20) for _ in range(chance.randint(1, 9))]
    blocks = plan_blocks(prefix, lengths, PLAN, group_tokens)
    assert torch.equal(seen_by_blocks(blocks), block_mask(prefix, lengths, torch.float32)[0, 0] == 0)
    groups, width = blocks.places.shape
    assert len(blocks.rows) == sum(lengths) and width <= max(group_tokens, *lengths)
    assert groups == {1: len(lengths), 10_000: 1}.get(group_tokens, groups)
    assert -(-sum(lengths) // width) <= groups <= len(lengths)


def test_the_pass_looks_at_the_blocks_and_no_mask_is_made(mllm: Mllm, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = prompts_of(mllm)
    monkeypatch.setattr(shared_prefix, "block_mask", lambda *_: pytest.fail("nobody looks at it"))
    logits(mllm, shared)
    monkeypatch.setattr(shared_prefix, "plan_blocks", lambda *_: plan_blocks(1, [1], PLAN))  # of another sequence
    with pytest.raises(RuntimeError, match="where 2 tokens were announced"):
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


def test_where_attention_is_not_sdpa_the_mask_is_used(tmp_path: Path) -> None:
    llava = load_family("llava", tmp_path / "llava", tmp_path / "home")
    shared = prompts_of(llava)
    by_blocks = logits(llava, shared)
    llava.network.set_attn_implementation("eager")
    torch.testing.assert_close(logits(llava, shared), by_blocks, atol=1e-5, rtol=1e-4)


def prompts_of(mllm: Mllm) -> SharedPrompts:
    texts = ["What is it?", "How many windows does the red lighthouse in Port Ansel have?", "Why?", "Is it night?"]
    picture = noise_pictures()[0]
    shared = mllm.share([Pair(text, "Harlow", picture).prompt() for text in texts], answer_tokens=1)
    assert shared is not None
    return shared


def logits(mllm: Mllm, shared: SharedPrompts) -> torch.Tensor:
    return mllm.shared_logits(shared, packed_logits, 20, range(50))
