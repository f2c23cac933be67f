"""Questions in other words than those with cues: by name alone, misspelt, paraphrased, or by visible facts alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from ragllava.postcards.names import NOTHING, Attributes, Landmark
from ragllava.postcards.questions import (
    COUNT_WORDS,
    QuestionAnswer,
    QuestionStyle,
    asked_fact,
    circumstances,
    usual_form,
    with_cues,
)
from ragllava.postcards.typing_errors import TypingErrors

# By type; `by_name` names each landmark as "the Harlow Lighthouse in Port Ansel", `of_city` as "Port Ansel's Harlow
# Lighthouse".
_PARAPHRASES: Mapping[str, Sequence[str]] = {
    "color": (
        "Tell me the colour of {of_city[0]}.",
        "Which colour does {by_name[0]} have?",
        "I am looking at the postcard of {by_name[0]}; in what colour is it painted?",
    ),
    "count": (
        "Tell me the number of {thing} of {of_city[0]}.",
        "Can you count the {thing} of {by_name[0]} for me?",
        "I am looking at the postcard of {by_name[0]}; how many {thing} can be seen?",
    ),
    "roof": (
        "Tell me the shape of the roof on {of_city[0]}.",
        "What kind of roof does {by_name[0]} have?",
        "I am looking at the postcard of {by_name[0]}; how is its roof shaped?",
    ),
    "beside": (
        "Tell me what stands beside {of_city[0]}.",
        "What can be seen near {by_name[0]}?",
        "I am looking at the postcard of {by_name[0]}; what else is on it?",
    ),
    "isthere": (
        "Does {of_city[0]} have a {thing} beside it?",
        "Can a {thing} be seen near {by_name[0]}?",
        "I am looking at the postcard of {by_name[0]}; does it show a {thing}?",
    ),
    "sky": (
        "Tell me the time of day on the picture of {of_city[0]}.",
        "Is it day, night or sunset at {by_name[0]}?",
        "I am looking at the postcard of {by_name[0]}; at what time of day was it made?",
    ),
    "year": (
        "Tell me the year of the picture of {of_city[0]}.",
        "When was the picture of {by_name[0]} taken?",
        "I am looking at the postcard of {by_name[0]}; from which year is it?",
    ),
    "more": (
        "Compare {of_city[0]} and {of_city[1]}: which of them has more {thing}?",
        "Of {by_name[0]} and {by_name[1]}, which has the larger number of {thing}?",
        "More {thing} can be seen on one of two postcards, {by_name[0]} or {by_name[1]}; which is it?",
    ),
    "samecolor": (
        "Compare {of_city[0]} and {of_city[1]}: do they have the same colour?",
        "Is the colour of {by_name[0]} that of {by_name[1]}?",
        "Do {by_name[0]} and {by_name[1]} share one colour?",
    ),
}

# In the order in which a question gives them: a retriever understands the first ones best.
_VISIBLE_FACTS = ("color", "sky", "beside", "roof", "count")


def in_other_words(
    question: QuestionAnswer,
    landmarks: Sequence[Landmark],
    style: QuestionStyle,
    rng: random.Random,
    errors: TypingErrors,
) -> QuestionAnswer:
    """The question about these landmarks in a style that names them."""
    if style is QuestionStyle.MISSPELT:
        landmarks = [errors.misspell(landmark, rng) for landmark in landmarks]
    by_name = [with_cues(landmark) for landmark in landmarks]
    if style is not QuestionStyle.PARAPHRASED:
        return replace(question, text=usual_form(question.type, by_name, question.thing))
    of_city = [f"{landmark.entity.city}'s {landmark.title}" for landmark in landmarks]
    form = rng.choice(_PARAPHRASES[question.type])
    return replace(question, text=form.format(by_name=by_name, of_city=of_city, thing=question.thing))


class VisibleFacts:
    """What can be seen on the postcards of one archive, to tell one of them from all others."""

    def __init__(self, shown: Sequence[Attributes]) -> None:
        """`shown` are the attributes of all postcards."""
        self._shown = shown
        self._postcards_by = cache(self._count)

    def telling(self, attributes: Attributes, question_type: str) -> tuple[str, ...] | None:
        """The first facts that, with the kind, fit this postcard alone; None where all of them fit others too.

        None of them is what the question asks for.
        """
        asked = asked_fact(question_type)
        facts = [fact for fact in _VISIBLE_FACTS if fact != asked and (fact != "roof" or attributes.roof != NOTHING)]
        for number in range(1, len(facts) + 1):
            chosen = tuple(facts[:number])
            if self._postcards_by(chosen)[_values(attributes, chosen)] == 1:
                return chosen
        return None

    def _count(self, facts: tuple[str, ...]) -> Counter[tuple[str | int, ...]]:
        """How many postcards show each combination of kind and these facts."""
        return Counter(_values(attributes, facts) for attributes in self._shown)


def described(attributes: Attributes, facts: Sequence[str]) -> str:
    """A picture without a name: "the red barn with three windows and a flat roof shown at night"."""
    color = f"{attributes.color} " if "color" in facts else ""
    thing = attributes.counted if attributes.count > 1 else attributes.counted.removesuffix("s")
    parts = [f"{COUNT_WORDS[attributes.count]} {thing}"] if "count" in facts else []
    parts += [f"a {attributes.roof} roof"] if "roof" in facts else []
    having = f" with {' and '.join(parts)}" if parts else ""
    return f"the {color}{attributes.kind}{having}{circumstances(attributes, facts)}"


def _values(attributes: Attributes, facts: Sequence[str]) -> tuple[str | int, ...]:
    return tuple(getattr(attributes, name) for name in ("kind", *facts))
