"""The rows of the caption files under a binding, in the database: one picture costs one lookup.

A row belongs to the picture of exactly its name, or else to the one that picture_names.py finds. The column `base_name`
has the `name_group` of a name: only names of one group can fit each other, so no more of them are read. Of two files
that name the same picture, the one in the deeper folder counts, else the first by key. Every function works in the
caller's transaction.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import Column, Connection, Integer, MetaData, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from ragllava.metadata import Metadata
from ragllava.picture_names import FileName, match_names, name_group, split_page
from ragllava.stores.database import copy_rows
from ragllava.stores.maintenance import inspection

MAX_NAME_BYTES = 1_024  # a longer name fits no key
_NAMES_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class ListedCaption:
    """What a caption file says about one picture."""

    caption: str | None
    metadata: Metadata | None


NamedCaption = tuple[str, ListedCaption]  # the picture's name (metadata.picture_name) and what is said about it

_new_captions = Table(
    "new_captions",
    MetaData(),
    Column("row_no", Integer),
    Column("name", Text),
    Column("base_name", Text),
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
    _load(connection, rows)
    _merge_repeated(connection, merge)
    values = {"binding_id": binding_id, "file": file}
    connection.execute(
        text("""
            CREATE TEMP TABLE changed_captions ON COMMIT DROP AS
            SELECT coalesce(new.name, old.name) AS name, coalesce(new.base_name, old.base_name) AS base_name,
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
            INSERT INTO listed_captions (binding_id, name, file, base_name, caption, metadata)
            SELECT :binding_id, name, :file, base_name, caption, metadata FROM changed_captions WHERE NOT gone
        """),
        values,
    )
    due = connection.execute(
        text("""
            UPDATE bound_objects SET caption_due = true
            WHERE binding_id = :binding_id AND base_name IN (SELECT base_name FROM changed_captions)
        """),
        values,
    ).rowcount
    connection.execute(text("DROP TABLE new_captions, changed_captions"))
    return due


def _load(connection: Connection, rows: Iterable[NamedCaption]) -> None:
    """Write the rows into the temporary table `new_captions`."""
    connection.execute(
        text("""
            CREATE TEMP TABLE new_captions
            (row_no integer, name text COLLATE "C", base_name text COLLATE "C", caption text, metadata jsonb)
            ON COMMIT DROP
        """)
    )
    copy_rows(connection, _new_captions, _COLUMNS, _numbered(rows))
    connection.execute(text("CREATE INDEX ON new_captions (name, row_no)"))
    connection.execute(text("ANALYZE new_captions"))


def captions_of(connection: Connection, binding_id: int, keys: Sequence[str]) -> dict[str, ListedCaption]:
    """What the caption files say about these pictures, by key; pictures without a row are left out."""
    names = row_names(connection, binding_id, keys)
    query = text("""
        SELECT DISTINCT ON (name) name, caption, metadata FROM listed_captions
        WHERE binding_id = :binding_id AND name = ANY(:names)
        ORDER BY name, length(file) - length(replace(file, '/', '')) DESC, file
    """)
    rows = connection.execute(query, {"binding_id": binding_id, "names": sorted(set(names.values()))})
    listed = {row.name: ListedCaption(row.caption, row.metadata) for row in rows}
    return {key: listed[name] for key, name in names.items()}


def page_captions_of(
    connection: Connection, binding_id: int, keys: Sequence[str]
) -> dict[str, dict[int, ListedCaption]]:
    """What the caption files say about single pages of these documents, by key and page.

    A row of a page names its document as it is called below the bound prefix.
    """
    query = text("""
        SELECT DISTINCT ON (picture.key, listed.name) picture.key, listed.name, listed.caption, listed.metadata
        FROM bound_objects picture JOIN listed_captions listed
          ON listed.binding_id = :binding_id AND listed.base_name = picture.base_name
         AND split_part(listed.name, '#page=', 1) = picture.name AND listed.name <> picture.name
        WHERE picture.binding_id = :binding_id AND picture.key = ANY(:keys)
        ORDER BY picture.key, listed.name, length(file) - length(replace(file, '/', '')) DESC, listed.file
    """)
    pages: dict[str, dict[int, ListedCaption]] = defaultdict(dict)
    for row in connection.execute(query, {"binding_id": binding_id, "keys": list(keys)}):
        if page := split_page(row.name)[1]:
            pages[row.key][page] = ListedCaption(row.caption, row.metadata)
    return dict(pages)


def row_names(connection: Connection, binding_id: int, keys: Sequence[str]) -> dict[str, str]:
    """The name of the rows that belong to each of these pictures, by key; pictures without a row are left out."""
    values: dict[str, Any] = {"binding_id": binding_id, "keys": list(keys)}
    pictures = connection.execute(_PICTURES, values).all()
    names = {row.key: row.name for row in pictures if row.is_listed}
    values["groups"] = sorted({row.base_name for row in pictures if not row.is_listed})
    if not values["groups"]:
        return names
    listed = list(connection.scalars(_UNMATCHED_ROWS, values))
    unnamed = connection.execute(_UNMATCHED_PICTURES, values).all()
    matches = match_names(listed, [FileName(row.name, row.name) for row in unnamed])
    wanted = set(keys)
    return names | {
        unnamed[picture].key: listed[row] for picture, row in matches.captions.items() if unnamed[picture].key in wanted
    }


def forget(connection: Connection, image_ids: Sequence[int]) -> None:
    """Delete what caption files say about the objects of these images; a row comes back when its file changes."""
    query = text("SELECT binding_id, key FROM bound_objects WHERE image_id = ANY(:ids) ORDER BY binding_id, key")
    rows = connection.execute(query, {"ids": list(image_ids)}).all()
    delete = text("DELETE FROM listed_captions WHERE binding_id = :binding_id AND name = ANY(:names)")
    for binding_id, group in groupby(rows, key=lambda row: row.binding_id):
        names = row_names(connection, binding_id, [row.key for row in group])
        connection.execute(delete, {"binding_id": binding_id, "names": sorted(set(names.values()))})
    pages = text("""
        DELETE FROM listed_captions USING bindings, images
        WHERE bindings.id = binding_id AND images.archive_id = bindings.archive_id AND images.id = ANY(:ids)
          AND strpos(images.source, '#page=') > 0 AND listed_captions.name = images.source
    """)
    connection.execute(pages, {"ids": list(image_ids)})


_PICTURES = text("""
    SELECT key, name, base_name, EXISTS (
        SELECT FROM listed_captions listed WHERE listed.binding_id = :binding_id AND listed.name = picture.name
    ) AS is_listed
    FROM bound_objects picture WHERE binding_id = :binding_id AND key = ANY(:keys) AND base_name IS NOT NULL
