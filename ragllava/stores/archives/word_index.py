"""The words of images: derived from their rows, written beside them, kept in order and checked.

An image's words are those of its caption, of the text in its metadata and of its source. `image_words` holds them as
search terms, `word_counts` how many images of an archive have each, `vocabulary` how each may be misspelt. All are
written in the transaction that changes the image. texts.py searches them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, Text, cast, func, select, text
from sqlalchemy.dialects.postgresql import insert

from ragllava.stores.database import equals_any, given, in_transaction
from ragllava.stores.schema import archives, image_words, images, vocabulary, word_counts
from ragllava.words import WORDS_VERSION, source_words, variants, words_of

log = logging.getLogger(__name__)

WEIGHTS = {"A": 1.0, "C": 0.5, "D": 0.2}  # of a word of the caption, of metadata, of the source
_TENTHS = {"A": 10, "C": 5, "D": 2}  # the same, as integers whose sums are exact
_OCCURRENCES = 4  # of a word in an image that count
_WORDS_OF_IMAGE = 2_000  # that are stored: a row of Postgres holds about 1 MB of them
_ROWS_PER_PAGE = 5_000

# Words that no text has, as they contain a colon: how many images an archive has, and the length of all, in tenths.
IMAGES, LENGTH = ":images", ":length"

# Advisory locks: writers share the first, and words are removed from the vocabulary while there are none; one process
# at a time sums up the counts of an archive.
_VOCABULARY_LOCK = 0x52615631
_COUNTS_SPACE = 0x52615743
_MANY_ROWS = 256  # of a word: as many writes of the archive since its counts were summed up


def write_words(connection: Connection, archive_id: int, image_ids: Iterable[int]) -> None:
    """Derive the words of these images again from their rows, after a change of them; a retired image has none.

    Writes nothing where nothing changed. Locks the images, by their content as `archive.store_images` does.
    """
    ids = list(set(image_ids))
    for start in range(0, len(ids), _ROWS_PER_PAGE):
        _write_page(connection, archive_id, ids[start : start + _ROWS_PER_PAGE])


def _write_page(connection: Connection, archive_id: int, image_ids: Sequence[int]) -> None:
    columns = (images.c.id, images.c.caption, images.c.metadata, images.c.source, images.c.retired)
    query = select(*columns).where(images.c.archive_id == archive_id, equals_any(images.c.id, image_ids))
    rows = connection.execute(query.order_by(images.c.sha256).with_for_update(key_share=True)).all()
    # Read after the images are locked: whoever changed them before has committed, and nobody changes them now.
    stored = _stored_words(connection, [row.id for row in rows])
    changes: Counter[str] = Counter()
    new, gone = [], []
    for row in rows:
        before = stored.get(row.id)
        after = None if row.retired else _derived(archive_id, row.caption, row.metadata, row.source)
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
    """The lexemes of an image, each with its occurrences as in a tsvector (`1A,2A,3`), and their length in tenths."""

    occurrences: Mapping[str, str]
    tenths: int

    def as_tsvector(self) -> str:
        return " ".join(f"'{each}':{places}" for each, places in self.occurrences.items())

    def counts(self) -> dict[str, int]:
        """What the image adds to the counts of its archive."""
        words = {each.partition(":")[2]: 1 for each in self.occurrences}
        return words | {IMAGES: 1, LENGTH: self.tenths}


def _derived(archive_id: int, caption: str | None, metadata: object, source: str) -> _ImageWords:
    """The words of an image, from the columns of its row."""
    fields = (
        ("A", words_of(caption or "")),
        ("C", [word for value in _texts_in(metadata) for word in words_of(value)]),
        ("D", source_words(source)),
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
    return _ImageWords({lexeme(archive_id, word): ",".join(at) for word, at in places.items()}, tenths)


def words_of_row(caption: str | None, metadata: object, source: str) -> set[str]:
    """The words of an image, from the columns of its row."""
    derived = _derived(0, caption, metadata, source)
    return set(derived.counts()) - {IMAGES, LENGTH}


def lexeme(archive_id: int, word: str) -> str:
    """The word as it stands in `image_words`: with its archive, so that a search reads the images of no other one."""
    return f"{archive_id}:{word}"


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
    return _ImageWords({each: places[1:] for each, places in items}, round(length * 10))


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
    """Sorted, so that two writers of the same new words wait for each other and do not run into a deadlock."""
    # A statement of its own: what the next ones read must be what there is while nobody removes words.
    connection.execute(select(func.pg_advisory_xact_lock_shared(_VOCABULARY_LOCK)))
    spelt = {word: _spellings(word) for word in words}
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


def _spellings(word: str) -> list[str]:
    """The variants of a word, none for a word that no text has."""
    return [] if word in (IMAGES, LENGTH) else variants(word)


# Upkeep


def compact_often_written(connection: Connection, archive_id: int) -> None:
    """Sum up the counts of an archive if many rows were added since. Each write adds one for each of its words."""
    rows = select(func.count()).where(word_counts.c.archive_id == archive_id, word_counts.c.word == IMAGES)
    if connection.execute(rows).scalar_one() > _MANY_ROWS:
        compact(connection, archive_id)


def compact(connection: Connection, archive_id: int | None = None) -> None:
    """Replace the rows of each word's count by their sum, or by none where it is 0; None: of all archives.

    For all archives, also removes the words from the vocabulary that no archive has any more, if nobody writes words
    now. Safe beside writers, and leaves out an archive that another process is summing up.
    """
    ids = [archive_id] if archive_id is not None else list(connection.scalars(select(archives.c.id)))
    for each in ids:
        if connection.scalar(select(func.pg_try_advisory_xact_lock(_COUNTS_SPACE, func.hashint8(each)))):
            connection.execute(text(_SUM_UP), {"archive_id": each})
    if archive_id is None and connection.scalar(select(func.pg_try_advisory_xact_lock(_VOCABULARY_LOCK))):
        counted = select(word_counts.c.word).where(word_counts.c.word == vocabulary.c.word)
        connection.execute(vocabulary.delete().where(~counted.exists()))


def forget(connection: Connection, archive_id: int | None, words: Iterable[str]) -> None:
    """Remove those of the words that no image has any more from the counts of an archive and from the vocabulary.

    Waits for writers of words, where `compact` leaves the vocabulary alone; None: the archive has no counts any more.
    """
    listed = list(words)
    if archive_id is not None:
        connection.execute(select(func.pg_advisory_xact_lock(_COUNTS_SPACE, func.hashint8(archive_id))))
        connection.execute(text(_FORGET), {"archive_id": archive_id, "words": listed})
    connection.execute(select(func.pg_advisory_xact_lock(_VOCABULARY_LOCK)))
    counted = select(word_counts.c.word).where(word_counts.c.word == vocabulary.c.word, word_counts.c.images > 0)
    connection.execute(vocabulary.delete().where(equals_any(vocabulary.c.word, listed), ~counted.exists()))


_FORGET = """
    DELETE FROM word_counts WHERE archive_id = :archive_id AND word IN (
        SELECT word FROM word_counts WHERE archive_id = :archive_id AND word = ANY(:words)
        GROUP BY word HAVING sum(images) = 0)
