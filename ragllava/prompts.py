"""The instruction templates. Scores depend on their wording, so a changed template needs a new version.

Source: docs/method.md 2 and 4; arXiv 2407.21439, appendix on instructions.
The chat template of the model family is added around these texts (models/mllm.py).
"""

from __future__ import annotations

RERANK_VERSION = "rerank-1"
CAPTION_RERANK_VERSION = "rerank-caption-1"  # the query is a caption: Flickr30K, COCO
ANSWER_VERSION = "answer-1"  # with captions under the images, the default
ANSWER_BARE_VERSION = "answer-bare-1"  # the paper's form for short answers: images, question and instruction
ANSWER_QUESTION_VERSION = "answer-question-1"  # the paper's form for WebQA: images and question only

PromptParts = tuple[str | None, ...]  # a user turn in order: texts, and None in the place of each image


def rerank_prompt(question: str, captions: list[str | None]) -> PromptParts:
    """The knowledge-enhanced ranking instruction for one image; without a caption (None), the paper's ablation form."""
    [caption] = captions
    if caption is None:
        text = f"Question: {question}\nIs this image relevant to the question? Answer 'Yes' or 'No'."
    else:
        text = (
            f"Image Caption: {caption}\nQuestion: {question}\n"
            "Based on the image and its caption, is the image relevant to the question? Answer 'Yes' or 'No'."
        )
    return None, text


def caption_rerank_prompt(caption: str, captions: list[str | None]) -> PromptParts:
    """The instruction of caption→image tasks: the query is `caption`, and the image is shown without its own."""
    del captions
    return None, f"Image Caption: {caption}\nIs the image relevant to the caption? Answer 'Yes' or 'No'."


def answer_prompt(
    question: str, captions: list[str | None], *, with_captions: bool = True, with_instruction: bool = True
) -> PromptParts:
    """All kept images in rank order, each with its caption (or none: the paper's bare form), then the question.

    The instruction asks for a short answer. The paper's prompt for WebQA has neither captions nor instruction.
    """
    parts: list[str | None] = []
    for caption in captions:
        parts.append(None)
        if with_captions and caption is not None:
            parts.append(f"Image Caption: {caption}\n")
    head = "Question: " if with_captions else ""
    instruction = "\nAnswer the question using a single word or phrase." if with_instruction else ""
    parts.append(f"{head}{question}{instruction}")
    return tuple(parts)
