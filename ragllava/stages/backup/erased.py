"""What was erased after a backup is erased again when that backup is restored.

A backup holds what was erased later. The newest backup of the same database in the same vault says what that was: the
images, jobs and archives that the restored one has and it has not. Ids are never given twice. In the same way keys of
the HTTP API are revoked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

from sqlalchemy import Connection, Engine, text

from ragllava.errors import RagllavaError, ServiceUnavailable, UsageError
from ragllava.settings import Settings
from ragllava.stages.backup.manifest import Manifest, SavedTable, list_names, read_manifest, read_pieces
from ragllava.stages.backup.vaults import Vault
from ragllava.stages.erasing.remove import Remover
from ragllava.stores.access.keys import revoke_all_but
from ragllava.stores.backup.loading import lines, present_ids
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import ObjectStore

_KEYS = "api_keys"
_ACCOUNT = "restore"
_PAGE = 500
_SHOWN = 5


def find_later(vault: Vault, restored: Manifest) -> tuple[Manifest | None, list[str]]:
    """The newest backup of the same database after the restored one, of which everything can be read that
    `erase_again` needs; None: there is none. Also sentences about the later ones that were passed over.

    Raises ObjectMissing, ObjectCorrupt when the restored one itself cannot be read.
    """
    _read_lists(vault, restored)
    notes: list[str] = []
    later, is_of_another = None, False
    for name in reversed(list_names(vault)):
        if name <= restored.name:
            break
        try:
            manifest = read_manifest(vault, name)
            if manifest.identity == restored.identity:
                _read_lists(vault, manifest)
                later = manifest
                break
            is_of_another = True
        except ServiceUnavailable:
            raise
        except RagllavaError as error:
            notes.append(
                f"the backup {name} does not say what was erased before it, so that may be there again: {error}"
            )
    if is_of_another:
        notes.append(
            f"what was erased after {(later or restored).name} is there again: the later backups are of another "
            "database, so nothing says what it was; remove it again"
        )
    return later, notes


def _read_lists(vault: Vault, manifest: Manifest) -> None:
    """So that damage is known before anything is changed."""
    for pieces in (*manifest.ids.values(), *(table.pieces for table in manifest.tables if table.part.table == _KEYS)):
        for _ in read_pieces(vault, pieces):
            pass


def erase_again(
    engine: Engine, settings: Settings, objects: ObjectStore, vault: Vault, restored: Manifest, later: Manifest
) -> tuple[dict[str, int], list[str]]:
    """Erase what a later backup does not have any more, and revoke the keys; returns how many archives, jobs, images
    and keys that were, and sentences about what could not be done."""
    remover = Remover(engine, settings, objects, _ACCOUNT)
    again = _Again(engine, vault, restored, later)
    counts = {"keys": 0}
    for keys in (table for table in later.tables if table.part.table == _KEYS):
        counts["keys"] = in_transaction(engine, revoke_all_but, _valid_keys(vault, keys))
    counts |= {
        "archives": again.each("archives", lambda ids: again.archives(remover, ids)),
        "jobs": again.each("jobs", lambda ids: [([job_id], partial(remover.job, job_id)) for job_id in ids]),
        "images": again.each("images", lambda ids: again.images(remover, ids)),
    }
    return {name: number for name, number in counts.items() if number}, again.notes


def _valid_keys(vault: Vault, keys: SavedTable) -> list[int]:
    """The ids of the keys that are not revoked in a backup."""
    id_at, revoked_at = (keys.part.columns.index(name) for name in ("id", "revoked_at"))
    rows = (line.split(b"\t") for line in lines(read_pieces(vault, keys.pieces)))
    return [int(row[id_at]) for row in rows if row[revoked_at] == b"\\N"]


_Removal = tuple[list[int], Callable[[], object]]  # the ids that it removes, and what removes them

_ARCHIVES = "SELECT id, name FROM archives WHERE id = ANY(:ids) ORDER BY id"
_IMAGES = """
    SELECT i.id, a.name FROM images i JOIN archives a ON a.id = i.archive_id WHERE i.id = ANY(:ids) ORDER BY a.id, i.id
"""


class _Again:
    """The differences of two backups in a database that has the rows of the older one."""

    def __init__(self, engine: Engine, vault: Vault, older: Manifest, newer: Manifest) -> None:
        self._engine, self._vault = engine, vault
        self._older, self._newer = older, newer
        self.notes: list[str] = []

    def each(self, table: str, removals: Callable[[list[int]], list[_Removal]]) -> int:
        """Remove the rows that the newer backup does not have; returns how many there were.

        `removals` makes of ids what is removed together; one that is refused does not keep the others.
        """
        removed = 0
        gone = self._gone(table)
        while page := list(islice(gone, _PAGE)):
            # An archive takes its images and jobs with it.
            for ids, remove in removals(in_transaction(self._engine, present_ids, table, page)):
                try:
                    remove()
                    removed += len(ids)
                except UsageError as error:
                    shown = ", ".join(map(str, ids[:_SHOWN])) + (" and others" if len(ids) > _SHOWN else "")
                    self.notes.append(f"erased after the backup, and not erased again: {table} {shown} ({error})")
        return removed

    def _names(self, query: str, ids: list[int]) -> list[tuple[int, str]]:
        """Ids with the names of their archives."""

        def read(connection: Connection) -> list[tuple[int, str]]:
            return [(row.id, row.name) for row in connection.execute(text(query), {"ids": ids})]

        return in_transaction(self._engine, read)

    def archives(self, remover: Remover, ids: list[int]) -> list[_Removal]:
        """One by one."""
        return [([archive_id], partial(remover.archive, name)) for archive_id, name in self._names(_ARCHIVES, ids)]

    def images(self, remover: Remover, ids: list[int]) -> list[_Removal]:
        """Those of each archive together."""
        by_archive: dict[str, list[int]] = {}
        for image_id, name in self._names(_IMAGES, ids):
            by_archive.setdefault(name, []).append(image_id)
        return [(each, partial(remover.pictures, name, list(map(str, each)))) for name, each in by_archive.items()]

    def _gone(self, table: str) -> Iterator[int]:
        """The ids that only the older backup has, ascending; both lists are."""
        newer = self._ids(self._newer, table)
        next_id = next(newer, None)
        for older_id in self._ids(self._older, table):
            while next_id is not None and next_id < older_id:
                next_id = next(newer, None)
            if next_id != older_id:
                yield older_id

    def _ids(self, manifest: Manifest, table: str) -> Iterator[int]:
        return (int(line) for line in lines(read_pieces(self._vault, manifest.ids.get(table, ()))))
