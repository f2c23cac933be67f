"""The questions of a pack about its postcards, with their answers and hints.

The questions have the styles of ragllava/postcards/questions.py, in words of their own where these are paraphrases.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ragllava.lab.mini_recipe.wordings import StyledQuestion, ask_in_style, draw_style
from ragllava.postcards.names import NOTHING, ROOFED_KINDS, Attributes, Landmark
from ragllava.postcards.questions import COUNT_WORDS, QuestionStyle, circumstances

# Weights of the question types in training: those that are hard or rare in an archive have higher ones.
_ONE_IMAGE_PRACTICE = {"color": 1.5, "count": 4.0, "roof": 2.5, "beside": 2.0, "isthere": 5.0, "sky": 1.0, "year": 2.0}
CUES = ("color", "sky", "beside")


@dataclass(frozen=True, slots=True)
class Shown:
    """A landmark with the index of its picture in the pool."""

    picture: int
    landmark: Landmark


@dataclass(frozen=True, slots=True)
class Subject:
    """A landmark that a question names or describes: `end` is the offset in the question after that.

    `about` is the shown landmark that it is, None if it is not shown. `same_name` and `same_city` compare its
    words with the caption of the only picture; None if there are more pictures, or no name. `kind_end` is the offset
    after the kind in a description of that picture or another one, and `same_kind` compares it with the picture.
    """

    end: int
    about: Shown | None
    same_name: bool | None = None
    same_city: bool | None = None
    kind_end: int | None = None
    same_kind: bool = False


@dataclass(frozen=True, slots=True)
class Ending:
    """One question after the pictures. `task` is `relevance`, `compare`, `describe`, `name` or a question type.

    `about` is the shown landmark that the question is about or that its answer names; None if there is none. `style` is
    None where there is only one.
    """

    question: str
    answer: str
    task: str
    about: Shown | None = None
    style: QuestionStyle | None = None
    subjects: tuple[Subject, ...] = ()

    @property
    def judges_relevance(self) -> bool:
        """Whether it uses the reranker's prompt, not the generator's."""
        return self.task == "relevance"


def scene(attributes: Attributes, rng: random.Random) -> str:
    """A part of what a picture shows, without a name: "a red lighthouse shown at night"."""
    cues = [cue for cue in CUES if rng.random() < 0.75]
    color = f"{attributes.color} " if "color" in cues else ""
    return f"a {color}{attributes.kind}{circumstances(attributes, cues)}"


def description_ending(shown: Shown) -> Ending:
    """All facts of one picture as one answer: one question trains six labels."""
    landmark, looks = shown.landmark, shown.landmark.attributes
    plural = looks.counted if looks.count > 1 else looks.counted.removesuffix("s")
    roof = f"{looks.roof} roof" if looks.roof != NOTHING else "no roof"
    beside = looks.beside if looks.beside != NOTHING else "nothing"
    facts = f"{looks.color} {looks.kind}, {COUNT_WORDS[looks.count]} {plural}, {roof}, {looks.sky}, {beside}"
    question = f"Describe the {landmark.title} in {landmark.entity.city}."
    return Ending(question, f"{facts}, {landmark.entity.year}", "describe", shown)


def one_picture_ending(
    shown: Shown,
    styles: Mapping[QuestionStyle, float],
    rng: random.Random,
    pictures: Sequence[Shown] = (),
    *,
    in_caption: bool = True,
) -> Ending:
    """A question that `shown` answers, among `pictures`; without `in_caption`, the picture alone answers it."""
    weights = dict(_ONE_IMAGE_PRACTICE)
    if shown.landmark.attributes.kind not in ROOFED_KINDS:
        del weights["roof"]
    if not in_caption:
        del weights["year"]
    style = draw_style(styles, rng)
    if style is QuestionStyle.PARAPHRASED:  # the forms are as hard for each type
        weights = dict.fromkeys(weights, 1.0)
    question_type = rng.choices(list(weights), list(weights.values()))[0]
    rivals = [picture.landmark for picture in pictures]
    styled = ask_in_style([shown.landmark], question_type, style, rng, rivals)
    return _ending(styled, [shown], shown)


def _ending(styled: StyledQuestion, asked: Sequence[Shown], about: Shown | None) -> Ending:
    subjects = tuple(Subject(end, shown) for end, shown in zip(styled.subject_ends, asked, strict=True))
    question = styled.question
    return Ending(question.text, question.answer, question.type, about, styled.style, subjects)


def two_picture_endings(
    first: Shown,
    second: Shown,
    styles: Mapping[QuestionStyle, float],
    rng: random.Random,
    pictures: Sequence[Shown],
) -> list[Ending]:
    """Do they have the same color? And which has more, in both orders, where that question has an answer."""
    pair = [first, second]
    rng.shuffle(pair)
    endings = [_pair_ending(pair, "samecolor", styles, rng, pictures)]
    if first.landmark.title != second.landmark.title:
        winner = max(pair, key=lambda shown: shown.landmark.attributes.count)
        for order in (pair[::-1], pair):
            more = _pair_ending(order, "more", styles, rng, pictures, winner)
            endings += [more] if more.task == "more" else []
    return endings


def same_color_ending(
    first: Shown,
    second: Shown,
    styles: Mapping[QuestionStyle, float],
    rng: random.Random,
    pictures: Sequence[Shown],
) -> Ending:
    """Do they have the same color?"""
    pair = [first, second]
    rng.shuffle(pair)
    return _pair_ending(pair, "samecolor", styles, rng, pictures)


def _pair_ending(
    pair: Sequence[Shown],
    question_type: str,
    styles: Mapping[QuestionStyle, float],
    rng: random.Random,
    pictures: Sequence[Shown],
    about: Shown | None = None,
) -> Ending:
    landmarks, rivals = [shown.landmark for shown in pair], [shown.landmark for shown in pictures]
    return _ending(ask_in_style(landmarks, question_type, draw_style(styles, rng), rng, rivals), pair, about)


def named_subject(end: int, landmark: Landmark, shown: Shown) -> Subject:
    """A landmark that a relevance question names until `end`, compared with the only picture."""
    is_shown = landmark.identity == shown.landmark.identity
    entity, caption = landmark.entity, shown.landmark.entity
    return Subject(end, shown if is_shown else None, entity.name == caption.name, entity.city == caption.city)


def name_endings(shown: Shown, rng: random.Random, beside: Shown | None = None) -> list[Ending]:
    """What is it called? A model must learn to copy a title before it can choose one. None if `beside` looks equal."""
    looks = shown.landmark.attributes
    if beside is not None and shared_cues(beside.landmark.attributes, looks) == len(CUES):
        return []
    text = f"the {looks.color} {looks.kind}{circumstances(looks, CUES)}" if beside else scene(looks, rng)
    return [Ending(f"What is {text} called?", shown.landmark.title, "name", shown)]


def shared_cues(left: Attributes, right: Attributes) -> int:
    """In how many of the visible cues (`CUES`) both pictures agree."""
    return sum(getattr(left, cue) == getattr(right, cue) for cue in CUES)
