"""The generator: kept pictures and a question → a short answer and how sure it is (docs/method.md 4)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

from PIL import Image

from ragllava.errors import ScoreRejected
from ragllava.models.adapters import Adapter
from ragllava.models.device import in_batches
from ragllava.models.fitting import Prompt, PromptWriter
from ragllava.models.mllm import Generated, Mllm
from ragllava.models.prefix.shared_prefix import SharedPrompts
from ragllava.models.prefix.trials import OncePerBase, can_share_answers
from ragllava.prompts import answer_prompt

_SHARING: OncePerBase[bool] = OncePerBase()


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """A question and its evidence: pictures with their captions, in rank order, at least one."""

    question: str
    captions: tuple[str | None, ...]
    pictures: tuple[Image.Image, ...]


@dataclass(frozen=True, slots=True)
class GeneratedAnswer:
    """`confidence` in (0, 1] is exp of the mean log-probability of the answer's tokens; `note` is for people.

    `tokens` counts the answer's, without the one that ends it.
    """

    text: str
    confidence: float
    note: str | None = None
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Asked:
    """The prompt at `place`, as a row of what is shared."""

    place: int
    shared: SharedPrompts
    row: int

    @property
    def ending(self) -> list[int]:
        return self.shared.endings[self.row]


class Generator:
    """Answers questions from pictures, greedily."""

    def __init__(self, mllm: Mllm, adapter: Adapter | None = None, version: str | None = None) -> None:
        """Answer with the base, or with an adapter on it; `version` is its registered name, if it has one."""
        self.mllm = mllm
        self._adapter = adapter
        self.version = version or (f"{mllm.version}+{adapter.version}" if adapter else mllm.version)

    def answer(
        self, requests: Sequence[AnswerRequest], *, max_tokens: int, with_captions: bool, batch_size: int
    ) -> list[GeneratedAnswer]:
        """One answer for each request, in input order. An empty answer is an answer, with a note.

        Raises ScoreRejected when the network returns no number, or when the pictures do not fit its window.
        """
        write = partial(answer_prompt, with_captions=with_captions)
        prompts = [as_prompt(request, write, with_captions=with_captions) for request in requests]
        with self._adapter.active() if self._adapter else nullcontext():
            answers = self._answer_sharing(prompts, max_tokens, batch_size)
            groups: dict[int, list[int]] = defaultdict(list)
            for place, prompt in enumerate(prompts):
                if place not in answers:
                    groups[len(prompt.pictures)].append(place)
            # Families lay out one picture and several differently, so a batch has one count of pictures.
            for places in groups.values():
                alone = [prompts[place] for place in places]
                found = in_batches(alone, batch_size, partial(self._answer, max_tokens=max_tokens))
                answers.update(zip(places, found, strict=True))
        return [answers[place] for place in range(len(requests))]

    @property
    def shares_prefixes(self) -> bool:
        """Whether questions about the same pictures are answered behind one prefix; if not, the log says why.

        Tried once for each base: an adapter changes weights, not what a prefix is.
        """
        return _SHARING.of(self.mllm, lambda: can_share_answers(self.mllm, ask_trial), False)

    def _answer_sharing(
        self, prompts: Sequence[Prompt], max_tokens: int, batch_size: int
    ) -> dict[int, GeneratedAnswer]:
        """The answers, by place, to those prompts whose pictures and captions others show as well."""
        by_evidence: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for place, prompt in enumerate(prompts):
            by_evidence[*map(id, prompt.pictures), *prompt.captions].append(place)
        together = [places for places in by_evidence.values() if len(places) > 1]
        if not together or not self.shares_prefixes:
            return {}
        asked: list[_Asked] = []
        for places in together:
            shared = self.mllm.share([prompts[place] for place in places], max_tokens)
            if shared is not None:
                asked += [_Asked(place, shared, row) for row, place in enumerate(places)]
        if not asked:
            return {}
        longest = max(len(one.shared.prefix) + len(one.ending) for one in asked)
        rows = self.mllm.rows_that_fit(longest + max_tokens, batch_size)
        found = in_batches(asked, rows, partial(self._answer_behind, max_tokens=max_tokens))
        return {one.place: answer for one, answer in zip(asked, found, strict=True)}

    def _answer_behind(self, asked: Sequence[_Asked], max_tokens: int) -> list[GeneratedAnswer]:
        groups = []
        for _, found in groupby(asked, key=lambda one: id(one.shared)):
            members = list(found)
            groups.append(replace(members[0].shared, endings=[one.ending for one in members]))
        return self._answers_of(self.mllm.generate_shared(groups, max_tokens), [None] * len(asked))

    def _answer(self, prompts: Sequence[Prompt], max_tokens: int) -> list[GeneratedAnswer]:
        inputs = self.mllm.prepare(prompts, answer_tokens=max_tokens)
        return self._answers_of(self.mllm.generate(inputs, max_tokens), inputs.notes)

    def _answers_of(self, generated: Generated, notes: Sequence[str | None]) -> list[GeneratedAnswer]:
        if bool(generated.log_probabilities.isnan().any()):
            raise ScoreRejected(f"{self.version} returned no number while answering; its weights or dtype are at fault")
        rows = zip(generated.tokens.tolist(), generated.log_probabilities.tolist(), notes, strict=True)
        return [read_answer(self.mllm, tokens, sureness, note) for tokens, sureness, note in rows]


def read_answer(
    mllm: Mllm, tokens: Sequence[int], log_probabilities: Sequence[float], note: str | None
) -> GeneratedAnswer:
    """What generated tokens say, up to the first end token; `note` is what is known about the prompt."""
    ends = [step for step, token in enumerate(tokens) if token in mllm.end_token_ids]
    length = ends[0] if ends else len(tokens)
    decoded = mllm.tokenizer.decode(list(tokens[:length]), skip_special_tokens=True)
    text = decoded.replace("\x00", "").strip()  # byte tokens may spell it, and no database stores it as text
    # An answer that ends at once is as sure as its end token.
    counted = log_probabilities[: max(length, 1)]
    notes = [note]
    if not text:
        notes.append("the model gave an empty answer")
    elif not ends:
        notes.append(f"answer stopped at {length} tokens")
    confidence = math.exp(math.fsum(counted) / len(counted))
    return GeneratedAnswer(text, confidence, "; ".join(note for note in notes if note) or None, length)


def as_prompt(request: AnswerRequest, write: PromptWriter, *, with_captions: bool) -> Prompt:
    """What the model is asked about this request."""
    # Captions that are not written must not be cut either.
    captions = request.captions if with_captions else (None,) * len(request.pictures)
    return Prompt(request.question, captions, request.pictures, write)


def ask_trial(question: str, pictures: Sequence[Image.Image]) -> Prompt:
    """A prompt of the trial that tells whether answers can share a prefix."""
    request = AnswerRequest(question, ("a caption",) * len(pictures), tuple(pictures))
    return as_prompt(request, answer_prompt, with_captions=True)
