"""The precise reranker: P("Yes") that a picture with its caption answers a question (docs/method.md 2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from PIL import Image

from ragllava.errors import ScoreRejected
from ragllava.models.adapters import Adapter
from ragllava.models.device import in_batches
from ragllava.models.fitting import Prompt
from ragllava.models.mllm import Mllm
from ragllava.models.prefix.shared_prefix import SharedPrompts, SharingWay
from ragllava.models.prefix.trials import OncePerBase, Sharing, try_sharing
from ragllava.prompts import PromptParts, caption_rerank_prompt, rerank_prompt

_SHARING: OncePerBase[Sharing | None] = OncePerBase()


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
    """Scores pairs. The same pair scores the same alone, in a batch, behind a shared prefix, and in any order."""

    def __init__(self, mllm: Mllm, adapter: Adapter | None = None, version: str | None = None) -> None:
        """Score with the base, or with an adapter on it; `version` is its registered name, if it has one."""
        self.mllm = mllm
        self._adapter = adapter
        self.version = version or (f"{mllm.version}+{adapter.version}" if adapter else mllm.version)
        self.yes_no = mllm.answer_token_ids(["Yes", "No"])

    def relevance(self, pairs: Sequence[Pair], batch_size: int) -> list[Relevance]:
        """One relevance for each pair, in input order.

        Pairs of one picture are scored behind one prefix, `batch_size` in a pass at most; the others in batches.
        Raises ScoreRejected when the network returns no number, or when a picture does not fit its window.
        """
        prompts = [pair.prompt() for pair in pairs]
        with self._adapter.active() if self._adapter else nullcontext():
            scores = self._score_sharing(prompts, batch_size)
            # Rows of like length share a batch, so that little of it is padding.
            rest = [place for place in range(len(prompts)) if place not in scores]
            rest.sort(key=lambda place: prompts[place].rough_tokens())
            alone = [prompts[place] for place in rest]
            found = in_batches(alone, self.mllm.rows_of_a_pass(alone, batch_size), self._score) if alone else []
            scores.update(zip(rest, found, strict=True))
        return [scores[place] for place in range(len(pairs))]

    @property
    def sharing(self) -> Sharing | None:
        """How questions about one picture are scored behind one prefix; None: each pair alone, and the log says why.

        Tried once for each base: an adapter changes weights, not what a prefix is.
        """
        return _SHARING.of(self.mllm, lambda: try_sharing(self.mllm, self._shares, self.yes_no, ask_trial), None)

    def _score_sharing(self, prompts: Sequence[Prompt], batch_size: int) -> dict[int, Relevance]:
        """The relevances, by place, of those prompts whose picture others show as well."""
        by_picture: dict[int, list[int]] = defaultdict(list)
        for place, prompt in enumerate(prompts):
            by_picture[id(prompt.pictures[0])].append(place)
        together = [places for places in by_picture.values() if len(places) > 1]
        sharing = self.sharing if together else None
        scores: dict[int, Relevance] = {}
        if sharing is None or sharing.way is None:
            return scores
        rows = self.mllm.rows_that_fit(sharing.prefix_tokens + sharing.ending_tokens, batch_size)
        for places in together:
            shared = self.mllm.share([prompts[place] for place in places], answer_tokens=1)
            if shared is not None:
                # All at once, so that a way that keeps the prefix computes it once for all its passes.
                score = partial(self._score_endings, shared, sharing.way, rows)
                scores.update(zip(places, in_batches(shared.endings, len(shared.endings), score), strict=True))
        return scores

    def _score_endings(
        self, shared: SharedPrompts, way: SharingWay, batch_size: int, endings: Sequence[list[int]]
    ) -> list[Relevance]:
        logits = self.mllm.shared_logits(replace(shared, endings=list(endings)), way, batch_size, self.yes_no)
        return [Relevance(share) for share in self._shares(logits).tolist()]

    def _score(self, prompts: Sequence[Prompt]) -> list[Relevance]:
        inputs = self.mllm.prepare(prompts, answer_tokens=1)
        shares = self._shares(self.mllm.last_logits(inputs, self.yes_no)).tolist()
        return [Relevance(share, note) for share, note in zip(shares, inputs.notes, strict=True)]

    def _shares(self, logits: torch.Tensor) -> torch.Tensor:
        shares = logits.softmax(dim=-1)[:, 0]
        if bool(shares.isnan().any()):
            raise ScoreRejected(f"{self.version} returned no number as a relevance; its weights or dtype are at fault")
        return shares


def write_rerank(question: str, captions: list[str | None]) -> PromptParts:
    """The reranker's prompt, in the form that fitting asks for."""
    return rerank_prompt(question, captions[0])


def write_caption_rerank(question: str, captions: list[str | None]) -> PromptParts:
    """The same where a caption is searched by: `question` is that caption."""
    del captions  # the image's own would give it away
    return caption_rerank_prompt(question)


def ask_trial(question: str, picture: Image.Image) -> Prompt:
    """A prompt of the trial that tells whether prompts can share a prefix."""
    return Pair(question, "a caption", picture).prompt()
