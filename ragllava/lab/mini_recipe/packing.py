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

from ragllava.lab.mini_recipe.endings import Ending
from ragllava.lab.mini_recipe.examples import Pack
from ragllava.postcards.names import FIRST_YEAR
from ragllava.prompts import PromptParts, answer_prompt, rerank_prompt

IGNORED_LABEL = -100
_SAME_COLOR_WEIGHT = 6.0  # among three pictures: one hard token, beside the titles that other answers consist of
DESCRIPTION_WEIGHT = 0.4  # of its tokens: most of them are commas and constant words
_QUESTION, _CAPTION = "QUESTION-HERE", "CAPTION-HERE"
_NOT_COMPARED = -1
_BLOCKED = -1e4  # added to attention scores; still finite in bfloat16


@dataclass(frozen=True, slots=True)
class PromptFrames:
    """The rendered prompts of models/mllm.py, cut where questions and captions go."""

    before: str
    picture: str
    relevance: str
    answer: str
    bare_picture: str  # of packs without a caption
    bare_relevance: str

    def beginning(self, pack: Pack) -> str:
        """Up to the question."""
        if pack.bare:
            return self.before + self.bare_picture
        captions = (shown.landmark.caption for shown in pack.shown)
        return self.before + "".join(self.picture.replace(_CAPTION, caption) for caption in captions)

    def question(self, ending: Ending, *, bare: bool = False) -> str:
        """From the question to the start of the answer."""
        relevance = self.bare_relevance if bare else self.relevance
        frame = relevance if ending.judges_relevance else self.answer
        return frame.replace(_QUESTION, ending.question)

    def before_question(self, ending: Ending) -> str:
        """What stands in `question` before the question itself."""
        frame = self.relevance if ending.judges_relevance else self.answer
        return frame[: frame.index(_QUESTION)]

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
    bare_answer, bare_relevance = rendered(answer_prompt(_QUESTION, [None])), rendered(rerank_prompt(_QUESTION, [None]))
    question = answer.removeprefix(opening)
    bare_opening = bare_answer.removesuffix(question)
    if (
        not relevance.startswith(opening)
        or not about_two.startswith(opening + picture)
        or bare_answer == bare_opening
        or not bare_relevance.startswith(bare_opening)
    ):
        raise ValueError("the prompts of reranker and generator begin differently: packs cannot share a beginning")
    return PromptFrames(
        before=answer[:start],
        picture=picture,
        relevance=relevance.removeprefix(opening),
        answer=question,
        bare_picture=bare_opening[start:],
        bare_relevance=bare_relevance.removeprefix(bare_opening),
    )


