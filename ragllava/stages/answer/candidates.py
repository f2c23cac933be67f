"""Which images are candidates of a question: the nearest pictures, and what words make sure of (docs/method.md 1).

The nearest pictures stay as they are, and images that were found by their captions are appended. So no question has
fewer of the nearest pictures than in the paper's set-up, and captions that say nothing add nothing. An image is sure by
its caption if it has a word of the question that few images of the archive have, and scores nearly as well as the best
one. A question may name two things: the words that the best image does not have are searched for a second time, so that
the images of one name cannot crowd out those of the other.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ragllava.records import Origin, Question, Retrieval
from ragllava.stages.answer.splitting import MOST_BY_CAPTION
from ragllava.stages.answer.tools import AnswerTools
from ragllava.stores.archives import texts, vectors
from ragllava.stores.archives.filtering import FilterSql, compile_filter
from ragllava.stores.archives.texts import ArchiveWords, AskedWords, WordHit
from ragllava.stores.archives.vectors import Hit, IndexView, Vectors
from ragllava.stores.database import read_at_once

MOST_THINGS = 3
RARE_SHARE = 0.02  # of the images of an archive: a word that more of them have says little
FEWEST_RARE = 3  # images that a word may have in the smallest archive and still be rare
SURE_SHARE = 0.6  # of the score of the best hit
ANOTHER_THING = 0.4  # of the score of the best hit: words that score less are no second name


@dataclass(frozen=True, slots=True)
class CandidateHit:
    """An image that was found for a question, with the ranks and scores of a `Candidate`.

    `shares` has one number for each thing that the question names: the score of the image by words as a share of the
    best one's, 0 if its caption does not make sure of it. Empty: captions make sure of nothing, or not of this image.
    """

    image_id: int
    retrieval_score: float
    origin: Origin = Origin.PICTURE
    caption_rank: int | None = None
    caption_score: float | None = None
    shares: tuple[float, ...] = ()


def find_candidates(questions: Sequence[Question], tools: AnswerTools) -> list[list[CandidateHit]]:
    """The candidates of each question in the order of their retrieval rank; none while the archive has no index.

    With `hybrid`, the `top_k` nearest pictures, then those that only their captions make sure of, at most
    MOST_BY_CAPTION for each thing; with `picture`, the first of these alone; with `caption`, the `top_k` best by words
    in place of the nearest pictures.
    """
    index = tools.index
    if index is None or not questions:
        return [[] for _ in questions]
    queries = tools.resources.retriever_of(index).embed_texts([question.text for question in questions])
    rows: list[list[CandidateHit]] = [[] for _ in questions]
    for condition, numbers in _by_filter(questions, tools):
        asked = [questions[number].text for number in numbers]
        search = _Search(index, tools, condition)
        for number, row in zip(numbers, search.candidates(asked, queries[numbers]), strict=True):
            rows[number] = row
    return rows


def _by_filter(questions: Sequence[Question], tools: AnswerTools) -> list[tuple[FilterSql | None, list[int]]]:
    """The numbers of the questions that have the same filter, with that filter."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, question in enumerate(questions):
        groups[json.dumps(question.filter, sort_keys=True)].append(number)
    return [
        (compile_filter(tools.options.filter, questions[numbers[0]].filter), numbers) for numbers in groups.values()
    ]


