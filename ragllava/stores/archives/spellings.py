"""Words that nothing of an archive has: what is surely meant, if a caption spells it with another letter or two."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from sqlalchemy import BigInteger, Connection, cast, func, select

from ragllava.stores.database import equals_any
from ragllava.stores.schema import vocabulary, word_counts
from ragllava.words import distance, is_correctable, variants

_MOST_NEIGHBOURS = 3  # a word with more is not corrected
_LONG_WORD = 9  # characters; differs from what is meant by up to two


def known_words(connection: Connection, archive_id: int, words: Iterable[str]) -> dict[str, int]:
    """How many images of the archive have each of the words; without those that none has."""
    query = select(word_counts.c.word, cast(func.sum(word_counts.c.images), BigInteger)).where(
        word_counts.c.archive_id == archive_id, equals_any(word_counts.c.word, words)
    )
    rows = connection.execute(query.group_by(word_counts.c.word))
    return {word: number for word, number in rows if number > 0}


def corrections(connection: Connection, archive_id: int, words: Iterable[str]) -> dict[str, list[str]]:
    """For words that the archive does not have, up to three of its words that may be meant, best first.

    They begin with the same letter and differ by one inserted, missing, wrong or exchanged character, a long word by
    two if there is none with one. A word with more than three such neighbours is not corrected: a word of ordinary
    language has many in a large archive of names, and one of them would be a guess. Nor are numbers, short words and
    words that questions are made of.
    """
    asked = set(words)
    unknown = asked - known_words(connection, archive_id, asked).keys()
    return {word: list(meant) for word, meant in meant_words(connection, archive_id, unknown).items()}


def meant_words(connection: Connection, archive_id: int, unknown: Iterable[str]) -> dict[str, dict[str, int]]:
    """The corrections of words that the archive does not have, each with how many images have it."""
    keys = {word: _keys(word) for word in unknown if is_correctable(word)}
    if not keys:
        return {}
    words_by_key: dict[str, list[str]] = defaultdict(list)
    for word, of_word in keys.items():
        for key in of_word:
            words_by_key[key].append(word)
    query = select(vocabulary.c.word, vocabulary.c.variants).where(vocabulary.c.variants.overlap(list(words_by_key)))
    neighbours: dict[str, dict[str, int]] = defaultdict(dict)  # how far each is
    for row in connection.execute(query):
        for word in {word for key in row.variants for word in words_by_key.get(key, ())}:
            if row.word[0] == word[0] and (far := distance(word, row.word)) <= _farthest(word):
                neighbours[word][row.word] = far
    counts = known_words(connection, archive_id, {each for of_word in neighbours.values() for each in of_word})
    meant = {}
    for word, distances in neighbours.items():
        present = {each: far for each, far in distances.items() if each in counts}
        nearest = [each for each, far in present.items() if far == min(present.values())]
        if 0 < len(nearest) <= _MOST_NEIGHBOURS:
            meant[word] = {each: counts[each] for each in sorted(nearest, key=lambda each: (-counts[each], each))}
    return meant


def _farthest(word: str) -> int:
    return 2 if len(word) >= _LONG_WORD else 1


def _keys(word: str) -> set[str]:
    """What a neighbour of the word has among its variants: for a long word also what is left without two characters."""
    once = variants(word)
    return set(once) if _farthest(word) == 1 else {key for each in once for key in [each, *variants(each)]}
