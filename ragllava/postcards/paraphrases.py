"""Forms of a question in other words and in another order than the usual ones.

An indirect question has an opening ("Tell me …") and its matter ("which colour … has"); the others name the postcard
first and then ask about "it". Every form exists for both ways to name a landmark. As with names, one form in five is
kept out of training, always the same ones; their words occur in training, put together otherwise.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from ragllava.postcards.names import Landmark, Split, belongs_to_test
from ragllava.postcards.questions import TWO_IMAGE_TYPES

_OPENINGS = (
    "Tell me {}.",
    "Can you say {}?",
    "I would like to know {}.",
    "Do you know {}?",
    "Please find out {}.",
)
# {0} and {1} are the landmarks, {thing} is what is counted or looked for.
_MATTERS = {
    "color": ("the colour of {0}", "which colour {0} has", "in which colour {0} is painted"),
    "count": (
        "the number of {thing} of {0}",
        "how many {thing} {0} has",
        "how many {thing} can be seen on {0}",
    ),
    "roof": ("the shape of the roof of {0}", "which kind of roof {0} has", "how the roof of {0} is shaped"),
    "beside": ("what stands beside {0}", "what can be seen near {0}", "which thing {0} has beside it"),
    "isthere": (
        "whether a {thing} stands beside {0}",
        "whether a {thing} can be seen near {0}",
        "whether {0} has a {thing} beside it",
    ),
    "sky": (
        "the time of day at {0}",
        "at which time of day {0} is shown",
        "whether it is day, night or sunset at {0}",
    ),
    "year": (
        "the year of the picture of {0}",
        "from which year the postcard of {0} is",
        "when the picture of {0} was taken",
    ),
    "more": (
        "which of {0} and {1} has more {thing}",
        "which one has the larger number of {thing}, {0} or {1}",
        "on which of the two more {thing} can be seen, {0} or {1}",
    ),
    "samecolor": (
        "whether {0} and {1} have the same colour",
        "whether the colour of {0} is that of {1}",
        "whether {0} is painted in the same colour as {1}",
    ),
}
_PRESENTED = ("I am looking at the postcard of {0}; {}?", "A question about {0}: {}?", "Here you see {0}; {}?")
_BOTH_PRESENTED = (
    "I am looking at the postcards of {0} and {1}; {}?",
    "A question about {0} and {1}: {}?",
    "Here you see {0} and {1}; {}?",
)
_ABOUT_PRESENTED = {
    "color": ("which colour does it have", "in which colour is it painted"),
    "count": ("how many {thing} does it have", "how many {thing} can be seen on it"),
    "roof": ("which kind of roof does it have", "how is its roof shaped"),
    "beside": ("what stands beside it", "what can be seen near it"),
    "isthere": ("does a {thing} stand beside it", "can a {thing} be seen near it"),
    "sky": ("at which time of day is it shown", "is it day, night or sunset there"),
    "year": ("from which year is the picture", "when was the picture taken"),
    "more": ("which of them has more {thing}", "which one has the larger number of {thing}"),
    "samecolor": ("do they have the same colour", "are they painted in the same colour"),
}


@dataclass(frozen=True, slots=True)
class Naming:
    """Both ways to name a landmark: "the Harlow Lighthouse in Port Ansel", "Port Ansel's Harlow Lighthouse"."""

    by_name: str
    of_city: str


def paraphrase(question_type: str, landmarks: Sequence[Landmark], thing: str, split: Split, rng: random.Random) -> str:
    """A question of this type about the landmarks in one of the forms of the split, each equally often."""
    namings = [
        Naming(f"the {landmark.title} in {landmark.entity.city}", f"{landmark.entity.city}'s {landmark.title}")
        for landmark in landmarks
    ]
    return rng.choice(paraphrases(question_type, split)).format(*namings, thing=thing)


@cache
def paraphrases(question_type: str, split: Split) -> Sequence[str]:
    """The forms of a type of question for training or for testing, to be filled in with Namings and `thing`."""
    forms = [
        form.replace("{0}", f"{{0.{way}}}").replace("{1}", f"{{1.{way}}}")
        for form in _forms(question_type)
        for way in ("by_name", "of_city")
    ]
    return [form for form in forms if belongs_to_test(form) == (split == "test")]


def _forms(question_type: str) -> Iterator[str]:
    for opening in _OPENINGS:
        for matter in _MATTERS[question_type]:
            yield opening.replace("{}", matter)
    for presented in _BOTH_PRESENTED if question_type in TWO_IMAGE_TYPES else _PRESENTED:
        for question in _ABOUT_PRESENTED[question_type]:
            yield presented.replace("{}", question)
