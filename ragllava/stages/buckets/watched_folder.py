"""Keep an archive in sync with a folder: what `ragllava watch` does at its start and after each batch of changes.

Files are identified by their bytes. A picture that the archive holds already is not ingested again, and an image is
retired only when no file of the folder has its bytes any more. The page of a document is identified by the bytes of
the document. Zip and tar files are skipped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection, Engine

from ragllava.errors import ImageRejected
from ragllava.jobs import views
from ragllava.settings import Settings
from ragllava.source_files import SourceFile
from ragllava.stages.ingest.captions import Columns, read_captions
from ragllava.stages.ingest.files import open_regular
from ragllava.stages.ingest.sources import list_sources
from ragllava.stages.ingest.submit import create_ingest
from ragllava.stages.ingest.uris import file_uri, parse_uri
from ragllava.stores.archives import archive, image_changes
from ragllava.stores.archives.archive import document_of, page_of
from ragllava.stores.archives.descriptions import ArchiveImage
from ragllava.stores.archives.image_changes import CaptionChange, NewName
from ragllava.stores.buckets import held_removals
from ragllava.stores.database import in_transaction


@dataclass(frozen=True, slots=True)
class FolderChanges:
    """The result of one comparison, by the files' names. `job_id` is the ingest job of the new files, if any."""

    new: list[str]
    gone: list[str]
    captions: list[str]  # files that have another caption or other metadata now
    job_id: int | None
    files: int
    held: int = 0  # pictures whose files are gone, so many at once that they stay

    @property
    def found_differences(self) -> bool:
        """Whether the archive differed from the folder."""
        return bool(self.new or self.gone or self.captions)


