"""Which questions are asked about the postcards of an archive, in each style (ragllava/postcards/styles.py).

Questions by name, misspelt and paraphrased ones ask for the same facts of the same postcards as the questions with
cues, question by question; only the words differ. A question by visible facts alone needs a postcard that these facts
tell from all others. Of 1,000 postcards, most are told so; of 10,000, a sixth to a half of those with a roof; of
100,000, a few, by all facts together. A question whose postcard is not told from others is about another one, and asks
for the year if the type of the question suits no postcard.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from itertools import cycle, islice

from ragllava.errors import UsageError
from ragllava.postcards.names import NOTHING, Split
from ragllava.postcards.postcard import Postcard
from ragllava.postcards.questions import (
    TWO_IMAGE_TYPES,
    QuestionAnswer,
    QuestionStyle,
    ask_about_one,
    ask_about_two,
    ask_one,
    ask_two,
    possible_comparison,
)
from ragllava.postcards.styles import OtherWords, VisibleFacts, described
from ragllava.postcards.typing_errors import TypingErrors

Side = Callable[[str], bool]
Asked = tuple[QuestionAnswer, tuple[Postcard, ...]]  # a question and the postcards that it is about

_TRIES = 20  # of a pair that can be compared


def draw_questions(
    rng: random.Random, originals: Sequence[Postcard], questions: int, two_image_share: float, side: Side | None
) -> list[Asked]:
    """Questions with cues; see `draw_archive` for the arguments."""
    about_two = round(questions * two_image_share)
    if about_two and len(originals) < 2:
        raise UsageError("questions about two images need two landmarks to ask about; draw more images")
    order = rng.sample(originals, len(originals))
    drawn: list[Asked] = [
        (ask_about_one(postcard.landmark, rng), (postcard,)) for postcard in islice(cycle(order), questions - about_two)
    ]
    for number in range(about_two):
        question_type = TWO_IMAGE_TYPES[number % len(TWO_IMAGE_TYPES)]
        first, second = _draw_pair(originals, question_type, rng, side)
        question_type = _answerable(first, second, question_type)
        drawn.append((ask_about_two(first.landmark, second.landmark, rng, question_type), (first, second)))
    rng.shuffle(drawn)
    return drawn


def in_style(
    drawn: Sequence[Asked],
    style: QuestionStyle,
    postcards: Sequence[Postcard],
    originals: Sequence[Postcard],
    side: Side | None,
    split: Split,
    rng: random.Random,
) -> list[Asked]:
    """Questions with cues in another style. `postcards` are all of the archive; only `originals` are asked about."""
    if style is QuestionStyle.CUES:
        return [*drawn]
    if style is QuestionStyle.CUES_ONLY:
        return QuestionsByLooks(postcards, originals, rng, side).ask(drawn)
    words = OtherWords(style, split, TypingErrors(postcard.landmark for postcard in postcards))
    return [(words.put(question, [postcard.landmark for postcard in asked], rng), asked) for question, asked in drawn]


class QuestionsByLooks:
    """Questions by visible facts alone, each of which fits the right postcards of the archive and no other."""

    def __init__(
        self, postcards: Sequence[Postcard], originals: Sequence[Postcard], rng: random.Random, side: Side | None
    ) -> None:
        """`postcards` are all of the archive; only `originals` are asked about."""
        self._facts = VisibleFacts([postcard.attributes for postcard in postcards])
        self._order = rng.sample(originals, len(originals))
        self._rng = rng
        self._side = side
        self._taken: set[Postcard] = set()
        self._suitable = cache(self._find_suitable)

    def ask(self, drawn: Sequence[Asked]) -> list[Asked]:
        """Questions of the same types, about the same postcards as far as these suit. UsageError if none does."""
        self._taken = {card for question, asked in drawn for card in asked if card in self._suitable(question.type)}
        return [self._ask(question, asked) for question, asked in drawn]

    def _ask(self, question: QuestionAnswer, preferred: tuple[Postcard, ...]) -> Asked:
        pair = self._pair(question.type, preferred) if len(preferred) == 2 else None
        if pair is not None:
            subjects = [self._describe(postcard, question.type) for postcard in pair]
            return ask_two(pair[0].landmark, pair[1].landmark, question.type, subjects), pair
        types = ("year",) if len(preferred) == 2 else (question.type, "year")
        question_type = next((name for name in types if self._suitable(name)), None)
        if question_type is None:
            raise UsageError(
                "what postcards show tells none of so many from all others; draw fewer images, or leave out the style "
                f"{QuestionStyle.CUES_ONLY}"
            )
        suitable = self._suitable(question_type)
        postcard = preferred[0]
        if postcard not in suitable:
            postcard = next((card for card in suitable if card not in self._taken), None) or self._rng.choice(
                [*suitable]
            )
            self._taken.add(postcard)
        subject = self._describe(postcard, question_type)
        return ask_one(postcard.landmark, question_type, subject, self._rng), (postcard,)

    def _pair(self, question_type: str, preferred: tuple[Postcard, ...]) -> tuple[Postcard, Postcard] | None:
        """Two postcards that this type of question suits, the preferred ones if they do; None if there are none."""
        suitable = self._suitable(question_type)
        first, second = preferred
        if first in suitable and second in suitable:
            return first, second
        for _ in range(_TRIES if len(suitable) > 1 else 0):
            first, second = _draw_pair([*suitable], question_type, self._rng, self._side)
            if _answerable(first, second, question_type) == question_type:
                return first, second
        return None

    def _find_suitable(self, question_type: str) -> dict[Postcard, None]:
        """The originals that a question of this type can be about, in random order."""
        return {
            postcard: None
            for postcard in self._order
            if self._facts.telling(postcard.attributes, question_type) is not None
            and (question_type != "roof" or postcard.attributes.roof != NOTHING)
        }

    def _describe(self, postcard: Postcard, question_type: str) -> str:
        return described(postcard.attributes, self._facts.telling(postcard.attributes, question_type) or ())


def _draw_pair(
    originals: Sequence[Postcard], question_type: str, rng: random.Random, side: Side | None
) -> tuple[Postcard, Postcard]:
    """Two postcards that fit the question type, if there are any; half of the pairs for "samecolor" have one color.

    So neither answer to a question about two pictures is more frequent than the other.
    """
    first, second = rng.sample(originals, 2)
    looks = first.attributes
    candidates = originals
    if side is not None:
        candidates = [c for c in originals if side(c.file_name) == side(first.file_name)]
        second = rng.choice([c for c in candidates if c is not first] or [second])
    if question_type == "more":
        fitting = [c for c in candidates if c.attributes.counted == looks.counted and c.attributes.count != looks.count]
    else:
        same_color = rng.random() < 0.5
        fitting = [c for c in candidates if c is not first and (c.attributes.color == looks.color) == same_color]
    return first, rng.choice(fitting) if fitting else second


def _answerable(first: Postcard, second: Postcard, question_type: str) -> str:
    """The type, or "samecolor" where "more" has no answer: "Which has more, A or A?", even in different cities."""
    if first.landmark.title == second.landmark.title:
        return "samecolor"
    return possible_comparison(first.landmark, second.landmark, question_type)
