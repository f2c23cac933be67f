"""Prompts before they become tokens: texts of users, without control tokens and short enough for the window."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from ragllava.prompts import PromptParts

PromptWriter = Callable[[str, list[str | None]], PromptParts]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One user turn: `write` puts question and captions into an instruction with a mark for each picture."""

    question: str
    captions: tuple[str | None, ...]
    pictures: tuple[Image.Image, ...]
    write: PromptWriter

    def parts(self) -> PromptParts:
        """The turn in order."""
        return self.write(self.question, list(self.captions))

    def rough_tokens(self) -> int:
        """About how long the turn is; decides only which rows share a batch, never a score."""
        letters = len(self.question) + sum(len(caption or "") for caption in self.captions)
        # About four letters a token, and 28 × 28 pixels a token in families that read pictures in their own size.
        return letters // 4 + sum(picture.width * picture.height for picture in self.pictures) // 784


def indices_by(keys: Iterable[Hashable]) -> list[list[int]]:
    """The indices of equal keys, as groups in the order of their first key."""
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return list(groups.values())


class ControlTokens:
    """The texts that a tokenizer reads as control tokens, such as `<image>` or `</s>`."""

    def __init__(self, tokens: Iterable[str]) -> None:
        """Blank tokens and single characters are ordinary text, and are not included."""
        # Longest first: a token may begin with another.
        words = sorted({token for token in tokens if len(token) > 1 and not token.isspace()}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, words)) or r"(?!)")

    def defuse(self, prompt: Prompt) -> Prompt:
        """The prompt with a space inside each control token that a user wrote, so that it is read as text."""
        captions = tuple(None if caption is None else self._split(caption) for caption in prompt.captions)
        return replace(prompt, question=self._split(prompt.question), captions=captions)

    def _split(self, text: str) -> str:
        # Splitting one token can complete another around it; repeat until none is left.
        while self._pattern.search(text):
            text = self._pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
        return text


def shorten(prompt: Prompt, excess: int, tokenizer: Any) -> tuple[Prompt, str | None]:
    """The prompt with `excess` tokens fewer, and a note that says what was cut.

    Captions are cut first, the longest before the others, then the question, at most to nothing. Instruction and
    pictures are kept.
    """
    counts = [_count(caption, tokenizer) for caption in prompt.captions]
    kept = _level(counts, max(sum(counts) - excess, 0))
    question_count = _count(prompt.question, tokenizer)
    question_kept = max(question_count - max(excess - sum(counts), 0), 0)
    notes = []
    captions = list(prompt.captions)
    for number, (count, keep) in enumerate(zip(counts, kept, strict=True)):
        if keep < count:
            captions[number] = _first_tokens(captions[number] or "", keep, tokenizer)
            which = "caption" if len(counts) == 1 else f"caption {number + 1}"
            notes.append(f"{which} cut from {count} to {keep} tokens")
    question = prompt.question
    if question_kept < question_count:
        question = _first_tokens(question, question_kept, tokenizer)
        notes.append(f"question cut from {question_count} to {question_kept} tokens")
    return replace(prompt, captions=tuple(captions), question=question), "; ".join(notes) or None


def _level(counts: Sequence[int], total: int) -> list[int]:
    """Cut the largest counts down to a common level, so that the sum is at most `total`.

    >>> _level([10, 3, 8], 15)
    [6, 3, 6]
    """
    kept = [0] * len(counts)
    left = total
    for rank, index in enumerate(sorted(range(len(counts)), key=counts.__getitem__)):
        kept[index] = min(counts[index], left // (len(counts) - rank))
        left -= kept[index]
    return kept


def _count(text: str | None, tokenizer: Any) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else 0


def _first_tokens(text: str, tokens: int, tokenizer: Any) -> str:
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text[: offsets[tokens][0]].rstrip()