@dataclass(frozen=True, slots=True)
class AttentionBlocks:
    """Where the tokens of a batch (B, T) go for attention: a block for the beginning of each row, one for each ending.

    With P tokens in the longest beginning, E endings in a row and L tokens in the longest ending, `slots`
    (B * (P + E * L),) int64 are the tokens of the blocks, and `back` (B * T,) int64 the slots of the tokens, both
    counted over the complete batch; filler points anywhere. `beginning_mask` (B, 1, P, P) and `ending_mask`
    (B, 1, E, L, P + L), float32, are added to the scores.
    """

    slots: torch.Tensor
    back: torch.Tensor
    beginning_mask: torch.Tensor
    ending_mask: torch.Tensor

    def to(self, precision: torch.dtype) -> AttentionBlocks:
        """The same with masks of this precision."""
        masks = self.beginning_mask.to(precision), self.ending_mask.to(precision)
        return replace(self, beginning_mask=masks[0], ending_mask=masks[1])


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """B packs of at most T tokens. `labels[b, t]` is the token at t itself; a causal model predicts it from t - 1.

    `tokens`, `positions`, `labels` (B, T) int64, labels are IGNORED_LABEL except on answers; `weights` (B, T) float32,
    0 without a label; `endings` (B, T) the number of the ending from 1, 0 in the beginning, -1 in padding; `blocks` for
    attention; `pictures` (P,) indices in the pool, in order of appearance.

    For hints: `years` (P,) of the captions, from 0, IGNORED_LABEL without a caption; `caption_ends` (P, 2) row and
    column of the line end after each picture's caption, or after the picture; `pointers` (K, 3) row and column before
    the start of an answer about one picture, and the index of that picture in its row; `subjects` (S, 5) row and column
    of the last token of a name or description in a question, the index of its picture in the row, whether the name is
    the caption's, and whether the city is (0 or 1); -1 for no picture, and where nothing is compared; `kinds` (D, 3)
    row and column of the last token of a kind in a description, and whether it is the picture's (0 or 1).
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    endings: torch.Tensor
    blocks: AttentionBlocks
    pictures: torch.Tensor
    years: torch.Tensor
    caption_ends: torch.Tensor
    pointers: torch.Tensor
    subjects: torch.Tensor
    kinds: torch.Tensor


_Places = list[tuple[int, ...]]
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
        rows, line_ends, pointers, subjects, kinds = zip(*map(self._row, packs), strict=True)
        length = max(map(len, rows))
        filler = (self._tokenizer.pad_token_id, 0, IGNORED_LABEL, 0.0, -1)
        padded = [row + [filler] * (length - len(row)) for row in rows]
        tokens, positions, labels, weights, endings = (
            torch.tensor([[column[field] for column in row] for row in padded]) for field in range(len(filler))
        )
        shown = [shown for pack in packs for shown in pack.shown]
        years = [
            IGNORED_LABEL if pack.bare else picture.landmark.entity.year - FIRST_YEAR
            for pack in packs
            for picture in pack.shown
        ]
        return PackedBatch(
            *(tokens, positions, labels, weights, endings, attention_blocks(endings)),
            pictures=torch.tensor([picture.picture for picture in shown]),
            years=torch.tensor(years),
            caption_ends=torch.tensor([(row, column) for row, columns in enumerate(line_ends) for column in columns]),
            pointers=_with_rows(pointers, 3),
            subjects=_with_rows(subjects, 5),
            kinds=_with_rows(kinds, 3),
        )

    def _row(self, pack: Pack) -> tuple[list[_Column], list[int], _Places, _Places, _Places]:
        """The columns of a pack, the line ends after its captions, and pointers, subjects and kinds without the row."""
        beginning: list[int] = []
        for token in self._tokenizer(self.frames.beginning(pack))["input_ids"]:
            beginning += [token] * (self._tokens_per_picture if token == self._image_token else 1)
        # Line ends follow a picture and its caption in turn.
        line_ends = [column for column, token in enumerate(beginning) if token == self._line_end]
        columns = [(token, position, IGNORED_LABEL, 0.0, 0) for position, token in enumerate(beginning)]
        pointers: list[tuple[int, ...]] = []
        subjects: list[tuple[int, ...]] = []
        kinds: list[tuple[int, ...]] = []
        for number, ending in enumerate(pack.endings, start=1):
            if ending.task == "compare":
                question, answer = self._tokens(self._until(ending, ending.subjects[0].end)), []
            else:
                question = self._tokens(self.frames.question(ending, bare=pack.bare))
                answer = [*self._tokens(" " + ending.answer), self._tokenizer.eos_token_id]
            if ending.about is not None:
                pointers.append((len(columns) + len(question) - 1, pack.shown.index(ending.about)))
            for subject in ending.subjects:
                until = self._tokens(self._until(ending, subject.end))
                picture = _NOT_COMPARED if subject.about is None else pack.shown.index(subject.about)
                compared = (
                    _NOT_COMPARED if same is None else int(same) for same in (subject.same_name, subject.same_city)
                )
                subjects.append((len(columns) + len(until) - 1, picture, *compared))
                if subject.kind_end is not None:
                    until = self._tokens(self._until(ending, subject.kind_end))
                    kinds.append((len(columns) + len(until) - 1, int(subject.same_kind)))
            weight = _weight(ending, len(pack.shown))
            start = len(beginning) + len(question)
            columns += [(t, i, IGNORED_LABEL, 0.0, number) for i, t in enumerate(question, start=len(beginning))]
            columns += [(t, i, t, weight, number) for i, t in enumerate(answer, start=start)]
        return columns, line_ends if pack.bare else line_ends[1::2], pointers, subjects, kinds

    def _until(self, ending: Ending, offset: int) -> str:
        """The ending up to this offset of its question."""
        return self.frames.before_question(ending) + ending.question[:offset]

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _weight(ending: Ending, pictures: int) -> float:
    if ending.task == "samecolor" and pictures > 2:
        return _SAME_COLOR_WEIGHT
    return DESCRIPTION_WEIGHT if ending.task == "describe" else 1.0


def _with_rows(of_rows: Sequence[Sequence[tuple[int, ...]]], width: int) -> torch.Tensor:
    """(K, width) int64: each entry after the number of its row."""
    entries = [(row, *entry) for row, of_row in enumerate(of_rows) for entry in of_row]
    return torch.tensor(entries, dtype=torch.long).view(-1, width)


def _unflattened(states: torch.Tensor, endings: int, ending_length: int) -> torch.Tensor:
    """(B, heads, E · L, N) as (B, heads, E, L, N)."""
    return states.reshape(*states.shape[:2], endings, ending_length, states.shape[-1])


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    blocks: AttentionBlocks,
    scaling: float,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention with the interface of transformers, in the precision of the inputs and without what is masked anyway.

    query, key, value (B, heads, T, size), with the same number of heads; returns (B, T, heads, size) and no weights.
    `blocks` must have that precision too; they take the place of the mask.
    """
    rows, heads, length, size = query.shape
    endings, ending_length, _ = blocks.ending_mask.shape[2:]
    beginning = blocks.beginning_mask.shape[-1]

    def in_blocks(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, heads, P, size) and (B, heads, E, L, size)."""
        tokens = states.transpose(1, 2).reshape(rows * length, heads * size).index_select(0, blocks.slots)
        slots = tokens.view(rows, -1, heads, size).transpose(1, 2)
        return slots[:, :, :beginning], _unflattened(slots[:, :, beginning:], endings, ending_length)

    (first_query, query), (first_key, key), (first_value, value) = map(in_blocks, (query * scaling, key, value))
    scores = first_query @ first_key.transpose(-1, -2) + blocks.beginning_mask
    first_result = scores.softmax(-1) @ first_value
    to_beginning = _unflattened(query.flatten(2, 3) @ first_key.transpose(-1, -2), endings, ending_length)
    scores = torch.cat([to_beginning, query @ key.transpose(-1, -2)], dim=-1) + blocks.ending_mask
    weights = scores.softmax(-1)
    result = weights[..., :beginning].flatten(2, 3) @ first_value
    result = result + (weights[..., beginning:] @ value).flatten(2, 3)
    slots = torch.cat([first_result, result], dim=2).transpose(1, 2).reshape(-1, heads * size)
    return slots.index_select(0, blocks.back).view(rows, length, heads, size), None


def attention_blocks(endings: torch.Tensor) -> AttentionBlocks:
    """The blocks of a batch with these numbers of the endings (B, T); each is contiguous, and padding is last.

    A token may attend to the earlier ones of its own block and, in an ending, to all of the beginning.
    """
    rows, length = endings.shape
    numbers = range(1, int(endings.max()) + 1)
    lengths = torch.stack([(endings == number).sum(1) for number in (0, *numbers)], dim=1)  # (B, 1 + E)
    sizes = torch.tensor([int(lengths[:, 0].max()), *[int(lengths[:, 1:].max())] * len(numbers)])
    block = torch.repeat_interleave(torch.arange(len(sizes)), sizes)  # of each slot of a row
    offset = torch.arange(len(block)) - (sizes.cumsum(0) - sizes)[block]
    present = offset < lengths[:, block]
    of_row = torch.arange(rows)[:, None]
    slots = of_row * length + ((lengths.cumsum(1) - lengths)[:, block] + offset) * present
    back = torch.zeros(rows * length, dtype=torch.long)
    back[slots[present]] = torch.arange(present.numel()).view(present.shape)[present]
    beginning, ending = int(sizes[0]), int(sizes[-1])

    def mask(allowed: torch.Tensor) -> torch.Tensor:
        return torch.zeros(allowed.shape).masked_fill_(~allowed, _BLOCKED)

    in_beginning, in_endings = present[:, None, None, :beginning], present[:, beginning:].view(rows, 1, -1, 1, ending)
    earlier_first = torch.ones(beginning, beginning, dtype=torch.bool).tril()
    earlier = torch.ones(ending, ending, dtype=torch.bool).tril()
    shape = (rows, 1, len(numbers), ending)
    allowed = [in_beginning.unsqueeze(2).expand(*shape, beginning), (in_endings & earlier).expand(*shape, ending)]
    return AttentionBlocks(slots.flatten(), back, mask(in_beginning & earlier_first), mask(torch.cat(allowed, dim=-1)))
