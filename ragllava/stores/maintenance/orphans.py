"""Which objects have a row, by the kinds of keys that this program writes."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from ragllava.records import Role
from ragllava.stores.learning import trainings


def has_content(connection: Connection) -> bool:
    """Whether this database has any content at all; one without may belong to another bucket."""
    return bool(connection.scalar(text("SELECT EXISTS (SELECT 1 FROM blobs)")))


def unknown_hashes(connection: Connection, hashes: Sequence[str]) -> set[str]:
    """Those of the hashes that no blob has."""
    rows = connection.scalars(
        text("""
            SELECT sha256 FROM unnest(CAST(:hashes AS text[])) AS listed (sha256)
            WHERE NOT EXISTS (SELECT 1 FROM blobs WHERE blobs.sha256 = listed.sha256)
        """),
        {"hashes": list(hashes)},
    )
    return set(rows)


def adopt(connection: Connection, sha256: str, size_bytes: int) -> bool:
    """Insert a row with the state `deleting` for content without one, for `blobs.delete_blob`; False if it has one now.

    So an importer of the same bytes waits or revives it, as with any other blob.
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
    """The folders of trainings that a job or a version names; True where the job has ended and its checkpoints are not
    needed any more: a retried training starts with its first step."""
    folders = {
        str(folder): True
        for folder in connection.scalars(
            text("SELECT training->>'objects' FROM model_versions WHERE training->>'objects' IS NOT NULL")
        )
    }
    rows = connection.execute(text("SELECT id, created_at, finished_at FROM jobs WHERE kind = 'train'"))
    return folders | {trainings.folder_of(row.id, row.created_at): row.finished_at is not None for row in rows}


def hold_trainings(connection: Connection) -> bool:
    """Prevent new trainings until the caller's commit; False when one is open already.

    A training publishes its adapter before it inserts the row, so its files can be told from orphans only while no
    training is open.
    """
    for role in Role:
        trainings.lock_role(connection, role)
    return all(trainings.open_training(connection, role) is None for role in Role)
