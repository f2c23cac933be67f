"""The training data of the mini language model: packs of prompts about one to three postcards.

A pack is one beginning (pictures with captions) and several independent endings (question and answer, endings.py).
Every pack has new entities, while pictures come from the pool: name and appearance share only the kind.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from ragllava.lab.mini_recipe.endings import (
    Ending,
    Shown,
    Subject,
    description_ending,
    name_endings,
    named_subject,
    one_picture_ending,
    same_color_ending,
    shared_cues,
    two_picture_endings,
)
from ragllava.lab.mini_recipe.wordings import (
    OFF_TOPIC,
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
    ONE_IMAGE_TYPES,
    TWO_IMAGE_TYPES,
    QuestionStyle,
)

_TWO_IMAGE_SHARE = 0.35  # of the questions whose relevance is judged
_RELEVANCE_PATTERNS = ((True, False, False), (True, True, False), (True, False, False))
_PATTERNS_OF_A_PACK = 2
_SIMILAR_SHARE = 0.35  # of the landmarks that a misspelt question wrongly seems to name
_CHANGED_FACTS_SHARE = 0.6  # of the descriptions that do not fit: the picture's own, but for a fact or two
_BARE_SHARE = 0.1  # of the packs of one picture: without its caption, if questions can do without names
_OFF_TOPIC_SHARE = 0.06  # of the irrelevant questions, where there are several styles
_CONFUSABLE_SHARE = 0.5  # of the second pictures
_THIRD_PICTURE_SHARE = 0.2  # of the packs with two pictures
_MORE_SAME_COLOR = 3  # endings of a pack of three pictures
_TRIES = 40
_COMPARISONS = 16  # of a pack
_COMPARED_STYLES = {QuestionStyle.MISSPELT: 0.5, QuestionStyle.CUES_ONLY: 0.45, QuestionStyle.NAME: 0.05}
_ONE_STYLE: Mapping[QuestionStyle, float] = {QuestionStyle.CUES: 1.0}


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
            endings = [one_picture_ending(shown, only, rng, in_caption=False) for _ in range(3)]
            endings += [self._relevance(shown, relevant, only, rng) for relevant in verdicts]
        else:
            endings = [description_ending(shown)]
            endings += [one_picture_ending(shown, self._answer_styles, rng) for _ in range(3)] + name_endings(
                shown, rng
            )
            endings += [self._relevance(shown, relevant, self._styles, rng) for relevant in verdicts]
        return Pack((shown,), tuple(endings), bare)

    def several_pictures_pack(self, rng: random.Random) -> Pack:
        """Two pictures, sometimes a third: questions about each alone and about two together."""
        first = self.landmark(rng)
        second = self._partner(first, rng)
        pictures = [first, second]
        if rng.random() < _THIRD_PICTURE_SHARE:
            pictures.append(self._third(first, second, rng))
        endings = [description_ending(rng.choice((first, second)))]
        endings += [one_picture_ending(shown, self._answer_styles, rng, pictures) for shown in (first, second)]
        endings += two_picture_endings(first, second, self._answer_styles, rng, pictures) + name_endings(
            first, rng, second
        )
        rng.shuffle(pictures)
        return Pack(tuple(pictures), tuple(endings))

    def three_pictures_pack(self, rng: random.Random) -> Pack:
        """Three pictures: questions about each alone and about every two, so that each is once the wrong one.

        "The same color?" is asked again about two that often are: else it would nearly always be enough to compare all
        three.
        """
        first = self.landmark(rng)
        second = self._partner(first, rng)
        pictures = [first, second, self._third(first, second, rng)]
        rng.shuffle(pictures)
        endings = [description_ending(rng.choice(pictures))]
        endings += [one_picture_ending(shown, self._answer_styles, rng, pictures) for shown in pictures]
        for left, right in combinations(pictures, 2):
            endings += two_picture_endings(left, right, self._answer_styles, rng, pictures)
        endings += [
            same_color_ending(first, second, self._answer_styles, rng, pictures) for _ in range(_MORE_SAME_COLOR)
        ]
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
            named_subject(end, landmark, shown) for end, landmark in zip(styled.subject_ends, landmarks, strict=True)
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

    def _third(self, first: Shown, second: Shown, rng: random.Random) -> Shown:
        """A picture beside these two that is easily confused with one of them."""
        third = first
        while third.landmark.identity in (first.landmark.identity, second.landmark.identity):
            third = self.confusable(rng.choice((first, second)), rng)
        return third

    def _lookalike(self, of: Shown, rng: random.Random) -> int:
        """The one of a few pictures of the same kind that shares the most cues."""
        looks = of.landmark.attributes
        drawn = [picture for picture in rng.choices(self._by_kind[looks.kind], k=6) if picture != of.picture]
        return max(drawn or [of.picture], key=lambda picture: shared_cues(self.attributes[picture], looks))

    def _named(self, picture: int, entity: Entity) -> Shown:
        return Shown(picture, Landmark(self.attributes[picture], entity))
