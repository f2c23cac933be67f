"""The generator against a slow loop of forward passes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ragllava.models.generator import AnswerRequest, GeneratedAnswer, Generator
from ragllava.models.mllm import Mllm
from ragllava.prompts import answer_prompt
from tests.support.tiny_checkpoints import load_family, noise_pictures


@pytest.fixture
def mllm(tmp_path: Path) -> Mllm:
    return load_family("llava", tmp_path / "model", tmp_path / "home")


def slow_answer(mllm: Mllm, request: AnswerRequest, steps: int) -> tuple[list[int], list[float]]:
    """Greedy decoding with a full forward pass for each token; tokens and their log-probabilities."""
    text = mllm.render(answer_prompt(request.question, list(request.captions)))
    inputs = dict(mllm.processor(text=[text], images=[list(request.pictures)], return_tensors="pt"))
    tokens: list[int] = []
    log_probabilities: list[float] = []
    for _ in range(steps):
        with torch.no_grad():
            row = mllm.network(**inputs).logits[0, -1].log_softmax(-1)
        tokens.append(int(row.argmax()))
        log_probabilities.append(float(row.max()))
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[tokens[-1]]])], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return tokens, log_probabilities


def ask(mllm: Mllm, request: AnswerRequest, max_tokens: int = 6, with_captions: bool = True) -> GeneratedAnswer:
    [answer] = Generator(mllm).answer([request], max_tokens=max_tokens, with_captions=with_captions, batch_size=2)
    return answer


def assert_same(answer: GeneratedAnswer, expected: GeneratedAnswer) -> None:
    assert (answer.text, answer.note) == (expected.text, expected.note)
    assert answer.confidence == pytest.approx(expected.confidence, abs=1e-5)


@pytest.fixture
def request_for_two() -> AnswerRequest:
    pictures = noise_pictures()
    return AnswerRequest("Which is older?", ("Harlow", "Ansel"), (pictures[0], pictures[1]))


def test_the_answer_is_greedy_and_its_confidence_the_mean_probability(
    mllm: Mllm, request_for_two: AnswerRequest
) -> None:
    tokens, log_probabilities = slow_answer(mllm, request_for_two, 6)
    assert mllm.end_token_ids.isdisjoint(tokens), "this seed must not end early, or the case is another one"
    text = mllm.tokenizer.decode(tokens).strip()
    wanted = GeneratedAnswer(text, math.exp(sum(log_probabilities) / 6), "answer stopped at 6 tokens")
    assert_same(ask(mllm, request_for_two), wanted)
    assert ask(mllm, request_for_two).tokens == 6


def test_the_end_token_is_not_counted(mllm: Mllm, request_for_two: AnswerRequest) -> None:
    tokens, log_probabilities = slow_answer(mllm, request_for_two, 6)
    end = next(step for step in range(1, 6) if tokens[step] not in tokens[:step])
    mllm.network.generation_config.eos_token_id = tokens[end]
    text = mllm.tokenizer.decode(tokens[:end]).strip()
    assert_same(ask(mllm, request_for_two), GeneratedAnswer(text, math.exp(sum(log_probabilities[:end]) / end)))
    assert ask(mllm, request_for_two).tokens == end


def test_an_empty_answer_is_as_sure_as_its_end_token(mllm: Mllm, request_for_two: AnswerRequest) -> None:
    tokens, log_probabilities = slow_answer(mllm, request_for_two, 1)
    mllm.network.generation_config.eos_token_id = tokens[0]
    wanted = GeneratedAnswer("", math.exp(log_probabilities[0]), "the model gave an empty answer")
    assert_same(ask(mllm, request_for_two), wanted)
    assert ask(mllm, request_for_two).tokens == 0


def test_without_captions_they_neither_matter_nor_are_cut(mllm: Mllm, request_for_two: AnswerRequest) -> None:
    long = AnswerRequest(request_for_two.question, ("x " * 9000, None), request_for_two.pictures)
    bare = ask(mllm, request_for_two, with_captions=False)
    assert_same(ask(mllm, long, with_captions=False), bare)
    assert ask(mllm, request_for_two).confidence != pytest.approx(bare.confidence, abs=1e-5)


def test_a_cut_caption_is_said_in_the_note(mllm: Mllm, request_for_two: AnswerRequest) -> None:
    long = AnswerRequest("Which?", ("Harlow Lighthouse " * 2000, "Ansel"), request_for_two.pictures)
    assert "caption 1 cut from" in str(ask(mllm, long).note)


def test_requests_keep_their_order_across_picture_counts(mllm: Mllm) -> None:
    pictures = noise_pictures()
    requests = [
        AnswerRequest(f"Which one of {n}?", ("a",) * (1 + n % 2), tuple(pictures[: 1 + n % 2])) for n in range(5)
    ]
    together = Generator(mllm).answer(requests, max_tokens=4, with_captions=True, batch_size=2)
    for request, answer in zip(requests, together, strict=True):
        assert_same(answer, ask(mllm, request, 4))
