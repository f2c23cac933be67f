"""The instruction templates, versioned. Their wording is part of every score: change one, change its version.

Source: docs/method.md 2 and 4; arXiv 2407.21439, appendix on instructions. The model family's own chat template
goes around these texts (models/mllm.py).
"""

from __future__ import annotations

from dataclasses import dataclass

RERANK_VERSION = "rerank-1"
CAPTION_RERANK_VERSION = "rerank-caption-1"  # where the query is itself a caption: Flickr30K, COCO
ANSWER_VERSION = "answer-1"  # with captions under the images, our default
ANSWER_BARE_VERSION = "answer-bare-1"  # the paper's form: images and question only


@dataclass(frozen=True, slots=True)
class PromptParts:
    """A user turn in order: each part is a text or the mark of an image (None)."""

    parts: tuple[str | None, ...]


def rerank_prompt(question: str, caption: str | None) -> PromptParts:
    """The knowledge-enhanced ranking instruction; without a caption, the paper's ablation form."""
    if caption is None:
        text = f"Question: {question}\nIs this image relevant to the question? Answer 'Yes' or 'No'."
    else:
        text = (
            f"Image Caption: {caption}\nQuestion: {question}\n"
            "Based on the image and its caption, is the image relevant to the question? Answer 'Yes' or 'No'."
        )
    return PromptParts((None, text))


def caption_rerank_prompt(caption: str) -> PromptParts:
    """The instruction of caption→image tasks: the caption is what is searched for, the image has none of its own."""
    text = f"Image Caption: {caption}\nIs the image relevant to the caption? Answer 'Yes' or 'No'."
    return PromptParts((None, text))


def answer_prompt(question: str, captions: list[str | None], *, with_captions: bool = True) -> PromptParts:
    """All kept images in rank order, each with its caption (or none: the paper's bare form), then the question."""
    parts: list[str | None] = []
    for caption in captions:
        parts.append(None)
        if with_captions and caption is not None:
            parts.append(f"Image Caption: {caption}\n")
    head = "Question: " if with_captions else ""
    parts.append(f"{head}{question}\nAnswer the question using a single word or phrase.")
    return PromptParts(tuple(parts))
