"""The rows of the caption files under a binding, in the database: one picture costs one lookup.

Which row belongs to which picture, stages/ingest/names.py decides; names that may fit have the same root
(metadata.name_root). Of two files that name the same picture, the first by key counts. Every function works in the
caller's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import Column, Connection, Integer, MetaData, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from ragllava.metadata import Metadata, name_root
from ragllava.stores.database import copy_rows
from ragllava.stores.maintenance import inspection

MAX_NAME_BYTES = 1_024  # a longer name fits no key
_NAMES_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class ListedCaption:
    """What a caption file says about one picture."""

    caption: str | None
    metadata: Metadata | None


@dataclass(frozen=True, slots=True)
class NamesNear:
    """Names that may fit each other: of caption files, and of pictures with their keys."""

    captions: list[str]
    pictures: list[tuple[str, str]]


NamedCaption = tuple[str, ListedCaption]  # the picture's name (metadata.picture_name) and what is said about it

_new_captions = Table(
    "new_captions",
    MetaData(),
    Column("row_no", Integer),
    Column("name", Text),
    Column("root", Text),
    Column("caption", Text),
    Column("metadata", JSONB),
)
_COLUMNS = tuple(column.name for column in _new_captions.columns)


def replace_file(
    connection: Connection,
    binding_id: int,
    file: str,
    rows: Iterable[NamedCaption],
    merge: Callable[[Sequence[ListedCaption]], ListedCaption],
) -> int:
    """Replace the rows of one caption file, and mark the pictures whose caption may differ as due; returns how many.

    `rows` are read once and kept in the database only. Several rows of one name are merged by `merge`. Names that no
    key can have are left out.
    """
    inspection.allow_minutes(connection)  # a file may have millions of rows
    connection.execute(
        text("""
            CREATE TEMP TABLE new_captions
            (row_no integer, name text COLLATE "C", root text COLLATE "C", caption text, metadata jsonb)
            ON COMMIT DROP
        """)
    )
    copy_rows(connection, _new_captions, _COLUMNS, _numbered(rows))
    connection.execute(text("CREATE INDEX ON new_captions (name, row_no)"))
    connection.execute(text("ANALYZE new_captions"))
    _merge_repeated(connection, merge)
    values = {"binding_id": binding_id, "file": file}
    connection.execute(
        text("""
            CREATE TEMP TABLE changed_captions ON COMMIT DROP AS
            SELECT coalesce(new.name, old.name) AS name, coalesce(new.root, old.root) AS root,
                   new.name IS NULL AS gone, new.caption, new.metadata
            FROM (SELECT * FROM new_captions WHERE caption IS NOT NULL OR metadata IS NOT NULL) new
            FULL JOIN (SELECT * FROM listed_captions WHERE binding_id = :binding_id AND file = :file) old
            ON old.name = new.name
            WHERE old.name IS NULL OR new.name IS NULL
               OR (old.caption, old.metadata) IS DISTINCT FROM (new.caption, new.metadata)
        """),
        values,
    )
    connection.execute(text("ANALYZE changed_captions"))
    connection.execute(
        text("""
            DELETE FROM listed_captions USING changed_captions
            WHERE binding_id = :binding_id AND file = :file AND listed_captions.name = changed_captions.name
        """),
        values,
    )
    connection.execute(
        text("""
            INSERT INTO listed_captions (binding_id, name, file, root, caption, metadata)
            SELECT :binding_id, name, :file, root, caption, metadata FROM changed_captions WHERE NOT gone
        """),
        values,
    )
    due = connection.execute(
        text("""
            UPDATE bound_objects SET caption_due = true
            WHERE binding_id = :binding_id AND root IN (SELECT root FROM changed_captions)
        """),
        values,
    ).rowcount
    connection.execute(text("DROP TABLE new_captions, changed_captions"))
    return due


def exact_captions(connection: Connection, binding_id: int, keys: Sequence[str]) -> dict[str, ListedCaption]:
    """The rows of exactly the names of these pictures, by key."""
    query = text("""
        SELECT key, listed.caption, listed.metadata FROM bound_objects CROSS JOIN LATERAL (
            SELECT caption, metadata FROM listed_captions
            WHERE binding_id = :binding_id AND name = bound_objects.name ORDER BY file LIMIT 1
        ) listed
        WHERE binding_id = :binding_id AND key = ANY(:keys)
    """)
    rows = connection.execute(query, {"binding_id": binding_id, "keys": list(keys)})
    return {row.key: ListedCaption(row.caption, row.metadata) for row in rows}


def names_near(connection: Connection, binding_id: int, keys: Sequence[str]) -> NamesNear:
    """The names in caption files that may fit one of these pictures, and all pictures that they may fit."""
    if not keys:
        return NamesNear([], [])
    roots = text("""
        SELECT DISTINCT root FROM bound_objects WHERE binding_id = :binding_id AND key = ANY(:keys) AND EXISTS (
            SELECT FROM listed_captions
            WHERE listed_captions.binding_id = :binding_id AND listed_captions.root = bound_objects.root
        )
    """)
    values = {"binding_id": binding_id, "roots": []}
    values["roots"] = list(connection.scalars(roots, {"binding_id": binding_id, "keys": list(keys)}))
    if not values["roots"]:
        return NamesNear([], [])
    captions = text("""
        SELECT DISTINCT name FROM listed_captions WHERE binding_id = :binding_id AND root = ANY(:roots) ORDER BY name
    """)
    pictures = text("""
        SELECT key, name FROM bound_objects WHERE binding_id = :binding_id AND root = ANY(:roots) ORDER BY key
    """)
    rows = connection.execute(pictures, values)
    return NamesNear(list(connection.scalars(captions, values)), [(row.key, row.name) for row in rows])


def named_captions(connection: Connection, binding_id: int, names: Sequence[str]) -> dict[str, ListedCaption]:
    """The rows of these names."""
    if not names:
        return {}
    query = text("""
        SELECT DISTINCT ON (name) name, caption, metadata FROM listed_captions
        WHERE binding_id = :binding_id AND name = ANY(:names) ORDER BY name, file
    """)
    rows = connection.execute(query, {"binding_id": binding_id, "names": list(names)})
    return {row.name: ListedCaption(row.caption, row.metadata) for row in rows}


def take_due(connection: Connection, binding_id: int, limit: int) -> list[str]:
    """The keys of up to `limit` pictures whose listed caption has changed; they are not due any more."""
    query = text("""
        UPDATE bound_objects SET caption_due = false FROM (
            SELECT key FROM bound_objects WHERE binding_id = :binding_id AND caption_due ORDER BY key LIMIT :limit
        ) due
        WHERE binding_id = :binding_id AND bound_objects.key = due.key RETURNING due.key
    """)
    return sorted(connection.scalars(query, {"binding_id": binding_id, "limit": limit}))


def bindings_due(connection: Connection) -> set[int]:
    """The bindings with pictures whose listed caption has changed."""
    return set(connection.scalars(text("SELECT DISTINCT binding_id FROM bound_objects WHERE caption_due")))


def _numbered(rows: Iterable[NamedCaption]) -> Iterator[tuple[Any, ...]]:
    for number, (name, caption) in enumerate(rows):
        if len(name.encode()) <= MAX_NAME_BYTES:
            metadata = None if caption.metadata is None else json.dumps(caption.metadata)
            yield number, name, name_root(name), caption.caption, metadata


def _merge_repeated(connection: Connection, merge: Callable[[Sequence[ListedCaption]], ListedCaption]) -> None:
    """Make one row of several with the same name, page by page."""
    page = text("""
        SELECT name, root, caption, metadata FROM new_captions WHERE name IN (
            SELECT name FROM new_captions WHERE name > :last GROUP BY name HAVING count(*) > 1 ORDER BY name LIMIT :most
        ) ORDER BY name, row_no
    """)
    last = ""
    while rows := connection.execute(page, {"last": last, "most": _NAMES_AT_ONCE}).all():
        merged = []
        for (name, root), group in groupby(rows, key=lambda row: (row.name, row.root)):
            caption = merge([ListedCaption(row.caption, row.metadata) for row in group])
            metadata = None if caption.metadata is None else json.dumps(caption.metadata)
            merged.append((0, name, root, caption.caption, metadata))
            last = name
        names = [row[1] for row in merged]
        connection.execute(text("DELETE FROM new_captions WHERE name = ANY(:names)"), {"names": names})
        copy_rows(connection, _new_captions, _COLUMNS, merged)