@dataclass(frozen=True)
class _Search:
    """Searches of one archive under one filter."""

    index: IndexView
    tools: AnswerTools
    condition: FilterSql | None

    def candidates(self, asked: Sequence[str], queries: Vectors) -> list[list[CandidateHit]]:
        options = self.tools.options
        if options.retrieval is Retrieval.PICTURE:
            return [_joined(row, []) for row in self._nearest(queries)]
        things = self._things(asked, queries)
        if options.retrieval is Retrieval.HYBRID:
            rows = self._nearest(queries)
            return [_joined(row, named) for row, named in zip(rows, things, strict=True)]
        best = self._by_words([AskedWords.of(text) for text in asked], queries, options.top_k)
        return [_by_caption_alone(row, named) for row, named in zip(best, things, strict=True)]

    def _nearest(self, queries: Vectors) -> list[list[Hit]]:
        engine, k = self.tools.engine, self.tools.options.top_k
        return read_at_once(engine, vectors.search, self.index, queries, k, self.condition)

    def _by_words(self, words: Sequence[AskedWords], queries: Vectors, limit: int) -> list[list[WordHit]]:
        return read_at_once(self.tools.engine, texts.search, self.index, words, limit, queries, self.condition)

    def _strongest(self, words: Sequence[AskedWords], queries: Vectors, known: ArchiveWords) -> list[list[WordHit]]:
        engine, most = self.tools.engine, 2 * MOST_BY_CAPTION
        return read_at_once(engine, texts.strongest, self.index, words, most, queries, self.condition, known)

    def _things(self, asked: Sequence[str], queries: Vectors) -> list[list[list[WordHit]]]:
        """For each question the sure hits of each thing that it names, best first."""
        questions = [AskedWords.of(text) for text in asked]
        known = read_at_once(self.tools.engine, ArchiveWords.read, self.index.archive_id, questions)
        rare = max(FEWEST_RARE, int(RARE_SHARE * known.images))
        left = dict(enumerate(questions))
        things: list[list[list[WordHit]]] = [[] for _ in asked]
        for _ in range(MOST_THINGS):
            # Without a rare word no hit is sure, and a search for common words takes long.
            left = {number: words for number, words in left.items() if (known.fewest(words) or rare + 1) <= rare}
            if not left:
                break
            numbers = list(left)
            hits = self._strongest(list(left.values()), queries[numbers], known)
            for number, row in zip(numbers, hits, strict=True):
                first = things[number][0][0].caption_score if things[number] else 0.0
                sure = _sure(row, rare, least=ANOTHER_THING * first)
                matched = {word.asked for hit in sure[:1] for word in hit.matched}
                words = left.pop(number).without(matched)
                if sure:
                    things[number].append(sure)
                    left[number] = words
        return things


def _sure(hits: Sequence[WordHit], rare: int, least: float) -> list[WordHit]:
    """Those of the hits that their captions make sure of, if the best reaches the score `least`."""
    if not hits or hits[0].caption_score < least:
        return []
    enough = SURE_SHARE * hits[0].caption_score
    sure = [hit for hit in hits if hit.caption_score >= enough and hit.matched[0].images <= rare]
    return sure[:MOST_BY_CAPTION]


def _joined(nearest: Sequence[Hit], things: Sequence[Sequence[WordHit]]) -> list[CandidateHit]:
    """The nearest pictures in their order, then the other sure hits in theirs."""
    named = _named(things)
    rows = [CandidateHit(hit.image_id, hit.retrieval_score) for hit in nearest]
    rows = [
        replace(named.pop(hit.image_id), origin=Origin.BOTH, retrieval_score=hit.retrieval_score)
        if hit.image_id in named
        else hit
        for hit in rows
    ]
    return [*rows, *named.values()]


def _by_caption_alone(best: Sequence[WordHit], things: Sequence[Sequence[WordHit]]) -> list[CandidateHit]:
    """The best by words, then the sure hits of further things."""
    named = _named(things)
    ranked = {hit.image_id: _hit(hit, rank, ()) for rank, hit in enumerate(best)}
    later = [hit for image_id, hit in named.items() if image_id not in ranked]
    rows = [replace(hit, shares=named[i].shares) if i in named else hit for i, hit in ranked.items()]
    return rows + [replace(hit, caption_rank=len(rows) + number) for number, hit in enumerate(later)]


def _named(things: Sequence[Sequence[WordHit]]) -> dict[int, CandidateHit]:
    """All sure hits by image, those of the first thing first."""
    shares: dict[int, list[float]] = defaultdict(lambda: [0.0] * len(things))
    hits: dict[int, WordHit] = {}
    for number, sure in enumerate(things):
        for hit in sure:
            hits.setdefault(hit.image_id, hit)
            shares[hit.image_id][number] = hit.caption_score / sure[0].caption_score
    return {image_id: _hit(hit, rank, tuple(shares[image_id])) for rank, (image_id, hit) in enumerate(hits.items())}


def _hit(hit: WordHit, rank: int, shares: tuple[float, ...]) -> CandidateHit:
    cosine = hit.retrieval_score if hit.retrieval_score is not None else 0.0
    return CandidateHit(hit.image_id, cosine, Origin.CAPTION, rank, hit.caption_score, shares)
