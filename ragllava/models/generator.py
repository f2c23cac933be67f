"""The generator: evidence and a question → a short answer and its confidence (docs/method.md 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import NamedTuple
from weakref import WeakKeyDictionary

from PIL import Image

from ragllava.errors import ScoreRejected
from ragllava.models.adapters import RoleModel
from ragllava.models.device import in_batches
from ragllava.models.fitting import Prompt, PromptWriter, indices_by
from ragllava.models.mllm import Generated, Mllm
from ragllava.models.prefix.shared_prefix import SharedPrompts
from ragllava.models.prefix.trials import can_share_answers, once_per_base
from ragllava.prompts import answer_prompt

_SHARES_PREFIXES: WeakKeyDictionary[Mllm, bool] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """A question and its evidence: pictures with their captions, in rank order, at least one."""

    question: str
    captions: tuple[str | None, ...]
    pictures: tuple[Image.Image, ...]


@dataclass(frozen=True, slots=True)
class GeneratedAnswer:
    """`confidence` in (0, 1] is exp of the mean log-probability of the answer's tokens; `note` is for users.

    `tokens` counts the tokens of the answer, without the end token, and `prompt_tokens` those of its prompt, pictures
    included.
    """

    text: str
    confidence: float
    note: str | None = None
    tokens: int = 0
    prompt_tokens: int = 0


class _SharedRow(NamedTuple):
    """The prompt with this number, as one of the endings of `shared`."""

    number: int
    shared: SharedPrompts
    ending: list[int]


class Generator(RoleModel):
    """Answers questions from pictures, greedily."""

    def answer(
        self,
        requests: Sequence[AnswerRequest],
        *,
        max_tokens: int,
        with_captions: bool,
        batch_size: int,
        with_instruction: bool = True,
    ) -> list[GeneratedAnswer]:
        """One answer for each request, in input order. An empty answer is an answer, with a note.

        Raises ScoreRejected when the network returns NaN, or when the pictures do not fit its window.
        """
        write = partial(answer_prompt, with_captions=with_captions, with_instruction=with_instruction)
        prompts = [as_prompt(request, write, with_captions=with_captions) for request in requests]
        with self.applied():
            answers = self._answer_sharing(prompts, max_tokens, batch_size)
            # Families lay out one picture and several differently, so the rows of a batch have the same count.
            for group in indices_by(len(prompt.pictures) for prompt in prompts):
                alone = [index for index in group if index not in answers]
                run = partial(self._answer, max_tokens=max_tokens)
                answers.update(
                    zip(alone, in_batches([prompts[index] for index in alone], batch_size, run), strict=True)
                )
        return [answers[index] for index in range(len(requests))]

    @property
    def shares_prefixes(self) -> bool:
        """Whether questions about the same pictures are answered behind one prefix; if not, the log says why."""
        return once_per_base(_SHARES_PREFIXES, self.mllm, lambda: can_share_answers(self.mllm), False)

    def _answer_sharing(
        self, prompts: Sequence[Prompt], max_tokens: int, batch_size: int
    ) -> dict[int, GeneratedAnswer]:
        """The answers, by index, to those prompts whose pictures and captions are also in other prompts."""
        evidence = indices_by((*map(id, prompt.pictures), *prompt.captions) for prompt in prompts)
        groups = [group for group in evidence if len(group) > 1]
        if not groups or not self.shares_prefixes:
            return {}
        rows: list[_SharedRow] = []
        for group in groups:
            shared = self.mllm.share([prompts[index] for index in group], max_tokens)
            if shared is not None:
                rows += [_SharedRow(index, shared, end) for index, end in zip(group, shared.endings, strict=True)]
        if not rows:
            return {}
        longest = max(len(row.shared.prefix) + len(row.ending) for row in rows)
        size = self.mllm.rows_that_fit(longest + max_tokens, batch_size)
        answers = in_batches(rows, size, partial(self._answer_behind, max_tokens=max_tokens))
        return {row.number: answer for row, answer in zip(rows, answers, strict=True)}

    def _answer_behind(self, rows: Sequence[_SharedRow], max_tokens: int) -> list[GeneratedAnswer]:
        groups = []
        for _, members in groupby(rows, key=lambda row: id(row.shared)):
            shared, endings = zip(*((row.shared, row.ending) for row in members), strict=True)
            groups.append(replace(shared[0], endings=list(endings)))
        lengths = [len(row.shared.prefix) + len(row.ending) for row in rows]
        return self._answers_of(self.mllm.generate_shared(groups, max_tokens), [None] * len(rows), lengths)

    def _answer(self, prompts: Sequence[Prompt], max_tokens: int) -> list[GeneratedAnswer]:
        inputs = self.mllm.prepare(prompts, answer_tokens=max_tokens)
        lengths = inputs.tensors["attention_mask"].sum(dim=1).tolist()
        return self._answers_of(self.mllm.generate(inputs, max_tokens), inputs.notes, lengths)

    def _answers_of(
        self, generated: Generated, notes: Sequence[str | None], lengths: Sequence[int]
    ) -> list[GeneratedAnswer]:
        if bool(generated.log_probabilities.isnan().any()):
            raise ScoreRejected(f"{self.version} returned NaN in an answer; check its weights and RAGLLAVA_DTYPE")
        rows = zip(generated.tokens.tolist(), generated.log_probabilities.tolist(), notes, lengths, strict=True)
        return [read_answer(self.mllm, *row) for row in rows]


def read_answer(
    mllm: Mllm, tokens: Sequence[int], log_probabilities: Sequence[float], note: str | None, prompt_tokens: int
) -> GeneratedAnswer:
    """The answer of generated tokens, up to the first end token; `note` and `prompt_tokens` are the prompt's."""
    ends = [step for step, token in enumerate(tokens) if token in mllm.end_token_ids]
    length = ends[0] if ends else len(tokens)
    decoded = mllm.tokenizer.decode(list(tokens[:length]), skip_special_tokens=True)
    text = decoded.replace("\x00", "").strip()  # byte tokens may give it, and Postgres does not store it as text
    # An answer that ends at once has the confidence of its end token.
    counted = log_probabilities[: max(length, 1)]
    notes = [note]
    if not text:
        notes.append("the model gave an empty answer")
    elif not ends:
        notes.append(f"answer stopped at {length} tokens")
    confidence = math.exp(math.fsum(counted) / len(counted))
    joined = "; ".join(note for note in notes if note) or None
    return GeneratedAnswer(text, confidence, joined, length, prompt_tokens)


def as_prompt(request: AnswerRequest, write: PromptWriter, *, with_captions: bool) -> Prompt:
    """The model's prompt for this request."""
    # Captions that are not in the prompt must not be cut either.
    captions = request.captions if with_captions else (None,) * len(request.pictures)
    return Prompt(request.question, captions, request.pictures, write)
