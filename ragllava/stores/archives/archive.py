"""Archives, their images, and the files that an ingest job was offered. Every function works in the caller's
transaction; deadlocks are avoided by taking rows in the order of their keys."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection, Row, select, text
from sqlalchemy.dialects.postgresql import insert

from ragllava.errors import UsageError
from ragllava.records import FileOutcome, FileStatus, SourceFile, StoredImage
from ragllava.stores.archives import blobs, vectors
from ragllava.stores.archives.vectors import IndexView
from ragllava.stores.copying import copy_rows
from ragllava.stores.schema import archives, files, images

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class Archive:
    """A named collection of images. `active_index_id` is None before the first ingest."""

    archive_id: int
    name: str
    active_index_id: int | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class IndexSize:
    """An index and how many images it holds."""

    index: IndexView
    images: int


@dataclass(frozen=True, slots=True)
class ArchiveSummary:
    """What people want to know of an archive. Retired images are not counted; `size_bytes` is that of the files."""

    archive: Archive
    images: int
    without_caption: int
    size_bytes: int
    indexes: tuple[IndexSize, ...]
    last_ingest_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewImage:
    """A decoded picture on its way into an archive; `width` and `height` in pixels, as a viewer shows it."""

    sha256: str
    source: str
    uri: str
    caption: str | None
    width: int
    height: int
    media_type: str


@dataclass(frozen=True, slots=True)
class ExistingImage:
    """What the archive knows already of a picture with the same bytes."""

    image_id: int
    source: str
    caption: str | None
    width: int
    height: int
    media_type: str


@dataclass(frozen=True, slots=True)
class StoredRow:
    """What became of one offered image: `stored` or `duplicate`.

    `source` is the name that the image has in the archive: for a duplicate, that of the file which brought it.
    """

    image_id: int
    status: FileStatus
    source: str
    caption_updated: bool


@dataclass(frozen=True, slots=True)
class PendingFile:
    """A file of an ingest job that has no outcome yet."""

    file_no: int
    source: str
    uri: str
    caption: str | None


@dataclass(frozen=True, slots=True)
class RejectedFile:
    """A file that is not in the archive although it was offered: the latest job `rejected` it, or it is `dead`."""

    job_id: int
    source: str
    uri: str
    status: FileStatus
    reason: str | None


def ensure_archive(connection: Connection, name: str) -> Archive:
    """The archive of this name, created if it is new. Any number may create it at once; there is one.

    Raises UsageError for a name that cannot be part of an address.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of an archive: use 1 to 63 of the characters a-z, 0-9, `.`, `_` and `-`, "
            "and begin with a letter or a digit"
        )
    connection.execute(insert(archives).values(name=name).on_conflict_do_nothing())
    return get_archive(connection, name)


def get_archive(connection: Connection, name: str) -> Archive:
    """The archive of this name. Raises UsageError that names the known ones."""
    if _NAME.fullmatch(name):  # anything else cannot be there, and may not even be text that Postgres takes
        row = connection.execute(select(archives).where(archives.c.name == name)).one_or_none()
        if row is not None:
            return _archive(row)
    known = [archive.name for archive in list_archives(connection)]
    if not known:
        raise UsageError(f"there is no archive {name!r}, and none at all yet; `ragllava ingest` creates one")
    more = f" and {len(known) - 10} more" if len(known) > 10 else ""
    raise UsageError(f"there is no archive {name!r}; there are: {', '.join(known[:10])}{more}")


def list_archives(connection: Connection) -> list[Archive]:
    """All archives by name."""
    return [_archive(row) for row in connection.execute(select(archives).order_by(archives.c.name))]


def archive_summary(connection: Connection, archive: Archive) -> ArchiveSummary:
    """Counts of an archive. Reads all its image rows: for people, not for every question."""
    row = connection.execute(
        text("""
            SELECT count(*) AS images, count(*) FILTER (WHERE caption IS NULL) AS without_caption,
                   coalesce(sum(size_bytes), 0)::bigint AS size_bytes,
                   (SELECT max(finished_at) FROM jobs
                    WHERE archive_id = :archive_id AND kind = 'ingest') AS last_ingest_at
            FROM images JOIN blobs USING (sha256) WHERE archive_id = :archive_id AND NOT retired
        """),
        {"archive_id": archive.archive_id},
    ).one()
    sizes = tuple(
        IndexSize(index, vectors.count_embeddings(connection, index.index_id))
        for index in vectors.list_indexes(connection, archive.archive_id)
    )
    return ArchiveSummary(archive, row.images, row.without_caption, row.size_bytes, sizes, row.last_ingest_at)


