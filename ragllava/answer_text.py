"""The form in which two answers are compared (docs/method.md 7)."""

from __future__ import annotations

import re

_BELOW_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NUMBER_WORDS = _BELOW_TWENTY + [f"{ten} {unit}".strip() for ten in _TENS for unit in ("", *_BELOW_TWENTY[1:10])]
_DIGITS = {words: str(number) for number, words in enumerate(_NUMBER_WORDS)}
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
