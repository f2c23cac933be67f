"""Objects that no row names any more, by the kinds of keys that we write. Nothing else in the bucket is ours."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from ragllava.records import Role
from ragllava.stores.learning import trainings


def knows_content(connection: Connection) -> bool:
    """Whether this database names any content at all: one that does not may belong to another bucket."""
    return bool(connection.scalar(text("SELECT EXISTS (SELECT 1 FROM blobs)")))


def unknown_hashes(connection: Connection, hashes: Sequence[str]) -> set[str]:
    """Those of the hashes that no blob has."""
    rows = connection.scalars(
        text("""
            SELECT sha256 FROM unnest(CAST(:hashes AS text[])) AS found (sha256)
            WHERE NOT EXISTS (SELECT 1 FROM blobs WHERE blobs.sha256 = found.sha256)
        """),
        {"hashes": list(hashes)},
    )
    return set(rows)


def adopt(connection: Connection, sha256: str, size_bytes: int) -> bool:
    """Give content without a row one that is `deleting`, for `blobs.delete_blob`; False when it has one by now.

    So an importer that brings the same bytes meanwhile waits or revives it, as with any other blob.
    """
    statement = text("""
        INSERT INTO blobs (sha256, state, size_bytes, media_type)
        VALUES (:sha256, 'deleting', :size_bytes, 'application/octet-stream') ON CONFLICT DO NOTHING
    """)
    return connection.execute(statement, {"sha256": sha256, "size_bytes": size_bytes}).rowcount == 1


def living_jobs(connection: Connection, job_ids: Sequence[int]) -> set[int]:
    """Those of the jobs that exist."""
    return set(connection.scalars(text("SELECT id FROM jobs WHERE id = ANY(:ids)"), {"ids": list(job_ids)}))


def living_adapters(connection: Connection) -> set[str]:
    """The adapters of all model versions."""
    return set(connection.scalars(text("SELECT adapter_sha256 FROM model_versions WHERE adapter_sha256 IS NOT NULL")))


def living_trainings(connection: Connection) -> dict[str, bool]:
    """The folders of trainings that a job or a version names; True where the job has ended, and with it the need for
    checkpoints. (Tried again after that, a training begins with its first step.)"""
    places = {
        str(place): True
        for place in connection.scalars(
            text("SELECT training->>'objects' FROM model_versions WHERE training->>'objects' IS NOT NULL")
        )
    }
    rows = connection.execute(text("SELECT id, created_at, finished_at FROM jobs WHERE kind = 'train'"))
    return places | {trainings.place_of(row.id, row.created_at): row.finished_at is not None for row in rows}


def hold_trainings(connection: Connection) -> bool:
    """Let no training begin before the caller's commit; False when one is open already.

    A training publishes its adapter before the row that names it, so only while none is open can its files be told
    from orphans.
    """
    for role in Role:
        trainings.lock_role(connection, role)
    return all(trainings.open_training(connection, role) is None for role in Role)
