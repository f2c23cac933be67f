"""When prompts share a prefix and when not: trials of a family that cannot, in half precision, without memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ragllava.errors import DeviceLost
from ragllava.models import mllm as mllm_module
from ragllava.models.bundle import ModelBundle
from ragllava.models.generator import AnswerRequest, Generator
from ragllava.models.mllm import Mllm
from ragllava.models.prefix import trials as sharing_module
from ragllava.models.prefix.shared_prefix import SharedPrompts
from ragllava.models.reranker import Pair, Reranker
from ragllava.postcards.archive import draw_archive
from ragllava.settings import Settings
from tests.support.tiny_checkpoints import load_family, noise_pictures

TOLERANCE = 1e-5


@pytest.fixture
def llava(tmp_path: Path) -> Mllm:
    return load_family("llava", tmp_path / "llava", tmp_path / "home")


def test_a_family_that_cannot_share_is_scored_pair_by_pair(llava: Mllm, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> torch.Tensor:
        raise ValueError("no mask of four dimensions")

    def be_wrong(network: object, shared: SharedPrompts, *_: object) -> torch.Tensor:
        return torch.randn(len(shared.endings), len(llava.tokenizer))

    pairs = [Pair(text, None, noise_pictures()[0]) for text in ("What is it?", "Why?")]
    right = [Reranker(llava).relevance([pair], batch_size=1)[0].value for pair in pairs]
    monkeypatch.setattr(sharing_module, "WAYS", {"refusing": refuse, "wrong": be_wrong})
    reranker = Reranker(llava)
    assert reranker.sharing is None
    np.testing.assert_allclose([s.value for s in reranker.relevance(pairs, batch_size=2)], right, atol=TOLERANCE)


def test_a_family_whose_cache_cannot_be_shared_answers_one_by_one(llava: Mllm, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError("the network does not keep all keys and values")

    picture = noise_pictures()[0]
    requests = [AnswerRequest(text, (None,), (picture,)) for text in ("What is it?", "Why?")]
    right = [Generator(llava).answer([r], max_tokens=3, with_captions=True, batch_size=1)[0] for r in requests]
    monkeypatch.setattr(mllm_module, "continue_greedily", refuse)
    generator = Generator(llava)
    assert not generator.shares_prefixes
    answers = generator.answer(requests, max_tokens=3, with_captions=True, batch_size=2)
    assert [answer.text for answer in answers] == [answer.text for answer in right]


def test_answers_that_are_others_behind_a_prefix_are_not_shared(
    llava: Mllm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def be_wrong(*_: object) -> tuple[torch.Tensor, ...]:
        logits = torch.zeros(3, len(llava.tokenizer))
        return torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 1), logits.index_fill(1, torch.tensor([7]), 9.0)

    monkeypatch.setattr(mllm_module, "continue_greedily", be_wrong)
    assert not Generator(llava).shares_prefixes
    assert "answers behind one prefix differ" in caplog.text


def test_in_bfloat16_a_pair_scores_alone_as_in_a_batch_and_behind_a_prefix(tmp_path: Path) -> None:
    """As near as its products allow: logits are not rounded to it, of which a relevance would be all steps and ties."""
    reranker = ModelBundle(Settings(home=tmp_path, device="cpu", dtype="bfloat16")).reranker
    assert reranker.mllm.network.dtype == torch.bfloat16
    assert reranker.sharing is not None
    archive = draw_archive(seed=5, images=8, questions=12)
    shown = [(card.caption, card.picture()) for card in archive.postcards]
    pairs = [Pair(question.text, caption, picture) for question in archive.questions for caption, picture in shown]
    together = [score.value for score in reranker.relevance(pairs, batch_size=20)]
    alone = [reranker.relevance([pair], batch_size=1)[0].value for pair in pairs]
    apart = [replace(pair, picture=pair.picture.copy()) for pair in pairs]
    batch = [score.value for score in reranker.relevance(apart, batch_size=20)]
    np.testing.assert_allclose(together, alone, atol=5e-3)
    np.testing.assert_allclose(batch, alone, atol=5e-3)
    assert len(set(together)) > 0.9 * len(pairs)


@pytest.mark.parametrize("role", [Reranker, Generator])
def test_a_trial_that_finds_no_memory_is_made_again(
    llava: Mllm, monkeypatch: pytest.MonkeyPatch, role: type[Reranker | Generator]
) -> None:
    def fill(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def shares() -> bool:
        model = role(llava)
        return model.sharing is not None if isinstance(model, Reranker) else model.shares_prefixes

    with monkeypatch.context() as patched:
        for name in ("shared_logits", "generate_shared"):
            patched.setattr(llava, name, fill)
        assert not shares()
    assert shares()


@pytest.mark.parametrize("role", [Reranker, Generator])
def test_a_device_that_fails_at_the_trial_is_lost(
    llava: Mllm, monkeypatch: pytest.MonkeyPatch, role: type[Reranker | Generator]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    for name in ("shared_logits", "generate_shared"):
        monkeypatch.setattr(llava, name, fail)
    model = role(llava)
    with pytest.raises(DeviceLost):
        _ = model.sharing if isinstance(model, Reranker) else model.shares_prefixes
