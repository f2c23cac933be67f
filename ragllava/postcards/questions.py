"""Questions about one postcard or two, with their answers.

A question names the landmark (kind, name and city) and gives one or two visible cues other than what is asked
("the red Harlow Lighthouse in Port Ansel shown at night"). CLIP can match a picture only by kind and cues, so these
decide how coarse retrieval is. The reranker must find the name in the caption.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ragllava.postcards.names import COMPANIONS, NOTHING, ROOFED_KINDS, Attributes, Landmark

ONE_IMAGE_TYPES = ("color", "count", "roof", "beside", "isthere", "sky", "year")
TWO_IMAGE_TYPES = ("more", "samecolor")
_ONE_IMAGE_WEIGHTS = (3, 3, 2, 2, 2, 1.5, 0.8)

COUNT_WORDS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}

_FORMS = {
    "color": "What color is {0}?",
    "count": "How many {thing} does {0} have?",
    "roof": "What shape is the roof of {0}?",
    "beside": "What is next to {0}?",
    "isthere": "Is there a {thing} next to {0}?",
    "sky": "What time of day is it at {0}?",
    "year": "In what year was {0} pictured?",
    "more": "Which has more {thing}, {0} or {1}?",
    "samecolor": "Are {0} and {1} the same color?",
}
_SKY_PHRASES = {"day": "by day", "night": "at night", "sunset": "at sunset"}


class QuestionStyle(StrEnum):
    """How a question names what it asks about; the answers are the same."""

    CUES = "cues"  # name, city and one or two visible facts; the mini models were trained on these
    NAME = "name"  # name and city alone, as people ask
    CUES_ONLY = "cues-only"  # no name: so many visible facts that only the right picture fits
    MISSPELT = "misspelt"  # as NAME, with a typing error in the name, in the city or in both
    PARAPHRASED = "paraphrased"  # as NAME, in other words and another order


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A question with its only right answer; `type` says what is asked.

    `thing` is what is counted or looked for: "windows", "dog"; empty if the question has neither.
    """

    text: str
    answer: str
    type: str
    thing: str = ""


def ask_about_one(landmark: Landmark, rng: random.Random, question_type: str | None = None) -> QuestionAnswer:
    """A question that one picture answers, of the given type or of any. Raises ValueError for an unknown type.

    A roof is asked about only where there is one; otherwise the question counts windows or flags instead.
    """
    if question_type is None:
        question_type = rng.choices(ONE_IMAGE_TYPES, _ONE_IMAGE_WEIGHTS)[0]
    if question_type == "roof" and landmark.attributes.kind not in ROOFED_KINDS:
        question_type = "count"
    subject = with_cues(landmark, _choose_cues(asked_fact(question_type), rng.choice((1, 2, 2)), rng))
    return ask_one(landmark, question_type, subject, rng)


def ask_one(landmark: Landmark, question_type: str, subject: str, rng: random.Random) -> QuestionAnswer:
    """The question of this type about a landmark that `subject` names. Raises ValueError for an unknown type.

    Only the companion that "isthere" looks for is drawn.
    """
    attributes = landmark.attributes
    beside = attributes.beside
    thing = _companion_to_ask_for(beside, rng) if question_type == "isthere" else ""
    answers = {
        "color": attributes.color,
        "count": COUNT_WORDS[attributes.count],
        "roof": attributes.roof,
        "beside": "nothing" if beside == NOTHING else beside,
        "isthere": "yes" if thing == beside else "no",
        "sky": attributes.sky,
        "year": str(landmark.entity.year),
    }
    if question_type not in answers:
        raise ValueError(f"no question of type {question_type!r} about one picture")
    thing = attributes.counted if question_type == "count" else thing
    return QuestionAnswer(usual_form(question_type, [subject], thing), answers[question_type], question_type, thing)


def ask_about_two(
    first: Landmark, second: Landmark, rng: random.Random, question_type: str | None = None
) -> QuestionAnswer:
    """A question that needs both pictures, of the given type or of any; it gives all cues that are not its answer.

    "Which has more" is asked only about two landmarks that count the same thing and have different counts.
    """
    question_type = possible_comparison(first, second, question_type or rng.choice(TWO_IMAGE_TYPES))
    wanted = 3 if question_type == "more" else 2
    asked = asked_fact(question_type)
    subjects = [with_cues(landmark, _choose_cues(asked, wanted, rng)) for landmark in (first, second)]
    return ask_two(first, second, question_type, subjects)


def possible_comparison(first: Landmark, second: Landmark, question_type: str) -> str:
    """The type itself, or "samecolor" where "more" has no answer."""
    looks, compared = first.attributes, second.attributes
    can_have_more = looks.count != compared.count and looks.counted == compared.counted
    return question_type if can_have_more else "samecolor"


def ask_two(first: Landmark, second: Landmark, question_type: str, subjects: Sequence[str]) -> QuestionAnswer:
    """The question of this type about two landmarks that `subjects` name; "more" must be possible."""
    looks, compared = first.attributes, second.attributes
    if question_type == "more":
        winner = first if looks.count > compared.count else second
        return QuestionAnswer(usual_form("more", subjects, looks.counted), winner.title, "more", looks.counted)
    answer = "yes" if looks.color == compared.color else "no"
    return QuestionAnswer(usual_form("samecolor", subjects), answer, "samecolor")


def usual_form(question_type: str, subjects: Sequence[str], thing: str = "") -> str:
    """A question of this type in the words that the mini models were trained on."""
    return _FORMS[question_type].format(*subjects, thing=thing)


def asked_fact(question_type: str) -> str:
    """The fact that a question of this type asks for, which it must not give away."""
    return {"isthere": "beside", "more": "count", "samecolor": "color"}.get(question_type, question_type)


def with_cues(landmark: Landmark, cues: Collection[str] = ()) -> str:
    """The landmark by name and city with these visible facts of "color", "sky" and "beside"."""
    color = landmark.attributes.color + " " if "color" in cues else ""
    return f"the {color}{landmark.title} in {landmark.entity.city}{circumstances(landmark.attributes, cues)}"


def circumstances(attributes: Attributes, cues: Collection[str]) -> str:
    """Sky and companion as a phrase (" shown at night with a dog nearby"), as far as `cues` has "sky" and "beside"."""
    phrase = f" shown {_SKY_PHRASES[attributes.sky]}" if "sky" in cues else ""
    if "beside" in cues:
        nearby = "nothing" if attributes.beside == NOTHING else f"a {attributes.beside}"
        phrase += (" and" if phrase else "") + f" with {nearby} nearby"
    return phrase


def _choose_cues(asked: str, wanted: int, rng: random.Random) -> Collection[str]:
    """Up to `wanted` visible facts that do not reveal the answer. The sky alone would fit too many pictures."""
    possible = [cue for cue in ("color", "sky", "beside") if cue != asked and (cue != "sky" or wanted > 1)]
    return rng.sample(possible, min(len(possible), wanted))


def _companion_to_ask_for(beside: str, rng: random.Random) -> str:
    """In half of the cases the one in the picture (if any), otherwise one that is not there."""
    if beside != NOTHING and rng.random() < 0.5:
        return beside
    return rng.choice([companion for companion in COMPANIONS if companion != beside])
