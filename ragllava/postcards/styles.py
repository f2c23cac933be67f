"""Questions in other words than those with cues: by name alone, misspelt, paraphrased, or by visible facts alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from ragllava.postcards.names import NOTHING, Attributes, Landmark, Split
from ragllava.postcards.paraphrases import paraphrase
from ragllava.postcards.questions import (
    COUNT_WORDS,
    QuestionAnswer,
    QuestionStyle,
    asked_fact,
    circumstances,
    usual_form,
    with_cues,
)
from ragllava.postcards.typing_errors import TypingErrors

# In the order in which a question gives them: a retriever understands the first ones best.
_VISIBLE_FACTS = ("color", "sky", "beside", "roof", "count")


@dataclass(frozen=True, slots=True)
class OtherWords:
    """Puts questions with cues into a style that names the landmarks. `errors` are those of the archive."""

    style: QuestionStyle
    split: Split
    errors: TypingErrors

    def put(self, question: QuestionAnswer, landmarks: Sequence[Landmark], rng: random.Random) -> QuestionAnswer:
        """The question about these landmarks in other words."""
        if self.style is QuestionStyle.PARAPHRASED:
            return replace(question, text=paraphrase(question.type, landmarks, question.thing, self.split, rng))
        if self.style is QuestionStyle.MISSPELT:
            landmarks = [self.errors.misspell(landmark, rng) for landmark in landmarks]
        subjects = [with_cues(landmark) for landmark in landmarks]
        return replace(question, text=usual_form(question.type, subjects, question.thing))


class VisibleFacts:
    """What can be seen on the postcards of one archive, to tell one of them from all others."""

    def __init__(self, shown: Sequence[Attributes]) -> None:
        """`shown` are the attributes of all postcards."""
        self._shown = shown
        self._postcards_by = cache(self._count)

    def telling(self, attributes: Attributes, question_type: str) -> tuple[str, ...] | None:
        """The first facts that, with the kind, fit this postcard alone; None where all of them fit others too.

        None of them is what the question asks for.
        """
        asked = asked_fact(question_type)
        facts = [fact for fact in _VISIBLE_FACTS if fact != asked and (fact != "roof" or attributes.roof != NOTHING)]
        for number in range(1, len(facts) + 1):
            chosen = tuple(facts[:number])
            if self._postcards_by(chosen)[_values(attributes, chosen)] == 1:
                return chosen
        return None

    def _count(self, facts: tuple[str, ...]) -> Counter[tuple[str | int, ...]]:
        """How many postcards show each combination of kind and these facts."""
        return Counter(_values(attributes, facts) for attributes in self._shown)


def described(attributes: Attributes, facts: Sequence[str]) -> str:
    """A picture without a name: "the red barn with three windows and a flat roof shown at night"."""
    color = f"{attributes.color} " if "color" in facts else ""
    thing = attributes.counted if attributes.count > 1 else attributes.counted.removesuffix("s")
    parts = [f"{COUNT_WORDS[attributes.count]} {thing}"] if "count" in facts else []
    parts += [f"a {attributes.roof} roof"] if "roof" in facts else []
    having = f" with {' and '.join(parts)}" if parts else ""
    return f"the {color}{attributes.kind}{having}{circumstances(attributes, facts)}"


def _values(attributes: Attributes, facts: Sequence[str]) -> tuple[str | int, ...]:
    return tuple(getattr(attributes, name) for name in ("kind", *facts))
