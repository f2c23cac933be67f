"""Making and restoring backups in tests, and all that a system holds."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import text

from ragllava.client import Client, MadeBackup, RestoredBackup
from ragllava.settings import Settings
from ragllava.stages.backup.backup import BackupMaker
from ragllava.stages.backup.vaults import FolderVault
from ragllava.stores.backup.snapshot import open_snapshot
from ragllava.stores.database import in_transaction, make_engine
from ragllava.stores.objects import ObjectStore
from tests.support.workshop import Workshop


def make(shop: Workshop, folder: Path, keep: int = 0) -> MadeBackup:
    """A backup in a folder."""
    return BackupMaker(shop.engine, shop.resources.objects, FolderVault(folder)).make(keep)


def restore(settings: Settings, folder: Path, name: str | None = None) -> RestoredBackup:
    """Restore it, the newest without a name."""
    with Client(settings) as client:
        return client.backups.restore(str(folder), name)


def problems(client: Client) -> list[str]:
    """What `doctor --deep` finds."""
    return [f"{each.name}: {each.problem}" for each in client.system.inspect() if each.problem]


KEY = "INSERT INTO api_keys (prefix, sha256, name, role) VALUES ('p', 's', 'n', 'read')"


def execute(settings: Settings, statement: str) -> None:
    """As the owner of the tables."""
    engine = make_engine(settings.require_database_owner(), name="test")
    try:
        in_transaction(engine, lambda connection: connection.execute(text(statement)))
    finally:
        engine.dispose()


def all_rows(settings: Settings) -> dict[str, list[bytes]]:
    """The rows of every table that a backup has, as COPY writes them."""
    engine = make_engine(settings.require_database(), name="test rows")
    try:
        with open_snapshot(engine) as snapshot:
            return {f"{part.table} {part.index_id}": sorted(snapshot.rows(part)) for part in snapshot.parts()}
    finally:
        engine.dispose()


def all_objects(settings: Settings) -> dict[str, bytes]:
    """The objects of the bucket, by key."""
    objects = ObjectStore(settings)
    return {info.key: objects.get(info.key) for info in objects.list_objects("")}
