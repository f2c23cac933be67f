"""The form in which two answers are compared (docs/method.md 7)."""

from __future__ import annotations

import re
from collections.abc import Sequence

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBER_OF_UNIT = {word: number for number, word in enumerate(_UNITS.split())}
_NUMBER_OF_TEN = {word: number * 10 for number, word in enumerate(_TENS.split(), start=2)}
_ARTICLES = frozenset({"a", "an", "the"})


def normalise_answer(text: str) -> str:
    """The answer in the form in which answers are compared.

    Lower-case; number words to digits, up to "ninety-nine"; articles off; punctuation off, except a decimal point
    between digits. An apostrophe or a comma between digits goes without a trace ("dog's" → "dogs", "1,000" →
    "1000"), any other sign separates words.
    """
    text = re.sub(r"['’]|(?<=\d),(?=\d)", "", text.lower())
    text = re.sub(r"(?<!\d)\.|\.(?!\d)|[^\w\s.]|_", " ", text)
    words = [word for word in text.split() if word not in _ARTICLES]
    return " ".join(_numbers_as_digits(words))


def exact_match(answer: str, reference: str) -> bool:
    """Whether both are the same after normalisation (MultimodalQA, postcards)."""
    return normalise_answer(answer) == normalise_answer(reference)


def _numbers_as_digits(words: Sequence[str]) -> list[str]:
    """Number words as digits; a ten with a unit right behind it is one number."""
    result: list[str] = []
    pending_ten = 0  # the last word was this ten, and may be continued
    for word in words:
        unit = _NUMBER_OF_UNIT.get(word)
        if pending_ten and unit is not None and 1 <= unit <= 9:
            result[-1] = str(pending_ten + unit)
            pending_ten = 0
            continue
        pending_ten = _NUMBER_OF_TEN.get(word, 0)
        number = pending_ten or unit
        result.append(word if number is None else str(number))
    return result
