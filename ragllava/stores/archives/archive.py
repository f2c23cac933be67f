"""Archives and their images.

Every function works in the caller's transaction. Rows are locked in the order of their keys, to avoid deadlocks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Text, func, literal_column, select, text, update
from sqlalchemy.dialects.postgresql import insert

from ragllava.errors import NotFound, UsageError
from ragllava.metadata import Metadata, all_metadata
from ragllava.records import StoredImage
from ragllava.source_files import FileStatus
from ragllava.stores.archives import blobs, vectors, word_index
from ragllava.stores.archives.descriptions import ArchiveImage, NewImage, described, renamed
from ragllava.stores.archives.vectors import IndexView
from ragllava.stores.database import equals_any, given, record, records
from ragllava.stores.schema import archives, images
from ragllava.words import WORDS_VERSION

PAGE_MARK = "#page="  # between the uri of a document and the number of a page; a path in a uri has no such sign

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SELECT_STORED = select(images.c.id, images.c.sha256, images.c.source, images.c.caption)  # as in a StoredImage
_SELECT_ARCHIVES = select(archives.c.id.label("archive_id"), archives)


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
    """An overview of an archive without its retired images. `size_bytes` is the size of the picture files."""

    archive: Archive
    images: int
    without_caption: int
    size_bytes: int
    indexes: tuple[IndexSize, ...]
    last_ingest_at: datetime | None


@dataclass(frozen=True, slots=True)
class ListedImage:
    """A line of the list of an archive's images; `width` and `height` in pixels."""

    image_id: int
    source: str
    sha256: str
    caption: str | None
    width: int
    height: int
    media_type: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class StoredRow:
    """The outcome of one offered image: `stored`, `updated` or `duplicate`.

    `source` is the name of the image in the archive: for a duplicate, that of the file that names the image.
    """

    image_id: int
    status: FileStatus
    source: str
    caption_updated: bool
    metadata_updated: bool = False


def ensure_archive(connection: Connection, name: str) -> Archive:
    """The archive of this name, created if it is new. Safe to call concurrently.

    Raises UsageError for a name that cannot be part of an address.
    """
    create_archive(connection, name)
    return get_archive(connection, name)


def create_archive(connection: Connection, name: str) -> bool:
    """Create an archive; False when there is one of this name. Raises UsageError for a name that is not allowed."""
    check_name(name)
    # Asked first, because the role of the HTTP API may insert nothing where it sees only some archives.
    if connection.scalar(select(archives.c.id).where(archives.c.name == name)) is not None:
        return False
    created = insert(archives).values(name=name, words_version=WORDS_VERSION)
    return connection.scalar(created.on_conflict_do_nothing().returning(archives.c.id)) is not None


def note_gaps(connection: Connection, archive_id: int, numbers: Mapping[str, int]) -> None:
    """Keep how many images of an archive have no vector, by reason; the metrics show the sum over all archives."""
    connection.execute(update(archives).where(archives.c.id == archive_id).values(gaps=dict(numbers)))


