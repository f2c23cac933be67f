"""The drawn pictures of the mini models' recipe, and the training labels of their tower."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from ragllava.lab.mini_recipe.pool import draw_pool
from ragllava.lab.mini_recipe.vision import ATTRIBUTE_VALUES, attribute_labels, counted_mass, varied
from ragllava.postcards.drawing import draw_postcard
from ragllava.postcards.names import sample_attributes


def test_a_pool_holds_what_was_drawn_and_is_not_drawn_twice(tmp_path: Path) -> None:
    pool = draw_pool(tmp_path, 3, first_seed=70, processes=1)
    for number in range(3):
        rng = random.Random(70 + number)
        shown = sample_attributes(rng)
        drawing = draw_postcard(shown, rng)
        assert pool.attributes[number] == shown
        assert np.array_equal(pool.pixels[number], drawing.pixels)
        assert np.allclose(pool.places[number, : shown.count], np.array(drawing.counted_at) * 1.12)
        assert (pool.places[number, shown.count :] == -1).all()
    again = draw_pool(tmp_path, 5, first_seed=0, processes=1)
    assert len(again) == 3


def test_counted_mass_is_shared_among_the_nearest_patches() -> None:
    none = [-1.0, -1.0]
    in_a_middle, between_two = [8 + 16 * 2, 8 + 16 * 3], [8 + 16 * 4 + 4, 8.0]
    mass = counted_mass(torch.tensor([[in_a_middle, between_two, none], [none, none, none]]), patch_size=16)
    expected = torch.zeros(7, 7)
    expected[3, 2] = 1
    expected[0, 4], expected[0, 5] = 0.75, 0.25
    assert torch.allclose(mass[0].view(7, 7), expected)
    assert mass[1].abs().sum() == 0


def test_counted_mass_adds_up_to_the_count() -> None:
    rng = random.Random(3)
    places = torch.full((50, 6, 2), -1.0)
    counts = [rng.randint(0, 6) for _ in range(50)]
    for row, count in enumerate(counts):
        for number in range(count):
            places[row, number] = torch.tensor([rng.uniform(0, 112), rng.uniform(0, 112)])
    assert torch.allclose(counted_mass(places, patch_size=16).sum(1), torch.tensor(counts).float(), atol=1e-4)


def test_places_are_mirrored_and_shifted_with_the_picture() -> None:
    pixels = torch.zeros(20, 3, 112, 112)
    places = torch.full((20, 2, 2), -1.0)
    for row in range(20):
        column, line = 20 + 3 * row, 30 + 2 * row
        pixels[row, :, line, column] = 1
        places[row, 0] = torch.tensor([column + 0.5, line + 0.5])  # the middle of that pixel
    shifts = set()
    for seed in range(5):
        moved, moved_places = varied(pixels, places, torch.Generator().manual_seed(seed))
        for row in range(20):
            line, column = divmod(int(moved[row, 0].argmax()), 112)
            assert moved_places[row, 0].tolist() == [column + 0.5, line + 0.5]
            assert (moved_places[row, 1] == -1).all()
            shifts.add((column - (20 + 3 * row), line - (30 + 2 * row)))
    assert len(shifts) > 5


def test_every_attribute_has_its_label() -> None:
    rng = random.Random(5)
    attributes = [sample_attributes(rng) for _ in range(600)]
    labels = attribute_labels(attributes)
    for number, shown in enumerate(attributes):
        for name, values in ATTRIBUTE_VALUES.items():
            assert values[int(labels[name][number])] == getattr(shown, name)
