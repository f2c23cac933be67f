"""Content that nothing refers to any more: it is marked, and then deleted from the object store."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text


def mark_content(connection: Connection, hashes: Sequence[str]) -> list[str]:
    """Mark content that nothing refers to any more, for `blobs.delete_blob`; returns its hashes."""
    connection.execute(
        text("SELECT FROM blobs WHERE sha256 = ANY(:hashes) ORDER BY sha256 FOR UPDATE"), {"hashes": list(hashes)}
    )
    # References are looked at in a statement of its own, behind the lock.
    return sorted(connection.scalars(_MARK_BLOBS, {"hashes": list(hashes)}))


def marked_content(connection: Connection) -> list[str]:
    """The hashes of all content that is marked and not deleted yet."""
    return list(connection.scalars(text("SELECT sha256 FROM blobs WHERE state = 'deleting' ORDER BY sha256")))


_MARK_BLOBS = text("""
    UPDATE blobs SET state = 'deleting' WHERE sha256 = ANY(:hashes)
    AND NOT EXISTS (SELECT FROM images WHERE images.sha256 = blobs.sha256)
    AND NOT EXISTS (SELECT FROM questions WHERE questions.picture = blobs.sha256)
    AND NOT EXISTS (SELECT FROM model_versions WHERE model_versions.adapter_sha256 = blobs.sha256)
    RETURNING sha256
""")
