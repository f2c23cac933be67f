"""The search for images whose words a question has (BM25): the words of captions, metadata and file names.

The words are derived from the rows of images by word_index.py. A search ranks by BM25 with these rules: `tf`, how often
an image has a word, is the sum of weight / n² over the n-th of its occurrences, the heaviest field first. That is what
`ts_rank` computes, times pi²/6. `length` is the sum of the weights of all words of the image, `average` that of the
archive's images.

    score = sum over words of idf * tf * (K1 + 1) / (tf + K1 * (1 - B + B * length / average))
    idf = ln(1 + (images - images_with_word + 0.5) / (images_with_word + 0.5))
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pgvector import HalfVector
from sqlalchemy import Connection

from ragllava.stores.archives import vector_search, vectors
from ragllava.stores.archives.filtering import FilterSql
from ragllava.stores.archives.spellings import known_words, meant_words
from ragllava.stores.archives.vectors import IndexView, Vectors, partition
from ragllava.stores.archives.word_index import IMAGES, LENGTH, WEIGHTS, lexeme
from ragllava.words import may_be_misspelt, words_of

K1 = 1.2
B = 0.4
CORRECTED = 0.5  # the weight of a word that was not asked for, but may be meant
_TS_RANK_SCALE = 1.64493406685  # `ts_rank` divides by this, the limit of its sum

_QUESTIONS_PER_STATEMENT = 64
_TERMS = 32  # words of a question that count, the rarest ones
_COMBINED = 7  # words whose combinations are weighed against each other
_NEVER = "!"
CANDIDATES = 500  # expected images that are scored for a question, at least
_MORE_CANDIDATES = 16  # times as many in the next round, if a round gave too few hits


@dataclass(frozen=True, slots=True)
class MatchedWord:
    """A word of an archive that a question and an image share. `images` says how many images of the archive have it.

    `asked` is the word of the question, another one than `word` if it was corrected; then `rivals` says how many other
    words of the archive may be meant as well.
    """

    word: str
    images: int
    asked: str
    rivals: int = 0


@dataclass(frozen=True, slots=True)
class WordHit:
    """An image that shares words with a question.

    `caption_score` is its BM25. `retrieval_score` is the cosine of the two vectors, None without the question's.
    `matched` has the rarest word first.
    """

    image_id: int
    caption_score: float
    retrieval_score: float | None
    matched: tuple[MatchedWord, ...]


@dataclass(frozen=True, slots=True)
class AskedWords:
    """The words of a question, each once, in order. `doubtful` are those that may be misspelt."""

    words: tuple[str, ...]
    doubtful: frozenset[str]

    @classmethod
    def of(cls, text: str) -> AskedWords:
        """The words of a text; where capitals mark names, only those with a capital are doubtful."""
        return cls(tuple(dict.fromkeys(words_of(text))), frozenset(may_be_misspelt(text)))

    def without(self, words: Collection[str]) -> AskedWords:
        """The other words."""
        return replace(self, words=tuple(word for word in self.words if word not in words))


@dataclass(frozen=True, slots=True)
class ArchiveWords:
    """How many images of an archive have each of the words that some questions ask for.

    `meant` has the corrections (see `corrections`) of doubtful words that the archive does not have.
    """

    counts: Mapping[str, int]
    meant: Mapping[str, Mapping[str, int]]

    @classmethod
    def read(cls, connection: Connection, archive_id: int, questions: Sequence[AskedWords]) -> ArchiveWords:
        """The words of these questions."""
        words = {IMAGES, LENGTH}.union(*(asked.words for asked in questions))
        counts = known_words(connection, archive_id, words)
        doubtful = {word for asked in questions for word in asked.doubtful}
        return cls(counts, meant_words(connection, archive_id, doubtful - counts.keys()))

    @property
    def images(self) -> int:
        """How many images of the archive have words: all that are not retired."""
        return self.counts.get(IMAGES, 0)

    def fewest(self, asked: AskedWords) -> int | None:
        """How many images have the rarest of the words, or of what a word may mean; None if no image has any."""
        numbers = [self.counts[word] for word in asked.words if word in self.counts]
        numbers += [number for word in asked.words for number in self._meant_by(asked, word).values()]
        return min(numbers, default=None)

    def terms(self, asked: AskedWords) -> list[_Term]:
        """The words of the archive that the question has or may mean, the rarest first."""
        terms: dict[str, _Term] = {}
        for word in asked.words:
            if (number := self.counts.get(word, 0)) > 0:
                terms[word] = _Term(word, number, word, self._idf(number))
        for word in asked.words:
            for correction, number in self._meant_by(asked, word).items():
                weight, rivals = CORRECTED * self._idf(number), len(self._meant_by(asked, word)) - 1
                terms.setdefault(correction, _Term(correction, number, word, weight, rivals))
        return sorted(terms.values(), key=lambda term: (-term.weight, term.word))[:_TERMS]

    def _meant_by(self, asked: AskedWords, word: str) -> Mapping[str, int]:
        return self.meant.get(word, {}) if word in asked.doubtful else {}

    def _idf(self, number: int) -> float:
        return math.log(1 + (self.images - number + 0.5) / (number + 0.5))


@dataclass(frozen=True, slots=True)
class _Term:
    """A word of the archive to search for. `weight` is its idf, less for a corrected word."""

    word: str
    images: int
    asked: str
    weight: float
    rivals: int = 0  # of a corrected word: others that may be meant


def search(
    connection: Connection,
    index: IndexView,
    questions: Sequence[AskedWords],
    limit: int,
    queries: Vectors | None = None,
    filter: FilterSql | None = None,
    words: ArchiveWords | None = None,
) -> list[list[WordHit]]:
    """The `limit` images that share most with each question by BM25, best first, ties by image id.

    A doubtful word that the archive does not have counts as what it probably means (`corrections`), with less weight.
    Only images with a vector in this index are returned, and only those that `filter` lets pass. Of common words, only
    images with rare combinations of them are scored; the others could be better than these only by their length.

    queries (Q, D): the questions' vectors, L2-normalised float32; they give the cosines. `words` are the archive's, of
    these questions or of more, if they were read before. Raises IndexGone when the index was dropped, IndexUnusable
    when it has another D.
    """
    known = words or ArchiveWords.read(connection, index.archive_id, questions)
    return _search(connection, questions, _Search(index, limit, filter, known, is_full=True), queries)


def strongest(
    connection: Connection,
    index: IndexView,
    questions: Sequence[AskedWords],
    limit: int,
    queries: Vectors | None,
    filter: FilterSql | None,
    words: ArchiveWords,
) -> list[list[WordHit]]:
    """As `search`, but a question that has any hit may get fewer than there are: only the images with its rarest
    combinations of words are scored. Twice as fast."""
    return _search(connection, questions, _Search(index, limit, filter, words, is_full=False), queries)


@dataclass(frozen=True, slots=True)
class _Search:
    """What all questions of a search share. `is_full`: as many hits as the limit, if there are so many."""

    index: IndexView
    limit: int
    filter: FilterSql | None
    words: ArchiveWords
    is_full: bool


def _search(
    connection: Connection, questions: Sequence[AskedWords], wanted: _Search, queries: Vectors | None
) -> list[list[WordHit]]:
    index, words = wanted.index, wanted.words
    if queries is not None:
        vectors.check_vectors(index, queries)
    average = words.counts.get(LENGTH, 0) / 10 / max(1, words.images)
    hits: list[list[WordHit]] = []
    with vectors.searching(index):
        few = vector_search.few_images(connection, index, wanted.filter) if wanted.filter else None
        for start in range(0, len(questions), _QUESTIONS_PER_STATEMENT):
            part = slice(start, start + _QUESTIONS_PER_STATEMENT)
            of_part = None if queries is None else queries[part]
            terms = [words.terms(asked) if average else [] for asked in questions[part]]
            least = wanted.limit if wanted.is_full else 1
            scope = _Scope(index, words.images, average, wanted.limit, least, of_part, wanted.filter, few)
            hits += _search_batch(connection, scope, terms)
    return hits


@dataclass(frozen=True, slots=True)
class _Scope:
    """What the questions of a statement share."""

    index: IndexView
    images: int  # of the archive
    average: float  # length of an image's words
    limit: int
    least: int  # hits, if there are so many
    queries: Vectors | None
    filter: FilterSql | None
    few: Sequence[int] | None  # the images that the filter leaves, if these are few

    def tsquery(self, term: _Term) -> str:
        """The term as a tsquery."""
        return f"'{lexeme(self.index.archive_id, term.word)}'"


def _search_batch(connection: Connection, scope: _Scope, terms: Sequence[Sequence[_Term]]) -> list[list[WordHit]]:
    hits: list[list[WordHit]] = [[] for _ in terms]
    open_numbers = [number for number, words in enumerate(terms) if words]
    wanted = max(CANDIDATES, 2 * scope.limit) if scope.few is None else scope.images
    while open_numbers:
        conditions = {number: _condition(scope, terms[number], wanted) for number in open_numbers}
        for number, row in _score(connection, scope, conditions, terms, wanted).items():
            hits[number] = row
        open_numbers = [n for n in open_numbers if len(hits[n]) < scope.least and not conditions[n].is_complete]
        wanted *= _MORE_CANDIDATES
    return hits


@dataclass(frozen=True, slots=True)
class _Condition:
    """Which images are scored, as a tsquery; `is_complete`: all that have any of the words."""

    tsquery: str
    is_complete: bool


def _condition(scope: _Scope, terms: Sequence[_Term], wanted: int) -> _Condition:
    """The images with the heaviest combinations of words, as many combinations as give about `wanted` images.

    How many images have a combination is estimated from how many have each word.
    """
    queries = [scope.tsquery(term) for term in terms]
    shares = np.array([min(term.images / scope.images, 1.0) for term in terms])
    if scope.images * (1 - np.prod(1 - shares)) <= wanted:
        return _Condition(" | ".join(queries), True)
    weights, shares = np.array([term.weight for term in terms[:_COMBINED]]), shares[:_COMBINED]
    masks = np.arange(1, 2 ** len(weights))
    has = (masks[:, None] >> np.arange(len(weights))) & 1 == 1
    expected = scope.images * np.prod(np.where(has, shares, 1 - shares), axis=1)
    order = np.argsort(-(has @ weights), kind="stable")
    number = max(1, int(np.searchsorted(np.cumsum(expected[order]), wanted, side="right")))
    return _Condition(_any_of({int(mask) for mask in masks[order[:number]]}, queries[:_COMBINED]), False)


def _any_of(combinations: AbstractSet[int], queries: Sequence[str], place: int = 0, mask: int = 0) -> str:
    """A tsquery for the combinations of words (bit n: word n) that contain `mask` and any words from `place` on.

    "" if `mask` itself suffices, `_NEVER` if nothing does. A larger combination is in the set with each smaller. Words
    are factored out: the index evaluates the query once for each image that has one of the rarest words.
    """
    if place == len(queries):
        return "" if mask in combinations else _NEVER
    without = _any_of(combinations, queries, place + 1, mask)
    within = _any_of(combinations, queries, place + 1, mask | 1 << place) if without else ""
    if within == without:
        return without
    query = f"{queries[place]} & ({within})" if within else queries[place]
    return query if without == _NEVER else f"{query} | {without}"


def _score(
    connection: Connection,
    scope: _Scope,
    conditions: Mapping[int, _Condition],
    terms: Sequence[Sequence[_Term]],
    wanted: int,
) -> dict[int, list[WordHit]]:
    """The hits of the questions with these numbers, all in one statement."""
    numbers = list(conditions)
    parameters: dict[str, Any] = {
        **(scope.filter.parameters if scope.filter else {}),
        "numbers": numbers,
        "conditions": [conditions[number].tsquery for number in numbers],
        "terms": [_array(f'"{scope.tsquery(term)}"' for term in terms[number]) for number in numbers],
        "weights": [_array(str(term.weight) for term in terms[number]) for number in numbers],
        "average": scope.average,
        "vectors": None,
        "few": scope.few,
    }
    if scope.queries is not None:
        vectors.register_types(connection)
        parameters["vectors"] = [HalfVector(scope.queries[number]) for number in numbers]
    longest = max(len(terms[number]) for number in numbers)
    statement = _statement(scope, -(-longest // 4) * 4, 8 * wanted)  # rounded: few texts, which Postgres has planned
    hits: dict[int, list[WordHit]] = {number: [] for number in numbers}
    for row in connection.exec_driver_sql(statement, parameters):
        matched = (terms[row.number][place - 1] for place in row.matched)
        words = sorted((MatchedWord(term.word, term.images, term.asked, term.rivals) for term in matched), key=_rarity)
        hits[row.number].append(WordHit(row.image_id, row.score, row.cosine, tuple(words)))
    return hits


def _rarity(word: MatchedWord) -> tuple[int, str]:
    return word.images, word.word


def _array(items: Iterable[str]) -> str:
    return f"{{{','.join(items)}}}"


def _statement(scope: _Scope, terms: int, most: int) -> str:
    """`terms`: how many the longest question has; `most`: so many images are scored for a question.

    The candidates are limited before they are scored. The sum is written out, which is several times faster than a join
    with the terms; a question with fewer of them has NULL in place of the last ones.
    """
    weights = _array(str(WEIGHTS.get(letter, 0)) for letter in "DCBA")
    summands = (
        f"coalesce(q.weights[{n}] / (1 + c.norm / nullif(ts_rank('{weights}', c.words, q.terms[{n}]), 0)), 0)"
        for n in range(1, terms + 1)
    )
    index_id = scope.index.index_id
    prefix, source, is_left = "", "image_words", "true"
    if scope.few is not None:
        prefix = "WITH few AS MATERIALIZED (SELECT * FROM image_words WHERE image_id = ANY(%(few)s::bigint[]))"
        source = "few"
    elif scope.filter is not None:  # a subquery that yields a value is evaluated row by row, after the index was read
        is_left = f"(SELECT {scope.filter.condition} FROM images i WHERE i.id = w.image_id)"  # noqa: S608 - as below
    return f"""
        {prefix}
        SELECT q.number, hit.image_id, hit.score, hit.cosine, array(
            SELECT place FROM unnest(q.terms) WITH ORDINALITY AS term (query, place)
            WHERE hit.words @@ query ORDER BY place
        ) AS matched
        FROM (
            SELECT number, condition::tsquery AS condition, terms::text[]::tsquery[] AS terms,
                   weights::float8[] AS weights, vector
            FROM unnest(%(numbers)s::int[], %(conditions)s::text[], %(terms)s::text[], %(weights)s::text[],
                        %(vectors)b::halfvec[]) AS given (number, condition, terms, weights, vector)
            OFFSET 0
        ) q
        CROSS JOIN LATERAL (
            SELECT scored.image_id, scored.score, scored.words, -(e.vector <#> q.vector) AS cosine
            FROM (
                SELECT c.image_id, c.words, {K1 + 1} * ({" + ".join(summands)}) AS score
                FROM (
                    SELECT w.image_id, w.words,
                           {K1 / _TS_RANK_SCALE} * ({1 - B} + {B} * w.length / %(average)s::float8) AS norm
                    FROM {source} w
                    WHERE w.words @@ q.condition AND {is_left}
                    LIMIT {most:d}
                ) c
                ORDER BY score DESC, c.image_id
            ) scored
            JOIN {partition(index_id)} e ON e.index_id = {index_id:d} AND e.image_id = scored.image_id
            ORDER BY scored.score DESC, scored.image_id
            LIMIT {scope.limit:d}
        ) hit
        ORDER BY q.number, hit.score DESC, hit.image_id
    """  # noqa: S608 - numbers of our own, and a condition that filtering.py made


def count_images(connection: Connection, archive_id: int) -> int:
    """How many images of the archive have words: all that are not retired."""
    return known_words(connection, archive_id, [IMAGES]).get(IMAGES, 0)