def check_name(name: str) -> None:
    """Raises UsageError for a name that cannot be part of an address."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of an archive: use 1 to 63 of the characters a-z, 0-9, `.`, `_` and `-`, "
            "and begin with a letter or a digit"
        )


def get_archive(connection: Connection, name: str) -> Archive:
    """The archive of this name. Raises UsageError that lists the existing ones."""
    if _NAME.fullmatch(name):  # any other name cannot exist, and may not even be text that Postgres accepts
        row = connection.execute(_SELECT_ARCHIVES.where(archives.c.name == name)).one_or_none()
        if row is not None:
            return record(Archive, row)
    names = [archive.name for archive in list_archives(connection)]
    if not names:
        raise NotFound(f"there is no archive {name!r}, and none at all yet; `ragllava ingest` creates one")
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    raise NotFound(f"there is no archive {name!r}; there are: {', '.join(names[:10])}{more}")


def list_archives(connection: Connection) -> list[Archive]:
    """All archives by name."""
    return records(Archive, connection.execute(_SELECT_ARCHIVES.order_by(archives.c.name)))


def archive_summary(connection: Connection, archive: Archive) -> ArchiveSummary:
    """Counts of an archive. Reads all its image rows: too slow for every question."""
    query = text("""
        SELECT count(*) AS images, count(*) FILTER (WHERE caption IS NULL) AS without_caption,
               coalesce(sum(size_bytes), 0)::bigint AS size_bytes,
               (SELECT max(finished_at) FROM jobs
                WHERE archive_id = :archive_id AND kind = 'ingest') AS last_ingest_at
        FROM images JOIN blobs USING (sha256) WHERE archive_id = :archive_id AND NOT retired
    """)
    sizes = tuple(
        IndexSize(index, vectors.count_embeddings(connection, index.index_id))
        for index in vectors.list_indexes(connection, archive.archive_id)
    )
    row = connection.execute(query, {"archive_id": archive.archive_id}).one()
    return record(ArchiveSummary, row, archive=archive, indexes=sizes)


def find_images(
    connection: Connection, archive_id: int, condition: ColumnElement[bool], *, lock: bool = False
) -> list[ArchiveImage]:
    """The images of an archive that fulfil a condition on `images`, retired ones left out; `lock` them for a change."""
    query = _select_images(archive_id, condition).where(~images.c.retired)
    query = query.order_by(images.c.sha256).with_for_update(key_share=True) if lock else query
    return records(ArchiveImage, connection.execute(query))


def existing_images(connection: Connection, archive_id: int, hashes: Iterable[str]) -> dict[str, ArchiveImage]:
    """Those of the pictures that the archive holds, by sha256. A retired one counts as new: it has no embedding."""
    query = _select_hashed(archive_id, hashes).where(~images.c.retired)
    return {image.sha256: image for image in records(ArchiveImage, connection.execute(query))}


def document_of(uri: str) -> str:
    """The uri of the document whose page `uri` is; the uri itself of a picture that is no page."""
    return uri.partition(PAGE_MARK)[0]


def page_of(uri: str) -> int:
    """The number of the page that `uri` is; 0 of a picture that is no page."""
    return int(uri.partition(PAGE_MARK)[2] or 0)


def pages_of(uris: Iterable[str]) -> ColumnElement[bool]:
    """The condition that an image is a page of one of the documents `uris`; answered by ix_images_document."""
    is_page = func.strpos(images.c.uri, literal_column(f"'{PAGE_MARK}'")) > literal_column("0")
    document = func.split_part(images.c.uri, literal_column(f"'{PAGE_MARK}'"), literal_column("1"), type_=Text)
    return is_page & equals_any(document, uris)


def load_images(
    connection: Connection, image_ids: Iterable[int], archive_id: int | None = None
) -> dict[int, StoredImage]:
    """Images by id, only of this archive if it is given; including retired ones: an answer may refer to them."""
    of_archive = [] if archive_id is None else [images.c.archive_id == archive_id]
    rows = connection.execute(_SELECT_STORED.where(equals_any(images.c.id, image_ids), *of_archive))
    return {row.id: StoredImage(*row) for row in rows}


def load_metadata(connection: Connection, image_ids: Iterable[int]) -> dict[int, Metadata]:
    """The metadata of images by id, retired ones too; `{}` for an image that has none."""
    rows = connection.execute(select(images.c.id, images.c.metadata).where(equals_any(images.c.id, image_ids)))
    return {row.id: row.metadata or {} for row in rows}


def ambiguous_uris(connection: Connection, image_ids: Iterable[int]) -> dict[int, str]:
    """The uris of those of the images whose name another image of their archive has, retired ones left out, by id."""
    # Not a join, and not by the index of archives: with old statistics Postgres would read an archive for each image.
    namesake = images.alias("namesake")
    first = select(namesake.c.id).where(
        namesake.c.source == images.c.source,
        namesake.c.archive_id + 0 == images.c.archive_id,
        namesake.c.id != images.c.id,
        ~namesake.c.retired,
    )
    has_namesake = first.limit(1).scalar_subquery().is_not(None)
    named = select(images.c.id, images.c.uri).where(equals_any(images.c.id, image_ids), has_namesake)
    return {row.id: row.uri for row in connection.execute(named)}


def images_by_source(connection: Connection, archive_id: int, sources: Iterable[str]) -> dict[str, list[StoredImage]]:
    """The images of an archive, retired ones left out, by name; several may share a name."""
    named = _SELECT_STORED.where(images.c.archive_id == archive_id, equals_any(images.c.source, sources))
    by_source: dict[str, list[StoredImage]] = defaultdict(list)
    for row in connection.execute(named.where(~images.c.retired).order_by(images.c.id)):
        by_source[row.source].append(StoredImage(*row))
    return by_source


def store_images(connection: Connection, archive_id: int, offered: Sequence[NewImage]) -> list[StoredRow]:
    """Add pictures whose bytes are in the object store to an archive; one result for each, in the same order.

    The first file with certain bytes makes the image; each other file is a duplicate of it. A caption that a file gives
    replaces the one that it gave before, an empty one removes it; the captions of several files with the same bytes are
    joined, that of the file that names the image first. Metadata are replaced as a whole by the file that names the
    image; those of another file are used only if there were none beside those inside the picture.
    When a uri has other bytes than before, its former image is retired, unless another file of the same batch has
    those bytes. A retired image that is offered again is `stored`, and needs its embedding again.

    Two workers may store the same pictures concurrently: the second one waits and finds duplicates. Raises BlobDeleted
    when the bytes were not announced, or were removed since.
    """
    blobs.make_live(connection, [image.sha256 for image in offered])
    inserted = _insert_images(connection, archive_id, offered)
    hashes, uris = {image.sha256 for image in offered}, [image.uri for image in offered]
    # All at once and in one order: those of these bytes, and those that other bytes at their address replace.
    replaced = connection.scalars(select(images.c.sha256).where(*_named(archive_id, uris, hashes))).all()
    query = _select_hashed(archive_id, sorted({*hashes, *replaced})).order_by(images.c.sha256)
    locked = records(ArchiveImage, connection.execute(query.with_for_update(key_share=True)))
    results, changed = _reconcile(offered, {image.sha256: image for image in locked}, inserted)
    update_images(connection, changed)
    retired = _retire(connection, archive_id, uris, hashes)
    word_index.write_words(connection, archive_id, [image.image_id for image in locked] + retired)
    return results


def retire_images(connection: Connection, archive_id: int, uris: Iterable[str]) -> None:
    """Retire the images that the files `uris` name, and remove their embeddings and words."""
    find_images(connection, archive_id, equals_any(images.c.uri, uris), lock=True)
    word_index.write_words(connection, archive_id, _retire(connection, archive_id, uris))


def _retire(
    connection: Connection, archive_id: int, uris: Iterable[str], except_hashes: Iterable[str] = ()
) -> list[int]:
    """Retire the images and remove their embeddings; returns their ids. Their words are left to the caller."""
    retire = update(images).where(*_named(archive_id, uris, except_hashes))
    retired = list(connection.scalars(retire.values(retired=True, updated_at=func.now()).returning(images.c.id)))
    if retired:
        vectors.remove_embeddings(connection, archive_id, retired)
    return retired


def _named(archive_id: int, uris: Iterable[str], except_hashes: Iterable[str]) -> tuple[ColumnElement[bool], ...]:
    """The condition that an image is named by one of these files, and neither retired nor one of the hashes."""
    of_files = (images.c.archive_id == archive_id, equals_any(images.c.uri, uris))
    return *of_files, ~images.c.retired, ~equals_any(images.c.sha256, except_hashes)


def _select_images(archive_id: int, condition: ColumnElement[bool]) -> Select[Any]:
    return _SELECT_IMAGES.where(images.c.archive_id == archive_id, condition)


def _select_hashed(archive_id: int, hashes: Iterable[str]) -> Select[Any]:
    """By the hashes alone: of a new archive the planner would expect a single image, and read all of its images. The
    sum keeps it from using the index of the archive."""
    return _SELECT_IMAGES.where(equals_any(images.c.sha256, hashes), images.c.archive_id + 0 == archive_id)


_SELECT_IMAGES = select(
    images.c.id.label("image_id"), *(images.c[field.name] for field in fields(NewImage)), images.c.retired
)


def _insert_images(connection: Connection, archive_id: int, offered: Sequence[NewImage]) -> set[str]:
    """Hashes of the images that are new to the archive; the first file of each hash names it."""
    first: dict[str, NewImage] = {}
    for image in offered:
        first.setdefault(image.sha256, image)
    if not first:
        return set()
    values = [asdict(described(image, image)) | {"archive_id": archive_id} for image in first.values()]
    statement = insert(images).on_conflict_do_nothing().returning(images.c.sha256)
    return set(connection.scalars(statement, values))


def _reconcile(
    offered: Sequence[NewImage], rows: dict[str, ArchiveImage], inserted: set[str]
) -> tuple[list[StoredRow], list[ArchiveImage]]:
    """What each offer means for the image that holds its bytes: the results, and the rows to write."""
    uris = {image.uri for image in offered}
    claims = {(image.uri, image.sha256) for image in offered}
    current, unseen, results = dict(rows), set(inserted), []
    for image in offered:
        before = current[image.sha256]
        after = before
        # The file that named the image has other bytes now, so this file names it.
        if before.retired or (before.uri in uris and (before.uri, image.sha256) not in claims):
            after = replace(renamed(after, image.source, image.uri), retired=False)
        if after.embedded is None and image.embedded is not None:
            after = replace(after, embedded=image.embedded, metadata=all_metadata(image.embedded, after.metadata))
        after = described(after, image)
        is_stored = image.sha256 in unseen or before.retired
        unseen.discard(image.sha256)
        current[image.sha256] = after
        is_updated = (after.caption, after.metadata) != (before.caption, before.metadata)
        duplicate = FileStatus.UPDATED if is_updated else FileStatus.DUPLICATE
        results.append(
            StoredRow(
                image_id=after.image_id,
                status=FileStatus.STORED if is_stored else duplicate,
                source=after.source,
                caption_updated=after.caption != before.caption,
                metadata_updated=after.metadata != before.metadata,
            )
        )
    return results, [row for sha256, row in current.items() if row != rows[sha256]]


def update_images(connection: Connection, rows: Sequence[ArchiveImage]) -> None:
    """Write name, captions and metadata of images that are not retired. Their words are left to the caller."""
    names = ("source", "uri", "caption", "captions", "metadata", "embedded")
    values = ((row.image_id, *(getattr(row, name) for name in names)) for row in rows)
    new = given(values, images.c.id, *(images.c[name] for name in names)).c
    named = {name: new[name] for name in names}
    if rows:
        statement = update(images).where(images.c.id == new.id)
        connection.execute(statement.values(**named, retired=False, updated_at=func.now()))