@dataclass(slots=True)
class WatchedFolder:
    """A folder, its archive, and the files offered so far; `captions` is a caption file, read at each comparison, and
    `columns` name those of it.

    When more than `settings.removals_share` of the pictures are gone at once, they stay: an unmounted disk looks like
    an empty folder. Files whose names match a pattern of `exclude` are left out (see list_sources).
    """

    folder: Path
    archive_name: str
    captions: Path | None = None
    allow_removals: bool = False  # for the next comparison, however many files are gone
    columns: Columns | None = None
    exclude: Sequence[str] = ()
    open_jobs: set[int] = field(default_factory=set)
    _stamps: dict[str, tuple[int, int, str]] = field(default_factory=dict)  # by uri: size, modification time, hash
    _offered: dict[str, str] = field(default_factory=dict)  # by uri: the hash for which an ingest job was created

    def compare(self, engine: Engine, settings: Settings) -> FolderChanges:
        """Make the archive equal to the folder: one ingest job of new files; images of removed files are retired.

        A file that was rejected is not offered again until it changes. Raises UsageError when the folder does not
        exist any more, or its caption file cannot be read.
        """
        captions = read_captions(self.captions, self.columns) if self.captions else None
        offered = list_sources([self.folder], captions, captions_path=self.captions, exclude=self.exclude)
        listed = [file for file in offered if file.uri.startswith("file://")]
        files = {file.uri: file for file in listed if file.rejected is None}
        hashes = {uri: sha256 for uri in files if (sha256 := self._hash(uri)) is not None}
        files = {uri: files[uri] for uri in hashes}
        changes = in_transaction(engine, self._write, settings, files, hashes)
        if changes.job_id is not None:
            self.open_jobs.add(changes.job_id)
        self.allow_removals = False
        self._offered = hashes
        self._stamps = {uri: stamp for uri, stamp in self._stamps.items() if uri in hashes}
        return changes

    def jobs_ended(self, engine: Engine) -> bool:
        """True once after the ingest jobs of this folder have ended: later changes can be compared now."""
        if not self.open_jobs:
            return False
        self.open_jobs = in_transaction(engine, _unfinished, self.open_jobs)
        return not self.open_jobs

    def _write(
        self, connection: Connection, settings: Settings, files: Mapping[str, SourceFile], hashes: Mapping[str, str]
    ) -> FolderChanges:
        archive_id = archive.ensure_archive(connection, self.archive_name).archive_id
        below = file_uri(self.folder.absolute()).rstrip("/") + "/"
        images = image_changes.images_below(connection, archive_id, below)
        existing = {
            *archive.existing_images(connection, archive_id, hashes.values()),
            *map(_file_hash, images.values()),
        }
        new = [
            files[uri] for uri, sha256 in hashes.items() if sha256 not in existing and self._offered.get(uri) != sha256
        ]
        there = set(hashes.values())
        gone = {
            uri for uri, image in images.items() if document_of(uri) not in files and _file_hash(image) not in there
        }
        held = self._hold(connection, settings, archive_id, below, len(gone), len(images))
        followed = {uri: image for uri, image in images.items() if not held or uri not in gone}
        self._release_images(connection, archive_id, followed, existing, files, hashes)
        captions = [
            CaptionChange(image.image_id, uri, said.caption, said.metadata)
            for uri, image in images.items()
            if (file := files.get(document_of(uri))) is not None and _file_hash(image) == hashes[document_of(uri)]
            for said in [file.said_about(page_of(uri))]
        ]
        changed = image_changes.change_captions(connection, archive_id, captions, may_remove=False)
        job_id = create_ingest(connection, settings, archive_id, new, {"input": str(self.folder)}) if new else None
        return FolderChanges(
            new=[file.source for file in new],
            gone=sorted(image.source for uri, image in followed.items() if document_of(uri) not in files),
            captions=sorted({files[document_of(uri)].source for uri in changed}),
            job_id=job_id,
            files=len(files),
            held=len(gone) if held else 0,
        )

    def _hold(
        self, connection: Connection, settings: Settings, archive_id: int, origin: str, gone: int, pictures: int
    ) -> bool:
        """Whether the pictures whose files are gone stay; recorded for `ragllava status`."""
        if self.allow_removals or not held_removals.is_too_much(gone, pictures, settings.removals_share):
            held_removals.release(connection, archive_id, origin)
            return False
        held_removals.hold(connection, archive_id, origin, gone, pictures)
        return True

    def _release_images(
        self,
        connection: Connection,
        archive_id: int,
        images: Mapping[str, ArchiveImage],
        existing: Set[str],
        files: Mapping[str, SourceFile],
        hashes: Mapping[str, str],
    ) -> None:
        """Rename or retire images whose file does not exist any more or was overwritten.

        Another file with the same bytes names the image from now on. The image of an overwritten file stays until the
        new image is stored, or the new bytes are rejected.
        """
        by_hash = {sha256: uri for uri, sha256 in hashes.items()}
        names, retired = [], []
        for uri, image in images.items():
            named_by, sha256 = document_of(uri), _file_hash(image)
            if hashes.get(named_by) == sha256:
                continue
            copy = by_hash.get(sha256)
            if copy is not None:
                page = uri.removeprefix(named_by)
                names.append(NewName(image.image_id, files[copy].source + page, copy + page))
                continue
            offered = hashes.get(named_by)
            was_rejected = offered is not None and self._offered.get(named_by) == offered and not self.open_jobs
            if offered is None or offered in existing or was_rejected:
                retired.append(uri)
        image_changes.rename_images(connection, archive_id, names)
        image_changes.retire_at(connection, archive_id, retired)

    def _hash(self, uri: str) -> str | None:
        """The SHA-256 of a file, read again only if it was modified; None when it cannot be read any more."""
        path = parse_uri(uri).path
        try:
            status = Path(path).stat()
            stamp = self._stamps.get(uri)
            if stamp is not None and stamp[:2] == (status.st_size, status.st_mtime_ns):
                return stamp[2]
            with open_regular(path) as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ImageRejected):
            return None
        self._stamps[uri] = (status.st_size, status.st_mtime_ns, sha256)
        return sha256


def _file_hash(image: ArchiveImage) -> str:
    """The hash of the file that names an image: of its document, if it is a page."""
    document = (image.embedded or {}).get("document") if document_of(image.uri) != image.uri else None
    return document if isinstance(document, str) else image.sha256


def _unfinished(connection: Connection, job_ids: Iterable[int]) -> set[int]:
    return {job_id for job_id in job_ids if not views.view(connection, job_id).is_final}
