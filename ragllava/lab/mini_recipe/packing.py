"""Packs as tensors: one beginning and several endings that do not see each other.

After a beginning of about 80 tokens (49 of them the picture), six endings cost a third of six complete prompts.
Attention is masked so that an ending sees the beginning and itself, and the positions of every ending continue those
of the beginning: the logits are those of separate prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ragllava.lab.mini_recipe.examples import Ending, Pack
from ragllava.postcards.names import FIRST_YEAR
from ragllava.prompts import PromptParts, answer_prompt, rerank_prompt

IGNORED_LABEL = -100
DESCRIPTION_WEIGHT = 0.4  # of its tokens: most of them are commas and constant words
_QUESTION, _CAPTION = "QUESTION-HERE", "CAPTION-HERE"
_BLOCKED = -1e4  # added to attention scores; still finite in bfloat16


@dataclass(frozen=True, slots=True)
class PromptFrames:
    """The rendered prompts of models/mllm.py, cut where questions and captions go."""

    before: str
    picture: str
    relevance: str
    answer: str

    def beginning(self, pack: Pack) -> str:
        """Up to the question."""
        captions = (shown.landmark.caption for shown in pack.shown)
        return self.before + "".join(self.picture.replace(_CAPTION, caption) for caption in captions)

    def question(self, ending: Ending) -> str:
        """From the question to the start of the answer."""
        frame = self.relevance if ending.judges_relevance else self.answer
        return frame.replace(_QUESTION, ending.question)

    def without_pictures(self) -> PromptFrames:
        """Captions only, and of the relevance question no more than the question."""
        _, _, caption = self.picture.partition("\n")
        question, _, instruction = self.relevance.partition("\n")
        return replace(self, picture=caption, relevance=question + instruction[instruction.rindex(" ") :])


def prompt_frames(processor: Any) -> PromptFrames:
    """Find the frames by rendering the templates that answering uses. Raises ValueError if they begin differently."""

    def rendered(parts: PromptParts) -> str:
        content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
        text: str = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return text

    answer = rendered(answer_prompt(_QUESTION, [_CAPTION]))
    about_two = rendered(answer_prompt(_QUESTION, [_CAPTION, _CAPTION]))
    start = answer.index(processor.image_token)
    picture = answer[start : start + len(about_two) - len(answer)]
    relevance = rendered(rerank_prompt(_QUESTION, [_CAPTION]))
    opening = answer[:start] + picture
    if not relevance.startswith(opening) or not about_two.startswith(opening + picture):
        raise ValueError("the prompts of reranker and generator begin differently: packs cannot share a beginning")
    return PromptFrames(answer[:start], picture, relevance.removeprefix(opening), answer.removeprefix(opening))


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """B packs of at most T tokens. `labels[b, t]` is the token at t itself; a causal model predicts it from t - 1.

    `tokens`, `positions`, `labels` (B, T) int64, labels are IGNORED_LABEL except on answers; `weights` (B, T) float32,
    0 without a label; `endings` (B, T) the number of the ending from 1, 0 in the beginning, -1 in padding; `mask`
    (B, 1, T, T) float32, added to attention scores; `pictures` (P,) indices in the pool, in order of appearance.

    For hints: `years` (P,) of the captions, from 0; `caption_ends` (P, 2) row and column of the line end after each
    picture's caption; `pointers` (K, 3) row and column before the start of an answer about one picture, and the index
    of that picture in its row.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    endings: torch.Tensor
    mask: torch.Tensor
    pictures: torch.Tensor
    years: torch.Tensor
    caption_ends: torch.Tensor
    pointers: torch.Tensor


_Column = tuple[int, int, int, float, int]  # token, position, label, weight, number of the ending


class Packer:
    """Turns packs into batches with one tokenizer."""

    def __init__(self, processor: Any, tokens_per_picture: int, *, text_only: bool = False) -> None:
        """`processor` is that of the LLaVA; each image token is repeated `tokens_per_picture` times."""
        frames = prompt_frames(processor)
        self.frames = frames.without_pictures() if text_only else frames
        self._tokenizer = processor.tokenizer
        self._image_token: int = processor.image_token_id
        (self._line_end,) = self._tokens("\n")
        self._tokens_per_picture = tokens_per_picture

    def batch(self, packs: Sequence[Pack]) -> PackedBatch:
        """Packs side by side, padded on the right."""
        rows, line_ends, pointers = zip(*map(self._row, packs), strict=True)
        length = max(map(len, rows))
        filler = (self._tokenizer.pad_token_id, 0, IGNORED_LABEL, 0.0, -1)
        padded = [row + [filler] * (length - len(row)) for row in rows]
        tokens, positions, labels, weights, endings = (
            torch.tensor([[column[field] for column in row] for row in padded]) for field in range(len(filler))
        )
        shown = [shown for pack in packs for shown in pack.shown]
        return PackedBatch(
            *(tokens, positions, labels, weights, endings, block_mask(endings)),
            pictures=torch.tensor([picture.picture for picture in shown]),
            years=torch.tensor([picture.landmark.entity.year - FIRST_YEAR for picture in shown]),
            caption_ends=torch.tensor([(row, column) for row, columns in enumerate(line_ends) for column in columns]),
            pointers=torch.tensor([(row, *pointer) for row, of_row in enumerate(pointers) for pointer in of_row]),
        )

    def _row(self, pack: Pack) -> tuple[list[_Column], list[int], list[tuple[int, int]]]:
        """The columns of a pack, the line ends after its captions, and the pointers without the row."""
        beginning: list[int] = []
        for token in self._tokenizer(self.frames.beginning(pack))["input_ids"]:
            beginning += [token] * (self._tokens_per_picture if token == self._image_token else 1)
        # Line ends follow a picture and its caption in turn.
        line_ends = [column for column, token in enumerate(beginning) if token == self._line_end]
        columns = [(token, position, IGNORED_LABEL, 0.0, 0) for position, token in enumerate(beginning)]
        pointers = []
        for number, ending in enumerate(pack.endings, start=1):
            question = self._tokens(self.frames.question(ending))
            answer = [*self._tokens(" " + ending.answer), self._tokenizer.eos_token_id]
            if ending.about is not None:
                pointers.append((len(columns) + len(question) - 1, pack.shown.index(ending.about)))
            weight = DESCRIPTION_WEIGHT if ending.task == "describe" else 1.0
            start = len(beginning) + len(question)
            columns += [(t, i, IGNORED_LABEL, 0.0, number) for i, t in enumerate(question, start=len(beginning))]
            columns += [(t, i, t, weight, number) for i, t in enumerate(answer, start=start)]
        return columns, line_ends[1::2], pointers

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention with the interface of transformers, in the precision of the inputs: on a CPU twice as fast as its own.

    query, key, value (B, heads, T, size), with the same number of heads; returns (B, T, heads, size) and no weights.
    """
    scores = (query * options["scaling"]) @ key.transpose(-1, -2)
    scores += attention_mask
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


def block_mask(endings: torch.Tensor) -> torch.Tensor:
    """(B, T) numbers of the endings → (B, 1, T, T): 0 where row t may attend, a large negative number elsewhere."""
    length = endings.shape[1]
    same = endings[:, :, None] == endings[:, None, :]
    in_beginning = endings[:, None, :] == 0
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    allowed = (same | in_beginning) & earlier
    return torch.zeros(allowed.shape).masked_fill_(~allowed, _BLOCKED).unsqueeze(1)
