"""Examples → batches: the family's own prompt, its pictures, and behind it the answer that is to be learned.

A batch is a dict: `labels` (B, A) int64 with the answers' tokens, IGNORED_LABEL behind shorter ones; and `parts`, a
list of the network's inputs. Each part holds the rows of one count of pictures, since families lay out one picture
and several differently; the rows of `labels` are in the order of the parts. In a part, prompts are padded on the left
as for answering, and answers on the right, so the last A + 1 positions of every row are where the answer is decided.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image

from ragllava.errors import ModelUnavailable, ScoreRejected, UsageError
from ragllava.models.fitting import ControlTokens, Prompt
from ragllava.models.mllm import Mllm
from ragllava.prompts import PromptParts, answer_prompt, rerank_prompt
from ragllava.training.data.examples import AnswerExample, Example, RankExample
from ragllava.training.finetune.noise import IGNORED_LABEL

PictureOpener = Callable[[str], Image.Image]  # from an example's `image` to the picture, upright and RGB
Batch = dict[str, Any]

_TRIAL: PromptParts = (None, "a trial")


class AnswerTokens:
    """How an answer is written behind a prompt of this family: as the reranker reads it, with an end token."""

    def __init__(self, mllm: Mllm) -> None:
        """Find out whether a space comes first. Raises ModelUnavailable when "Yes" cannot follow the prompt."""
        self._tokenizer = mllm.tokenizer
        self._rendered = mllm.render(_TRIAL)
        self._prompt = self._tokenize(self._rendered)
        self._control = ControlTokens(token.content for token in mllm.tokenizer.added_tokens_decoder.values())
        own_end = mllm.tokenizer.eos_token_id
        self._end = own_end if own_end in mllm.end_token_ids else min(mllm.end_token_ids)
        [yes, _] = mllm.answer_token_ids(["Yes", "No"])
        starts = [space for space in ("", " ") if self._behind_prompt(space + "Yes")[:1] == [yes]]
        if not starts:
            raise ModelUnavailable(f"{mllm.version}: no answer can follow its prompt token by token")
        self._start = starts[0]

    def __call__(self, answer: str) -> list[int]:
        """The answer's tokens and the end token; control tokens that a person wrote are text. Raises UsageError."""
        harmless = self._control.defuse(Prompt(answer.strip(), (), (), answer_prompt)).question
        tokens = self._behind_prompt(self._start + harmless)
        if not harmless or not tokens:
            raise UsageError(f"the answer {answer!r} cannot be learned: it has no tokens of its own behind the prompt")
        return [*tokens, self._end]

    def _behind_prompt(self, text: str) -> list[int]:
        tokens = self._tokenize(self._rendered + text)
        return tokens[len(self._prompt) :] if tokens[: len(self._prompt)] == self._prompt else []

    def _tokenize(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens


class BatchMaker:
    """Makes batches from examples of one role; the collator of training."""

    def __init__(self, mllm: Mllm, open_picture: PictureOpener, *, with_captions: bool) -> None:
        """Without captions, prompts have the paper's bare form."""
        self._mllm = mllm
        self._open_picture = open_picture
        self._with_captions = with_captions
        self.answer_tokens = AnswerTokens(mllm)
        self._pad = mllm.tokenizer.pad_token_id

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """One batch of all examples. Raises ScoreRejected when pictures do not fit the window (selection.py)."""
        answers = [self.answer_tokens(answer_of(example)) for example in examples]
        longest = max(map(len, answers))
        by_count: dict[int, list[int]] = defaultdict(list)
        for number, example in enumerate(examples):
            by_count[len(images_of(example))].append(number)
        parts, labels = [], []
        for _, numbers in sorted(by_count.items()):
            prompts = [self._opened(examples[number]) for number in numbers]
            rows = torch.full((len(numbers), longest), IGNORED_LABEL)
            for row, number in enumerate(numbers):
                rows[row, : len(answers[number])] = torch.tensor(answers[number])
            try:
                tensors = self._mllm.prepare(prompts, answer_tokens=longest).tensors
            except ScoreRejected as error:
                asked = ", ".join(repr(prompt.question) for prompt in prompts)
                raise ScoreRejected(f"the examples of the questions {asked}: {error}") from error
            parts.append(append_answers(tensors, rows, self._pad))
            labels.append(rows)
        return {"parts": parts, "labels": torch.cat(labels)}

    def prompt(self, example: Example, pictures: tuple[Image.Image, ...]) -> Prompt:
        """What the example asks, with these pictures, which its text does not depend on."""
        captions = (example.caption,) if isinstance(example, RankExample) else example.captions
        if not self._with_captions:
            captions = (None,) * len(captions)
        if isinstance(example, RankExample):
            return Prompt(example.question, captions, pictures, rerank_prompt)
        return Prompt(example.question, captions, pictures, partial(answer_prompt, with_captions=self._with_captions))

    def _opened(self, example: Example) -> Prompt:
        return self.prompt(example, tuple(map(self._open_picture, images_of(example))))


def append_answers(tensors: dict[str, Any], labels: torch.Tensor, pad: int) -> dict[str, Any]:
    """The inputs (B, P) with the answers' (B, A) tokens behind them; positions continue, padding is masked."""
    answered = labels != IGNORED_LABEL
    tails = {"input_ids": labels.where(answered, pad), "attention_mask": answered.long()}
    shape = tensors["input_ids"].shape
    grown = dict(tensors)
    for name, value in tensors.items():
        # Whatever else runs along the prompt marks pictures in it, of which an answer has none.
        if isinstance(value, torch.Tensor) and value.shape == shape:
            tail = tails.get(name, torch.zeros_like(labels))
            grown[name] = torch.cat([value, tail.to(value.dtype)], dim=1)
    if "position_ids" in tensors:
        grown["position_ids"] = (grown["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    return grown


def images_of(example: Example) -> tuple[str, ...]:
    """Its pictures in the order shown."""
    return (example.image,) if isinstance(example, RankExample) else example.images


def answer_of(example: Example) -> str:
    """What is to be learned."""
    if isinstance(example, AnswerExample):
        return example.answer
    return "Yes" if example.relevant else "No"