def existing_images(connection: Connection, archive_id: int, hashes: Sequence[str]) -> dict[str, ExistingImage]:
    """Those of the pictures that the archive holds, by sha256. A retired one counts as new: it has no embedding."""
    rows = connection.execute(
        select(images).where(
            images.c.sha256 == text("ANY(:hashes)"), images.c.archive_id == archive_id, ~images.c.retired
        ),
        {"hashes": list(hashes)},
    )
    return {
        row.sha256: ExistingImage(row.id, row.source, row.caption, row.width, row.height, row.media_type)
        for row in rows
    }


def load_images(connection: Connection, image_ids: Sequence[int]) -> dict[int, StoredImage]:
    """Images by id, also retired ones: an answer may rest on them."""
    rows = connection.execute(select(images).where(images.c.id == text("ANY(:ids)")), {"ids": list(image_ids)})
    return {row.id: StoredImage(row.id, row.sha256, row.source, row.caption) for row in rows}


def store_images(connection: Connection, archive_id: int, offered: Sequence[NewImage]) -> list[StoredRow]:
    """Put pictures into an archive whose bytes are in the object store; one result for each, in the same order.

    The first file with certain bytes makes the image, every other one is a duplicate of it. A caption that the
    same uri brings anew replaces the old one; another uri's caption is taken only where there was none. When
    a uri comes with other bytes than before, its former image is retired, unless another file of the same batch
    has those bytes. A retired image that comes back is `stored` again, and needs its embedding again.

    Two workers may store the same pictures at once: the later one waits and finds duplicates. Raises BlobDeleted
    when bytes were not announced, or removed since.
    """
    blobs.make_live(connection, [image.sha256 for image in offered])
    inserted = _insert_images(connection, archive_id, offered)
    rows = _lock_images(connection, archive_id, {image.sha256 for image in offered})
    results, changed = _reconcile(offered, rows, inserted)
    _update_images(connection, changed)
    _retire_replaced(connection, archive_id, offered)
    return results


@dataclass(frozen=True, slots=True)
class _ImageRow:
    image_id: int
    source: str
    uri: str
    caption: str | None
    retired: bool


def _insert_images(connection: Connection, archive_id: int, offered: Sequence[NewImage]) -> set[str]:
    """Hashes of the images that are new to the archive; the first file of each hash names it."""
    first: dict[str, NewImage] = {}
    for image in offered:
        first.setdefault(image.sha256, image)
    values = [
        {
            "archive_id": archive_id,
            "sha256": image.sha256,
            "source": image.source,
            "uri": image.uri,
            "caption": image.caption or None,
            "width": image.width,
            "height": image.height,
            "media_type": image.media_type,
        }
        for image in first.values()
    ]
    if not values:
        return set()
    statement = insert(images).on_conflict_do_nothing().returning(images.c.sha256)
    return set(connection.scalars(statement, values))


def _lock_images(connection: Connection, archive_id: int, hashes: set[str]) -> dict[str, _ImageRow]:
    rows = connection.execute(
        select(images)
        .where(images.c.sha256 == text("ANY(:hashes)"), images.c.archive_id == archive_id)
        .order_by(images.c.sha256)
        .with_for_update(key_share=True),
        {"hashes": sorted(hashes)},
    )
    return {row.sha256: _ImageRow(row.id, row.source, row.uri, row.caption, row.retired) for row in rows}


def _reconcile(
    offered: Sequence[NewImage], rows: dict[str, _ImageRow], inserted: set[str]
) -> tuple[list[StoredRow], list[_ImageRow]]:
    """What each offer means for the image that holds its bytes: the results, and the rows to write."""
    uris = {image.uri for image in offered}
    claims = {(image.uri, image.sha256) for image in offered}
    current, unseen, results = dict(rows), set(inserted), []
    for image in offered:
        before = current[image.sha256]
        after = before
        # The file that named the image holds other bytes now, so this one names it.
        if before.retired or (before.uri in uris and (before.uri, image.sha256) not in claims):
            after = replace(after, source=image.source, uri=image.uri, retired=False)
        if image.caption and (after.uri == image.uri or after.caption is None):
            after = replace(after, caption=image.caption)
        is_stored = image.sha256 in unseen or before.retired
        unseen.discard(image.sha256)
        current[image.sha256] = after
        results.append(
            StoredRow(
                image_id=after.image_id,
                status=FileStatus.STORED if is_stored else FileStatus.DUPLICATE,
                source=after.source,
                caption_updated=after.caption != before.caption,
            )
        )
    return results, [row for sha256, row in current.items() if row != rows[sha256]]


