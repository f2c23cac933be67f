"""Keeping an archive as a folder is: what `ragllava watch` does at its start and with each batch of changes.

Files are told apart by their bytes. What the archive holds already is not ingested again, and an image is retired
only when no file of the folder has its bytes any more. Zip and tar files are passed over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection, Engine

from ragllava.errors import ImageRejected
from ragllava.jobs import control
from ragllava.records import SourceFile
from ragllava.settings import Settings
from ragllava.stages.ingest.captions import read_captions
from ragllava.stages.ingest.files import open_regular
from ragllava.stages.ingest.sources import list_sources
from ragllava.stages.ingest.submit import create_ingest
from ragllava.stages.ingest.uris import file_uri, parse_uri
from ragllava.stores.archives import archive, image_changes
from ragllava.stores.archives.archive import ExistingImage
from ragllava.stores.archives.image_changes import CaptionChange, FiledImage, NewName
from ragllava.stores.database import in_transaction

_PIECE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class FolderChanges:
    """What one comparison found, by the files' names. `job_id` ingests what is new; None: nothing is."""

    new: list[str]
    gone: list[str]
    captions: list[str]  # files that have another caption now
    job_id: int | None
    files: int

    @property
    def found_any(self) -> bool:
        """Whether the archive was not as the folder is."""
        return bool(self.new or self.gone or self.captions)


@dataclass(slots=True)
class WatchedFolder:
    """A folder, its archive, and what was offered of it so far; `captions` is a caption file, read each time."""

    folder: Path
    archive_name: str
    captions: Path | None = None
    open_jobs: set[int] = field(default_factory=set)
    _stamps: dict[str, tuple[int, int, str]] = field(default_factory=dict)  # by uri: size, time of change, hash
    _offered: dict[str, str] = field(default_factory=dict)  # by uri: the hash that an ingest job was made for

    def compare(self, engine: Engine, settings: Settings) -> FolderChanges:
        """Make the archive what the folder is now: one ingest job for what is new, images of what is gone retired.

        A file that was refused is not offered again until it changes. Raises UsageError when the folder is gone, or
        its caption file cannot be read.
        """
        book = read_captions(self.captions) if self.captions else None
        listed = [file for file in list_sources([self.folder], book) if file.uri.startswith("file://")]
        files = {file.uri: file for file in listed if file.rejected is None}
        hashes = {uri: sha256 for uri in files if (sha256 := self._hash(uri)) is not None}
        files = {uri: files[uri] for uri in hashes}
        changes = in_transaction(engine, self._write, settings, files, hashes)
        if changes.job_id is not None:
            self.open_jobs.add(changes.job_id)
        self._offered = hashes
        self._stamps = {uri: stamp for uri, stamp in self._stamps.items() if uri in hashes}
        return changes

    def jobs_ended(self, engine: Engine) -> bool:
        """True once after our ingest jobs have ended: what changed meanwhile can be compared now."""
        if not self.open_jobs:
            return False
        self._forget_ended(engine)
        return not self.open_jobs

    def _forget_ended(self, engine: Engine) -> None:
        views = in_transaction(engine, lambda c: [control.view(c, job_id) for job_id in self.open_jobs])
        self.open_jobs -= {view.job_id for view in views if view.is_final}

    def _write(
        self, connection: Connection, settings: Settings, files: Mapping[str, SourceFile], hashes: Mapping[str, str]
    ) -> FolderChanges:
        archive_id = archive.ensure_archive(connection, self.archive_name).archive_id
        below = file_uri(self.folder.absolute()).rstrip("/") + "/"
        filed = image_changes.images_below(connection, archive_id, below)
        held = archive.existing_images(connection, archive_id, sorted(set(hashes.values())))
        new = [files[uri] for uri, sha256 in hashes.items() if sha256 not in held and self._is_news(uri, sha256)]
        self._release(connection, archive_id, filed, held, files, hashes)
        captions = [
            CaptionChange(filed[uri].image_id, uri, file.caption)
            for uri, file in files.items()
            if uri in filed and filed[uri].sha256 == hashes[uri] and file.caption is not None
        ]
        captioned = image_changes.change_captions(connection, archive_id, captions)
        job_id = create_ingest(connection, settings, archive_id, new, {"input": str(self.folder)}) if new else None
        return FolderChanges(
            new=[file.source for file in new],
            gone=sorted(image.source for uri, image in filed.items() if uri not in files),
            captions=sorted(files[uri].source for uri in captioned),
            job_id=job_id,
            files=len(files),
        )

    def _is_news(self, uri: str, sha256: str) -> bool:
        return self._offered.get(uri) != sha256

    def _release(
        self,
        connection: Connection,
        archive_id: int,
        filed: Mapping[str, FiledImage],
        held: Mapping[str, ExistingImage],
        files: Mapping[str, SourceFile],
        hashes: Mapping[str, str],
    ) -> None:
        """Let go of images whose file is gone or has other bytes now.

        Another file with the same bytes names the image from now on. The image of a file that was written anew stays
        until the new one is in its place, or was refused.
        """
        by_hash = {sha256: uri for uri, sha256 in hashes.items()}
        names, retired = [], []
        for uri, image in filed.items():
            if hashes.get(uri) == image.sha256:
                continue
            other = by_hash.get(image.sha256)
            if other is not None:
                names.append(NewName(image.image_id, files[other].source, other))
            elif uri not in files or hashes[uri] in held or self._was_refused(uri, hashes[uri]):
                retired.append(uri)
        image_changes.rename_images(connection, archive_id, names)
        image_changes.retire_at(connection, archive_id, retired)

    def _was_refused(self, uri: str, sha256: str) -> bool:
        return not self._is_news(uri, sha256) and not self.open_jobs

    def _hash(self, uri: str) -> str | None:
        """The SHA-256 of a file, read again only if it was written to; None when it cannot be read any more."""
        path = parse_uri(uri).path
        try:
            status = Path(path).stat()
            known = self._stamps.get(uri)
            if known is not None and known[:2] == (status.st_size, status.st_mtime_ns):
                return known[2]
            with open_regular(path) as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ImageRejected):
            return None
        self._stamps[uri] = (status.st_size, status.st_mtime_ns, sha256)
        return sha256


def first_names(names: Sequence[str], most: int = 3) -> str:
    """`a.png, b.png, c.png and 7 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
