"""Lists of an archive's images for people: filtered, ordered, page by page after a key, and with marks for jumps.

Every function works in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Select, select, text

from ragllava.errors import NotFound
from ragllava.filters import Filter
from ragllava.stores.archives import filtering, vectors
from ragllava.stores.archives.archive import ListedImage
from ragllava.stores.archives.word_index import IMAGES
from ragllava.stores.database import equals_any, record, records
from ragllava.stores.schema import images

_NAME = 'left(i.source, 200) COLLATE "C"'  # by which lists are ordered; longer names by id
_OWN_COLUMNS = tuple(each.name for each in fields(ListedImage) if each.name != "image_id")
_COVERS = 4

# The covers are the first by uri, and the counts are looked up for each archive: indexes have these orders.
_CARDS = text("""
    SELECT a.id AS archive_id, a.name, a.created_at, a.active_index_id, coalesce(counted.images, 0) AS images,
           covers.first
    FROM archives a
    LEFT JOIN LATERAL (
        SELECT sum(images)::bigint AS images FROM word_counts WHERE archive_id = a.id AND word = :word
    ) counted ON true
    LEFT JOIN LATERAL (
        SELECT array_agg(id) AS first FROM (
            SELECT id FROM images i WHERE i.archive_id = a.id AND NOT retired ORDER BY i.uri LIMIT :covers
        ) listed
    ) covers ON true
    ORDER BY a.name
""")


class ImageOrder(StrEnum):
    """By what a list is ordered, ascending."""

    ID = "id"
    NAME = "name"


class ImageState(StrEnum):
    """Which images are listed: those in use, some of them, or those that are retired."""

    USED = "used"
    WITHOUT_CAPTION = "without_caption"
    NOT_INDEXED = "not_indexed"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class ListOptions:
    """Which images of an archive, in which order; `filter` is a checked one (ragllava/filters.py)."""

    state: ImageState = ImageState.USED
    filter: Filter | None = None
    order: ImageOrder = ImageOrder.ID


@dataclass(frozen=True, slots=True)
class ListKey:
    """After which image a list goes on. `name` is "" where the order is by id."""

    image_id: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Marks:
    """The number of a list's images, and the key of the last image before each further `every` of them."""

    total: int
    every: int
    keys: tuple[ListKey, ...]


@dataclass(frozen=True, slots=True)
class StoredContent:
    """The bytes of an image."""

    sha256: str
    media_type: str


@dataclass(frozen=True, slots=True)
class ArchiveCard:
    """An archive in a list: how many images it uses, and the ids of the first ones."""

    archive_id: int
    name: str
    images: int
    created_at: datetime
    active_index_id: int | None
    covers: tuple[int, ...]


def list_page(
    connection: Connection, archive_id: int, options: ListOptions, after: ListKey | None, limit: int
) -> list[ListedImage]:
    """At most `limit` images after the key, from the beginning without one."""
    condition, values = _condition(connection, archive_id, options)
    by_name = options.order is ImageOrder.NAME
    order = f"{_NAME}, i.id" if by_name else "i.id"
    if after is not None:
        condition += f" AND ({_NAME}, i.id) > (%(name)s, %(after)s)" if by_name else " AND i.id > %(after)s"
    # Which images these are is found first: only their rows are read in full.
    rows = connection.exec_driver_sql(
        f"""
        SELECT i.id AS image_id, {", ".join(_OWN_COLUMNS)}
        FROM images i JOIN (
            SELECT i.id FROM images i WHERE {condition} ORDER BY {order} LIMIT %(limit)s
        ) page ON page.id = i.id ORDER BY {order}
        """,  # noqa: S608 - conditions of our own, and one that filtering.py made
        {**values, "limit": limit, "after": after and after.image_id, "name": after and after.name},
    )
    return records(ListedImage, rows)


def list_marks(connection: Connection, archive_id: int, options: ListOptions, every: int) -> Marks:
    """Marks of a list. Reads all its images: 100,000 of them in about 0.1 s."""
    condition, values = _condition(connection, archive_id, options)
    by_name = options.order is ImageOrder.NAME
    order = f"{_NAME}, i.id" if by_name else "i.id"
    rows = connection.exec_driver_sql(
        f"""
        SELECT id, name, number FROM (
            SELECT i.id, {_NAME if by_name else "''"} AS name, row_number() OVER (ORDER BY {order}) AS number,
                   count(*) OVER () AS total
            FROM images i WHERE {condition}
        ) listed WHERE mod(number, %(every)s) = 0 OR number = total ORDER BY number
        """,  # noqa: S608 - as above
        {**values, "every": every},
    ).all()
    total = rows[-1].number if rows else 0
    return Marks(total, every, tuple(ListKey(row.id, row.name) for row in rows if row.number % every == 0))


def list_cards(connection: Connection) -> list[ArchiveCard]:
    """All archives by name, from counts that are kept: no image is read but those of the covers."""
    return [
        record(ArchiveCard, row, covers=tuple(row.first or ()))
        for row in connection.execute(_CARDS, {"covers": _COVERS, "word": IMAGES})
    ]


def load_listed(connection: Connection, archive_id: int, image_ids: list[int]) -> dict[int, ListedImage]:
    """Images of an archive by id, retired ones left out."""
    of_archive = (images.c.archive_id == archive_id, ~images.c.retired, equals_any(images.c.id, image_ids))
    columns = [images.c.id.label("image_id"), *(images.c[name] for name in _OWN_COLUMNS)]
    rows = connection.execute(select(*columns).where(*of_archive))
    return {image.image_id: image for image in records(ListedImage, rows)}


def content_of(connection: Connection, archive_id: int, image_id: int) -> StoredContent:
    """The bytes of an image, by its id alone. Raises NotFound."""
    query: Select[Any] = select(images.c.sha256, images.c.media_type)
    row = connection.execute(query.where(images.c.archive_id == archive_id, images.c.id == image_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no picture {image_id} in this archive")
    return record(StoredContent, row)


def _condition(connection: Connection, archive_id: int, options: ListOptions) -> tuple[str, Mapping[str, Any]]:
    """On the table `images` under the alias `i`, with psycopg's named parameters."""
    values: dict[str, Any] = {"archive_id": archive_id}
    parts = ["i.archive_id = %(archive_id)s", "i.retired" if options.state is ImageState.RETIRED else "NOT i.retired"]
    if options.state is ImageState.WITHOUT_CAPTION:
        parts.append("i.caption IS NULL")
    elif options.state is ImageState.NOT_INDEXED and (active := vectors.active_index(connection, archive_id)):
        # A subquery with a limit is one lookup for each image; the partitions of other indexes are left out.
        embedded = "SELECT 1 FROM embeddings e WHERE e.index_id = %(index_id)s AND e.image_id = i.id LIMIT 1"
        parts.append(f"({embedded}) IS NULL")
        values["index_id"] = active.index_id
    if (filter_sql := filtering.compile_filter(options.filter)) is not None:
        parts.append(filter_sql.condition)
        values.update(filter_sql.parameters)
    return " AND ".join(parts), values
