"""The words of an archive's images, and the search for those that share words with a question (BM25).

An image's words are those of its caption, of the text in its metadata and of its source. They are derived from its row
in the transaction that changes it, and are search terms in a GIN index beside how many images of the archive have each.

A search ranks by BM25 with these rules: `tf`, how often an image has a word, is the sum of weight / n² over the n-th of
its occurrences, the heaviest field first. That is what `ts_rank` computes, times pi²/6. `length` is the sum of the
weights of all words of the image, `average` that of the archive's images.

    score = sum over words of idf * tf * (K1 + 1) / (tf + K1 * (1 - B + B * length / average))
    idf = ln(1 + (images - images_with_word + 0.5) / (images_with_word + 0.5))
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pgvector import HalfVector
from sqlalchemy import BigInteger, Connection, Row, Text, cast, func, select, text
from sqlalchemy.dialects.postgresql import insert

from ragllava.stores.archives import vectors
from ragllava.stores.archives.filtering import FilterSql
from ragllava.stores.archives.vectors import IndexView, Vectors, partition
from ragllava.stores.database import equals_any, given
from ragllava.stores.schema import image_words, images, vocabulary, word_counts
from ragllava.words import source_words, variants, words_of

log = logging.getLogger(__name__)

K1 = 1.2
B = 0.4
WEIGHTS = {"A": 1.0, "C": 0.5, "D": 0.2}  # of a word of the caption, of metadata, of the source

_TENTHS = {"A": 10, "C": 5, "D": 2}  # the same, as integers whose sums are exact
_TS_RANK_SCALE = 1.64493406685  # `ts_rank` divides by this, the limit of its sum
_OCCURRENCES = 4  # of a word in an image that count
_WORDS_OF_IMAGE = 2_000  # that are stored: a row of Postgres holds about 1 MB of them
_ROWS_PER_STATEMENT = 5_000

# Words that no text has, as they contain a colon: how many images an archive has, and the length of all, in tenths.
_IMAGES, _LENGTH = ":images", ":length"

_QUESTIONS_PER_STATEMENT = 64
_TERMS = 32  # words of a question that count, the rarest ones
_COMBINED = 9  # words whose combinations are weighed against each other
CANDIDATES = 2_000  # expected images that are scored for a question
_MORE_CANDIDATES = 16  # times as many in the next round, if a round gave too few hits


@dataclass(frozen=True, slots=True)
class MatchedWord:
    """A word of an archive that a question and an image share. `images` says how many images of the archive have it.

    `asked` is the word of the question, another one than `word` if it was corrected.
    """

    word: str
    images: int
    asked: str


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


# Writing


def write_words(connection: Connection, archive_id: int, image_ids: Iterable[int]) -> None:
    """Derive the words of these images again from their rows, after a change of them; a retired image has none.

    Writes nothing where nothing changed. Locks the images, by their content as `archive.store_images` does.
    """
    ids = list(set(image_ids))
    for start in range(0, len(ids), _ROWS_PER_STATEMENT):
        _write_page(connection, archive_id, ids[start : start + _ROWS_PER_STATEMENT])


def _write_page(connection: Connection, archive_id: int, image_ids: Sequence[int]) -> None:
    columns = (images.c.id, images.c.caption, images.c.metadata, images.c.source, images.c.retired)
    query = select(*columns).where(images.c.archive_id == archive_id, equals_any(images.c.id, image_ids))
    rows = connection.execute(query.order_by(images.c.sha256).with_for_update(key_share=True)).all()
    # Read after the images are locked: whoever changed them before has committed, and nobody changes them now.
    stored = _stored_words(connection, [row.id for row in rows])
    changes: Counter[str] = Counter()
    new, gone = [], []
    for row in rows:
        before, after = stored.get(row.id), _words_of_row(archive_id, row)
        if before == after:
            continue
        if after is None:
            gone.append(row.id)
        else:
            new.append((row.id, archive_id, after.as_tsvector(), after.tenths / 10))
            changes.update(after.counts())
        if before is not None:
            changes.subtract(before.counts())
    if gone:
        connection.execute(image_words.delete().where(equals_any(image_words.c.image_id, gone)))
    if new:
        _insert_words(connection, new)
    _insert_counts(connection, archive_id, changes)


@dataclass(frozen=True, slots=True)
class _ImageWords:
    """The words of an image, each with its occurrences as in a tsvector (`1A,2A,3`), and their length in tenths."""

    occurrences: Mapping[str, str]
    tenths: int

    def as_tsvector(self) -> str:
        return " ".join(f"'{word}':{places}" if places else f"'{word}'" for word, places in self.occurrences.items())

    def counts(self) -> dict[str, int]:
        """What the image adds to the counts of its archive."""
        words = {word: 1 for word, places in self.occurrences.items() if places}
        return words | {_IMAGES: 1, _LENGTH: self.tenths}


def _words_of_row(archive_id: int, row: Row[Any]) -> _ImageWords | None:
    """The words of a row of `images`; None for a retired one."""
    if row.retired:
        return None
    fields = (
        ("A", words_of(row.caption or "")),
        ("C", [word for value in _texts_in(row.metadata) for word in words_of(value)]),
        ("D", source_words(row.source)),
    )
    places: dict[str, list[str]] = {}
    tenths, left = 0, _WORDS_OF_IMAGE
    for weight, words in fields:
        for word in words[:left]:
            occurrences = places.setdefault(word, [])
            if len(occurrences) < _OCCURRENCES:
                # D is the default weight, which Postgres does not print.
                occurrences.append(f"{len(occurrences) + 1}{weight if weight != 'D' else ''}")
        tenths += _TENTHS[weight] * len(words[:left])
        left -= len(words[:left])
    return _ImageWords({_archive_word(archive_id): "", **{word: ",".join(at) for word, at in places.items()}}, tenths)


def _archive_word(archive_id: int) -> str:
    """The word that all images of an archive have, and no text."""
    return f"a:{archive_id}"


def _texts_in(value: object) -> Iterator[str]:
    """The strings of a JSON value, without the keys of objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(item)


