"""What the mini language model practises: packs of prompts about one to three postcards.

A pack is one beginning (pictures with captions) and several independent endings (question and answer). Entities are
drawn anew for every pack, pictures come from the pool: name and looks share nothing but the kind.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
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
from ragllava.postcards.questions import ask_about_one, ask_about_two

# How often each type is practised: what is hard or rare in an archive more often than it is asked there.
_ONE_IMAGE_PRACTICE = {"color": 1.5, "count": 4.0, "roof": 2.5, "beside": 2.0, "isthere": 5.0, "sky": 1.0, "year": 2.0}
_TWO_IMAGE_SHARE = 0.35  # of the questions whose relevance is judged
_RELEVANCE_PATTERNS = ((True, False, False), (True, True, False), (True, False, False))
_CONFUSABLE_SHARE = 0.5  # of the second pictures
_THIRD_PICTURE_SHARE = 0.2  # of the packs with two pictures
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
_TRIES = 40
_CUES = ("color", "sky", "beside")
_SKY_PHRASES = {"day": "by day", "night": "at night", "sunset": "at sunset"}


@dataclass(frozen=True, slots=True)
class Shown:
    """A landmark with its picture's place in the pool."""

    picture: int
    landmark: Landmark


@dataclass(frozen=True, slots=True)
class Ending:
    """One question behind the pictures. `task` is `relevance`, `describe` or a question type.

    `about` is the shown landmark that it is about or that its answer names; None if there is no such one.
    """

    question: str
    answer: str
    task: str
    about: Shown | None = None

    @property
    def judges_relevance(self) -> bool:
        """Whether it is put as the reranker's question, not the generator's."""
        return self.task == "relevance"


@dataclass(frozen=True, slots=True)
class Pack:
    """Pictures with their captions, in the order shown, and what is asked about them."""

    shown: tuple[Shown, ...]
    endings: tuple[Ending, ...]


class World:
    """Draws landmarks and packs about a pool's pictures."""

    def __init__(self, attributes: Sequence[Attributes], split: Split, *, random_verdicts: bool = False) -> None:
        """`split` says which names may occur. `random_verdicts` makes relevance a toss, so that a model forgets it."""
        self.attributes = attributes
        self._split: Split = split
        self._random_verdicts = random_verdicts
        self._by_kind: dict[str, list[int]] = defaultdict(list)
        for picture, shown in enumerate(attributes):
            self._by_kind[shown.kind].append(picture)

    def landmark(self, rng: random.Random) -> Shown:
        """Any picture under a new name."""
        return self._named(rng.randrange(len(self.attributes)), sample_entity(rng, self._split))

    def confusable(self, of: Shown, rng: random.Random) -> Shown:
        """Another landmark that is easily taken for this one: by its picture, its caption or both."""
        entity = of.landmark.entity
        while True:
            form = rng.random()
            if form < 0.45:
                other = self._named(self._lookalike(of, rng), confusable_entity(entity, rng, self._split))
            elif form < 0.6:
                other = self._named(of.picture, confusable_entity(entity, rng, self._split))
            elif form < 0.85:
                other = self._named(rng.randrange(len(self.attributes)), namesake_entity(entity, rng))
            else:
                other = self.landmark(rng)
            if other.landmark.identity != of.landmark.identity:
                return other

    def one_picture_pack(self, rng: random.Random) -> Pack:
        """A picture, its description, its name, three questions that it answers, three to be judged."""
        shown = self.landmark(rng)
        endings = [_describe(shown)]
        endings += [_practise(shown, rng) for _ in range(3)] + _name(shown, rng)
        endings += [self._judged(shown, relevant, rng) for relevant in rng.choice(_RELEVANCE_PATTERNS)]
        return Pack((shown,), tuple(endings))

    def several_pictures_pack(self, rng: random.Random) -> Pack:
        """Two pictures, now and then a third: questions about each alone and about two together."""
        first = self.landmark(rng)
        second = self._partner(first, rng)
        endings = [_describe(rng.choice((first, second)))]
        endings += [_practise(shown, rng) for shown in (first, second)]
        endings += _compare(first, second, rng) + _name(first, rng, second)
        pictures = [first, second]
        if rng.random() < _THIRD_PICTURE_SHARE:
            pictures.append(self._third(first, second, rng))
        rng.shuffle(pictures)
        return Pack(tuple(pictures), tuple(endings))

    def _third(self, first: Shown, second: Shown, rng: random.Random) -> Shown:
        while True:
            third = self.confusable(rng.choice((first, second)), rng)
            if third.landmark.identity not in (first.landmark.identity, second.landmark.identity):
                return third

    def _judged(self, shown: Shown, relevant: bool, rng: random.Random) -> Ending:
        asked = shown if relevant else self.confusable(shown, rng)
        verdict = "Yes" if relevant else "No"
        if self._random_verdicts:
            verdict = rng.choice(("Yes", "No"))
        if rng.random() < _TWO_IMAGE_SHARE:
            return Ending(self._question_with(asked, shown, rng), verdict, "relevance")
        return Ending(ask_about_one(asked.landmark, rng).text, verdict, "relevance")

    def _question_with(self, asked: Shown, shown: Shown, rng: random.Random) -> str:
        """A two-image question about `asked` and some other landmark, which is not the one shown."""
        while True:
            other = self._partner(asked, rng)
            if other.landmark.identity != shown.landmark.identity:
                break
        pair = [asked.landmark, other.landmark]
        rng.shuffle(pair)
        return ask_about_two(pair[0], pair[1], rng).text

    def _partner(self, of: Shown, rng: random.Random) -> Shown:
        """A second landmark; half of the time of the same colour, mostly one that counts the same thing."""
        other = self.confusable(of, rng) if rng.random() < _CONFUSABLE_SHARE else self.landmark(rng)
        looks = of.landmark.attributes
        same_color, comparable = rng.random() < 0.5, rng.random() < 0.7
        kinds_as_before = self._by_kind[other.landmark.attributes.kind]
        # A confusable one must keep its kind, or it would not be confusable any more.
        choices = kinds_as_before if rng.random() < 0.5 else range(len(self.attributes))

        def fits(candidate: Attributes) -> bool:
            return (candidate.color == looks.color) == same_color and (
                not comparable or (candidate.counted == looks.counted and candidate.count != looks.count)
            )

        picture = self._find(choices, fits, rng)
        partner = other if picture is None else self._named(picture, other.landmark.entity)
        return other if partner.landmark.identity == of.landmark.identity else partner

    def _find(self, choices: Sequence[int], fits: Callable[[Attributes], bool], rng: random.Random) -> int | None:
        for _ in range(_TRIES):
            picture = rng.choice(choices)
            if fits(self.attributes[picture]):
                return picture
        return None

    def _lookalike(self, of: Shown, rng: random.Random) -> int:
        """Of a few pictures of the same kind, the one that shares most cues."""
        looks = of.landmark.attributes
        some = [picture for picture in rng.choices(self._by_kind[looks.kind], k=6) if picture != of.picture]
        return max(some or [of.picture], key=lambda picture: _shared_cues(self.attributes[picture], looks))

    def _named(self, picture: int, entity: Entity) -> Shown:
        return Shown(picture, Landmark(self.attributes[picture], entity))