def _update_images(connection: Connection, rows: Sequence[_ImageRow]) -> None:
    if not rows:
        return
    connection.execute(
        text("""
            UPDATE images
            SET source = new.source, uri = new.uri, caption = new.caption, retired = false, updated_at = now()
            FROM unnest(CAST(:ids AS bigint[]), CAST(:sources AS text[]), CAST(:uris AS text[]),
                        CAST(:captions AS text[])) AS new (id, source, uri, caption)
            WHERE images.id = new.id
        """),
        {
            "ids": [row.image_id for row in rows],
            "sources": [row.source for row in rows],
            "uris": [row.uri for row in rows],
            "captions": [row.caption for row in rows],
        },
    )


def _retire_replaced(connection: Connection, archive_id: int, offered: Sequence[NewImage]) -> None:
    retired = connection.scalars(
        text("""
            UPDATE images SET retired = true, updated_at = now()
            WHERE archive_id = :archive_id AND NOT retired AND uri = ANY(:uris) AND sha256 <> ALL(:hashes)
            RETURNING id
        """),
        {
            "archive_id": archive_id,
            "uris": [image.uri for image in offered],
            "hashes": [image.sha256 for image in offered],
        },
    ).all()
    if retired:
        vectors.remove_embeddings(connection, archive_id, retired)


def insert_files(connection: Connection, job_id: int, sources: Iterable[SourceFile]) -> int:
    """Write the inputs of an ingest job, numbered from 0 in the order given; returns how many there were.

    A file that the walk refused has its outcome at once. Bytes in a name that are no text are shown as escapes;
    the uri is what finds the file again.
    """
    rows = (
        (
            job_id,
            number,
            _storable(file.source),
            _storable(file.uri),
            _storable(file.caption) if file.caption else None,
            FileStatus.REJECTED.value if file.rejected is not None else None,
            _storable(file.rejected) if file.rejected is not None else None,
        )
        for number, file in enumerate(sources)
    )
    columns = ("job_id", "file_no", "source", "uri", "caption", "status", "reason")
    return copy_rows(connection, files.name, columns, rows)


def load_files(connection: Connection, job_id: int, lo: int, hi: int) -> list[PendingFile]:
    """Files of a job with numbers in [lo, hi) that have no outcome yet, in order."""
    rows = connection.execute(
        select(files)
        .where(files.c.job_id == job_id, files.c.file_no >= lo, files.c.file_no < hi, files.c.status.is_(None))
        .order_by(files.c.file_no)
    )
    return [PendingFile(row.file_no, row.source, row.uri, row.caption) for row in rows]


def finish_files(connection: Connection, job_id: int, outcomes: Sequence[FileOutcome]) -> int:
    """Write outcomes of files; returns how many were new. An outcome that is there already stays."""
    result = connection.execute(
        text("""
            UPDATE files SET status = new.status, reason = new.reason, image_id = new.image_id
            FROM unnest(CAST(:numbers AS bigint[]), CAST(:statuses AS text[]), CAST(:reasons AS text[]),
                        CAST(:image_ids AS bigint[])) AS new (file_no, status, reason, image_id)
            WHERE files.job_id = :job_id AND files.file_no = new.file_no AND files.status IS NULL
        """),
        {
            "job_id": job_id,
            "numbers": [outcome.file_no for outcome in outcomes],
            "statuses": [outcome.status.value for outcome in outcomes],
            "reasons": [_storable(outcome.reason) if outcome.reason else None for outcome in outcomes],
            "image_ids": [outcome.image_id for outcome in outcomes],
        },
    )
    return result.rowcount


def rejected_files(connection: Connection, archive_id: int) -> list[RejectedFile]:
    """Files whose latest outcome keeps them out of the archive, by source. A cancelled try is no outcome."""
    rows = connection.execute(
        text("""
            SELECT * FROM (
                SELECT DISTINCT ON (uri) job_id, source, uri, files.status, reason
                FROM files JOIN jobs ON jobs.id = files.job_id
                WHERE jobs.archive_id = :archive_id AND files.status IS NOT NULL AND files.status <> 'cancelled'
                ORDER BY uri, job_id DESC, file_no DESC
            ) latest
            WHERE status IN ('rejected', 'dead') ORDER BY source, uri
        """),
        {"archive_id": archive_id},
    )
    return [RejectedFile(row.job_id, row.source, row.uri, FileStatus(row.status), row.reason) for row in rows]


def _archive(row: Row[tuple[object, ...]]) -> Archive:
    return Archive(row.id, row.name, row.active_index_id, row.created_at)


def _storable(value: str) -> str:
    """Text that Postgres takes: no NUL, and no lone surrogate of a file name that is not UTF-8."""
    return value.replace("\x00", "\ufffd").encode("utf-8", "backslashreplace").decode()