def _stored_words(connection: Connection, image_ids: Sequence[int]) -> dict[int, _ImageWords]:
    columns = (image_words.c.image_id, cast(image_words.c.words, Text).label("words"), image_words.c.length)
    rows = connection.execute(select(*columns).where(equals_any(image_words.c.image_id, image_ids)))
    return {row.image_id: _parsed(row.words, row.length) for row in rows}


def _parsed(tsvector: str, length: float) -> _ImageWords:
    """Reads what `_ImageWords.as_tsvector` wrote, as Postgres prints it."""
    items = (item[1:].split("'") for item in tsvector.split())
    return _ImageWords({word: places[1:] for word, places in items}, round(length * 10))


def _insert_words(connection: Connection, rows: Sequence[tuple[int, int, str, float]]) -> None:
    columns = ("image_id", "archive_id", "words", "length")
    new = given(rows, *(image_words.c[name] for name in columns))
    statement = insert(image_words).from_select(columns, select(new).order_by(new.c.image_id))
    changed = {name: statement.excluded[name] for name in columns[1:]}
    connection.execute(statement.on_conflict_do_update(index_elements=["image_id"], set_=changed))


def _insert_counts(connection: Connection, archive_id: int, changes: Mapping[str, int]) -> None:
    rows = [(archive_id, word, number) for word, number in sorted(changes.items()) if number]
    if not rows:
        return
    new = given(rows, word_counts.c.archive_id, word_counts.c.word, word_counts.c.images)
    connection.execute(insert(word_counts).from_select(["archive_id", "word", "images"], select(new)))
    _insert_vocabulary(connection, [word for _, word, number in rows if number > 0])


