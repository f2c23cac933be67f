"""Relevances of given pairs: what the reranker of the answer jobs says, with the champion of today."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ragllava.errors import ImageRejected, RejectionClass
from ragllava.jobs.runner import ShardContext
from ragllava.stages.champions import apply_champions
from ragllava.stages.resources import Resources
from ragllava.stores.learning import registry

if TYPE_CHECKING:
    from PIL.Image import Image

    from ragllava.models.reranker import Pair

_IMAGES_AT_ONCE = 64  # whose decoded pictures are in memory together
_BLANK_SIDE = 224  # pixels of the white picture that stands beside a text alone


@dataclass(frozen=True, slots=True)
class ScorePair:
    """A question and one document: a picture by the hash of its bytes, its caption, or both. `document` counts from 0
    and tells which one it is."""

    question: str
    document: int
    caption: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """The body of a request for relevances."""

    pairs: tuple[ScorePair, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """One relevance in [0, 1] for each pair, in their order, the reranker that gave them, and about how many tokens it
    has read."""

    relevances: tuple[float, ...]
    model: str
    tokens: int


def score_pairs(context: ShardContext[Resources], request: ScoreRequest) -> Scores:
    """The relevances of all pairs. A text without a picture is scored as the caption of a white one.

    Raises ImageRejected for a picture that cannot be read, naming the document; JobRefused when the champion cannot be
    used here.
    """
    models, settings = context.resources.models, context.settings
    apply_champions(context.resources, context.read(registry.champions, models.profile.name))
    relevances: dict[int, float] = {}
    tokens = 0
    for numbers, pairs in _loaded(context, request.pairs):
        context.check()
        scored = models.reranker.relevance(pairs, batch_size=settings.pairs_per_batch)
        relevances.update(zip(numbers, (relevance.value for relevance in scored), strict=True))
        tokens += sum(pair.prompt().rough_tokens() for pair in pairs)
    return Scores(tuple(relevances[number] for number in range(len(relevances))), models.reranker.version, tokens)


def _loaded(context: ShardContext[Resources], pairs: Sequence[ScorePair]) -> Iterator[tuple[list[int], list[Pair]]]:
    """The pairs with their pictures, a bounded number of pictures at a time, those of one picture together."""
    from PIL.Image import new as new_picture

    from ragllava.models.reranker import Pair  # loads torch, which only a process that answers needs

    by_picture: dict[str | None, list[int]] = defaultdict(list)
    for number, pair in enumerate(pairs):
        by_picture[pair.sha256].append(number)
    blank = new_picture("RGB", (_BLANK_SIDE, _BLANK_SIDE), "white")
    hashes = list(by_picture)
    for start in range(0, len(hashes), _IMAGES_AT_ONCE):
        chunk = hashes[start : start + _IMAGES_AT_ONCE]
        pictures = context.resources.pictures.get_many([sha256 for sha256 in chunk if sha256 is not None])
        numbers = [number for sha256 in chunk for number in by_picture[sha256]]
        yield (
            numbers,
            [
                Pair(pairs[number].question, pairs[number].caption, _picture_of(pairs[number], pictures, blank))
                for number in numbers
            ],
        )


def _picture_of(pair: ScorePair, pictures: dict[str, Image | str], blank: Image) -> Image:
    if pair.sha256 is None:
        return blank
    picture = pictures[pair.sha256]
    if isinstance(picture, str):
        raise ImageRejected(
            RejectionClass.UNREADABLE, f"the picture of document {pair.document} cannot be read: {picture}"
        )
    return picture
