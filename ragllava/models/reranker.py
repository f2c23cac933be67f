"""The precise reranker: P("Yes") that a picture with its caption answers a question (docs/method.md 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from weakref import WeakKeyDictionary

import torch
from PIL import Image

from ragllava.errors import ScoreRejected
from ragllava.models.adapters import Adapter, RoleModel
from ragllava.models.device import in_batches
from ragllava.models.fitting import Prompt, indices_by
from ragllava.models.mllm import Mllm
from ragllava.models.prefix.shared_prefix import SharedPrompts, SharingWay
from ragllava.models.prefix.trials import Sharing, once_per_base, try_sharing
from ragllava.prompts import caption_rerank_prompt, rerank_prompt

_SHARING: WeakKeyDictionary[Mllm, Sharing | None] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and a candidate for it; without a caption (None), the paper's ablation.

    `by_caption`: the question is a caption whose image is searched (Flickr30K, COCO); the candidate's caption is not
    shown.
    """

    question: str
    caption: str | None
    picture: Image.Image
    by_caption: bool = False

    def prompt(self) -> Prompt:
        """The model's prompt for this pair."""
        if self.by_caption:
            return Prompt(self.question, (None,), (self.picture,), caption_rerank_prompt)
        return Prompt(self.question, (self.caption,), (self.picture,), rerank_prompt)


@dataclass(frozen=True, slots=True)
class Relevance:
    """P("Yes") in [0, 1], and a note for users (a caption was cut)."""

    value: float
    note: str | None = None


class Reranker(RoleModel):
    """Scores pairs. A pair has the same score alone, in a batch, behind a shared prefix, and in any order."""

    def __init__(self, mllm: Mllm, adapter: Adapter | None = None, version: str | None = None) -> None:
        """As RoleModel. Raises ModelUnavailable when the tokenizer has no tokens for Yes and No."""
        super().__init__(mllm, adapter, version)
        self.yes_no = mllm.answer_token_ids(["Yes", "No"])

    def relevance(self, pairs: Sequence[Pair], batch_size: int) -> list[Relevance]:
        """One relevance for each pair, in input order.

        Pairs of one picture are scored behind one prefix, at most `batch_size` in a pass; the others in batches.
        Raises ScoreRejected when the network returns NaN, or when a picture does not fit its window.
        """
        prompts = [pair.prompt() for pair in pairs]
        with self.applied():
            scores = self._score_sharing(prompts, batch_size)
            # Rows of similar length share a batch, so that little of it is padding.
            unshared = [index for index in range(len(prompts)) if index not in scores]
            unshared.sort(key=lambda index: prompts[index].rough_tokens())
            if unshared:
                alone = [prompts[index] for index in unshared]
                values = in_batches(alone, self.mllm.rows_of_a_pass(alone, batch_size), self._score)
                scores.update(zip(unshared, values, strict=True))
        return [scores[index] for index in range(len(pairs))]

    @property
    def sharing(self) -> Sharing | None:
        """How questions about one picture are scored behind one prefix; None: each alone, and the log says why."""
        return once_per_base(_SHARING, self.mllm, lambda: try_sharing(self.mllm, self._shares, self.yes_no), None)

    def _score_sharing(self, prompts: Sequence[Prompt], batch_size: int) -> dict[int, Relevance]:
        """The relevances, by index, of those prompts whose picture is also in other prompts."""
        groups = [group for group in indices_by(id(prompt.pictures[0]) for prompt in prompts) if len(group) > 1]
        sharing = self.sharing if groups else None
        scores: dict[int, Relevance] = {}
        if sharing is None or sharing.way is None:
            return scores
        rows = self.mllm.rows_that_fit(sharing.prefix_tokens + sharing.ending_tokens, batch_size)
        for group in groups:
            shared = self.mllm.share([prompts[index] for index in group], answer_tokens=1)
            if shared is not None:
                # All at once, so that a way with a cache computes the prefix once for all its passes.
                score = partial(self._score_endings, shared, sharing.way, rows)
                scores.update(zip(group, in_batches(shared.endings, len(shared.endings), score), strict=True))
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
            raise ScoreRejected(f"{self.version} returned NaN as a relevance; check its weights and RAGLLAVA_DTYPE")
        return shares
