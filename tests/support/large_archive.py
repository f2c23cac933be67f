"""An archive of many pictures that have rows and no bytes."""

from __future__ import annotations

from sqlalchemy import Engine, text

from ragllava.stores.archives.archive import ensure_archive
from ragllava.stores.archives.word_index import IMAGES
from tests.support.many_rows import unhurried

HOSTILE = '<img src=x onerror="document.title=1"> \u202egnp.exe'


def insert_pictures(engine: Engine, name: str, number: int) -> int:
    """Insert so many; the first one has a hostile name and caption. Returns the id of the archive."""
    with unhurried(engine) as connection:
        archive_id = ensure_archive(connection, name).archive_id
        values = {"archive_id": archive_id, "number": number, "hostile": HOSTILE, "salt": name, "word": IMAGES}
        for statement in _STATEMENTS:
            connection.execute(text(statement), values)
    return archive_id


_HASH = "encode(sha256(convert_to(CAST(:salt AS text) || n, 'UTF8')), 'hex')"
_STATEMENTS = (
    f"""
    INSERT INTO blobs (sha256, state, size_bytes, media_type)
    SELECT {_HASH}, 'live', 40000, 'image/jpeg' FROM generate_series(1, :number) AS n
    """,
    f"""
    INSERT INTO images (archive_id, sha256, source, uri, caption, metadata, width, height, media_type)
    SELECT :archive_id, {_HASH},
           CASE n WHEN 1 THEN :hostile ELSE 'scan-' || lpad(CAST(n AS text), 6, '0') || '.jpg' END,
           'file:///scans/' || n, CASE n WHEN 1 THEN :hostile ELSE 'Picture number ' || n END,
           jsonb_build_object('year', 1900 + n % 100, 'city', 'Port Ansel'), 640, 480, 'image/jpeg'
    FROM generate_series(1, :number) AS n
    """,
    "INSERT INTO word_counts (archive_id, word, images) VALUES (:archive_id, :word, :number)",
)
