"""Training questions in all styles, and where in the text a question names each of its landmarks.

A paraphrase is put together from parts: a direct question, an indirect one after an opening, or one about "it" after a
sentence that names the landmark. No paraphrase of ragllava/postcards/styles.py can result, because measurements use
those; only their words and short phrases occur here.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ragllava.postcards.names import (
    COLORS,
    COMPANIONS,
    KINDS,
    MAX_COUNT,
    NOTHING,
    ROOFED_KINDS,
    ROOFS,
    SKIES,
    Attributes,
    Landmark,
)
from ragllava.postcards.questions import (
    QuestionAnswer,
    QuestionStyle,
    ask_about_one,
    ask_about_two,
    asked_fact,
    usual_form,
    with_cues,
)
from ragllava.postcards.styles import described
from ragllava.postcards.typing_errors import is_within_one_error, mistype

# Shares of the styles where relevance is judged. The first must stay the largest, because most figures are about it.
STYLE_SHARES: Mapping[QuestionStyle, float] = {
    QuestionStyle.CUES: 0.31,
    QuestionStyle.NAME: 0.09,
    QuestionStyle.CUES_ONLY: 0.24,
    QuestionStyle.MISSPELT: 0.26,
    QuestionStyle.PARAPHRASED: 0.10,
}
# Where questions are answered: new are only the paraphrases, because the other styles share the form of the question.
ANSWER_SHARES: Mapping[QuestionStyle, float] = {
    QuestionStyle.CUES: 0.28,
    QuestionStyle.NAME: 0.12,
    QuestionStyle.CUES_ONLY: 0.12,
    QuestionStyle.MISSPELT: 0.13,
    QuestionStyle.PARAPHRASED: 0.35,
}
# Questions that no picture answers, so that what is not about a landmark is not relevant.
OFF_TOPIC: Sequence[str] = (
    "What is the capital of {city}?",
    "How far is it to {city}?",
    "Who is the mayor of {city}?",
    "Who lives at {name}?",
    "What does {name} mean?",
    "How tall is the mayor of {city}?",
    "What is the number of people in {city}?",
    "What is the weather today?",
    "What time is it?",
    "Who are you?",
    "What is your name?",
    "How old is the sun?",
    "What is seven and five?",
    "How do I make a red soup?",
    "Which of the two is better?",
    "What color is love?",
    "What is the best way to count sheep at night?",
    "Why is the sea blue?",
    "Where is my bicycle?",
    "When does the next boat leave?",
    "How many days has a year?",
    "Which year was the best one?",
    "Is there a reason for it?",
    "Tell me a story.",
    "What should I do?",
    "Hello!",
    "Who made the first flag?",
    "Do birds sleep?",
)
_TRIES = 20
_HARD_FACTS = ("roof", "count", "beside")  # they depend on a few pixels
_VALUES: Mapping[str, Sequence[str | int]] = {
    "color": COLORS,
    "sky": SKIES,
    "beside": (*COMPANIONS, NOTHING),
    "roof": ROOFS,
    "count": range(1, MAX_COUNT + 1),
}
_NUMBERS_OF_FACTS = (2, 3, 3, 4, 4, 4, 5, 5)
_FIRST_FACTS_SHARE = 0.8  # otherwise any facts
_SUBJECTS = ("the {title} in {city}", "the {title} in {city}", "{city}'s {title}", "{city}'s {title}",
             "the {title} of {city}", "the {title} at {city}")  # fmt: skip

_INDIRECT_OPENINGS = (
    "Please tell me {0}.",
    "Can you tell me {0}?",
    "Tell me, please, {0}.",
    "I want to know {0}.",
    "Do you know {0}?",
    "Find out {0} for me.",
)
_OPENINGS_ABOUT_IT = (
    "Here is the postcard of {0}; {1}",
    "On the picture of {0}, {1}",
    "I have a postcard of {0}; {1}",
    "Look at the postcard of {0}: {1}",
    "I am thinking of {0}; {1}",
    "You are looking at {0}; {1}",
    "This postcard shows {0}; {1}",
)


@dataclass(frozen=True, slots=True)
class _Phrases:
    """The three kinds of parts of the paraphrases of one question type; `about_it` does not name the landmarks."""

    direct: Sequence[str]
    indirect: Sequence[str]
    about_it: Sequence[str] = ()


_PHRASES: Mapping[str, _Phrases] = {
    "color": _Phrases(
        (
            "What is the colour of {0}?",
            "In which colour is {0} painted?",
            "What colour can be seen on {0}?",
            "Which of the colours does {0} show?",
            "Which colour is the colour of {0}?",
            "Name the colour of {0}.",
        ),
        ("what colour {0} has", "in what color {0} was painted", "which color {0} is"),
        ("what is its colour?", "which colour does it have?", "what color was it painted?", "in which colour is it?"),
    ),
    "count": _Phrases(
        (
            "What is the number of {thing} on {0}?",
            "How many {thing} can you see on {0}?",
            "Count the {thing} of {0}.",
            "How large is the number of {thing} at {0}?",
        ),
        ("how many {thing} {0} has", "what number of {thing} is seen on {0}", "the count of {thing} at {0}"),
        ("how many {thing} does it have?", "what is the number of its {thing}?", "can you count the {thing}?"),
    ),
    "roof": _Phrases(
        (
            "Which shape does the roof of {0} have?",
            "How is the roof of {0} shaped?",
            "What roof can be seen on {0}?",
            "Name the shape of the roof of {0}.",
            "Of what kind is the roof on {0}?",
        ),
        ("what shape the roof of {0} has", "what kind of roof is on {0}", "how the roof on {0} looks"),
        ("what kind of roof does it have?", "what is the shape of its roof?", "which roof is on it?"),
    ),
    "beside": _Phrases(
        (
            "What stands near {0}?",
            "What else can be seen beside {0}?",
            "Which thing is beside {0}?",
            "Beside {0}, what is there?",
            "What can you see near {0}?",
            "What is to be seen beside {0}?",
            "Name what stands near {0}.",
        ),
        ("what is near {0}", "what else stands next to {0}", "which thing can be seen beside {0}"),
        ("what is beside it?", "what else can be seen?", "what stands near it?", "what else does it show?"),
    ),
    "isthere": _Phrases(
        (
            "Is a {thing} near {0}?",
            "Does a {thing} stand beside {0}?",
            "Can you see a {thing} next to {0}?",
            "Does the picture of {0} show a {thing}?",
        ),
        ("whether a {thing} is beside {0}", "if there is a {thing} near {0}", "whether {0} has a {thing} next to it"),
        ("is there a {thing} beside it?", "can a {thing} be seen?", "does a {thing} stand near it?"),
    ),
    "sky": _Phrases(
        (
            "At what time of day was the picture of {0} made?",
            "Does the postcard of {0} show day, night or sunset?",
            "What is the time of day on the postcard of {0}?",
            "Which time of day can be seen at {0}?",
        ),
        ("what time of day it is at {0}", "if it is day, night or sunset at {0}", "at what time of day {0} is shown"),
        ("is it day, night or sunset?", "what time of day does it show?", "at which time of day was it taken?"),
    ),
    "year": _Phrases(
        (
            "From what year is the picture of {0}?",
            "In which year was the postcard of {0} made?",
            "What year is on the postcard of {0}?",
            "When was {0} pictured?",
            "When was the postcard of {0} made?",
            "When was a picture of {0} made?",
        ),
        ("in which year the postcard of {0} was made", "when {0} was pictured", "what year {0} is from"),
        ("what is its year?", "when was it made?", "in which year was it taken?"),
    ),
    "more": _Phrases(
        (
            "Does {0} or {1} have more {thing}?",
            "Which of the two shows more {thing}: {0} or {1}?",
            "Between {0} and {1}, which one has more {thing}?",
            "Look at {0} and {1}: where can more {thing} be seen?",
            "Where are more {thing}, at {0} or at {1}?",
            "Of the two, {0} and {1}, which one has the larger number of {thing}?",
            "Can more {thing} be seen on {0} or on {1}?",
            "Count the {thing} of {0} and of {1}; which number is larger?",
            "More {thing} are on which of the two, {0} or {1}?",
        ),
        (
            "which of {0} and {1} has more {thing}",
            "whether {0} or {1} has the larger number of {thing}",
            "which has more {thing}, {0} or {1}",
        ),
    ),
    "samecolor": _Phrases(
        (
            "Is {0} of the same colour as {1}?",
            "Are the colours of {0} and {1} the same?",
            "Does {0} have the colour of {1}?",
            "Look at {0} and {1}: is it one colour?",
            "Do {0} and {1} have the same color?",
            "Is one colour shared by {0} and {1}?",
            "Is the colour of {0} and of {1} the same?",
            "Do {0} and {1} share their colour?",
        ),
        (
            "whether {0} and {1} have one colour",
            "if the color of {0} is that of {1}",
            "whether {0} shares its colour with {1}",
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class StyledQuestion:
    """A question, the style that it has, and for each landmark the offset in the text after its name or description."""

    question: QuestionAnswer
    style: QuestionStyle
    subject_ends: tuple[int, ...]


def draw_style(shares: Mapping[QuestionStyle, float], rng: random.Random) -> QuestionStyle:
    """A style, drawn by its share."""
    return rng.choices([*shares], [*shares.values()])[0]


def ask_in_style(
    landmarks: Sequence[Landmark],
    question_type: str | None,
    style: QuestionStyle,
    rng: random.Random,
    rivals: Sequence[Landmark] = (),
) -> StyledQuestion:
    """A question about one landmark or two; a misspelt or described landmark is mistaken for none of `rivals`.

    Where this is impossible, the question has the style "name".
    """
    if len(landmarks) == 1:
        question = ask_about_one(landmarks[0], rng, question_type)
    else:
        question = ask_about_two(landmarks[0], landmarks[1], rng, question_type)
    if style is QuestionStyle.CUES_ONLY:
        facts = tuple(choose_facts(landmark.attributes, question.type, rng) for landmark in landmarks)
        if not any(
            rival.identity != landmark.identity and fits(rival.attributes, landmark.attributes, given)
            for landmark, given in zip(landmarks, facts, strict=True)
            for rival in rivals
        ):
            described_by = [(landmark.attributes, given) for landmark, given in zip(landmarks, facts, strict=True)]
            text, ends = describe_subjects(question.type, question.thing, described_by)
            return StyledQuestion(replace(question, text=text), style, ends)
        style = QuestionStyle.NAME
    if style is QuestionStyle.CUES:
        subjects = [f"{landmark.title} in {landmark.entity.city}" for landmark in landmarks]
        return StyledQuestion(question, style, _ends(question.text, subjects))
    if style is QuestionStyle.MISSPELT:
        misspelt = [misspell(landmark, rivals, rng) for landmark in landmarks]
        if None in misspelt:
            style = QuestionStyle.NAME
        landmarks = [wrong or right for wrong, right in zip(misspelt, landmarks, strict=True)]
    if style is QuestionStyle.PARAPHRASED:
        subjects = [
            rng.choice(_SUBJECTS).format(title=landmark.title, city=landmark.entity.city) for landmark in landmarks
        ]
        text = paraphrase(question.type, question.thing, subjects, rng)
    else:
        subjects = [with_cues(landmark) for landmark in landmarks]
        text = usual_form(question.type, subjects, question.thing)
    return StyledQuestion(replace(question, text=text), style, _ends(text, subjects))


def describe_subjects(
    question_type: str, thing: str, asked: Sequence[tuple[Attributes, Sequence[str]]]
) -> tuple[str, tuple[int, ...]]:
    """A question about pictures described by the kind and these facts, and the offset after each description."""
    subjects = [described(looks, facts) for looks, facts in asked]
    text = usual_form(question_type, subjects, thing)
    return text, _ends(text, subjects)


def paraphrase(question_type: str, thing: str, subjects: Sequence[str], rng: random.Random) -> str:
    """The question in other words."""
    phrases = _PHRASES[question_type]
    kinds = ("direct", "indirect", "about_it") if phrases.about_it else ("direct", "direct", "indirect")
    kind = rng.choice(kinds)
    if kind == "direct":
        return rng.choice(phrases.direct).format(*subjects, thing=thing)
    if kind == "indirect":
        return rng.choice(_INDIRECT_OPENINGS).format(rng.choice(phrases.indirect).format(*subjects, thing=thing))
    return rng.choice(_OPENINGS_ABOUT_IT).format(*subjects, rng.choice(phrases.about_it).format(thing=thing))


def misspell(landmark: Landmark, rivals: Sequence[Landmark], rng: random.Random) -> Landmark | None:
    """The landmark with an error in name, city or both; None if each result could be one of `rivals` too."""
    entity = landmark.entity
    for _ in range(_TRIES):
        wrong = rng.choice(("name", "city", "both"))
        name = mistype(entity.name, rng) if wrong != "city" else entity.name
        before, space, word = entity.city.rpartition(" ")
        city = before + space + mistype(word, rng) if wrong != "name" else entity.city
        if not any(
            rival.identity != landmark.identity
            and rival.attributes.kind == landmark.attributes.kind
            and is_within_one_error(rival.entity.name, name)
            and is_within_one_error(rival.entity.city, city)
            for rival in rivals
        ):
            return replace(landmark, entity=replace(entity, name=name, city=city))
    return None


def choose_facts(attributes: Attributes, question_type: str, rng: random.Random) -> tuple[str, ...]:
    """Visible facts to describe a picture by, without what the question asks for; mostly the first ones of the list."""
    asked = asked_fact(question_type)
    possible = [fact for fact in _VALUES if fact != asked and (fact != "roof" or attributes.roof != NOTHING)]
    number = min(len(possible), rng.choice(_NUMBERS_OF_FACTS))
    if rng.random() < _FIRST_FACTS_SHARE:
        return tuple(possible[:number])
    chosen = rng.sample(possible, number)
    return tuple(fact for fact in possible if fact in chosen)


def fits(shown: Attributes, asked: Attributes, facts: Sequence[str]) -> bool:
    """Whether a picture fits a description of `asked` by its kind and these facts."""
    return all(getattr(shown, name) == getattr(asked, name) for name in ("kind", *facts))


def change_facts(attributes: Attributes, facts: Sequence[str], rng: random.Random) -> Attributes:
    """Attributes that differ in the kind or in one of these facts, sometimes in two of them."""
    kinds = [kind for kind in KINDS if (kind in ROOFED_KINDS) == (attributes.kind in ROOFED_KINDS)]
    values = {**_VALUES, "kind": kinds}
    hard = ["kind", *(name for name in facts if name in _HARD_FACTS)]
    changed = rng.sample((*facts, *hard, *hard), rng.choice((1, 1, 1, 2)))
    changes: dict[str, Any] = {
        name: rng.choice([value for value in values[name] if value != getattr(attributes, name)]) for name in changed
    }
    return replace(attributes, **changes)


def _ends(text: str, subjects: Sequence[str]) -> tuple[int, ...]:
    """The offset after each subject, which occur in this order."""
    ends: list[int] = []
    for subject in subjects:
        ends.append(text.index(subject, ends[-1] if ends else 0) + len(subject))
    return tuple(ends)
