"""Which images are candidates of a question: the nearest pictures, and what words make sure of (docs/method.md 1).

The nearest pictures stay as they are, and images that were found by their captions are appended. So no question has
fewer of the nearest pictures than in the paper's set-up, and captions that say nothing add nothing. An image is sure by
its caption if it has a word of the question that few images of the archive have, and scores nearly as well as the best
one. A question may name two things: the words that the best image does not have are searched for a second time, so that
the images of one name cannot crowd out those of the other.

For a question that is asked with a picture, the nearest to that picture come first. Its text is a second query: images
that it makes sure of by words, and a few of the nearest to it, are appended.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ragllava.errors import ImageRejected, RejectionClass
from ragllava.records import Origin, Question, Retrieval, Spelling
from ragllava.stages.answer.splitting import MOST_BY_CAPTION
from ragllava.stages.answer.tools import AnswerTools
from ragllava.stores.archives import texts, vector_search
from ragllava.stores.archives.filtering import FilterSql, compile_filter
from ragllava.stores.archives.texts import ArchiveWords, AskedWords, WordHit
from ragllava.stores.archives.vector_search import Hit
from ragllava.stores.archives.vectors import IndexView, Vectors
from ragllava.stores.database import read_at_once
from ragllava.words import is_slip, names_in

if TYPE_CHECKING:
    from ragllava.models.retriever import Retriever

MOST_THINGS = 3
RARE_SHARE = 0.02  # of the images of an archive: a word that more of them have says little
FEWEST_RARE = 3  # images that a word may have in the smallest archive and still be rare
SURE_SHARE = 0.6  # of the score of the best hit
MOST_BY_TEXT = 5  # images nearest to the text of a question that is asked with a picture
ANOTHER_THING = 0.4  # of the score of the best hit: words that score less are no second name
_PICTURES_AT_ONCE = 16  # of questions, decoded in memory


@dataclass(frozen=True, slots=True)
class CandidateHit:
    """An image that was found for a question, with the ranks and scores of a `Candidate`.

    `shares` has one number for each thing that the question names: the score of the image by words as a share of the
    best one's, 0 if its caption does not make sure of it. Empty: captions make sure of nothing, or not of this image.
    `spellings` are the misspelt words of the question that the best image of a thing corrects.
    """

    image_id: int
    retrieval_score: float
    origin: Origin = Origin.PICTURE
    caption_rank: int | None = None
    caption_score: float | None = None
    shares: tuple[float, ...] = ()
    spellings: tuple[Spelling, ...] = ()


@dataclass(frozen=True, slots=True)
class _Thing:
    """The sure hits of something that a question names, best first; `spellings` are those of the best one."""

    hits: Sequence[WordHit]
    spellings: tuple[Spelling, ...]


def find_candidates(questions: Sequence[Question], tools: AnswerTools) -> list[list[CandidateHit]]:
    """The candidates of each question in the order of their retrieval rank; none while the archive has no index.

    With `hybrid`, the `top_k` nearest pictures, then those that only their captions make sure of, at most
    MOST_BY_CAPTION for each thing; with `picture`, the first of these alone; with `caption`, the `top_k` best by words
    in place of the nearest pictures. Raises ImageRejected for a question whose picture cannot be read.
    """
    index = tools.index
    if index is None or not questions:
        return [[] for _ in questions]
    retriever = tools.resources.retriever_of(index)
    queries = retriever.embed_texts([question.text for question in questions])
    rows: list[list[CandidateHit]] = [[] for _ in questions]
    for condition, numbers in _by_filter(questions, tools):
        asked = [questions[number].text for number in numbers]
        search = _Search(index, tools, condition)
        pictures = [questions[number] for number in numbers if questions[number].picture]
        if pictures:  # then all of the group have one
            found = search.like_pictures(asked, queries[numbers], _embedded(pictures, retriever, tools))
        else:
            found = search.candidates(asked, queries[numbers])
        for number, row in zip(numbers, found, strict=True):
            rows[number] = row
    return rows


def _embedded(questions: Sequence[Question], retriever: Retriever, tools: AnswerTools) -> Vectors:
    """The vectors of the pictures that these questions are asked with, (questions, dim), a few decoded at a time."""
    parts = []
    for start in range(0, len(questions), _PICTURES_AT_ONCE):
        page = questions[start : start + _PICTURES_AT_ONCE]
        decoded = tools.resources.pictures.get_many([str(question.picture) for question in page])
        pixels = []
        for question in page:
            picture = decoded[str(question.picture)]
            if isinstance(picture, str):
                raise ImageRejected(RejectionClass.UNREADABLE, f"the picture of the question cannot be read: {picture}")
            pixels.append(retriever.prepare_image(picture))
        parts.append(retriever.embed_pixels(pixels, _PICTURES_AT_ONCE))
    return np.concatenate(parts)


def _by_filter(questions: Sequence[Question], tools: AnswerTools) -> list[tuple[FilterSql | None, list[int]]]:
    """The numbers of the questions that have the same filter, with that filter; those with a picture apart."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, question in enumerate(questions):
        groups[json.dumps([question.filter, question.picture is not None], sort_keys=True)].append(number)
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

    def like_pictures(self, asked: Sequence[str], texts: Vectors, pictures: Vectors) -> list[list[CandidateHit]]:
        """For questions with pictures. No caption makes sure that a picture is like another, so there are no shares."""
        rows = [_joined(row, [], Origin.ASKED_PICTURE) for row in self._nearest(pictures)]
        if self.tools.options.retrieval is Retrieval.PICTURE:
            return rows
        named = [[replace(hit, shares=()) for hit in _named(things).values()] for things in self._things(asked, texts)]
        by_text = [_joined(row[:MOST_BY_TEXT], []) for row in self._nearest(texts)]
        return [_appended(row, [*words, *near]) for row, words, near in zip(rows, named, by_text, strict=True)]

    def _nearest(self, queries: Vectors) -> list[list[Hit]]:
        engine, k = self.tools.engine, self.tools.options.top_k
        return read_at_once(engine, vector_search.search, self.index, queries, k, self.condition)

    def _by_words(self, words: Sequence[AskedWords], queries: Vectors, limit: int) -> list[list[WordHit]]:
        return read_at_once(self.tools.engine, texts.search, self.index, words, limit, queries, self.condition)

    def _strongest(self, words: Sequence[AskedWords], queries: Vectors, known: ArchiveWords) -> list[list[WordHit]]:
        engine, most = self.tools.engine, 2 * MOST_BY_CAPTION
        return read_at_once(engine, texts.strongest, self.index, words, most, queries, self.condition, known)

    def _things(self, asked: Sequence[str], queries: Vectors) -> list[list[_Thing]]:
        """For each question the things that it names."""
        questions = [AskedWords.of(text) for text in asked]
        known = read_at_once(self.tools.engine, ArchiveWords.read, self.index.archive_id, questions)
        rare = max(FEWEST_RARE, int(RARE_SHARE * known.images))
        left = dict(enumerate(questions))
        things: list[list[_Thing]] = [[] for _ in asked]
        for _ in range(MOST_THINGS):
            # Without a rare word no hit is sure, and a search for common words takes long.
            left = {number: words for number, words in left.items() if (known.fewest(words) or rare + 1) <= rare}
            if not left:
                break
            numbers = list(left)
            hits = self._strongest(list(left.values()), queries[numbers], known)
            for number, row in zip(numbers, hits, strict=True):
                first = things[number][0].hits[0].caption_score if things[number] else 0.0
                sure = _sure(row, rare, least=ANOTHER_THING * first)
                matched = {word.asked for hit in sure[:1] for word in hit.matched}
                words = left.pop(number).without(matched)
                if sure:
                    things[number].append(_Thing(sure, _spellings(sure[0], rare, asked[number], known.images)))
                    left[number] = words
        return things


