"""Which objects have a row, by the kinds of keys that this program writes."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select, text
from sqlalchemy.dialects.postgresql import insert

from ragllava.records import Role
from ragllava.stores.database import equals_any
from ragllava.stores.learning import trainings
from ragllava.stores.schema import blobs


def has_content(connection: Connection) -> bool:
    """Whether this database has any content at all; one without may belong to another bucket."""
    return bool(connection.scalar(text("SELECT EXISTS (SELECT 1 FROM blobs)")))


def unknown_hashes(connection: Connection, hashes: Sequence[str]) -> set[str]:
    """Those of the hashes that no blob has."""
    return set(hashes).difference(connection.scalars(select(blobs.c.sha256).where(equals_any(blobs.c.sha256, hashes))))


def adopt(connection: Connection, sha256: str, size_bytes: int) -> bool:
    """Insert a row with the state `deleting` for content without one, for `blobs.delete_blob`; False if it has one now.

    So an importer of the same bytes waits or revives it, as with any other blob.
    """
    unnamed = {"state": "deleting", "size_bytes": size_bytes, "media_type": "application/octet-stream"}
    new = insert(blobs).values(sha256=sha256, **unnamed).on_conflict_do_nothing().returning(blobs.c.sha256)
    return connection.scalar(new) is not None


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
