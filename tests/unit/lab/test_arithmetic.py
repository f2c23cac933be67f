"""How many operations a piece of work needs, with the mini model."""

from __future__ import annotations

import pytest

from ragllava.lab.bench.arithmetic import (
    matmul_rate,
    operations_needed,
    operations_of_each_alone,
)
from ragllava.models.bundle import ModelBundle
from ragllava.models.reranker import Pair
from ragllava.postcards.archive import draw_archive
from ragllava.settings import Settings


@pytest.fixture(scope="module")
def models() -> ModelBundle:
    return ModelBundle(Settings(device="cpu", torch_threads=1))


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    """Two questions with each of two postcards, question by question."""
    drawn = draw_archive(7, 2, 2, two_image_share=0.0)
    cards = [(card.caption, card.picture()) for card in drawn.postcards]
    return [Pair(question.text, caption, picture) for question in drawn.questions for caption, picture in cards]


def test_what_pairs_of_one_picture_share_counts_once(models: ModelBundle, pairs: list[Pair]) -> None:
    alone = [operations_needed(models.reranker, [pair]) for pair in pairs]
    assert operations_needed(models.reranker, [pairs[0], pairs[1]]) == alone[0] + alone[1]  # two pictures
    both = operations_needed(models.reranker, [pairs[0], pairs[2]])  # one picture
    assert max(alone[0], alone[2]) < both < alone[0] + alone[2]
    assert operations_needed(models.reranker, pairs) == sum(
        operations_needed(models.reranker, [pairs[card], pairs[card + 2]]) for card in (0, 1)
    )


def test_one_pair_by_hand(models: ModelBundle, pairs: list[Pair]) -> None:
    network = models.reranker.mllm.network
    inputs = models.reranker.mllm.prepare([pairs[0].prompt()], answer_tokens=1).tensors
    tokens = int(inputs["attention_mask"].sum())
    of_picture = int((inputs["input_ids"] == models.reranker.mllm.processor.image_token_id).sum())
    layers = sum(parameter.numel() for parameter in network.model.language_model.layers.parameters())
    final_norm = sum(parameter.numel() for parameter in network.model.language_model.norm.parameters())
    vision = sum(
        parameter.numel()
        for part in (network.model.vision_tower, network.model.multi_modal_projector)
        for parameter in part.parameters()
    )
    head = network.get_output_embeddings().weight.numel()
    everywhere = 2 * (tokens * (layers + final_norm) + of_picture * vision + head)
    assert operations_of_each_alone(models.reranker, pairs[:1]) == everywhere
    last = network.model.language_model.layers[-1]
    once = [last.self_attn.q_proj.weight, last.self_attn.o_proj.weight, *last.mlp.parameters()]
    spared = 2 * (tokens - 1) * sum(parameter.numel() for parameter in once)
    assert operations_needed(models.reranker, pairs[:1]) == everywhere - spared
    assert 0.1 < spared / everywhere < 0.2, "five layers"


def test_the_rate_of_a_matrix_product_is_plausible(models: ModelBundle) -> None:
    assert 1e8 < matmul_rate(models.reranker.mllm) < 1e15
