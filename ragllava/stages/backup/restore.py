"""Restoring a backup into an empty system: its objects first, then all rows in one transaction, then what is made of
them. A restore that was interrupted continues when it is called again."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sqlalchemy import Connection, Engine

from ragllava.errors import Conflict, ObjectCorrupt, ObjectMissing, SchemaMismatch
from ragllava.settings import Settings
from ragllava.stages.backup.copying import THREADS, OnProgress, hashed
from ragllava.stages.backup.erased import erase_again, find_later
from ragllava.stages.backup.manifest import (
    Manifest,
    SavedContent,
    SavedObject,
    file_of,
    read_manifest,
    read_pieces,
    saved_content,
    saved_objects,
)
from ragllava.stages.backup.vaults import Vault
from ragllava.stages.webhooks.deliver import new_secret
from ragllava.stores.archives.graphs import build_hnsw
from ragllava.stores.backup import loading
from ragllava.stores.backup.snapshot import Origin, TablePart, origin_of
from ragllava.stores.database import in_transaction, locked_outside, make_engine, outside_transaction
from ragllava.stores.objects import ObjectStore, content_key
from ragllava.stores.schema import REVISION

_FOLDERS = ("sha256/", "thumbnails/", "jobs/", "uploads/", "adapters/", "training/")
_MARK = "restoring"  # the object that names the backup while its restore is not finished
_READ_BYTES = 2**20
_IN_MEMORY_BYTES = 64 * 2**20
_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Restored:
    """A backup that was restored. `erased` counts what was erased after the backup and is erased again, and keys that
    were revoked; `notes` are sentences about what is left to do."""

    name: str
    made_at: str
    rows: int
    pictures: int
    files: int
    size_bytes: int
    erased: dict[str, int]
    seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Restorer:
    """The system that a backup is restored into, and the vault of the backup."""

    settings: Settings
    vault: Vault
    on_progress: OnProgress

    def restore(self, name: str | None = None) -> Restored:
        """Restore a backup, the newest without a name.

        Raises SchemaMismatch for one of a later version, Conflict when the system has data or its workers run,
        ObjectMissing and ObjectCorrupt for a backup that is not whole, ServiceUnavailable.
        """
        manifest = read_manifest(self.vault, name)
        if manifest.revision > REVISION:
            raise SchemaMismatch(
                f"the backup {manifest.name} has tables of revision {manifest.revision}, and this version of RagLLaVA "
                f"knows {REVISION} at most; install the version that made it ({manifest.version}), or a later one"
            )
        with (
            _engine(self.settings.require_database_owner()) as engine,
            locked_outside(engine, "restore", "restore", wait=False) as is_held,
        ):
            if not is_held:
                raise Conflict("another restore into this system runs; wait for it")
            return self._restore(engine, manifest)

    def _restore(self, owner: Engine, manifest: Manifest) -> Restored:
        """`owner` connects as the owner of the tables."""
        import migrations

        began = time.monotonic()
        objects = ObjectStore(self.settings)
        later, notes = find_later(self.vault, manifest)
        url = self.settings.require_database_owner()
        is_loaded = self._require_empty(owner, objects, manifest)
        objects.put(_MARK, manifest.name.encode())
        counts = self._copy_objects(objects, manifest)
        if not is_loaded:
            in_transaction(owner, _require_unused)  # before tables are migrated
            self._prepare_tables(url, manifest.revision)
            in_transaction(owner, self._load, manifest)
        application_url = self.settings.require_database()
        migrations.upgrade(
            url,
            application_url=application_url,
            api_url=self.settings.api_database(),
            scale_url=self.settings.scale_database(),
        )
        with _engine(application_url) as engine:
            self._build_graphs(engine)
            renewed = in_transaction(engine, loading.renew_secrets, new_secret)
            erased = dict[str, int]()
            if later is not None:
                erased, refused = erase_again(engine, self.settings, objects, self.vault, manifest, later)
                notes += refused
        objects.delete(_MARK)
        notes += [f"the webhook to {url} has a new secret: make it again to get one" for url in renewed]
        if manifest.absent:
            notes.append(f"{len(manifest.absent):,} objects were missing already when the backup was made")
        return Restored(
            name=manifest.name,
            made_at=manifest.made_at.isoformat(),
            rows=manifest.rows,
            **counts,
            erased=erased,
            seconds=time.monotonic() - began,
            notes=tuple(notes),
        )

    def _require_empty(self, engine: Engine, objects: ObjectStore, manifest: Manifest) -> bool:
        """Whether the rows are there already, of an interrupted restore of this backup."""
        begun = _begun(objects)
        if begun is not None and begun != manifest.name:
            raise Conflict(f"a restore of the backup {begun} was interrupted here: finish it with `--at {begun}` first")
        if begun is not None:
            origin = in_transaction(engine, origin_of)
            if origin is not None and origin.name == manifest.name:
                in_transaction(engine, _require_stopped)
                return True
        in_transaction(engine, _require_unused)
        if begun is not None:
            return False
        stored = next((info for folder in _FOLDERS for info in objects.list_objects(folder)), None)
        if stored is not None:
            raise Conflict(
                f"the bucket {objects.bucket} is not empty: it has the object {stored.key}; set RAGLLAVA_S3_BUCKET to "
                "another bucket, which need not exist yet"
            )
        in_transaction(engine, loading.note_loaded, None)  # by an earlier restore of a backup without rows
        return False

    def _prepare_tables(self, url: str, revision: str) -> None:
        """Empty tables of the revision of the backup."""
        import migrations

        current = migrations.current(url)
        if current is not None and current > revision:
            migrations.downgrade(url, revision)
        else:
            migrations.upgrade(url, revision)

    def _load(self, connection: Connection, manifest: Manifest) -> None:
        pieces = {saved.part: saved.pieces for saved in manifest.tables}
        numbers = {part: number for number, part in enumerate(pieces, start=1)}

        def rows_of(part: TablePart) -> Iterator[bytes]:
            self.on_progress("tables", numbers[part], len(pieces))
            return read_pieces(self.vault, pieces[part])

        loading.lock_tables(connection)
        _require_unused(connection)  # again: copying the objects may have taken hours
        loading.load(connection, list(pieces), rows_of, manifest.sequences)
        loading.note_loaded(connection, Origin(manifest.name, manifest.identity))

    def _copy_objects(self, objects: ObjectStore, manifest: Manifest) -> dict[str, int]:
        """Copy what is not there yet; returns how many pictures and files the backup has, and their bytes."""
        counts = {"pictures": 0, "files": 0, "size_bytes": 0}
        there = {info.key: info.size_bytes for info in objects.list_objects("")}

        def copy(saved: SavedContent | SavedObject) -> None:
            key = content_key(saved.sha256) if isinstance(saved, SavedContent) else saved.key
            media_type = saved.media_type if isinstance(saved, SavedContent) else _media_type(saved.key)
            if there.get(key) != saved.size_bytes:
                self._copy(objects, saved, key, media_type)

        def named() -> Iterator[SavedContent | SavedObject]:
            yield from saved_content(self.vault, manifest)
            yield from saved_objects(self.vault, manifest)

        remaining = named()
        with ThreadPoolExecutor(THREADS) as threads:
            while page := list(islice(remaining, _PAGE)):
                list(threads.map(copy, page))
                for each in page:
                    counts["pictures" if isinstance(each, SavedContent) else "files"] += 1
                    counts["size_bytes"] += each.size_bytes
                self.on_progress("pictures", counts["pictures"], manifest.content)
        return counts

    def _copy(self, objects: ObjectStore, saved: SavedContent | SavedObject, key: str, media_type: str) -> None:
        with self.vault.open(file_of(saved.sha256)) as stream:
            pieces = iter(lambda: stream.read(_READ_BYTES), b"")
            if saved.size_bytes <= _IN_MEMORY_BYTES:
                data = b"".join(pieces)
                self._require_hash(saved.sha256, hashlib.sha256(data).hexdigest())
                objects.put(key, data, media_type)
                return
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "object"
                self._require_hash(saved.sha256, hashed(pieces, file))
                with file.open("rb") as whole:
                    objects.put_stream(key, whole, file.stat().st_size, media_type)

    def _require_hash(self, expected: str, actual: str) -> None:
        if expected != actual:
            raise ObjectCorrupt(
                f"{self.vault.address}/{file_of(expected)} is damaged: it does not have its hash; `ragllava backup "
                "--verify` lists what is, and `--at` chooses another backup"
            )

    def _build_graphs(self, engine: Engine) -> None:
        """Statistics first, which the first questions need."""
        self.on_progress("statistics", 0, 1)
        with outside_transaction(engine) as connection:
            loading.analyze(connection)
        indexes = in_transaction(engine, loading.graphless_indexes)
        for number, index_id in enumerate(indexes, start=1):
            self.on_progress("graphs", number, len(indexes))
            build_hnsw(engine, index_id)


def _require_stopped(connection: Connection) -> None:
    workers = loading.live_workers(connection)
    if workers:
        raise Conflict(
            f"workers of this system run ({', '.join(workers[:3])}): stop them first, with `ragllava down` or as "
            "they were started, wait a minute if they were killed, and try again"
        )


def _require_unused(connection: Connection) -> None:
    """No worker runs, and nobody's rows are there."""
    _require_stopped(connection)
    table = loading.filled_table(connection)
    if table is not None:
        raise Conflict(
            f"this system is not empty: its table {table} has rows; restore into a new RAGLLAVA_HOME, or another "
            "database and bucket"
        )


def _begun(objects: ObjectStore) -> str | None:
    try:
        return objects.get(_MARK).decode()
    except ObjectMissing:
        return None


def _media_type(key: str) -> str:
    endings = {".json": "application/json", ".jsonl": "application/x-ndjson"}
    return next((kind for ending, kind in endings.items() if key.endswith(ending)), "application/octet-stream")


@contextmanager
def _engine(url: str) -> Iterator[Engine]:
    engine = make_engine(url, pool_size=2, name="ragllava restore")
    try:
        yield engine
    finally:
        engine.dispose()
