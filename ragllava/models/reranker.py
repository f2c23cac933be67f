"""The precise reranker: P("Yes") that a picture with its caption answers a question (METHOD 2)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from PIL import Image

from ragllava.errors import ScoreRejected
from ragllava.models.adapters import Adapter
from ragllava.models.device import in_batches
from ragllava.models.fitting import Prompt
from ragllava.models.mllm import Mllm
from ragllava.prompts import PromptParts, caption_rerank_prompt, rerank_prompt


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and a candidate for it; `caption` None asks without one (the paper's ablation).

    `by_caption`: the question is a caption to find the image of (Flickr30K, COCO); the candidate's own is not shown.
    """

    question: str
    caption: str | None
    picture: Image.Image
    by_caption: bool = False

    def prompt(self) -> Prompt:
        """What the model is asked about this pair."""
        if self.by_caption:
            return Prompt(self.question, (None,), (self.picture,), write_caption_rerank)
        return Prompt(self.question, (self.caption,), (self.picture,), write_rerank)


@dataclass(frozen=True, slots=True)
class Relevance:
    """P("Yes") in [0, 1], and what a person should know about it (a caption was cut)."""

    value: float
    note: str | None = None


class Reranker:
    """Scores pairs. The same pair scores the same alone, in a batch, and in any order."""

    def __init__(self, mllm: Mllm, adapter: Adapter | None = None, version: str | None = None) -> None:
        """Score with the base, or with an adapter on it; `version` is its registered name, if it has one."""
        self.mllm = mllm
        self._adapter = adapter
        self.version = version or (f"{mllm.version}+{adapter.version}" if adapter else mllm.version)
        self.yes_no = mllm.answer_token_ids(["Yes", "No"])

    def relevance(self, pairs: Sequence[Pair], batch_size: int) -> list[Relevance]:
        """One relevance for each pair, in input order.

        Raises ScoreRejected when the network returns no number, or when a picture does not fit its window.
        """
        prompts = [pair.prompt() for pair in pairs]
        # Rows of like length share a batch, so that little of it is padding.
        order = sorted(range(len(prompts)), key=lambda place: prompts[place].rough_tokens())
        with self._adapter.active() if self._adapter else nullcontext():
            scores = in_batches([prompts[place] for place in order], batch_size, self._score)
        by_place = dict(zip(order, scores, strict=True))
        return [by_place[place] for place in range(len(pairs))]

    def _score(self, prompts: Sequence[Prompt]) -> list[Relevance]:
        inputs = self.mllm.prepare(prompts, answer_tokens=1)
        logits = self.mllm.last_logits(inputs)
        shares = logits[:, self.yes_no].softmax(dim=-1)[:, 0]
        if bool(shares.isnan().any()):
            raise ScoreRejected(f"{self.version} returned no number as a relevance; its weights or dtype are at fault")
        return [Relevance(share, note) for share, note in zip(shares.tolist(), inputs.notes, strict=True)]


def write_rerank(question: str, captions: list[str | None]) -> PromptParts:
    """The reranker's prompt, in the form that fitting asks for."""
    return rerank_prompt(question, captions[0])


def write_caption_rerank(question: str, captions: list[str | None]) -> PromptParts:
    """The same where a caption is searched by: `question` is that caption."""
    del captions  # the image's own would give it away
    return caption_rerank_prompt(question)