def _insert_vocabulary(connection: Connection, words: Sequence[str]) -> None:
    """`words` sorted, so that two writers of the same new words wait for each other and do not run into a deadlock."""
    spelt = {word: variants(word) for word in words}
    offered = given([(word,) for word, spellings in spelt.items() if spellings], vocabulary.c.word)
    present = select(vocabulary.c.word).where(vocabulary.c.word == offered.c.word)
    missing = connection.scalars(select(offered.c.word).where(~present.exists()))
    rows = [(word, " ".join(spelt[word])) for word in sorted(missing)]
    if rows:
        statement = text("""
            INSERT INTO vocabulary (word, variants)
            SELECT word, string_to_array(spellings, ' ')
            FROM unnest(CAST(:words AS text[]), CAST(:spellings AS text[])) AS new (word, spellings)
            ON CONFLICT DO NOTHING
        """)
        new_words, spellings = zip(*rows, strict=True)
        connection.execute(statement, {"words": list(new_words), "spellings": list(spellings)})


# Searching


@dataclass(frozen=True, slots=True)
class _Term:
    """A word of the archive to search for. `weight` is its idf, less for a corrected word."""

    word: str
    images: int
    asked: str
    weight: float


@dataclass(frozen=True, slots=True)
class _Totals:
    """How many images an archive has, and their average length."""

    images: int
    average: float


def search(
    connection: Connection,
    index: IndexView,
    questions: Sequence[str | Sequence[str]],
    limit: int,
    queries: Vectors | None = None,
    filter: FilterSql | None = None,
) -> list[list[WordHit]]:
    """The `limit` images that share most with each question by BM25, best first, ties by image id.

    A question is a text or a list of words. Only images with a vector in this index are returned, and only those that
    `filter` lets pass. Of common words, images with rare combinations of them are scored; the others cannot be better
    than these but for their length.

    queries (Q, D): the questions' vectors, L2-normalised float32; they give the cosines. Raises IndexGone when the
    index was dropped, IndexUnusable when it has another D.
    """
    if queries is not None:
        vectors.check_vectors(index, queries)
    hits: list[list[WordHit]] = []
    with vectors.searching(index):
        for start in range(0, len(questions), _QUESTIONS_PER_STATEMENT):
            part = slice(start, start + _QUESTIONS_PER_STATEMENT)
            of_part = None if queries is None else queries[part]
            hits += _search_batch(connection, index, questions[part], limit, of_part, filter)
    return hits


@dataclass(frozen=True, slots=True)
class _Scope:
    """What the questions of a statement share."""

    index: IndexView
    totals: _Totals
    limit: int
    queries: Vectors | None
    filter: FilterSql | None


def _search_batch(
    connection: Connection,
    index: IndexView,
    questions: Sequence[str | Sequence[str]],
    limit: int,
    queries: Vectors | None,
    filter: FilterSql | None,
) -> list[list[WordHit]]:
    asked = [dict.fromkeys(words_of(each) if isinstance(each, str) else each) for each in questions]
    counts = known_words(connection, index.archive_id, {_IMAGES, _LENGTH}.union(*asked))
    number, tenths = counts.get(_IMAGES, 0), counts.get(_LENGTH, 0)
    hits: list[list[WordHit]] = [[] for _ in questions]
    if not number or not tenths:
        return hits
    scope = _Scope(index, _Totals(number, tenths / 10 / number), limit, queries, filter)
    terms = [_terms(words, counts, scope.totals) for words in asked]
    open_numbers, wanted = [number for number, words in enumerate(terms) if words], CANDIDATES
    while open_numbers:
        conditions = {number: _condition(terms[number], scope.totals.images, wanted) for number in open_numbers}
        for number, row in _score(connection, scope, conditions, terms, wanted).items():
            hits[number] = row
        open_numbers = [n for n in open_numbers if len(hits[n]) < limit and not conditions[n].is_complete]
        wanted *= _MORE_CANDIDATES
    return hits


def _terms(words: Iterable[str], counts: Mapping[str, int], totals: _Totals) -> list[_Term]:
    terms = []
    for word in words:
        if (number := counts.get(word, 0)) > 0:
            idf = math.log(1 + (totals.images - number + 0.5) / (number + 0.5))
            terms.append(_Term(word, number, word, idf))
    return sorted(terms, key=lambda term: (-term.weight, term.word))[:_TERMS]


@dataclass(frozen=True, slots=True)
class _Condition:
    """Which images are scored, as a tsquery; `is_complete`: all that have any of the words."""

    tsquery: str
    is_complete: bool


