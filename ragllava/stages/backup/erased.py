"""What was erased after a backup is erased again when that backup is restored.

A backup holds what was erased later. The newest backup of the same database in the same vault says what that was: the
images, jobs and archives that the restored one has and it has not. Ids are never given twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from sqlalchemy import Connection, Engine, text

from ragllava.errors import UsageError
from ragllava.settings import Settings
from ragllava.stages.backup.manifest import Manifest, list_names, read_manifest, read_pieces
from ragllava.stages.backup.vaults import Vault
from ragllava.stages.erasing.remove import Removal, Remover
from ragllava.stores.backup.loading import lines, present_ids
from ragllava.stores.database import in_transaction
from ragllava.stores.objects import ObjectStore

_ACCOUNT = "restore"
_PAGE = 500
_SHOWN = 5


def erase_again(
    engine: Engine, settings: Settings, objects: ObjectStore, vault: Vault, restored: Manifest
) -> tuple[dict[str, int], list[str]]:
    """Erase what a later backup does not have any more; returns how many archives, jobs and images that were, and
    sentences about what could not be done."""
    newest = read_manifest(vault, list_names(vault)[-1])
    if newest.name == restored.name:
        return {}, []
    if newest.identity != restored.identity:
        return {}, [
            f"what was erased after {restored.name} is there again: the later backups are of another database, so "
            "nothing says what it was; remove it again"
        ]
    remover = Remover(engine, settings, objects, _ACCOUNT)
    again = _Again(engine, vault, restored, newest)
    archives = again.each("archives", lambda ids: [remover.archive(name) for _, name in again.names(_ARCHIVES, ids)])
    jobs = again.each("jobs", lambda ids: [remover.job(job_id) for job_id in ids], page=1)
    images = again.each("images", lambda ids: again.remove_images(remover, ids))
    counts = {"archives": archives, "jobs": jobs, "images": images}
    return {name: number for name, number in counts.items() if number}, again.notes


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

    def each(self, table: str, remove: Callable[[list[int]], object], page: int = _PAGE) -> int:
        """Remove the rows that the newer backup does not have, some at once; returns how many there were."""
        removed = 0
        gone = self._gone(table)
        while chunk := list(islice(gone, page)):
            # An archive takes its images and jobs with it.
            left = in_transaction(self._engine, present_ids, table, chunk)
            if not left:
                continue
            try:
                remove(left)
                removed += len(left)
            except UsageError as error:
                shown = ", ".join(map(str, left[:_SHOWN]))
                self.notes.append(f"erased after the backup, and not erased again: {table} {shown} ({error})")
        return removed

    def names(self, query: str, ids: list[int]) -> list[tuple[int, str]]:
        """Ids with the names of their archives."""

        def read(connection: Connection) -> list[tuple[int, str]]:
            return [(row.id, row.name) for row in connection.execute(text(query), {"ids": ids})]

        return in_transaction(self._engine, read)

    def remove_images(self, remover: Remover, ids: list[int]) -> list[Removal]:
        """Remove images, those of each archive together."""
        by_archive: dict[str, list[str]] = {}
        for image_id, name in self.names(_IMAGES, ids):
            by_archive.setdefault(name, []).append(str(image_id))
        return [remover.pictures(name, images) for name, images in by_archive.items()]

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
