"""The inventory of content in the object store (docs/reliability.md D13).

A blob is announced (`uploading`) before its bytes are put, and becomes `live` in the transaction of its first
reference; it is marked `deleting` before its object is removed. So a crash at any point leaves at worst an
unreferenced object, which the task `gc` finds, and never a reference without its object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, case, func, text
from sqlalchemy.dialects.postgresql import insert

from ragllava.errors import BlobDeleted
from ragllava.stores.database import records
from ragllava.stores.schema import blobs as table


@dataclass(frozen=True, slots=True)
class NewBlob:
    """Content that will be put into the object store under its hash."""

    sha256: str
    size_bytes: int
    media_type: str


@dataclass(frozen=True, slots=True)
class UnreferencedBlob:
    """Content that nothing refers to."""

    sha256: str
    size_bytes: int
    state: str


def announce_blobs(connection: Connection, blobs: Sequence[NewBlob]) -> set[str]:
    """Announce that these blobs will be put; returns the hashes to put, the others are in the store.

    Commit before the first put. From then on `gc` does not touch them for its grace time: a blob marked `deleting` is
    revived, and one that is being deleted at this moment is waited for.
    """
    if not blobs:
        return set()
    by_hash = {blob.sha256: asdict(blob) | {"state": "uploading"} for blob in blobs}
    ordered = [by_hash[sha256] for sha256 in sorted(by_hash)]  # every caller locks in this order
    state = case((table.c.state == "live", "live"), else_="uploading")
    new = insert(table).on_conflict_do_update(
        index_elements=["sha256"], set_={"state": state, "updated_at": func.now()}
    )
    rows = connection.execute(new.returning(table.c.sha256, table.c.state), ordered)
    return {row.sha256 for row in rows if row.state == "uploading"}


def make_live(connection: Connection, hashes: Sequence[str]) -> None:
    """Declare that the bytes are in the store; call it in the transaction that writes the references.

    Raises BlobDeleted for a hash that was never announced, or that `gc` has removed since.
    """
    expected = set(hashes)
    updated = connection.scalars(
        text("""
            WITH locked AS (
                SELECT sha256 FROM blobs WHERE sha256 = ANY(:hashes) AND state <> 'deleting'
                ORDER BY sha256 FOR NO KEY UPDATE
            )
            UPDATE blobs SET state = 'live', updated_at = now() FROM locked WHERE blobs.sha256 = locked.sha256
            RETURNING blobs.sha256
        """),
        {"hashes": sorted(expected)},
    )
    if missing := expected - set(updated):
        raise BlobDeleted(
            f"{len(missing)} uploaded files are gone from the store's inventory, the first {min(missing)[:12]}…; "
            "they are uploaded again"
        )


def hold(connection: Connection, sha256: str) -> bool:
    """Keep the content in the store until the end of the transaction; False when there is no live content of this hash.

    What is derived from it can then be put beside it: `delete_blob` waits, and removes both.
    """
    live = "SELECT 1 FROM blobs WHERE sha256 = :sha256 AND state = 'live' FOR KEY SHARE"
    return connection.scalar(text(live), {"sha256": sha256}) is not None


_UNREFERENCED = """
    updated_at < now() - make_interval(secs => :older_than_s)
    AND NOT EXISTS (SELECT 1 FROM images WHERE images.sha256 = blobs.sha256)
    AND NOT EXISTS (SELECT 1 FROM questions WHERE questions.picture = blobs.sha256)
    AND NOT EXISTS (SELECT 1 FROM model_versions WHERE model_versions.adapter_sha256 = blobs.sha256)
"""


def unreferenced_blobs(connection: Connection, older_than_s: float) -> list[UnreferencedBlob]:
    """What `gc` would remove: blobs without a reference, unchanged for `older_than_s` seconds. Changes nothing."""
    query = text(f"SELECT * FROM blobs WHERE {_UNREFERENCED} ORDER BY sha256")  # noqa: S608 - no foreign text
    return records(UnreferencedBlob, connection.execute(query, {"older_than_s": older_than_s}))


def mark_deleting(
    connection: Connection, older_than_s: float, limit: int = 1000, among: Sequence[str] | None = None
) -> list[str]:
    """Mark up to `limit` unreferenced blobs, and return their hashes for `delete_blob`. Commit in between.

    `among`: only of these hashes.

    Blobs that an ingest holds locked are skipped: they will be referenced. References are checked again behind the
    lock: a statement that waits for a row sees its new version, but other tables as they were.
    """
    named = "" if among is None else "sha256 = ANY(:among) AND"
    locked = connection.scalars(
        text(f"""
            SELECT sha256 FROM blobs WHERE {named} {_UNREFERENCED} ORDER BY sha256 LIMIT :limit FOR UPDATE SKIP LOCKED
        """),  # noqa: S608 - no foreign text
        {"older_than_s": older_than_s, "limit": limit} | ({} if among is None else {"among": list(among)}),
    ).all()
    rows = connection.scalars(
        text(f"""
            UPDATE blobs SET state = 'deleting' WHERE sha256 = ANY(:locked) AND {_UNREFERENCED}
            RETURNING sha256
        """),  # noqa: S608 - no foreign text
        {"older_than_s": older_than_s, "locked": list(locked)},
    )
    return sorted(rows)


def delete_blob(connection: Connection, sha256: str, delete_object: Callable[[str], None]) -> bool:
    """Remove the object by `delete_object(sha256)`, then the row; False when the blob was revived meanwhile.

    The row stays locked until the commit, so that an ingest of the same bytes waits and then puts them again, instead
    of putting them just before they are removed. One blob per transaction keeps that wait short.
    """
    locked = connection.scalar(
        text("SELECT 1 FROM blobs WHERE sha256 = :sha256 AND state = 'deleting' FOR UPDATE"), {"sha256": sha256}
    )
    if locked is None:
        return False
    delete_object(sha256)
    connection.execute(text("DELETE FROM blobs WHERE sha256 = :sha256"), {"sha256": sha256})
    return True
