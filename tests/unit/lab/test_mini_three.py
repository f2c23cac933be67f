"""Packs of three pictures in the recipe of the mini models, how many packs a step has, and its precision."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ragllava.cli.lab import train_mini
from ragllava.errors import UsageError
from ragllava.lab.mini_recipe.examples import PackSampler
from ragllava.lab.mini_recipe.precision import training_precision
from ragllava.postcards.names import sample_attributes


def test_every_picture_of_three_is_asked_about_and_is_once_the_wrong_one() -> None:
    draw = random.Random(5)
    sampler, rng = PackSampler([sample_attributes(draw) for _ in range(600)], "train"), random.Random(2)
    same: Counter[str] = Counter()
    for _ in range(200):
        pack = sampler.three_pictures_pack(rng)
        assert len({shown.landmark.identity for shown in pack.shown}) == 3
        alone: list[int] = []
        pairs: list[tuple[int, ...]] = []
        for ending in pack.endings:
            landmarks = [shown.landmark for shown in pack.shown]
            asked = [n for n, mark in enumerate(landmarks) if f"{mark.title} in {mark.entity.city}" in ending.question]
            looks = [landmarks[n].attributes for n in asked]
            if ending.task == "samecolor":
                pairs.append(tuple(asked))
                same[ending.answer] += 1
                assert (ending.answer == "yes") == (looks[0].color == looks[1].color)
            elif ending.task == "more":
                assert len(asked) == 2
                assert looks[0].count != looks[1].count
                assert ending.answer == landmarks[max(asked, key=lambda n: landmarks[n].attributes.count)].title
            else:
                assert ending.about is pack.shown[asked[0]]
                alone += asked
        assert sorted(pairs[:3]) == [(0, 1), (0, 2), (1, 2)]
        assert len(set(pairs[3:])) == 1  # a pair that often has one color
        assert sorted(alone[1:]) == [0, 1, 2]  # behind the description of one
    assert 0.3 < same["yes"] / same.total() < 0.7


def test_comparing_all_three_pictures_does_not_tell_whether_two_have_one_color() -> None:
    draw = random.Random(6)
    sampler, rng = PackSampler([sample_attributes(draw) for _ in range(600)], "train"), random.Random(3)
    right: list[bool] = []
    for _ in range(200):
        pack = sampler.three_pictures_pack(rng)
        all_the_same = len({shown.landmark.attributes.color for shown in pack.shown}) == 1
        asked = [ending.answer for ending in pack.endings if ending.task == "samecolor"]
        right += [(answer == "yes") == all_the_same for answer in asked[3:]]
    assert sum(right) / len(right) < 0.75


@pytest.mark.parametrize(
    ("capabilities", "wanted", "expected"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "auto", torch.float32),
        ({"avx512_bf16": True}, "auto", torch.bfloat16),
        ({"amx_bf16": True}, "float32", torch.float32),
        ({"neon": True, "bf16": True}, "auto", torch.bfloat16),
        ({}, "bfloat16", torch.bfloat16),
    ],
)
def test_bfloat16_is_used_where_the_processor_has_it(
    capabilities: dict[str, bool], wanted: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert training_precision(wanted) is expected


@pytest.mark.parametrize("packs", ["8,6,10", "8,6,-1,10", "0,0,0,0"])
def test_wrong_numbers_of_packs_are_refused(packs: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(train_mini, [str(tmp_path / "mini"), "--packs", packs])
    assert isinstance(result.exception, UsageError)
    assert repr(packs) in str(result.exception)
    assert not (tmp_path / "mini").exists()
