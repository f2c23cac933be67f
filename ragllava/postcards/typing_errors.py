"""Typing errors in names: one letter swapped with its neighbour, dropped, doubled or replaced, never the first."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from ragllava.postcards.names import Landmark

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_TRIES = 100


class TypingErrors:
    """Misspells landmarks of one archive so that each can still be recognised."""

    def __init__(self, landmarks: Iterable[Landmark]) -> None:
        """`landmarks` are those of the archive."""
        self._by_kind: dict[str, list[Landmark]] = defaultdict(list)
        for landmark in landmarks:
            self._by_kind[landmark.attributes.kind].append(landmark)

    def misspell(self, landmark: Landmark, rng: random.Random) -> Landmark:
        """The landmark with an error in its name, in the last word of its city, or in both, each equally often.

        No other landmark of the archive and of its kind is within one error of the new name and of the new city, unless
        that was so in a hundred tries.
        """
        entity = landmark.entity
        for _ in range(_TRIES):
            name, city = entity.name, entity.city
            wrong = rng.choice(("name", "city", "both"))
            if wrong != "city":
                name = mistype(name, rng)
            if wrong != "name":
                before, space, word = city.rpartition(" ")
                city = before + space + mistype(word, rng)
            if not self._has_rival(landmark, name, city):
                break
        return replace(landmark, entity=replace(entity, name=name, city=city))

    def _has_rival(self, landmark: Landmark, name: str, city: str) -> bool:
        return any(
            is_within_one_error(candidate.entity.city, city)
            and is_within_one_error(candidate.entity.name, name)
            and candidate.identity != landmark.identity
            for candidate in self._by_kind[landmark.attributes.kind]
        )


def mistype(word: str, rng: random.Random) -> str:
    """The word with one typing error; its first letter stays. A word of one or two letters gets one more letter."""
    if len(word) < 3:
        return word + rng.choice(_LETTERS)
    while True:
        position = rng.randrange(1, len(word))
        before, letter, after = word[:position], word[position], word[position + 1 :]
        error = rng.choice(("swap", "drop", "double", "replace"))
        if error == "swap":
            mistyped = before + after[:1] + letter + after[1:]
        elif error == "drop":
            mistyped = before + after
        elif error == "double":
            mistyped = before + letter + letter + after
        else:
            mistyped = before + rng.choice(_LETTERS) + after
        if mistyped != word:
            return mistyped


def is_within_one_error(left: str, right: str) -> bool:
    """Whether the words are equal, or one letter more, less or replaced, or two neighbours swapped, makes them so."""
    if abs(len(left) - len(right)) > 1:
        return False
    start = 0
    while start < min(len(left), len(right)) and left[start] == right[start]:
        start += 1
    left, right = left[start:], right[start:]
    if len(left) != len(right):
        longer, shorter = (left, right) if len(left) > len(right) else (right, left)
        return longer[1:] == shorter
    return left[1:] == right[1:] or (left[:2] == right[1::-1] and left[2:] == right[2:])