def scene(attributes: Attributes, rng: random.Random) -> str:
    """Some of what a picture shows, without a name: "a red lighthouse shown at night"."""
    cues = [cue for cue in _CUES if rng.random() < 0.75]
    color = f"{attributes.color} " if "color" in cues else ""
    return f"a {color}{attributes.kind}{_circumstances(attributes, cues)}"


def _circumstances(attributes: Attributes, cues: Collection[str]) -> str:
    phrase = f" shown {_SKY_PHRASES[attributes.sky]}" if "sky" in cues else ""
    if "beside" in cues:
        nearby = "nothing" if attributes.beside == NOTHING else f"a {attributes.beside}"
        phrase += (" and" if phrase else "") + f" with {nearby} nearby"
    return phrase


def _describe(shown: Shown) -> Ending:
    """All facts of one picture as one answer: six labels for the price of one question."""
    landmark, looks = shown.landmark, shown.landmark.attributes
    plural = looks.counted if looks.count > 1 else looks.counted.removesuffix("s")
    roof = f"{looks.roof} roof" if looks.roof != NOTHING else "no roof"
    beside = looks.beside if looks.beside != NOTHING else "nothing"
    facts = f"{looks.color} {looks.kind}, {_NUMBERS[looks.count]} {plural}, {roof}, {looks.sky}, {beside}"
    question = f"Describe the {landmark.title} in {landmark.entity.city}."
    return Ending(question, f"{facts}, {landmark.entity.year}", "describe", shown)


def _practise(shown: Shown, rng: random.Random) -> Ending:
    weights = dict(_ONE_IMAGE_PRACTICE)
    if shown.landmark.attributes.kind not in ROOFED_KINDS:
        del weights["roof"]
    asked = ask_about_one(shown.landmark, rng, rng.choices(list(weights), list(weights.values()))[0])
    return Ending(asked.text, asked.answer, asked.type, shown)


def _compare(first: Shown, second: Shown, rng: random.Random) -> list[Ending]:
    """The same colour? And which has more, where that question has an answer."""
    pair = [first, second]
    rng.shuffle(pair)
    alike = ask_about_two(pair[0].landmark, pair[1].landmark, rng, "samecolor")
    endings = [Ending(alike.text, alike.answer, alike.type)]
    if first.landmark.title != second.landmark.title:
        more = ask_about_two(pair[1].landmark, pair[0].landmark, rng, "more")
        winner = max(pair, key=lambda shown: shown.landmark.attributes.count)
        endings += [Ending(more.text, more.answer, more.type, winner)] if more.type == "more" else []
    return endings


def _name(shown: Shown, rng: random.Random, beside: Shown | None = None) -> list[Ending]:
    """What is it called? To copy a title must be learned before one can be chosen; none if `beside` looks the same."""
    looks = shown.landmark.attributes
    if beside is not None and _shared_cues(beside.landmark.attributes, looks) == len(_CUES):
        return []
    text = f"the {looks.color} {looks.kind}{_circumstances(looks, _CUES)}" if beside else scene(looks, rng)
    return [Ending(f"What is {text} called?", shown.landmark.title, "name", shown)]


def _shared_cues(one: Attributes, other: Attributes) -> int:
    return sum(getattr(one, cue) == getattr(other, cue) for cue in _CUES)
