"""Copies of an image's bytes: under other names in its archive, and in other archives."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from ragllava.stores.database import records

_MOST = 50


@dataclass(frozen=True, slots=True)
class CopyElsewhere:
    """An image of another archive."""

    archive: str
    image_id: int
    source: str


def other_names(connection: Connection, archive_id: int, image_id: int) -> tuple[str, ...]:
    """The names of files with the bytes of an image, besides its own: of ingests and of bound buckets, at most 50."""
    values = {"archive_id": archive_id, "image_id": image_id, "most": _MOST}
    return tuple(connection.scalars(_NAMES, values))


def elsewhere(connection: Connection, archive_id: int, sha256: str) -> tuple[CopyElsewhere, ...]:
    """The images of other archives with these bytes, retired ones left out, at most 50."""
    rows = connection.execute(_ELSEWHERE, {"archive_id": archive_id, "sha256": sha256, "most": _MOST})
    return tuple(records(CopyElsewhere, rows))


_NAMES = text("""
    SELECT DISTINCT named.source FROM (
        SELECT f.source FROM files f WHERE f.image_id = :image_id AND f.uri <> 'erased:'
        UNION
        SELECT substr(o.key, length(b.prefix) + 1) FROM bound_objects o JOIN bindings b ON b.id = o.binding_id
        WHERE b.archive_id = :archive_id AND o.image_id = :image_id
    ) named, images i WHERE i.id = :image_id AND named.source <> i.source
      AND split_part(i.source, '#page=', 1) <> named.source ORDER BY named.source LIMIT :most
""")

_ELSEWHERE = text("""
    SELECT a.name AS archive, i.id AS image_id, i.source FROM images i JOIN archives a ON a.id = i.archive_id
    WHERE i.sha256 = :sha256 AND i.archive_id <> :archive_id AND NOT i.retired ORDER BY a.name LIMIT :most
""")