"""

_SUM_UP = """
    WITH summed AS (
        SELECT word FROM word_counts WHERE archive_id = :archive_id
        GROUP BY word HAVING count(*) > 1 OR sum(images) = 0
    ), removed AS (
        DELETE FROM word_counts c USING summed s WHERE c.archive_id = :archive_id AND c.word = s.word
        RETURNING c.word, c.images
    )
    INSERT INTO word_counts (archive_id, word, images)
    SELECT :archive_id, word, sum(images) FROM removed GROUP BY word HAVING sum(images) <> 0
"""


def rebuild_outdated(engine: Engine) -> None:
    """Write the words of those archives again that were written by an older version of the rules, or never.

    May be interrupted, and run by several processes at once; ingests and searches continue. An archive counts as
    written when all of it is.
    """
    outdated = select(archives.c.id, archives.c.name).where(archives.c.words_version < WORDS_VERSION)
    for archive_id, name in in_transaction(engine, lambda connection: connection.execute(outdated).all()):
        done = last = 0
        while page := in_transaction(engine, _write_next_page, archive_id, last):
            done, last = done + len(page), page[-1]
            log.info("words written", extra={"action": "words_written", "archive": name, "images": done})
        in_transaction(engine, _finish_rebuild, archive_id)


def mark_outdated(connection: Connection) -> None:
    """Let the next `rebuild_outdated` write the words of all archives, whatever is there."""
    connection.execute(archives.update().values(words_version=0))


def _write_next_page(connection: Connection, archive_id: int, after: int) -> list[int]:
    """Write the words of the next images by id; returns their ids."""
    query = select(images.c.id).where(images.c.archive_id == archive_id, images.c.id > after)
    page = list(connection.scalars(query.order_by(images.c.id).limit(_ROWS_PER_PAGE)))
    write_words(connection, archive_id, page)
    return page


def _finish_rebuild(connection: Connection, archive_id: int) -> None:
    # Differences are added: writers may add others meanwhile.
    correct = text(f"""
        INSERT INTO word_counts (archive_id, word, images)
        SELECT :archive_id, word, is_number - was_number FROM ({_COUNTS}) counts WHERE is_number <> was_number
    """)  # noqa: S608 - our own text
    connection.execute(correct, _counts_parameters(archive_id))
    compact(connection, archive_id)
    words = connection.scalars(select(word_counts.c.word).where(word_counts.c.archive_id == archive_id).distinct())
    _insert_vocabulary(connection, sorted(words))
    version = archives.update().where(archives.c.id == archive_id).values(words_version=WORDS_VERSION)
    connection.execute(version)


# The counts of an archive: as the rows of its images are, and as they are stored.
_COUNTS = """
    SELECT word, coalesce(counted.number, 0) AS is_number, coalesce(stored.number, 0) AS was_number
    FROM (
        SELECT substr(word, strpos(word, ':') + 1) COLLATE "C" AS word, ndoc::bigint AS number FROM ts_stat(:rows)
        UNION ALL SELECT :images, count(*) FROM image_words WHERE archive_id = :archive_id HAVING count(*) > 0
        UNION ALL SELECT :length, sum(round(length * 10))::bigint FROM image_words WHERE archive_id = :archive_id
        HAVING count(*) > 0
    ) counted
    FULL JOIN (
        SELECT word, sum(images)::bigint AS number FROM word_counts WHERE archive_id = :archive_id GROUP BY word
    ) stored USING (word)