def _sure(hits: Sequence[WordHit], rare: int, least: float) -> list[WordHit]:
    """Those of the hits that their captions make sure of, if the best reaches the score `least`."""
    if not hits or hits[0].caption_score < least:
        return []
    enough = SURE_SHARE * hits[0].caption_score
    sure = [hit for hit in hits if hit.caption_score >= enough and hit.matched[0].images <= rare]
    return sure[:MOST_BY_CAPTION]


def _spellings(hit: WordHit, rare: int, asked: str, images: int) -> tuple[Spelling, ...]:
    """The words of the question `asked` that this image, one of so many, surely corrects.

    The archive has no other word that may be meant, and the image shares another rare name with the question, misspelt
    or not: a name alone may be that of something else. Words such as "in" and "what" are no names, but rare where few
    captions are sentences. The names are so rare that no image would be expected to have all of them by chance.
    """
    names = names_in(asked)
    shared = [word for word in hit.matched if word.asked in names]
    if images * math.prod(word.images / images for word in shared) >= 1:
        return ()
    return tuple(
        Spelling(word.asked, word.word)
        for word in shared
        if not word.rivals
        and is_slip(word.asked, word.word)
        and any(other.asked != word.asked and other.images <= rare for other in shared)
    )


def _appended(row: Sequence[CandidateHit], others: Sequence[CandidateHit]) -> list[CandidateHit]:
    """The candidates, then those of the others that are new."""
    hits = {hit.image_id: hit for hit in row}
    for hit in others:
        hits.setdefault(hit.image_id, hit)
    return list(hits.values())