""")
# A row whose name is exactly that of a picture belongs to that one, and a picture with such a row has no other one.
_UNMATCHED_ROWS = text("""
    SELECT DISTINCT name FROM listed_captions listed
    WHERE binding_id = :binding_id AND base_name = ANY(:groups) AND NOT EXISTS (
        SELECT FROM bound_objects picture
        WHERE picture.binding_id = :binding_id AND picture.base_name = listed.base_name AND picture.name = listed.name
    ) ORDER BY name
""")
_UNMATCHED_PICTURES = text("""
    SELECT key, name FROM bound_objects picture
    WHERE binding_id = :binding_id AND base_name = ANY(:groups) AND NOT EXISTS (
        SELECT FROM listed_captions listed WHERE listed.binding_id = :binding_id AND listed.name = picture.name
    ) ORDER BY key
""")


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
            yield number, name, name_group(name), caption.caption, metadata


def _merge_repeated(connection: Connection, merge: Callable[[Sequence[ListedCaption]], ListedCaption]) -> None:
    """Make one row of several with the same name, page by page."""
    page = text("""
        SELECT name, base_name, caption, metadata FROM new_captions WHERE name IN (
            SELECT name FROM new_captions WHERE name > :last GROUP BY name HAVING count(*) > 1 ORDER BY name LIMIT :most
        ) ORDER BY name, row_no
    """)
    last = ""
    while rows := connection.execute(page, {"last": last, "most": _NAMES_AT_ONCE}).all():
        merged = []
        for (name, base_name), group in groupby(rows, key=lambda row: (row.name, row.base_name)):
            caption = merge([ListedCaption(row.caption, row.metadata) for row in group])
            metadata = None if caption.metadata is None else json.dumps(caption.metadata)
            merged.append((0, name, base_name, caption.caption, metadata))
            last = name
        names = [row[1] for row in merged]
        connection.execute(text("DELETE FROM new_captions WHERE name = ANY(:names)"), {"names": names})
        copy_rows(connection, _new_captions, _COLUMNS, merged)
