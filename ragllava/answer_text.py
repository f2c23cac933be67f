"""The form in which two answers are compared (docs/method.md 7)."""

from __future__ import annotations

import re

from num2words import num2words

_DIGITS = {num2words(number).replace("-", " "): str(number) for number in range(100)}
# Longest first: "twenty one" is one number.
_NUMBER = re.compile(rf"\b({'|'.join(sorted(_DIGITS, key=len, reverse=True))})\b")
_ARTICLES = frozenset({"a", "an", "the"})


def normalise_answer(text: str) -> str:
    """The answer in the form in which answers are compared.

    Lower case; number words as digits, up to "ninety-nine"; no articles; no punctuation, except a decimal point
    between digits. An apostrophe, or a comma between digits, is removed ("dog's" → "dogs", "1,000" → "1000"); any
    other sign separates words.
    """
    text = re.sub(r"['’]|(?<=\d),(?=\d)", "", text.lower())
    text = re.sub(r"(?<!\d)\.|\.(?!\d)|[^\w\s.]|_", " ", text)
    words = " ".join(word for word in text.split() if word not in _ARTICLES)
    return _NUMBER.sub(lambda match: _DIGITS[match[0]], words)


def exact_match(answer: str, reference: str) -> bool:
    """Whether both are the same after normalisation (MultimodalQA, postcards)."""
    return normalise_answer(answer) == normalise_answer(reference)
