"""Archives: what feeds them, and what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragllava.client.base import BaseClient
from ragllava.errors import UsageError
from ragllava.stages.buckets.binding import bind_archive, unbind_archive
from ragllava.stages.buckets.sync import ScanReport, scan
from ragllava.stages.buckets.watched_folder import FolderChanges, WatchedFolder
from ragllava.stages.ingest.captions import Captions, read_captions
from ragllava.stages.ingest.sources import list_sources
from ragllava.stages.ingest.submit import submit_files
from ragllava.stages.reindex.gaps import Gap, find_gaps
from ragllava.stores.archives import archive
from ragllava.stores.archives.archive import ArchiveSummary, RejectedFile
from ragllava.stores.buckets.bindings import Binding, BindingRole, BindingView, view_bindings


@dataclass(frozen=True, slots=True)
class Ingested:
    """A submitted ingest job, and the captions of the caption file that fit no file."""

    job_id: int
    total: int
    unused_captions: list[str]


class ArchiveClient(BaseClient):
    """What concerns archives, the buckets bound to them and the folders that they follow."""

    def ingest(self, paths: Sequence[Path], archive_name: str, captions: Path | None = None) -> Ingested:
        """Queue the pictures under `paths` for an archive, which is created if it is new.

        The paths are read by the ingest workers, which must see them under the same names. Raises UsageError when
        there is nothing to ingest.
        """
        by_picture = read_captions(captions) if captions else None
        files = list(list_sources(paths, by_picture))
        if not files:
            raise UsageError(f"no pictures in {', '.join(map(str, paths))}")
        submitted = submit_files(self.engine, self.settings, archive_name=archive_name, files=files)
        self._dispatch()
        return Ingested(submitted.job_id, submitted.total, _unused(by_picture))

    def bind(
        self, archive_name: str, address: str, role: BindingRole, options: Mapping[str, Any] | None = None
    ) -> Binding:
        """Bind `s3://bucket/prefix/` to an archive, which is created if it is new.

        Raises UsageError for an address that is none, a bucket that is not there or is our own, and an overlap.
        """
        return bind_archive(self.engine, self.objects, archive_name, address, role, dict(options or {}))

    def unbind(self, archive_name: str, address: str) -> Binding:
        """Forget a binding; what it brought stays in the archive. Raises UsageError for what is not bound to it."""
        return unbind_archive(self.engine, archive_name, address)

    def bindings(self, archive_name: str) -> list[BindingView]:
        """Which parts of buckets feed an archive, and what is known of them."""
        return self._do(lambda c: view_bindings(c, archive.get_archive(c, archive_name).archive_id))

    def scan(self, archive_name: str) -> list[ScanReport]:
        """Compare the buckets that an archive is bound to with what is known of them, and repair the difference."""
        reports = scan(self.engine, self.settings, self.objects, archive_name)
        self._dispatch()
        return reports

    def follow(self, watched: WatchedFolder) -> FolderChanges:
        """Make an archive what a folder is now; `watched` remembers what was offered. Raises UsageError."""
        changes = watched.compare(self.engine, self.settings)
        if changes.job_id is not None:
            self._dispatch()
        return changes

    def archive(self, name: str) -> ArchiveSummary:
        """What an archive holds. Raises UsageError for an unknown name."""
        return self._do(lambda c: archive.archive_summary(c, archive.get_archive(c, name)))

    def archives(self) -> list[ArchiveSummary]:
        """All archives by name."""
        return self._do(lambda c: [archive.archive_summary(c, found) for found in archive.list_archives(c)])

    def rejected(self, name: str) -> list[RejectedFile]:
        """The files of an archive whose latest ingest was refused, with the reason."""
        return self._do(lambda c: archive.rejected_files(c, archive.get_archive(c, name).archive_id))

    def gaps(self, name: str) -> list[Gap]:
        """The images of an archive that no question can find, and why."""
        return self._do(lambda c: find_gaps(c, archive.get_archive(c, name).archive_id))


def _unused(captions: Captions | None) -> list[str]:
    return captions.unused() if captions else []
