"""Packs whose landmarks have made-up kinds, so that a model reads and writes kinds that it was never taught.

A model that has only ever written twelve kinds cannot answer "which has more" about others: the answer is the name of a
landmark with its kind. The pictures stay as they are.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import replace

from ragllava.lab.mini_recipe.endings import Ending, Shown, Subject
from ragllava.lab.mini_recipe.examples import Pack
from ragllava.postcards.names import KINDS, SHIFTED_KINDS

_CONSONANTS = "bcdfghklmnprstvwz"
_VOWELS = "aeiou"
_KIND = re.compile(rf"\b({'|'.join(KINDS)})\b", re.IGNORECASE)


def with_made_up_kinds(pack: Pack, rng: random.Random) -> Pack:
    """The pack with a made-up word for each kind, in captions, questions and answers. A bare pack stays as it is.

    Each word has as many letters as its kind, so the offsets of subjects stay right. All captions name their kind,
    because no picture shows what a made-up word means. For the same reason, no ending asks what something is called.
    """
    if pack.bare:
        return pack
    words = _made_up_words(rng)
    renamed = {shown: _renamed(shown, words) for shown in pack.shown}
    endings = tuple(_reworded(ending, words, renamed) for ending in pack.endings if ending.task != "name")
    return replace(pack, shown=tuple(renamed[shown] for shown in pack.shown), endings=endings)


def _made_up_words(rng: random.Random) -> Mapping[str, str]:
    """A different word for each kind."""
    words: dict[str, str] = {}
    for kind in KINDS:
        word = kind
        while word in KINDS or word in SHIFTED_KINDS or word in words.values():
            word = _made_up_word(rng, len(kind))
        words[kind] = word
    return words


def _made_up_word(rng: random.Random, letters: int) -> str:
    """Syllables of two or three letters, such as "bifdu"; cut at the length."""
    word = ""
    while len(word) < letters:
        word += rng.choice(_CONSONANTS) + rng.choice(_VOWELS)
        word += rng.choice(_CONSONANTS) if rng.random() < 0.5 else ""
    return word[:letters]


def _renamed(shown: Shown, words: Mapping[str, str]) -> Shown:
    landmark = shown.landmark
    return Shown(
        shown.picture,
        replace(
            landmark,
            attributes=replace(landmark.attributes, kind=words[landmark.attributes.kind]),
            entity=replace(landmark.entity, caption_names_kind=True),
        ),
    )


def _reworded(ending: Ending, words: Mapping[str, str], renamed: Mapping[Shown, Shown]) -> Ending:
    def subject(asked: Subject) -> Subject:
        return asked if asked.about is None else replace(asked, about=renamed[asked.about])

    return replace(
        ending,
        question=_in_other_words(ending.question, words),
        answer=_in_other_words(ending.answer, words),
        about=None if ending.about is None else renamed[ending.about],
        subjects=tuple(map(subject, ending.subjects)),
    )


def _in_other_words(text: str, words: Mapping[str, str]) -> str:
    def word(match: re.Match[str]) -> str:
        made_up = words[match[1].lower()]
        return made_up.capitalize() if match[1][0].isupper() else made_up

    return _KIND.sub(word, text)