"""


def _counts_parameters(archive_id: int) -> dict[str, Any]:
    return {
        "archive_id": archive_id,
        "rows": f"SELECT words FROM image_words WHERE archive_id = {archive_id:d}",  # noqa: S608 - a number
        "images": IMAGES,
        "length": LENGTH,
    }


@dataclass(frozen=True, slots=True)
class Disagreements:
    """Where the words of an archive are not what its images say, by id: `missing` images have no words, `superfluous`
    ones are retired and have some. `counts` are words whose count is wrong, `unlisted` words that the vocabulary lacks.
    """

    missing: tuple[int, ...]
    superfluous: tuple[int, ...]
    different: tuple[int, ...]
    counts: tuple[str, ...]
    unlisted: tuple[str, ...]

    @property
    def number(self) -> int:
        """Of all kinds; 0: the words are right."""
        return sum(map(len, (self.missing, self.superfluous, self.different, self.counts, self.unlisted)))

    @property
    def example(self) -> str | None:
        """One of them, for people."""
        ids, words = (*self.missing, *self.superfluous, *self.different), (*self.counts, *self.unlisted)
        return f"image {ids[0]}" if ids else f"the word {words[0]!r}" if words else None


def disagreements(connection: Connection, archive_id: int) -> Disagreements:
    """Compare all words of an archive with what `write_words` would write. Reads only; about a minute a million."""
    wrong: dict[str, list[int]] = {"missing": [], "superfluous": [], "different": []}
    for row in _all_rows(connection, archive_id):
        before = None if row.words is None else _parsed(row.words, row.length)
        after = None if row.retired else _derived(archive_id, row.caption, row.metadata, row.source)
        if before != after:
            kind = "missing" if before is None else "superfluous" if after is None else "different"
            wrong[kind].append(row.id)
    counts = connection.execute(text(_COUNTS), _counts_parameters(archive_id)).all()
    listed = select(vocabulary.c.word).where(vocabulary.c.word == word_counts.c.word)
    unlisted = select(word_counts.c.word).where(word_counts.c.archive_id == archive_id, ~listed.exists()).distinct()
    return Disagreements(
        **{kind: tuple(ids) for kind, ids in wrong.items()},
        counts=tuple(sorted(row.word for row in counts if row.is_number != row.was_number)),
        unlisted=tuple(sorted(word for word in connection.scalars(unlisted) if _spellings(word))),
    )


def _all_rows(connection: Connection, archive_id: int) -> Iterator[Row[Any]]:
    """The images of an archive with their words. A page is one statement, so that both are of the same moment."""
    after = 0
    columns = (images.c.id, images.c.caption, images.c.metadata, images.c.source, images.c.retired)
    query = (
        select(*columns, cast(image_words.c.words, Text).label("words"), image_words.c.length)
        .outerjoin_from(images, image_words, image_words.c.image_id == images.c.id)
        .where(images.c.archive_id == archive_id)
        .order_by(images.c.id)
        .limit(_ROWS_PER_PAGE)
    )
    while page := connection.execute(query.where(images.c.id > after)).all():
        yield from page
        after = page[-1].id
