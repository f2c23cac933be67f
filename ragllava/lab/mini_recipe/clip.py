"""The mini CLIP: its text tower learns to find pictures by what a question says about them.

The picture tower is the trained one of vision.py; only its last block and projection are trained here. So the features
of pictures are computed once, and every text can choose among thousands of pictures. A question about two pictures has
two targets with half of the weight each. The last block must be trained for these questions: as long as a picture's
vector is the sum of what it shows, a mixture of two targets is as near to the question as each of them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ragllava.lab.mini_recipe.endings import scene
from ragllava.lab.mini_recipe.examples import PackSampler
from ragllava.lab.mini_recipe.loop import StageTask
from ragllava.lab.mini_recipe.precision import autocast
from ragllava.postcards.names import Attributes
from ragllava.postcards.questions import ask_about_one, ask_about_two

_TWO_IMAGE_SHARE, _SCENE_SHARE = 0.55, 0.05
_HELD_OUT_ARCHIVE = 1000
_HELD_OUT_TEXTS = 300


@dataclass(frozen=True, slots=True)
class RetrievalText:
    """A text and the pictures (indices in the pool) that it is about."""

    text: str
    pictures: tuple[int, ...]


def draw_text(sampler: PackSampler, rng: random.Random, two_image_share: float = _TWO_IMAGE_SHARE) -> RetrievalText:
    """A question about one picture or two, sometimes a description without a name."""
    first = sampler.landmark(rng)
    form = rng.random()
    if form < two_image_share:
        second = sampler.landmark(rng)
        # Not every pair allows "which has more", so it is asked about all pairs that do.
        question = ask_about_two(first.landmark, second.landmark, rng, "more")
        return RetrievalText(question.text, (first.picture, second.picture))
    if form < two_image_share + _SCENE_SHARE:
        return RetrievalText(scene(first.landmark.attributes, rng), (first.picture,))
    return RetrievalText(ask_about_one(first.landmark, rng).text, (first.picture,))


class TextToPictures(nn.Module):
    """open_clip's CLIP, beginning with the last block of its picture tower."""

    def __init__(self, clip: Any, tokenizer: Any, precision: torch.dtype = torch.float32) -> None:
        """`clip` is changed in place; only the last block of its picture tower is trained."""
        super().__init__()
        self._precision = precision
        self.clip = clip
        self._tokenizer = tokenizer
        last = f"transformer.resblocks.{len(clip.visual.transformer.resblocks) - 1}."
        for name, parameter in clip.visual.named_parameters():
            parameter.requires_grad = name.startswith(("ln_post", last)) or name == "proj"

    def forward(self, texts: Sequence[str], tokens: torch.Tensor) -> torch.Tensor:
        """Texts (Q) and tower states before the last block (N, tokens, width) → scaled cosines (Q, N) float32."""
        with autocast(self._precision):
            queries = self.clip.encode_text(self._tokenizer(list(texts)), normalize=True)
            pictures = self.pictures(tokens)
        scaled: torch.Tensor = queries.float() @ pictures.T * self.clip.logit_scale.exp().clamp(max=100)
        return scaled

    def pictures(self, tokens: torch.Tensor) -> torch.Tensor:
        """The pictures' vectors (N, dim), L2-normalised. Only the CLS token is computed: no other is read."""
        visual = self.clip.visual
        block = visual.transformer.resblocks[-1]
        seen = block.ln_1(tokens)
        state = tokens[:, :1] + block.attn(seen[:, :1], seen, seen, need_weights=False)[0]
        state = state + block.mlp(block.ln_2(state))
        with torch.autocast("cpu", enabled=False):  # small differences of cosines decide between thousands
            return functional.normalize(visual.ln_post(state[:, 0].float()) @ visual.proj, dim=-1)


def clip_task(
    network: TextToPictures,
    practice: tuple[Sequence[Attributes], torch.Tensor],
    held_out: tuple[Sequence[Attributes], torch.Tensor],
    texts_per_step: int,
    pictures_per_step: int,
) -> StageTask:
    """Each text chooses among `pictures_per_step` newly drawn pictures; attributes come with the tower's states."""
    attributes, tokens = practice

    def backward(step: int) -> dict[str, float]:
        rng = random.Random(f"clip {step}")  # noqa: S311 - repeatable on purpose
        chosen = rng.sample(range(len(attributes)), pictures_per_step)
        sampler = PackSampler([attributes[picture] for picture in chosen], "train")
        texts = [draw_text(sampler, rng) for _ in range(texts_per_step)]
        loss = choice_loss(network([text.text for text in texts], tokens[chosen]), texts)
        torch.autograd.backward(loss)
        return {"loss": loss.item()}

    return StageTask(backward, lambda: recall(network, *held_out))


def choice_loss(cosines: torch.Tensor, texts: Sequence[RetrievalText]) -> torch.Tensor:
    """Cross-entropy between (Q, N) scaled cosines and the targets, which share the probability of a text equally."""
    targets = torch.zeros(cosines.shape)
    for row, text in enumerate(texts):
        for picture in text.pictures:
            targets[row, picture] += 1 / len(text.pictures)
    return functional.cross_entropy(cosines, targets)


@torch.inference_mode()
def recall(network: TextToPictures, attributes: Sequence[Attributes], tokens: torch.Tensor) -> Mapping[str, float]:
    """Recall in an archive of held-out pictures, by number of pictures asked about."""
    rng = random.Random("recall")  # noqa: S311 - repeatable on purpose
    sampler = PackSampler(attributes[:_HELD_OUT_ARCHIVE], "test")
    figures = {}
    for name, share in (("one", 0.0), ("two", 1.0)):
        texts = [draw_text(sampler, rng, share) for _ in range(_HELD_OUT_TEXTS)]
        best = network([text.text for text in texts], tokens[:_HELD_OUT_ARCHIVE]).topk(20, dim=-1).indices.tolist()
        for k in (1, 5, 20):
            hits = [picture in row[:k] for text, row in zip(texts, best, strict=True) for picture in text.pictures]
            figures[f"{name}_recall_{k}"] = sum(hits) / len(hits)
    return figures