def _condition(terms: Sequence[_Term], images: int, wanted: int) -> _Condition:
    """The images with the heaviest combinations of words, as many as give about `wanted` images, at least one.

    How many images have a combination is estimated from how many have each word.
    """
    shares = np.array([min(term.images / images, 1.0) for term in terms])
    if images * (1 - np.prod(1 - shares)) <= wanted:
        return _Condition(" | ".join(_quoted(term.word) for term in terms), True)
    rarest = terms[:_COMBINED]
    masks = np.arange(1, 2 ** len(rarest))
    has = (masks[:, None] >> np.arange(len(rarest))) & 1 == 1
    expected = images * np.prod(np.where(has, shares[: len(rarest)], 1 - shares[: len(rarest)]), axis=1)
    order = np.argsort(-(has @ np.array([term.weight for term in rarest])), kind="stable")
    number = max(1, int(np.searchsorted(np.cumsum(expected[order]), wanted, side="right")))
    chosen = {int(mask) for mask in masks[order[:number]]}
    # With a combination, all larger ones are chosen: those of which no part is chosen say it all.
    bits = [1 << bit for bit in range(len(rarest))]
    least = [mask for mask in chosen if not any(mask & bit and mask ^ bit in chosen for bit in bits)]
    clauses = (
        " & ".join(_quoted(term.word) for term, bit in zip(rarest, bits, strict=True) if mask & bit)
        for mask in sorted(least)
    )
    return _Condition(" | ".join(f"({clause})" for clause in clauses), False)


def _quoted(word: str) -> str:
    return f"'{word}'"


def _score(
    connection: Connection,
    scope: _Scope,
    conditions: Mapping[int, _Condition],
    terms: Sequence[Sequence[_Term]],
    wanted: int,
) -> dict[int, list[WordHit]]:
    """The hits of the questions with these numbers, all in one statement."""
    archive_word = _quoted(_archive_word(scope.index.archive_id))
    numbers = list(conditions)
    parameters: dict[str, Any] = {
        **(scope.filter.parameters if scope.filter else {}),
        "numbers": numbers,
        "conditions": [f"{archive_word} & ({conditions[number].tsquery})" for number in numbers],
        "terms": [_array(f'"{_quoted(term.word)}"' for term in terms[number]) for number in numbers],
        "weights": [_array(str(term.weight) for term in terms[number]) for number in numbers],
        "average": scope.totals.average,
        "vectors": None,
    }
    if scope.queries is not None:
        vectors.register_types(connection)
        parameters["vectors"] = [HalfVector(scope.queries[number]) for number in numbers]
    longest = max(len(terms[number]) for number in numbers)
    statement = _statement(scope, -(-longest // 4) * 4, 8 * wanted)  # rounded: few texts, which Postgres has planned
    hits: dict[int, list[WordHit]] = {number: [] for number in numbers}
    for row in connection.exec_driver_sql(statement, parameters):
        matched = (terms[row.number][place - 1] for place in row.matched)
        words = tuple(MatchedWord(term.word, term.images, term.asked) for term in matched)
        hits[row.number].append(WordHit(row.image_id, row.score, row.cosine, words))
    return hits


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
    passing = f"JOIN images i ON i.id = w.image_id AND ({scope.filter.condition})" if scope.filter else ""
    return f"""
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
                    FROM image_words w {passing}
                    WHERE w.words @@ q.condition
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


def known_words(connection: Connection, archive_id: int, words: Iterable[str]) -> dict[str, int]:
    """How many images of the archive have each of the words; without those that none has."""
    query = select(word_counts.c.word, cast(func.sum(word_counts.c.images), BigInteger)).where(
        word_counts.c.archive_id == archive_id, equals_any(word_counts.c.word, words)
    )
    rows = connection.execute(query.group_by(word_counts.c.word))
    return {word: number for word, number in rows if number > 0}


def count_images(connection: Connection, archive_id: int) -> int:
    """How many images of the archive have words: all that are not retired."""
    return known_words(connection, archive_id, [_IMAGES]).get(_IMAGES, 0)
