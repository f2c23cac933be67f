"""The training data of the mini language model: packs of prompts about one to three postcards.

A pack is one beginning (pictures with captions) and several independent endings (question and answer). Every pack has
new entities, while pictures come from the pool: name and appearance share only the kind. The questions have the styles
of ragllava/postcards/questions.py, in words of their own where these are paraphrases.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ragllava.lab.mini_recipe.wordings import (
    OFF_TOPIC,
    StyledQuestion,
    ask_in_style,
    change_facts,
    choose_facts,
    describe_subjects,
    draw_style,
    fits,
)
from ragllava.postcards.names import (
    COMPANIONS,
    NOTHING,
    ROOFED_KINDS,
    Attributes,
    Entity,
    Landmark,
    Split,
    confusable_entity,
    namesake_entity,
    sample_entity,
    similar_entity,
)
from ragllava.postcards.questions import (
    COUNT_WORDS,
    ONE_IMAGE_TYPES,
    TWO_IMAGE_TYPES,
    QuestionStyle,
    circumstances,
)

# Weights of the question types in training: those that are hard or rare in an archive have higher ones.
_ONE_IMAGE_PRACTICE = {"color": 1.5, "count": 4.0, "roof": 2.5, "beside": 2.0, "isthere": 5.0, "sky": 1.0, "year": 2.0}
_TWO_IMAGE_SHARE = 0.35  # of the questions whose relevance is judged
_RELEVANCE_PATTERNS = ((True, False, False), (True, True, False), (True, False, False))
_PATTERNS_OF_A_PACK = 2
_SIMILAR_SHARE = 0.35  # of the landmarks that a misspelt question wrongly seems to name
_CHANGED_FACTS_SHARE = 0.6  # of the descriptions that do not fit: the picture's own, but for a fact or two
_BARE_SHARE = 0.1  # of the packs of one picture: without its caption, if questions can do without names
_OFF_TOPIC_SHARE = 0.06  # of the irrelevant questions, where there are several styles
_CONFUSABLE_SHARE = 0.5  # of the second pictures
_THIRD_PICTURE_SHARE = 0.2  # of the packs with two pictures
_TRIES = 40
_CUES = ("color", "sky", "beside")
_COMPARISONS = 16  # of a pack
_COMPARED_STYLES = {QuestionStyle.MISSPELT: 0.5, QuestionStyle.CUES_ONLY: 0.45, QuestionStyle.NAME: 0.05}
_ONE_STYLE: Mapping[QuestionStyle, float] = {QuestionStyle.CUES: 1.0}


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


@dataclass(frozen=True, slots=True)
class Pack:
    """Pictures with their captions, in the order shown, and the questions about them.

    A bare pack has one picture, without its caption.
    """

    shown: tuple[Shown, ...]
    endings: tuple[Ending, ...]
    bare: bool = False


class PackSampler:
    """Draws landmarks and packs about the pictures of a pool."""

    def __init__(
        self,
        attributes: Sequence[Attributes],
        split: Split,
        *,
        styles: Mapping[QuestionStyle, float] = _ONE_STYLE,
        answer_styles: Mapping[QuestionStyle, float] = _ONE_STYLE,
        random_verdicts: bool = False,
    ) -> None:
        """`split` says which names may occur.

        `styles` are the shares of the styles where relevance is judged, `answer_styles` where questions are answered.
        `random_verdicts` makes relevance random, so that a model unlearns it.
        """
        self.attributes = attributes
        self._split: Split = split
        self._styles = styles
        self._answer_styles = answer_styles
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
        """A picture, its description, three questions that it answers, its name, six relevance questions.

        If there are questions without names, some packs have only such, and no caption.
        """
        shown = self.landmark(rng)
        verdicts = [verdict for _ in range(_PATTERNS_OF_A_PACK) for verdict in rng.choice(_RELEVANCE_PATTERNS)]
        bare = QuestionStyle.CUES_ONLY in self._styles and rng.random() < _BARE_SHARE
        if bare:
            only = {QuestionStyle.CUES_ONLY: 1.0}
            endings = [_question(shown, only, rng, in_caption=False) for _ in range(3)]
            endings += [self._relevance(shown, relevant, only, rng) for relevant in verdicts]
        else:
            endings = [_describe(shown)]
            endings += [_question(shown, self._answer_styles, rng) for _ in range(3)] + _name(shown, rng)
            endings += [self._relevance(shown, relevant, self._styles, rng) for relevant in verdicts]
        return Pack((shown,), tuple(endings), bare)

    def several_pictures_pack(self, rng: random.Random) -> Pack:
        """Two pictures, sometimes a third: questions about each alone and about two together."""
        first = self.landmark(rng)
        second = self._partner(first, rng)
        pictures = [first, second]
        if rng.random() < _THIRD_PICTURE_SHARE:
            third = first
            while third.landmark.identity in (first.landmark.identity, second.landmark.identity):
                third = self.confusable(rng.choice((first, second)), rng)
            pictures.append(third)
        endings = [_describe(rng.choice((first, second)))]
        endings += [_question(shown, self._answer_styles, rng, pictures) for shown in (first, second)]
        endings += _compare(first, second, self._answer_styles, rng, pictures) + _name(first, rng, second)
        rng.shuffle(pictures)
        return Pack(tuple(pictures), tuple(endings))

    def comparison_pack(self, rng: random.Random) -> Pack:
        """A picture and the beginnings of questions, up to the name or description, which is compared with it."""
        shown = self.landmark(rng)
        endings = [
            self._relevance(shown, number % 2 == 0, _COMPARED_STYLES, rng, two_image_share=0)
            for number in range(_COMPARISONS)
        ]
        return Pack((shown,), tuple(replace(ending, task="compare") for ending in endings))

    def _relevance(
        self,
        shown: Shown,
        relevant: bool,
        styles: Mapping[QuestionStyle, float],
        rng: random.Random,
        two_image_share: float = _TWO_IMAGE_SHARE,
    ) -> Ending:
        style = draw_style(styles, rng)
        is_about_two = rng.random() < two_image_share
        verdict = "Yes" if relevant else "No"
        if self._random_verdicts:
            verdict = rng.choice(("Yes", "No"))
        if not relevant and len(styles) > 1 and two_image_share and rng.random() < _OFF_TOPIC_SHARE:
            entity = rng.choice((shown.landmark.entity, sample_entity(rng, self._split)))
            return Ending(rng.choice(OFF_TOPIC).format(name=entity.name, city=entity.city), verdict, "relevance")
        if style is QuestionStyle.CUES_ONLY:
            text, subjects = self._ask_by_looks(shown, relevant, is_about_two, rng)
            return Ending(text, verdict, "relevance", None, style, subjects)
        asked = shown if relevant else self._not_shown(shown, style, rng)
        landmarks = [asked.landmark]
        if is_about_two:
            landmarks.append(self._another(asked, shown, rng).landmark)
            rng.shuffle(landmarks)
        styled = ask_in_style(landmarks, None, style, rng, [shown.landmark])
        subjects = tuple(
            _named_subject(end, landmark, shown) for end, landmark in zip(styled.subject_ends, landmarks, strict=True)
        )
        return Ending(styled.question.text, verdict, "relevance", None, styled.style, subjects)

    def _not_shown(self, shown: Shown, style: QuestionStyle, rng: random.Random) -> Shown:
        """Another landmark that is easily confused with this one; where names are misspelt, often by its name."""
        if style is QuestionStyle.MISSPELT and rng.random() < _SIMILAR_SHARE:
            entity = similar_entity(shown.landmark.entity, rng, self._split)
            similar = self._named(self._lookalike(shown, rng), entity)
            if similar.landmark.identity != shown.landmark.identity:
                return similar
        return self.confusable(shown, rng)

    def _ask_by_looks(
        self, shown: Shown, relevant: bool, is_about_two: bool, rng: random.Random
    ) -> tuple[str, tuple[Subject, ...]]:
        """A question without names, and its subjects; if it is relevant, the first or second one is shown."""
        looks = shown.landmark.attributes
        types = TWO_IMAGE_TYPES if is_about_two else ONE_IMAGE_TYPES
        question_type = rng.choice([name for name in types if name != "roof" or looks.roof != NOTHING])
        asked = [
            (looks, choose_facts(looks, question_type, rng)) if relevant else self._unfitting(shown, question_type, rng)
        ]
        if is_about_two:
            asked.append(self._unfitting(shown, question_type, rng))
            rng.shuffle(asked)
        thing = rng.choice(COMPANIONS) if question_type == "isthere" else looks.counted
        text, ends = describe_subjects(question_type, thing, asked)
        subjects = []
        start = 0
        for end, (described, facts) in zip(ends, asked, strict=True):
            kind_end = text.index(f" {described.kind}", start) + len(described.kind) + 1
            about = shown if fits(looks, described, facts) else None
            subjects.append(Subject(end, about, kind_end=kind_end, same_kind=described.kind == looks.kind))
            start = end
        return text, tuple(subjects)

    def _unfitting(self, shown: Shown, question_type: str, rng: random.Random) -> tuple[Attributes, tuple[str, ...]]:
        """What another picture shows, and facts to describe it by, of which at least one does not fit this picture."""
        looks = shown.landmark.attributes
        form = rng.random()
        if form < _CHANGED_FACTS_SHARE:
            other = looks
        elif form < (1 + _CHANGED_FACTS_SHARE) / 2:
            other = self.attributes[self._lookalike(shown, rng)]
        else:
            other = rng.choice(self.attributes)
        facts = choose_facts(other, question_type, rng)
        return (change_facts(other, facts, rng) if fits(looks, other, facts) else other), facts

    def _another(self, asked: Shown, shown: Shown, rng: random.Random) -> Shown:
        """A second landmark to ask about with `asked`, which is not the one shown."""
        partner = self._partner(asked, rng)
        while partner.landmark.identity == shown.landmark.identity:
            partner = self._partner(asked, rng)
        return partner

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


def _question(
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


def _compare(
    first: Shown,
    second: Shown,
    styles: Mapping[QuestionStyle, float],
    rng: random.Random,
    pictures: Sequence[Shown],
) -> list[Ending]:
    """Do they have the same color? And which has more, in both orders, where that question has an answer."""
    pair = [first, second]
    rng.shuffle(pair)
    rivals = [shown.landmark for shown in pictures]

    def ask(asked: Sequence[Shown], question_type: str) -> StyledQuestion:
        landmarks = [shown.landmark for shown in asked]
        return ask_in_style(landmarks, question_type, draw_style(styles, rng), rng, rivals)

    endings = [_ending(ask(pair, "samecolor"), pair, None)]
    if first.landmark.title != second.landmark.title:
        winner = max(pair, key=lambda shown: shown.landmark.attributes.count)
        for order in (pair[::-1], pair):
            more = ask(order, "more")
            endings += [_ending(more, order, winner)] if more.question.type == "more" else []
    return endings


def _named_subject(end: int, landmark: Landmark, shown: Shown) -> Subject:
    """A landmark that a relevance question names, compared with the only picture."""
    is_shown = landmark.identity == shown.landmark.identity
    entity, caption = landmark.entity, shown.landmark.entity
    return Subject(end, shown if is_shown else None, entity.name == caption.name, entity.city == caption.city)


def _name(shown: Shown, rng: random.Random, beside: Shown | None = None) -> list[Ending]:
    """What is it called? A model must learn to copy a title before it can choose one. None if `beside` looks equal."""
    looks = shown.landmark.attributes
    if beside is not None and _shared_cues(beside.landmark.attributes, looks) == len(_CUES):
        return []
    text = f"the {looks.color} {looks.kind}{circumstances(looks, _CUES)}" if beside else scene(looks, rng)
    return [Ending(f"What is {text} called?", shown.landmark.title, "name", shown)]


def _shared_cues(left: Attributes, right: Attributes) -> int:
    return sum(getattr(left, cue) == getattr(right, cue) for cue in _CUES)
