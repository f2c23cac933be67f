"""Which examples a model can learn from, found out before the first step: one that it cannot would end all of it.

An answer is counted in tokens, and pictures are opened once each, to learn what one of its size costs. Only where the
sum comes near the window is a prompt prepared as for training.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ragllava.errors import ScoreRejected, UsageError
from ragllava.models.fitting import Prompt
from ragllava.models.mllm import Mllm
from ragllava.training.data.examples import AnswerExample, Example
from ragllava.training.finetune.batches import AnswerTokens, BatchMaker, PictureOpener, answer_of, images_of
from ragllava.training.finetune.report import LeftOut

log = logging.getLogger(__name__)

NO_ROOM = "the model's window does not hold the pictures beside the answer, or its processor refuses one"
NO_TOKENS = "the answer has no tokens of its own behind the prompt"

_LOOK_S = 5.0


@dataclass(frozen=True, slots=True)
class LearnableExamples:
    """The examples that are left, in their order, and which were left out."""

    examples: tuple[Example, ...]
    left_out: tuple[LeftOut, ...] = ()

    def where(self, why_not: Callable[[Example], str | None]) -> LearnableExamples:
        """The examples for which `why_not` gives no reason. Raises UsageError when none is left."""
        kept: list[Example] = []
        refused: dict[str, list[Example]] = {}
        for example in self.examples:
            reason = why_not(example)
            (kept if reason is None else refused.setdefault(reason, [])).append(example)
        newly = (LeftOut(reason, len(examples), examples[0].question) for reason, examples in refused.items())
        left_out = (*self.left_out, *newly)
        if not kept:
            reasons = "; ".join(item.sentence() for item in left_out)
            raise UsageError(f"nothing to train on is left: {reasons}; correct these labels")
        return LearnableExamples(tuple(kept), left_out)


def with_answers_to_learn(examples: Sequence[Example], tokens: AnswerTokens, most: int | None) -> LearnableExamples:
    """The examples whose answer can be learned; those for the generator, with at most so many tokens.

    A longer one is not cut: the model would learn answers without an end. Raises UsageError when none is left.
    """
    lengths: dict[str, int] = {}

    def why_not(example: Example) -> str | None:
        answer = answer_of(example)
        if answer not in lengths:
            lengths[answer] = _length(answer, tokens)
        if not lengths[answer]:
            return NO_TOKENS
        if isinstance(example, AnswerExample) and most is not None and lengths[answer] > most:
            return f"the answer has more than the {most} tokens that are written at most (RAGLLAVA_MAX_ANSWER_TOKENS)"
        return None

    return LearnableExamples(tuple(examples)).where(why_not)


def with_room(
    selection: LearnableExamples,
    mllm: Mllm,
    make_batch: BatchMaker,
    open_picture: PictureOpener,
    on_look: Callable[[], None] | None = None,
) -> LearnableExamples:
    """Those whose pictures fit the model's window beside the longest of all answers, as in a batch with that one.

    `on_look` is called every few seconds, and what it raises ends the search. Raises UsageError when none fits.
    """
    longest = max(len(make_batch.answer_tokens(answer)) for answer in set(map(answer_of, selection.examples)))
    room = _WindowFit(mllm, make_batch, open_picture, longest)
    seen, looked_at = 0, time.monotonic()

    def why_not(example: Example) -> str | None:
        nonlocal seen, looked_at
        if time.monotonic() - looked_at >= _LOOK_S:
            log.info(
                "%d of %d examples looked at", seen, len(selection.examples), extra={"action": "examples_looked_at"}
            )
            if on_look is not None:
                on_look()
            looked_at = time.monotonic()
        seen += 1
        return None if room.holds(example) else NO_ROOM

    fitting = selection.where(why_not)
    for item in fitting.left_out:
        log.warning(item.sentence(), extra={"action": "examples_left_out", "count": item.count})
    return fitting


class _WindowFit:
    """Tells whether examples fit beside an answer of so many tokens."""

    def __init__(self, mllm: Mllm, make_batch: BatchMaker, open_picture: PictureOpener, answer_tokens: int) -> None:
        self._mllm = mllm
        self._make_batch = make_batch
        self._open_picture = open_picture
        self._answer_tokens = answer_tokens
        self._by_image: dict[str, float] = {}
        self._by_size: dict[tuple[int, int], float] = {}

    def holds(self, example: Example) -> bool:
        # No text has more tokens than bytes, and no family gives a picture more tokens among others than alone.
        text = self._mllm.render(self._make_batch.prompt(example, ()).parts())
        at_most = len(text.encode()) + sum(self._alone(example, image) for image in images_of(example))
        if at_most + self._answer_tokens <= self._mllm.context_tokens:
            return True
        pictures = tuple(map(self._open_picture, images_of(example)))
        return self._fits(self._make_batch.prompt(example, pictures)) is not None

    def _alone(self, example: Example, image: str) -> float:
        """Tokens of a prompt with this picture alone; infinitely many where there is no room for it."""
        if image not in self._by_image:
            picture = self._open_picture(image)
            if picture.size not in self._by_size:
                prompt = replace(self._make_batch.prompt(example, (picture,)), question="", captions=(None,))
                self._by_size[picture.size] = self._fits(prompt) or math.inf
            self._by_image[image] = self._by_size[picture.size]
        return self._by_image[image]

    def _fits(self, prompt: Prompt) -> int | None:
        """The tokens of the prompt, cut where that helps; None where it does not."""
        try:
            inputs = self._mllm.prepare([prompt], self._answer_tokens)
        except ScoreRejected as error:
            log.debug("%s", error)
            return None
        return int(inputs.tensors["input_ids"].shape[1])


def _length(answer: str, tokens: AnswerTokens) -> int:
    """Without the token that ends it; 0 where it cannot be learned."""
    try:
        return len(tokens(answer)) - 1
    except UsageError:
        return 0
