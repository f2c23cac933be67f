"""Shifted archives: other landmarks drawn in other styles, with the same kinds of questions and right answers."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import astuple
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from ragllava.postcards import shifted
from ragllava.postcards.archive import PostcardArchive, draw_archive, write_archive
from ragllava.postcards.drawing import draw_postcard
from ragllava.postcards.names import (
    COLORS,
    FLAGGED_KINDS,
    KINDS,
    NOTHING,
    ROOFED_KINDS,
    ROOFS,
    SHIFTED_KINDS,
    Attributes,
)
from ragllava.postcards.questions import ONE_IMAGE_TYPES, TWO_IMAGE_TYPES
from tests.support.postcard_colors import GLASS_AND_CLOTH, PURE_COLORS

STYLES = dict(shifted._STYLES)


@pytest.fixture(scope="module")
def archive() -> PostcardArchive:
    return draw_archive(seed=5, shifted=True)


def looks(kind: str, color: str = "green", count: int = 3, roof: str = "flat") -> Attributes:
    return Attributes(kind, color, count, "day", roof if kind in ROOFED_KINDS else NOTHING, NOTHING)


def test_shifted_and_in_domain_archives_share_no_kind(archive: PostcardArchive) -> None:
    assert set(SHIFTED_KINDS).isdisjoint(KINDS)
    assert {postcard.attributes.kind for postcard in archive.postcards} == set(SHIFTED_KINDS)
    in_domain = draw_archive(seed=5)
    assert {postcard.attributes.kind for postcard in in_domain.postcards} == set(KINDS)


def test_questions_have_the_same_types_and_name_one_set_of_pictures(archive: PostcardArchive) -> None:
    assert {question.type for question in archive.questions} == {*ONE_IMAGE_TYPES, *TWO_IMAGE_TYPES}
    assert len({postcard.landmark.identity for postcard in archive.postcards}) == len(archive.postcards)
    by_name = {postcard.file_name: postcard.landmark for postcard in archive.postcards}
    for question in archive.questions:
        for landmark in (by_name[file_name] for file_name in question.relevant):
            assert f"{landmark.title} in {landmark.entity.city}" in question.text


def test_the_same_seed_means_the_same_archive_everywhere() -> None:
    """The digest was taken once: another process, machine or Python must give the same."""
    drawn = draw_archive(7, images=300, questions=60, shifted=True)
    postcards = [
        (card.file_name, card.caption, card.picture_seed, *astuple(card.attributes)) for card in drawn.postcards
    ]
    questions = [(q.text, q.answer, q.type, q.relevant) for q in drawn.questions]
    facts = json.dumps([postcards, questions])
    assert (
        hashlib.sha256(facts.encode()).hexdigest() == "120f1098d0f6ce7d6cee4dade41ce577364ff3d932c12cd66316e2bbff2db348"
    )


@pytest.mark.parametrize("kind", SHIFTED_KINDS)
@pytest.mark.parametrize("count", [1, 4, 6])
def test_counted_things_are_where_the_labels_say(kind: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without a style, so that glass and cloth have their own colors.
    monkeypatch.setattr(shifted, "_STYLES", {"none": lambda pixels, _rng: pixels})
    for seed in range(4):
        drawing = draw_postcard(looks(kind, count=count), random.Random(seed))
        assert len(set(drawing.counted_at)) == count
        for x, y in drawing.counted_at:
            inside = (x - 0.5, y - 1.5) if kind in FLAGGED_KINDS else (x, y)  # the widest part of the cloth
            column, row = (int(percent / 100 * 112) for percent in inside)
            pixel = drawing.pixels[row, column].astype(int)
            assert min(np.abs(pixel - color).max() for color in np.array(GLASS_AND_CLOTH)) < 45


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("color", COLORS)
def test_the_colors_of_landmarks_stay_apart_in_every_style(
    style: str, color: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shifted, "_STYLES", {style: STYLES[style]})
    restyled = {
        name: STYLES[style](np.full((20, 20, 3), pure, np.float32), random.Random(1)).mean(axis=(0, 1))
        for name, pure in PURE_COLORS.items()
    }
    for seed in range(5):
        pixels = draw_postcard(looks("stadium", color), random.Random(seed)).pixels
        seen = pixels[80:84, 48:64].mean(axis=(0, 1))  # the foot of the stadium, wherever it is
        assert min(restyled, key=lambda name: np.abs(seen - restyled[name]).sum()) == color


@pytest.mark.parametrize("kind", [kind for kind in SHIFTED_KINDS if kind in ROOFED_KINDS])
def test_roofs_differ(kind: str) -> None:
    pictures = [draw_postcard(looks(kind, roof=roof), random.Random(4)).pixels.astype(int) for roof in ROOFS]
    differences = [np.abs(left - right).max() for left, right in combinations(pictures, 2)]
    assert min(differences) > 40


def test_written_pictures_are_drawn_in_the_shifted_style(tmp_path: Path) -> None:
    drawn = draw_archive(11, images=3, questions=1, shifted=True, two_image_share=0)
    written = write_archive(tmp_path / "archive", drawn)
    assert sorted(path.name for path in written.pictures.iterdir()) == [card.file_name for card in drawn.postcards]
    card = drawn.postcards[0]
    again = draw_postcard(card.attributes, random.Random(card.picture_seed))
    assert np.array_equal(card.draw().pixels, again.pixels)
