"""Noise injection: the diffusion, the tokens' weights, the wrong picture."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from ragllava.training.data.examples import AnswerExample, Evidence, inject_wrong_image
from ragllava.training.finetune.noise import (
    IGNORED_LABEL,
    diffuse,
    noise_schedule,
    token_weights,
    weighted_loss,
)

NO = IGNORED_LABEL


def test_the_schedule_is_the_formula_worked_step_by_step() -> None:
    schedule = noise_schedule()
    kept = 1.0
    for step in range(1000):
        place = -6 + 12 * step / 999
        kept *= 1 - ((5e-3 - 1e-5) / (1 + math.exp(-place)) + 1e-5)
        assert schedule[step].item() == pytest.approx(kept, rel=1e-9)


def test_the_middle_step_keeps_what_the_reference_keeps() -> None:
    kept = noise_schedule()[500].item()
    assert math.sqrt(kept) == pytest.approx(0.863, abs=5e-4)
    assert math.sqrt(1 - kept) == pytest.approx(0.505, abs=5e-4)


def test_diffusion_keeps_mean_and_spread_of_the_formula() -> None:
    pixels = torch.full((4, 3, 100, 100), 2.0)
    noised = diffuse(pixels, 500, torch.Generator().manual_seed(3))
    kept = noise_schedule()[500].item()
    assert noised.mean().item() == pytest.approx(2 * math.sqrt(kept), abs=0.01)
    assert noised.std().item() == pytest.approx(math.sqrt(1 - kept), abs=0.01)
    assert torch.equal(pixels, torch.full((4, 3, 100, 100), 2.0)), "the argument stays as it is"


def test_diffusion_repeats_with_its_seed_and_keeps_shape_and_precision() -> None:
    patches = torch.randn(64, 1176).bfloat16()  # as Qwen's processors give them
    noised = [diffuse(patches, 500, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(noised[0], noised[1])
    assert not torch.equal(noised[0], noised[2])
    assert noised[0].shape == patches.shape
    assert noised[0].dtype == patches.dtype


def logits_with(differences: list[float], labels: list[int], vocabulary: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean and noisy logits of one row whose difference at the label is given, and misleading at every other entry."""
    clean = torch.randn(1, len(labels), vocabulary, generator=torch.Generator().manual_seed(5))
    noisy = clean - 4.0
    for place, (difference, label) in enumerate(zip(differences, labels, strict=True)):
        noisy[0, place, max(label, 0)] = clean[0, place, max(label, 0)] - difference
    return clean, noisy


def weights_of(differences: list[float], labels: list[int]) -> list[float]:
    clean, noisy = logits_with(differences, labels)
    weights: list[float] = token_weights(clean, noisy, torch.tensor([labels]))[0].tolist()
    return weights


def test_weights_are_gathered_at_the_label_and_averaged_over_three() -> None:
    # Clamped to [1, 5]: 2, 1, 5, 3.
    assert weights_of([2.0, -8.0, 9.0, 3.0], [4, 1, 6, 2]) == pytest.approx([1.5, 8 / 3, 3.0, 4.0], abs=1e-5)


def test_the_window_reaches_neither_into_the_prompt_nor_over_the_end() -> None:
    # Prompt, prompt, 4 and 2, padding: the prompt's differences of 5 must not count.
    assert weights_of([5.0, 5.0, 4.0, 2.0, 5.0], [NO, NO, 3, 1, NO]) == pytest.approx([0, 0, 3, 3, 0], abs=1e-5)
    assert weights_of([4.0], [3]) == pytest.approx([4.0], abs=1e-5), "a single token, a single position"
    # Two answers in one row, apart by one prompt token.
    assert weights_of([2.0, 5.0, 4.0], [0, NO, 0]) == pytest.approx([2.0, 0.0, 4.0], abs=1e-5)


def test_rows_do_not_touch() -> None:
    labels = torch.tensor([[1, 2], [3, 4]])
    rows = [logits_with(d, row) for d, row in zip([[2.0, 4.0], [1.0, 5.0]], labels.tolist(), strict=True)]
    clean, noisy = (torch.cat(part) for part in zip(*rows, strict=True))
    together = token_weights(clean, noisy, labels)
    torch.testing.assert_close(together, torch.tensor([[3.0, 3.0], [3.0, 3.0]]))


def test_an_even_window_is_refused() -> None:
    with pytest.raises(ValueError, match="no middle"):
        token_weights(*logits_with([1.0], [0]), torch.tensor([[0]]), window=2)


def test_weights_carry_no_gradient() -> None:
    clean, noisy = logits_with([2.0, 3.0], [1, 2])
    clean.requires_grad_()
    assert not token_weights(clean, noisy, torch.tensor([[1, 2]])).requires_grad


@given(st.integers(0, 10_000))
def test_weights_equal_a_slow_reference(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    clean, noisy = (3 * torch.randn(2, 6, 5, generator=draw) for _ in range(2))
    labels = torch.randint(-2, 5, (2, 6), generator=draw)
    labels[labels < 0] = NO
    weights = token_weights(clean, noisy, labels)
    for row in range(2):
        for place in range(6):
            near = [p for p in range(place - 1, place + 2) if 0 <= p < 6 and labels[row, p] != NO]
            deltas = [(clean[row, p, labels[row, p]] - noisy[row, p, labels[row, p]]).item() for p in near]
            mean = sum(min(max(delta, 1.0), 5.0) for delta in deltas) / max(len(near), 1)
            expected = mean if labels[row, place] != NO else 0.0
            assert weights[row, place].item() == pytest.approx(expected, abs=1e-5)


def test_small_differences_give_plain_cross_entropy() -> None:
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 5, 11, generator=draw, requires_grad=True)
    noisy = (logits + 4 - 5 * torch.rand(3, 5, 11, generator=draw)).detach()  # all Δ in [-4, 1]
    labels = torch.randint(0, 11, (3, 5), generator=draw)
    labels[:, :2] = NO
    loss = weighted_loss(logits, labels, token_weights(logits, noisy, labels))
    plain = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=NO)
    assert loss.item() == pytest.approx(plain.item(), abs=1e-6)
    gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (loss, plain)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=0)


def test_the_weighted_loss_of_two_tokens_worked_by_hand() -> None:
    # Over two entries with logits (0, ln 3): p = (1/4, 3/4).
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, math.log(3)], [9.0, 0.0]]])
    loss = weighted_loss(logits, torch.tensor([[0, 1, NO]]), torch.tensor([[3.0, 1.0, 7.0]]))
    assert loss.item() == pytest.approx((3 * math.log(4) + math.log(4 / 3)) / 4, abs=1e-6)


def test_the_wrong_picture_joins_in_any_place_and_the_answer_stays() -> None:
    example = AnswerExample("How many windows?", ("Harlow",), ("right",), "3")
    wrong = Evidence("wrong", None)
    orders = set()
    for seed in range(20):
        noisy = inject_wrong_image(example, wrong, random.Random(seed))
        assert noisy.answer == "3"
        assert noisy.injected
        assert dict(zip(noisy.images, noisy.captions, strict=True)) == {"right": "Harlow", "wrong": None}
        orders.add(noisy.images)
    assert orders == {("right", "wrong"), ("wrong", "right")}
    assert example.images == ("right",)
