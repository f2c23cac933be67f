"""Packs with made-up kinds of landmarks in the recipe of the mini models."""

from __future__ import annotations

import random
import re

from ragllava.lab.mini_recipe.examples import PackSampler
from ragllava.lab.mini_recipe.made_up_kinds import with_made_up_kinds
from ragllava.lab.mini_recipe.wordings import ANSWER_SHARES, STYLE_SHARES
from ragllava.postcards.names import KINDS, SHIFTED_KINDS, sample_attributes

_KNOWN = re.compile(rf"\b({'|'.join((*KINDS, *SHIFTED_KINDS))})s?\b", re.IGNORECASE)


def _sampler() -> PackSampler:
    rng = random.Random(5)
    looks = [sample_attributes(rng) for _ in range(600)]
    return PackSampler(looks, "train", styles=STYLE_SHARES, answer_styles=ANSWER_SHARES)


def test_captions_questions_and_answers_have_the_same_made_up_kinds() -> None:
    sampler, rng = _sampler(), random.Random(3)
    winners = 0
    for draw in (sampler.one_picture_pack, sampler.several_pictures_pack, sampler.three_pictures_pack):
        for _ in range(60):
            drawn = draw(rng)
            pack = with_made_up_kinds(drawn, rng)
            if drawn.bare:
                assert pack is drawn
                continue
            words: dict[str, str] = {}
            for before, after in zip(drawn.shown, pack.shown, strict=True):
                looks, renamed = before.landmark.attributes, after.landmark.attributes
                assert words.setdefault(looks.kind, renamed.kind) == renamed.kind
                assert (looks.count, looks.color, before.picture) == (renamed.count, renamed.color, after.picture)
                assert after.landmark.caption.startswith(f"{after.landmark.title}, ")
                assert not _KNOWN.search(after.landmark.caption)
            assert len(set(words.values())) == len(words)
            kept = [ending for ending in drawn.endings if ending.task != "name"]
            for drawn_ending, ending in zip(kept, pack.endings, strict=True):
                assert not _KNOWN.search(ending.question)
                assert not _KNOWN.search(ending.answer)
                assert len(ending.question) == len(drawn_ending.question)
                for asked, other in zip(drawn_ending.subjects, ending.subjects, strict=True):
                    assert (asked.end, asked.kind_end) == (other.end, other.kind_end)
                    assert other.about is None or other.about in pack.shown
                if ending.task == "more":
                    assert ending.about in pack.shown
                    assert ending.answer == ending.about.landmark.title
                    winners += 1
    assert winners > 100


def test_every_pack_has_words_of_its_own() -> None:
    sampler, rng = _sampler(), random.Random(4)
    packs = [with_made_up_kinds(sampler.three_pictures_pack(rng), rng) for _ in range(40)]
    words = {shown.landmark.attributes.kind for pack in packs for shown in pack.shown}
    assert len(words) > 60
