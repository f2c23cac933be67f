"""How the paper's reference implementation scores a pair, to measure ourselves against; written from its description.

For every pair it reads and prepares the picture anew and calls `generate`, of whose output only the first step is
used (docs/method.md 2).
"""

from __future__ import annotations

from collections.abc import Sequence

from ragllava.models.reranker import Pair, Reranker

MAX_NEW_TOKENS = 512


def reference_relevance(reranker: Reranker, pairs: Sequence[Pair], max_new_tokens: int = MAX_NEW_TOKENS) -> list[float]:
    """P("Yes") of each pair, one `generate` after the other; equal to Reranker.relevance up to rounding.

    Random weights never end an answer: give them fewer new tokens than the reference's 512.
    """
    mllm = reranker.mllm
    scores = []
    for pair in pairs:
        inputs = mllm.prepare([pair.prompt()], answer_tokens=1)
        room = mllm.context_tokens - inputs.tensors["input_ids"].shape[1]
        first_step = mllm.generate(inputs, min(max_new_tokens, room)).first_logits[0]
        scores.append(float(first_step[reranker.yes_no].softmax(dim=-1)[0]))
    return scores
