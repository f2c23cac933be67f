"""The listing of a bucket in temporary tables, so that the database compares it with the recorded states.

A listing may have any order: stores that keep folders do not list by the bytes of keys. Every function works in a
session of its own (`outside_transaction`), whose end removes the tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import BigInteger, Column, Connection, MetaData, Table, Text, text

from ragllava.stores.database import copy_rows, record, records

_listed_objects = Table(
    "listed_objects", MetaData(), Column("key", Text), Column("etag", Text), Column("size_bytes", BigInteger)
)
_COLUMNS = tuple(column.name for column in _listed_objects.columns)


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object of a listing."""

    key: str
    etag: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Difference:
    """An object whose listed state is not the recorded one. `etag` and `size_bytes` are None if it was not listed.

    `is_lost`: a picture whose image is missing.
    """

    key: str
    etag: str | None
    size_bytes: int | None
    is_lost: bool


@dataclass(frozen=True, slots=True)
class Refusals:
    """Objects of which nothing was made and that have not changed: how many, and the first with their reasons."""

    number: int
    first: dict[str, str]


@dataclass(frozen=True, slots=True)
class MissingPictures:
    """How many of the recorded pictures of a binding were not listed."""

    number: int
    pictures: int


def begin(connection: Connection) -> None:
    """Create the tables."""
    connection.execute(text('CREATE TEMP TABLE listed_objects (key text COLLATE "C", etag text, size_bytes bigint)'))


def add(connection: Connection, objects: Iterable[ListedObject]) -> int:
    """Add a part of the listing; returns its length."""
    return copy_rows(connection, _listed_objects, _COLUMNS, ((o.key, o.etag, o.size_bytes) for o in objects))


def compare(connection: Connection, binding_id: int) -> None:
    """Compare the listing with the recorded states of a binding. An object that was listed twice counts once."""
    connection.execute(text("ANALYZE listed_objects"))
    connection.execute(
        text("""
            CREATE TEMP TABLE differing_objects AS
            SELECT coalesce(listed.key, recorded.key) AS key, listed.etag, listed.size_bytes, false AS is_lost
            FROM (SELECT DISTINCT ON (key) * FROM listed_objects ORDER BY key) listed
            FULL JOIN (SELECT key, etag, size_bytes FROM bound_objects WHERE binding_id = :binding_id) recorded
            ON recorded.key = listed.key
            WHERE listed.key IS NULL OR recorded.key IS NULL
               OR (recorded.etag, recorded.size_bytes) IS DISTINCT FROM (listed.etag, listed.size_bytes)
        """),
        {"binding_id": binding_id},
    )
    connection.execute(text("CREATE UNIQUE INDEX ON differing_objects (key)"))


def add_lost(connection: Connection, keys: Sequence[str]) -> None:
    """Add pictures whose image is missing to the differences."""
    connection.execute(
        text("""
            INSERT INTO differing_objects (key, etag, size_bytes, is_lost)
            SELECT lost.key, min(listed.etag), min(listed.size_bytes), true
            FROM unnest(CAST(:keys AS text[])) AS lost (key)
            LEFT JOIN listed_objects listed ON listed.key = lost.key COLLATE "C" GROUP BY lost.key
            ON CONFLICT (key) DO UPDATE SET is_lost = true
        """),
        {"keys": list(keys)},
    )


def missing_pictures(connection: Connection, binding_id: int) -> MissingPictures:
    """The recorded pictures that were not listed."""
    query = text("""
        SELECT count(differing.key) AS number, count(*) AS pictures FROM bound_objects
        LEFT JOIN differing_objects differing ON differing.key = bound_objects.key AND differing.etag IS NULL
        WHERE binding_id = :binding_id AND kind = 'picture'
    """)
    return record(MissingPictures, connection.execute(query, {"binding_id": binding_id}).one())


def leave_missing(connection: Connection) -> int:
    """Leave out the objects that were not listed; returns how many."""
    return connection.execute(text("DELETE FROM differing_objects WHERE etag IS NULL")).rowcount


def differences(connection: Connection, after: str, limit: int) -> list[Difference]:
    """The next differences, by key."""
    query = text("SELECT * FROM differing_objects WHERE key > :after ORDER BY key LIMIT :limit")
    return records(Difference, connection.execute(query, {"after": after, "limit": limit}))


def refusals(connection: Connection, binding_id: int, shown: int) -> Refusals:
    """The refused objects of a binding that are not among the differences."""
    condition = """
        FROM bound_objects WHERE binding_id = :binding_id AND reason IS NOT NULL AND kind <> 'other'
        AND NOT EXISTS (SELECT FROM differing_objects WHERE differing_objects.key = bound_objects.key)
    """
    values = {"binding_id": binding_id, "shown": shown}
    first = connection.execute(text(f"SELECT key, reason {condition} ORDER BY key LIMIT :shown"), values)
    number = connection.scalar(text(f"SELECT count(*) {condition}"), values)
    return Refusals(number or 0, dict(first.all()))
