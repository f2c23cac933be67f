"""Questions about one postcard or two, with their answers.

A question names the landmark (kind, name and city) and gives one or two visible cues other than what is asked
("the red Harlow Lighthouse in Port Ansel shown at night"). CLIP can match a picture only by kind and cues, so these
decide how coarse retrieval is. The reranker must find the name in the caption.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

from ragllava.postcards.names import COMPANIONS, NOTHING, ROOFED_KINDS, Attributes, Landmark

ONE_IMAGE_TYPES = ("color", "count", "roof", "beside", "isthere", "sky", "year")
TWO_IMAGE_TYPES = ("more", "samecolor")
_ONE_IMAGE_WEIGHTS = (3, 3, 2, 2, 2, 1.5, 0.8)

COUNT_WORDS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
_SKY_PHRASES = {"day": "by day", "night": "at night", "sunset": "at sunset"}


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A question with its only right answer; `type` says what is asked."""

    text: str
    answer: str
    type: str


def ask_about_one(landmark: Landmark, rng: random.Random, question_type: str | None = None) -> QuestionAnswer:
    """A question that one picture answers, of the given type or of any. Raises ValueError for an unknown type.

    A roof is asked about only where there is one; otherwise the question counts windows or flags instead.
    """
    attributes = landmark.attributes
    if question_type is None:
        question_type = rng.choices(ONE_IMAGE_TYPES, _ONE_IMAGE_WEIGHTS)[0]
    if question_type == "roof" and attributes.kind not in ROOFED_KINDS:
        question_type = "count"
    asked = "beside" if question_type == "isthere" else question_type
    subject = _subject(landmark, _choose_cues(asked, rng.choice((1, 2, 2)), rng))
    if question_type == "isthere":
        companion = _companion_to_ask_for(attributes.beside, rng)
        answer = "yes" if companion == attributes.beside else "no"
        return QuestionAnswer(f"Is there a {companion} next to {subject}?", answer, question_type)
    questions = {
        "color": (f"What color is {subject}?", attributes.color),
        "count": (f"How many {attributes.counted} does {subject} have?", COUNT_WORDS[attributes.count]),
        "roof": (f"What shape is the roof of {subject}?", attributes.roof),
        "beside": (f"What is next to {subject}?", "nothing" if attributes.beside == NOTHING else attributes.beside),
        "sky": (f"What time of day is it at {subject}?", attributes.sky),
        "year": (f"In what year was {subject} pictured?", str(landmark.entity.year)),
    }
    if question_type not in questions:
        raise ValueError(f"no question of type {question_type!r} about one picture")
    return QuestionAnswer(*questions[question_type], question_type)


def ask_about_two(
    first: Landmark, second: Landmark, rng: random.Random, question_type: str | None = None
) -> QuestionAnswer:
    """A question that needs both pictures, of the given type or of any; it gives all cues that are not its answer.

    "Which has more" is asked only about two landmarks that count the same thing and have different counts.
    """
    question_type = question_type or rng.choice(TWO_IMAGE_TYPES)
    looks, compared = first.attributes, second.attributes
    if question_type == "more" and looks.count != compared.count and looks.counted == compared.counted:
        names = [_subject(landmark, _choose_cues("count", 3, rng)) for landmark in (first, second)]
        winner = first if looks.count > compared.count else second
        return QuestionAnswer(f"Which has more {looks.counted}, {names[0]} or {names[1]}?", winner.title, "more")
    names = [_subject(landmark, _choose_cues("color", 2, rng)) for landmark in (first, second)]
    answer = "yes" if looks.color == compared.color else "no"
    return QuestionAnswer(f"Are {names[0]} and {names[1]} the same color?", answer, "samecolor")


def circumstances(attributes: Attributes, cues: Collection[str]) -> str:
    """Sky and companion as a phrase (" shown at night with a dog nearby"), as far as `cues` has "sky" and "beside"."""
    phrase = f" shown {_SKY_PHRASES[attributes.sky]}" if "sky" in cues else ""
    if "beside" in cues:
        nearby = "nothing" if attributes.beside == NOTHING else f"a {attributes.beside}"
        phrase += (" and" if phrase else "") + f" with {nearby} nearby"
    return phrase


def _subject(landmark: Landmark, cues: Collection[str]) -> str:
    color = landmark.attributes.color + " " if "color" in cues else ""
    return f"the {color}{landmark.title} in {landmark.entity.city}{circumstances(landmark.attributes, cues)}"


def _choose_cues(asked: str, wanted: int, rng: random.Random) -> Collection[str]:
    """Up to `wanted` visible facts that do not reveal the answer. The sky alone would fit too many pictures."""
    possible = [cue for cue in ("color", "sky", "beside") if cue != asked and (cue != "sky" or wanted > 1)]
    return rng.sample(possible, min(len(possible), wanted))


def _companion_to_ask_for(beside: str, rng: random.Random) -> str:
    """In half of the cases the one in the picture (if any), otherwise one that is not there."""
    if beside != NOTHING and rng.random() < 0.5:
        return beside
    return rng.choice([companion for companion in COMPANIONS if companion != beside])
