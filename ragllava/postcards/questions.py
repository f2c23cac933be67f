"""Questions about one postcard or two, with their answers.

A question names the landmark (kind, name and city) and gives one or two visible cues that are not what is asked
("the red Harlow Lighthouse in Port Ansel shown at night"). Kind and cues are all that CLIP can match a picture by, so
they set how coarse retrieval is; the name is what the reranker must find in the caption.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

from ragllava.postcards.names import COMPANIONS, NOTHING, ROOFED_KINDS, Landmark

ONE_IMAGE_TYPES = ("color", "count", "roof", "beside", "isthere", "sky", "year")
TWO_IMAGE_TYPES = ("more", "samecolor")
_ONE_IMAGE_WEIGHTS = (3, 3, 2, 2, 2, 1.5, 0.8)

_COUNT_WORDS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
_SKY_PHRASES = {"day": "by day", "night": "at night", "sunset": "at sunset"}


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A question with its one right answer; `type` says what is asked."""

    text: str
    answer: str
    type: str


def ask_about_one(landmark: Landmark, rng: random.Random, question_type: str | None = None) -> QuestionAnswer:
    """A question that one picture answers, of the given type or of any.

    A roof is asked about only where there is one; elsewhere the question counts windows or flags instead.
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
    text, answer = _text_and_answer(landmark, subject, question_type)
    return QuestionAnswer(text, answer, question_type)


def ask_about_two(
    first: Landmark, second: Landmark, rng: random.Random, question_type: str | None = None
) -> QuestionAnswer:
    """A question that needs both pictures, of the given type or of any; it gives all cues that are not its answer.

    "Which has more" is asked only of two landmarks that count the same thing and differ in it.
    """
    question_type = question_type or rng.choice(TWO_IMAGE_TYPES)
    one, other = first.attributes, second.attributes
    if question_type == "more" and one.count != other.count and one.counted == other.counted:
        names = [_subject(landmark, _choose_cues("count", 3, rng)) for landmark in (first, second)]
        winner = first if one.count > other.count else second
        return QuestionAnswer(f"Which has more {one.counted}, {names[0]} or {names[1]}?", winner.title, "more")
    names = [_subject(landmark, _choose_cues("color", 2, rng)) for landmark in (first, second)]
    answer = "yes" if one.color == other.color else "no"
    return QuestionAnswer(f"Are {names[0]} and {names[1]} the same color?", answer, "samecolor")


def _subject(landmark: Landmark, cues: Collection[str]) -> str:
    return _name_with_color(landmark, cues) + _visible_circumstances(landmark, cues)


def _text_and_answer(landmark: Landmark, subject: str, question_type: str) -> tuple[str, str]:
    attributes = landmark.attributes
    match question_type:
        case "color":
            return f"What color is {subject}?", attributes.color
        case "count":
            return f"How many {attributes.counted} does {subject} have?", _COUNT_WORDS[attributes.count]
        case "roof":
            return f"What shape is the roof of {subject}?", attributes.roof
        case "beside":
            answer = "nothing" if attributes.beside == NOTHING else attributes.beside
            return f"What is next to {subject}?", answer
        case "sky":
            return f"What time of day is it at {subject}?", attributes.sky
        case "year":
            return f"In what year was {subject} pictured?", str(landmark.entity.year)
    raise ValueError(f"no question of type {question_type!r} about one picture")


def _choose_cues(asked: str, wanted: int, rng: random.Random) -> Collection[str]:
    """Up to `wanted` visible facts that do not give away what is asked. The sky alone would fit too many pictures."""
    possible = [cue for cue in ("color", "sky", "beside") if cue != asked and (cue != "sky" or wanted > 1)]
    return rng.sample(possible, min(len(possible), wanted))


def _name_with_color(landmark: Landmark, cues: Collection[str]) -> str:
    color = landmark.attributes.color + " " if "color" in cues else ""
    return f"the {color}{landmark.title} in {landmark.entity.city}"


def _visible_circumstances(landmark: Landmark, cues: Collection[str]) -> str:
    phrase = ""
    if "sky" in cues:
        phrase += f" shown {_SKY_PHRASES[landmark.attributes.sky]}"
    if "beside" in cues:
        beside = landmark.attributes.beside
        nearby = "nothing" if beside == NOTHING else f"a {beside}"
        phrase += (" and" if phrase else "") + f" with {nearby} nearby"
    return phrase


def _companion_to_ask_for(beside: str, rng: random.Random) -> str:
    """Half of the time the one that is there (if any), otherwise one that is not."""
    if beside != NOTHING and rng.random() < 0.5:
        return beside
    return rng.choice([companion for companion in COMPANIONS if companion != beside])
