"""The candidates of questions about postcards: the pictures nearest to each question, by brute force."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from ragllava.models.retriever import Retriever
from ragllava.postcards.archive import KnownQuestion

_BATCH = 64  # pictures


def nearest_pictures(
    retriever: Retriever, pictures: Sequence[Image.Image], questions: Sequence[KnownQuestion], top_k: int
) -> npt.NDArray[np.int64]:
    """The indices (Q, top_k) of the pictures nearest to each question, the nearest first."""
    images = retriever.embed_images(pictures, batch_size=_BATCH)
    texts = retriever.embed_texts([question.text for question in questions])
    return np.argsort(-(texts @ images.T), axis=1, kind="stable")[:, :top_k]