def _joined(nearest: Sequence[Hit], things: Sequence[_Thing], origin: Origin = Origin.PICTURE) -> list[CandidateHit]:
    """The nearest pictures in their order, then the other sure hits in theirs."""
    named = _named(things)
    rows = [CandidateHit(hit.image_id, hit.retrieval_score, origin) for hit in nearest]
    rows = [
        replace(named.pop(hit.image_id), origin=Origin.BOTH, retrieval_score=hit.retrieval_score)
        if hit.image_id in named
        else hit
        for hit in rows
    ]
    return [*rows, *named.values()]


def _by_caption_alone(best: Sequence[WordHit], things: Sequence[_Thing]) -> list[CandidateHit]:
    """The best by words, then the sure hits of further things."""
    named = _named(things)
    ranked = {hit.image_id: _hit(hit, rank) for rank, hit in enumerate(best)}
    later = [hit for image_id, hit in named.items() if image_id not in ranked]
    rows = [
        replace(hit, shares=named[i].shares, spellings=named[i].spellings) if i in named else hit
        for i, hit in ranked.items()
    ]
    return rows + [replace(hit, caption_rank=len(rows) + number) for number, hit in enumerate(later)]


def _named(things: Sequence[_Thing]) -> dict[int, CandidateHit]:
    """All sure hits by image, those of the first thing first."""
    shares: dict[int, list[float]] = defaultdict(lambda: [0.0] * len(things))
    spellings: dict[int, tuple[Spelling, ...]] = defaultdict(tuple)
    hits: dict[int, WordHit] = {}
    for number, thing in enumerate(things):
        spellings[thing.hits[0].image_id] += thing.spellings
        for hit in thing.hits:
            hits.setdefault(hit.image_id, hit)
            shares[hit.image_id][number] = hit.caption_score / thing.hits[0].caption_score
    return {
        image_id: replace(_hit(hit, rank), shares=tuple(shares[image_id]), spellings=spellings[image_id])
        for rank, (image_id, hit) in enumerate(hits.items())
    }


def _hit(hit: WordHit, rank: int) -> CandidateHit:
    cosine = hit.retrieval_score if hit.retrieval_score is not None else 0.0
    return CandidateHit(hit.image_id, cosine, Origin.CAPTION, rank, hit.caption_score)
