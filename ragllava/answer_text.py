"""The form in which two answers are compared (docs/method.md 7)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from num2words import num2words

_BELOW_100 = {num2words(number): number for number in range(100) if number <= 20 or number % 10 == 0}
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_NUMBER_WORDS = {*_BELOW_100, *_SCALES}
_FIGURES = re.compile(r"\d+(?:\.\d+)?")
_FIGURES_WITH_UNIT = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)(?!(?:st|nd|rd|th|s)\b)([^\W\d]+)\b")
_ABBREVIATION = re.compile(r"\b(?:[^\W\d_]\.)+[^\W\d_]\b\.?")  # U.S.A., e.g.
_ARTICLES = frozenset({"a", "an", "the"})

_CONTRACTIONS = (  # in this order
    (re.compile(r"\bcan't\b|\bcannot\b"), "can not"),
    (re.compile(r"\bwon't\b"), "will not"),
    (re.compile(r"\bshan't\b"), "shall not"),
    (re.compile(r"(?<=\w)n't\b"), " not"),
    (re.compile(r"(?<=\w)'re\b"), " are"),
    (re.compile(r"(?<=\w)'ll\b"), " will"),
    (re.compile(r"(?<=\w)'ve\b"), " have"),
    (re.compile(r"\bi'm\b"), "i am"),
    (re.compile(r"\b(it|he|she|that|there|what|where|who|here|how)'s\b"), r"\1 is"),
    (re.compile(r"(?<=\w)'s\b"), ""),  # possessive
)

_IRREGULAR_PLURALS = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "feet": "foot", "teeth": "tooth",
    "geese": "goose", "mice": "mouse", "leaves": "leaf", "knives": "knife", "wolves": "wolf", "shelves": "shelf",
    "halves": "half", "scarves": "scarf", "loaves": "loaf", "calves": "calf", "buses": "bus", "gases": "gas",
    "lenses": "lens", "potatoes": "potato", "tomatoes": "tomato", "heroes": "hero", "movies": "movie",
    "cookies": "cookie", "moustaches": "moustache", "mustaches": "mustache",
}  # fmt: skip


def normalise_answer(text: str) -> str:
    """The answer in the form in which answers are compared; normalising it again changes nothing.

    - Lower case; no articles, unless the text is nothing else ("A" may name a letter).
    - No punctuation, except a decimal point between digits. An abbreviation is one word ("U.S.A." → "usa"); a comma
      between digits is removed ("1,000" → "1000"); any other sign separates words.
    - Contractions as words ("don't" → "do not"), no possessive ending ("dog's" → "dog").
    - Number words as digits ("two hundred and five" → "205"), figures apart from their unit ("3.5m" → "3.5 m").
    - Words without their plural ending ("windows" → "window"). This is a rule and not a dictionary, the same for every
      score: other inflections stay different.
    """
    text = text.lower().replace("’", "'").replace("_", " ")
    for contraction, words_of_it in _CONTRACTIONS:
        text = contraction.sub(words_of_it, text)
    text = _ABBREVIATION.sub(lambda match: match[0].replace(".", ""), text)
    text = re.sub(r"'|(?<=\d),(?=\d)", "", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)|[^\w\s.]", " ", text)
    words = _FIGURES_WITH_UNIT.sub(r"\1 \2", text).split()
    words = [word for word in words if word not in _ARTICLES] or words
    return " ".join(map(singular, _numbers_as_digits(words)))


def exact_match(answer: str, reference: str) -> bool:
    """Whether both are the same after normalisation, and not empty (MultimodalQA, postcards)."""
    normal = normalise_answer(answer)
    return normal != "" and normal == normalise_answer(reference)


def singular(word: str) -> str:
    """A word in lower case without a plural ending: windows → window, cherries → cherry; glass, bus and iris stay."""
    if word in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[word]
    if len(word) <= 3 or word[-2].isdigit() or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        shorter = word[:-3] + "y"
    elif word.endswith(("ches", "shes", "sses", "xes", "zzes")):
        shorter = word[:-2]
    else:
        shorter = word[:-1]
    if shorter in _NUMBER_WORDS:
        return word  # hundreds of birds are not 100
    return _IRREGULAR_PLURALS.get(shorter, shorter)  # mens, with a lost apostrophe


def _numbers_as_digits(words: Sequence[str]) -> list[str]:
    """The words, each run of number words as one number."""
    result = []
    position = 0
    while position < len(words):
        number, length = _read_number(words[position:])
        result.append(words[position] if number is None else number)
        position += max(1, length)
    return result


def _read_number(words: Sequence[str]) -> tuple[str | None, int]:
    """The number that begins with the first word, as digits, and of how many words it is; (None, 0) without one."""
    total = 0.0  # what is complete
    group: float | None = None  # what the next scale multiplies
    smallest = float("inf")  # scale so far; thousands come behind millions
    length = 0
    while length < len(words):
        word, following = words[length], words[length + 1] if length + 1 < len(words) else ""
        if word == "hundred" and (group is None if length == 0 else group is not None and 0 < group < 100):
            group = 100 * (group or 1)
        elif word in _SCALES and word != "hundred" and _SCALES[word] < smallest and (group or length == 0):
            smallest = _SCALES[word]
            total, group = total + smallest * (group or 1), None
        elif word in _BELOW_100 and (group is None or (following != "hundred" and _joins(_BELOW_100[word], group))):
            group = (group or 0) + _BELOW_100[word]
        elif length == 0 and following in _SCALES and _FIGURES.fullmatch(word):
            group = float(word)
        elif not (word == "and" and length and words[length - 1] in _SCALES and following in _BELOW_100):
            break
        length += 1
    if length == 0:
        return None, 0
    value = round(total + (group or 0), 6)
    return (str(int(value)) if value == int(value) else str(value)), length


def _joins(number: int, group: float) -> bool:
    """Whether `number` below 100 can follow what was read: "twenty" and "one", "two hundred" and "five"."""
    if group >= 100 and group % 100 == 0:
        return number > 0
    return group % 100 in range(20, 100, 10) and 0 < number < 10
