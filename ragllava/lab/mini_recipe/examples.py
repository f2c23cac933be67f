"""The training data of the mini language model: packs of prompts about one to three postcards.

A pack is one beginning (pictures with captions) and several independent endings (question and answer). Every pack has
new entities, while pictures come from the pool: name and appearance share only the kind.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ragllava.postcards.names import (
    NOTHING,
    ROOFED_KINDS,
    Attributes,
    Entity,
    Landmark,
    Split,
    confusable_entity,
    namesake_entity,
    sample_entity,
)
from ragllava.postcards.questions import COUNT_WORDS, ask_about_one, ask_about_two, circumstances

# Weights of the question types in training: those that are hard or rare in an archive have higher ones.
_ONE_IMAGE_PRACTICE = {"color": 1.5, "count": 4.0, "roof": 2.5, "beside": 2.0, "isthere": 5.0, "sky": 1.0, "year": 2.0}
_TWO_IMAGE_SHARE = 0.35  # of the questions whose relevance is judged
_RELEVANCE_PATTERNS = ((True, False, False), (True, True, False), (True, False, False))
_CONFUSABLE_SHARE = 0.5  # of the second pictures
_THIRD_PICTURE_SHARE = 0.2  # of the packs with two pictures
_TRIES = 40
_CUES = ("color", "sky", "beside")


@dataclass(frozen=True, slots=True)
class Shown:
    """A landmark with the index of its picture in the pool."""

    picture: int
    landmark: Landmark


@dataclass(frozen=True, slots=True)
class Ending:
    """One question after the pictures. `task` is `relevance`, `describe`, `name` or a question type.

    `about` is the shown landmark that the question is about or that its answer names; None if there is none.
    """

    question: str
    answer: str
    task: str
    about: Shown | None = None

    @property
    def judges_relevance(self) -> bool:
        """Whether it uses the reranker's prompt, not the generator's."""
        return self.task == "relevance"


@dataclass(frozen=True, slots=True)
class Pack:
    """Pictures with their captions, in the order shown, and the questions about them."""

    shown: tuple[Shown, ...]
    endings: tuple[Ending, ...]


class PackSampler:
    """Draws landmarks and packs about the pictures of a pool."""

    def __init__(self, attributes: Sequence[Attributes], split: Split, *, random_verdicts: bool = False) -> None:
        """`split` says which names may occur. `random_verdicts` makes relevance random, so that a model unlearns it."""
        self.attributes = attributes
        self._split: Split = split
        self._random_verdicts = random_verdicts
        self._by_kind: dict[str, list[int]] = defaultdict(list)
        for picture, shown in enumerate(attributes):
            self._by_kind[shown.kind].append(picture)

    def landmark(self, rng: random.Random) -> Shown:
        """Any picture with a new name."""
        return self._named(rng.randrange(len(self.attributes)), sample_entity(rng, self._split))

    def confusable(self, of: Shown, rng: random.Random) -> Shown:
        """Another landmark that is easily confused with this one: by its picture, its caption or both."""
        entity = of.landmark.entity
        while True:
            form = rng.random()
            if form < 0.45:
                shown = self._named(self._lookalike(of, rng), confusable_entity(entity, rng, self._split))
            elif form < 0.6:
                shown = self._named(of.picture, confusable_entity(entity, rng, self._split))
            elif form < 0.85:
                shown = self._named(rng.randrange(len(self.attributes)), namesake_entity(entity, rng))
            else:
                shown = self.landmark(rng)
            if shown.landmark.identity != of.landmark.identity:
                return shown

    def one_picture_pack(self, rng: random.Random) -> Pack:
        """A picture, its description, three questions that it answers, its name, three relevance questions."""
        shown = self.landmark(rng)
        endings = [_describe(shown)]
        endings += [_question(shown, rng) for _ in range(3)] + _name(shown, rng)
        endings += [self._relevance(shown, relevant, rng) for relevant in rng.choice(_RELEVANCE_PATTERNS)]
        return Pack((shown,), tuple(endings))

    def several_pictures_pack(self, rng: random.Random) -> Pack:
        """Two pictures, sometimes a third: questions about each alone and about two together."""
        first = self.landmark(rng)
        second = self._partner(first, rng)
        endings = [_describe(rng.choice((first, second)))]
        endings += [_question(shown, rng) for shown in (first, second)]
        endings += _compare(first, second, rng) + _name(first, rng, second)
        pictures = [first, second]
        if rng.random() < _THIRD_PICTURE_SHARE:
            third = first
            while third.landmark.identity in (first.landmark.identity, second.landmark.identity):
                third = self.confusable(rng.choice((first, second)), rng)
            pictures.append(third)
        rng.shuffle(pictures)
        return Pack(tuple(pictures), tuple(endings))

    def _relevance(self, shown: Shown, relevant: bool, rng: random.Random) -> Ending:
        asked = shown if relevant else self.confusable(shown, rng)
        verdict = "Yes" if relevant else "No"
        if self._random_verdicts:
            verdict = rng.choice(("Yes", "No"))
        if rng.random() < _TWO_IMAGE_SHARE:
            return Ending(self._question_with(asked, shown, rng), verdict, "relevance")
        return Ending(ask_about_one(asked.landmark, rng).text, verdict, "relevance")

    def _question_with(self, asked: Shown, shown: Shown, rng: random.Random) -> str:
        """A two-image question about `asked` and a second landmark, which is not the one shown."""
        partner = self._partner(asked, rng)
        while partner.landmark.identity == shown.landmark.identity:
            partner = self._partner(asked, rng)
        pair = [asked.landmark, partner.landmark]
        rng.shuffle(pair)
        return ask_about_two(pair[0], pair[1], rng).text

    def _partner(self, of: Shown, rng: random.Random) -> Shown:
        """A second landmark; half of them have the same color, most of them count the same thing."""
        shown = self.confusable(of, rng) if rng.random() < _CONFUSABLE_SHARE else self.landmark(rng)
        looks = of.landmark.attributes
        same_color, comparable = rng.random() < 0.5, rng.random() < 0.7
        same_kind = self._by_kind[shown.landmark.attributes.kind]
        # A confusable one must keep its kind, or it would no longer be confusable.
        choices = same_kind if rng.random() < 0.5 else range(len(self.attributes))

        def fits(candidate: Attributes) -> bool:
            return (candidate.color == looks.color) == same_color and (
                not comparable or (candidate.counted == looks.counted and candidate.count != looks.count)
            )

        drawn = (rng.choice(choices) for _ in range(_TRIES))
        picture = next((picture for picture in drawn if fits(self.attributes[picture])), None)
        partner = shown if picture is None else self._named(picture, shown.landmark.entity)
        return shown if partner.landmark.identity == of.landmark.identity else partner

    def _lookalike(self, of: Shown, rng: random.Random) -> int:
        """The one of a few pictures of the same kind that shares the most cues."""
        looks = of.landmark.attributes
        drawn = [picture for picture in rng.choices(self._by_kind[looks.kind], k=6) if picture != of.picture]
        return max(drawn or [of.picture], key=lambda picture: _shared_cues(self.attributes[picture], looks))

    def _named(self, picture: int, entity: Entity) -> Shown:
        return Shown(picture, Landmark(self.attributes[picture], entity))


def scene(attributes: Attributes, rng: random.Random) -> str:
    """A part of what a picture shows, without a name: "a red lighthouse shown at night"."""
    cues = [cue for cue in _CUES if rng.random() < 0.75]
    color = f"{attributes.color} " if "color" in cues else ""
    return f"a {color}{attributes.kind}{circumstances(attributes, cues)}"


def _describe(shown: Shown) -> Ending:
    """All facts of one picture as one answer: one question trains six labels."""
    landmark, looks = shown.landmark, shown.landmark.attributes
    plural = looks.counted if looks.count > 1 else looks.counted.removesuffix("s")
    roof = f"{looks.roof} roof" if looks.roof != NOTHING else "no roof"
    beside = looks.beside if looks.beside != NOTHING else "nothing"
    facts = f"{looks.color} {looks.kind}, {COUNT_WORDS[looks.count]} {plural}, {roof}, {looks.sky}, {beside}"
    question = f"Describe the {landmark.title} in {landmark.entity.city}."
    return Ending(question, f"{facts}, {landmark.entity.year}", "describe", shown)


def _question(shown: Shown, rng: random.Random) -> Ending:
    weights = dict(_ONE_IMAGE_PRACTICE)
    if shown.landmark.attributes.kind not in ROOFED_KINDS:
        del weights["roof"]
    asked = ask_about_one(shown.landmark, rng, rng.choices(list(weights), list(weights.values()))[0])
    return Ending(asked.text, asked.answer, asked.type, shown)


def _compare(first: Shown, second: Shown, rng: random.Random) -> list[Ending]:
    """Do they have the same color? And which has more, where that question has an answer."""
    pair = [first, second]
    rng.shuffle(pair)
    same_color = ask_about_two(pair[0].landmark, pair[1].landmark, rng, "samecolor")
    endings = [Ending(same_color.text, same_color.answer, same_color.type)]
    if first.landmark.title != second.landmark.title:
        more = ask_about_two(pair[1].landmark, pair[0].landmark, rng, "more")
        winner = max(pair, key=lambda shown: shown.landmark.attributes.count)
        endings += [Ending(more.text, more.answer, more.type, winner)] if more.type == "more" else []
    return endings


def _name(shown: Shown, rng: random.Random, beside: Shown | None = None) -> list[Ending]:
    """What is it called? A model must learn to copy a title before it can choose one. None if `beside` looks equal."""
    looks = shown.landmark.attributes
    if beside is not None and _shared_cues(beside.landmark.attributes, looks) == len(_CUES):
        return []
    text = f"the {looks.color} {looks.kind}{circumstances(looks, _CUES)}" if beside else scene(looks, rng)
    return [Ending(f"What is {text} called?", shown.landmark.title, "name", shown)]


def _shared_cues(left: Attributes, right: Attributes) -> int:
    return sum(getattr(left, cue) == getattr(right, cue) for cue in _CUES)
