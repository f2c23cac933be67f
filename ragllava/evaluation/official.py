"""The official measures of WebQA and MultimodalQA, for figures that compare with published ones.

WebQA's accuracy is that of its leaderboard (WebQnA/WebQA_Baseline on GitHub, the evaluation of October 2022): category
words or all words of the keywords, counted, and lemmatised by spaCy's small English model. Its fluency needs a language
model of its own and is not computed. MultimodalQA's are the list measures of its paper (allenai/multimodalqa on
GitHub), which are those of DROP with number words as numbers.

`metrics.webqa_score` is ours: without a lemmatiser, and without what is odd here. These functions keep the oddities,
because published figures have them; comments name them.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence, Set
from functools import lru_cache
from importlib.metadata import version

import numpy as np
from num2words import num2words
from scipy.optimize import linear_sum_assignment

from ragllava.errors import UsageError

Lemmatise = Callable[[str], str]

_MODEL = "en_core_web_sm"
_EPSILON = 1e-5  # in the denominator of the official F1

# The official lists, with their oddities: "yes" is a color, and some words are what a lemmatiser made of others.
_COLORS = """
    aqua beige black blonde blue bluere bluewhite bronze brown chrome gold golden gray green grey ivory maroon orange
    orangebrown orangepurple pink purple rainbow red redorange rust silver spot tan teal transparent turquoise violet
    white yellow yes
"""
_SHAPES = """
    arch ball bell bellshaped bow circle circular concave cone conical convex corkscrew crescent crest cross crosse cube
    cuboid curl curve cylinder cylindrical diamond dome domeshape dot flat flower fold fork globe globular h heart
    hexagon hook hoop keyhole obelisk octagon octagonal octogon oval pentagon point pyramid pyramidal rectangle
    rectangular ring round rounded semicircle shamrock slope sphere spherical spiral square star step straight teardrop
    torus triangle triangular tube wavy xs
"""
_CATEGORY_WORDS = {name: frozenset(words.split()) for name, words in (("color", _COLORS), ("shape", _SHAPES))}
_CATEGORY_WORDS["YesNo"] = frozenset({"yes", "no"})

_NUMBERS = {num2words(number): number for number in range(100) if number <= 20 or number % 10 == 0} | {
    "hundred": 100,
    "thousand": 1_000,
    "million": 1_000_000,
    "billion": 1_000_000_000,
}
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_PUNCTUATION_BUT_POINTS = str.maketrans("", "", string.punctuation.replace(".", ""))
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


class OfficialWebqa:
    """WebQA's official accuracy, with a lemmatiser; `load` gives the official one."""

    def __init__(self, lemmatise: Lemmatise, name: str) -> None:
        """`lemmatise` takes a text in lower case and returns its lemmas between spaces; `name` says which it is."""
        self.name = name
        self._lemmatise = lemmatise
        self._words = lru_cache(maxsize=None)(self._normalised)

    @classmethod
    def load(cls) -> OfficialWebqa:
        """With spaCy's small English model. UsageError, with what to install, when it is not there."""
        lemmatise, name = _spacy_lemmatiser()
        return cls(lemmatise, name)

    def score(self, answer: str, reference: str, category: str) -> float:
        """The accuracy of one answer in [0, 1]; `reference` are the official keywords.

        F1 over the category's words for color, shape and YesNo (each counted once), and over whole numbers for number
        (as often as they occur); of any other category, the share of the reference's words that the answer holds, as
        often as they occur. Unlike ours, 0 for a reference without a word of its category.
        """
        given, wanted = self._words(answer), self._words(reference)
        if category == "number":
            given, wanted = _whole_numbers(given), _whole_numbers(wanted)
        elif category in _CATEGORY_WORDS:
            given, wanted = (tuple(_CATEGORY_WORDS[category] & set(words)) for words in (given, wanted))
        common = (Counter(given) & Counter(wanted)).total()
        if not common:
            return 0.0
        precision, recall = common / len(given), common / len(wanted)
        if category == "number" or category in _CATEGORY_WORDS:
            return 2 * precision * recall / (precision + recall + _EPSILON)
        return recall

    def _normalised(self, text: str) -> tuple[str, ...]:
        """Punctuation is removed, not replaced by a space; a single character stays as it is."""
        lower = text.lower()
        if len(text.strip()) == 1:
            return tuple(_digits(lower))
        bare = re.sub(r"\.(?!\d)", "", lower.translate(_PUNCTUATION_BUT_POINTS))
        if len(text.split()) > 1:
            bare = _ARTICLE.sub(" ", bare)
        return tuple(self._lemmatise(" ".join(_digits(bare))).split())


def _digits(text: str) -> list[str]:
    """The words, number words as digits, each word by itself: "two hundred" → "2 100"."""
    words = (str(_NUMBERS.get(word, word)) for word in text.split())
    return [str(int(word)) if word.isdecimal() else word for word in words]


def _whole_numbers(words: Sequence[str]) -> tuple[str, ...]:
    """3.5 is none."""
    return tuple(word for word in words if re.fullmatch(r"[+-]?\d+", word))


def _spacy_lemmatiser() -> tuple[Lemmatise, str]:
    advice = f"install the extra `webqa` and the model: `python -m spacy download {_MODEL}`; or use --metric ours"
    try:
        import spacy
    except ImportError:
        raise UsageError(f"WebQA's official measure needs spaCy; {advice}") from None
    model = next((name for name in sorted(spacy.util.get_installed_models()) if name.startswith(_MODEL)), None)
    if model is None:
        raise UsageError(f"WebQA's official measure needs spaCy's model {_MODEL}; {advice}")
    language = spacy.load(model, disable=["ner", "parser"])

    def lemmatise(text: str) -> str:
        return " ".join(token.lemma_ for token in language(text))

    return lemmatise, f"spaCy {version('spacy')}, {model} {language.meta['version']}"


def list_exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """MultimodalQA's list EM: 1 if both are the same answers, in any order, else 0."""
    given, wanted = ([" ".join(_drop_words(text)) for text in texts] for texts in (answers, references))
    return float(set(given) == set(wanted) and len(given) == len(wanted))


def list_f1(answers: Sequence[str], references: Sequence[str]) -> float:
    """MultimodalQA's list F1, in [0, 1]: the mean F1 of the words, over the best pairs of answers and references.

    An answer or reference without a partner counts 0. A pair counts 0 if the reference has numbers and the answer none
    of them. Rounded to two decimals, as published figures are.
    """
    given, wanted = ([set(_drop_words(text)) for text in texts] for texts in (answers, references))
    if not given or not wanted:
        return 0.0
    scores = np.array([[_f1(answer, reference) for answer in given] for reference in wanted])
    rows, columns = linear_sum_assignment(-scores)
    return round(float(scores[rows, columns].sum()) / max(len(given), len(wanted)), 2)


def _f1(answer: Set[str], reference: Set[str]) -> float:
    numbers = {word for word in reference if _is_number(word)}
    if numbers and not numbers & answer:
        return 0.0
    if not answer and not reference:
        return 1.0
    return 2 * len(answer & reference) / (len(answer) + len(reference))


def _drop_words(text: str) -> list[str]:
    """The words of a text as DROP compares them: numbers as floats, no articles."""
    words = []
    for piece in re.split(r"[ -]", text.lower()):
        bare = piece if _is_number(piece) else piece.translate(_PUNCTUATION)
        bare = str(_NUMBERS.get(bare, bare))
        words += _ARTICLE.sub(" ", str(float(bare)) if _is_number(bare) else bare).split()
    return words


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
