"""BM25 as the search by words computes it, written a second time: slow and obvious."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

K1, B = 1.2, 0.4
Fields = Mapping[str, Sequence[str]]  # words by weight: caption A, metadata C, source D
WEIGHTS = {"A": 1.0, "C": 0.5, "D": 0.2}


def scores(fields_of: Mapping[int, Fields], question: Iterable[str]) -> dict[int, float]:
    """The scores of the images that have a word of the question, by image id."""
    frequencies = {image_id: _frequencies(fields) for image_id, fields in fields_of.items()}
    lengths = {image_id: _length(fields) for image_id, fields in fields_of.items()}
    average = sum(lengths.values()) / len(lengths)
    counts = Counter(word for words in frequencies.values() for word in words)
    result = {}
    for image_id, words in frequencies.items():
        shared = set(question) & words.keys()
        norm = K1 * (1 - B + B * lengths[image_id] / average)
        idf = {word: math.log(1 + (len(fields_of) - counts[word] + 0.5) / (counts[word] + 0.5)) for word in shared}
        if shared:
            result[image_id] = sum(idf[word] * words[word] * (K1 + 1) / (words[word] + norm) for word in shared)
    return result


def _frequencies(fields: Fields) -> dict[str, float]:
    occurrences: dict[str, list[float]] = {}
    for field in "ACD":
        for word in fields[field]:
            occurrences.setdefault(word, []).append(WEIGHTS[field])
    return {
        word: sum(weight / number**2 for number, weight in enumerate(weights[:4], start=1))
        for word, weights in occurrences.items()
    }


def _length(fields: Fields) -> float:
    return sum(WEIGHTS[field] * len(words) for field, words in fields.items())


def best(of: Mapping[int, float], number: int) -> list[int]:
    """The best images, ties by id."""
    return sorted(of, key=lambda image_id: (-round(of[image_id], 6), image_id))[:number]
