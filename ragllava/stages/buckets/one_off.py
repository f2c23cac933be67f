"""One ingest job of what lies below a prefix of a bucket now; unlike a binding, it follows no later change."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from sqlalchemy import Connection

from ragllava.errors import ObjectMissing, UsageError
from ragllava.source_files import SourceFile
from ragllava.stages.buckets.binding import read_address
from ragllava.stages.buckets.object_captions import object_uri
from ragllava.stages.ingest.files import is_hidden, is_offered, packed_scheme, unreadable_package
from ragllava.stages.ingest.listing import CaptionFile, Listing, is_caption_file
from ragllava.stages.ingest.sidecars import is_sidecar
from ragllava.stages.ingest.sources import describe_listed
from ragllava.stages.ingest.uris import MAX_URI
from ragllava.stores.archives import archive
from ragllava.stores.buckets import bindings
from ragllava.stores.objects import ObjectInfo, ObjectStore

MAX_OBJECTS = 100_000  # a caller waits for the list; of more, a binding is made
MAX_CAPTION_BYTES = 64 * 2**20  # of all caption files together: they are held in memory


def list_prefix(objects: ObjectStore, address: str, listing: Listing) -> list[SourceFile]:
    """The pictures below `s3://bucket/prefix/`, with captions and metadata of caption files among them.

    Packed files and sidecars are passed over, as `listing` says. Raises UsageError for RagLLaVA's own bucket, for one
    that cannot be read, without a picture, with more than MAX_OBJECTS objects, or with larger caption files than
    MAX_CAPTION_BYTES together.
    """
    bucket, prefix = read_address(address)
    if bucket == objects.bucket:
        raise UsageError(f"the bucket {bucket} is RagLLaVA's own; ingest from another one")
    files: list[SourceFile] = []
    caption_bytes = 0
    for info in _listed(objects, bucket, prefix):
        name = info.key.removeprefix(prefix)
        if is_hidden(name) or name.endswith("/"):
            continue
        is_packed = packed_scheme(name) is not None or unreadable_package(name) is not None
        if is_caption_file(name):
            caption_bytes += info.size_bytes
            if caption_bytes > MAX_CAPTION_BYTES:
                raise UsageError(
                    f"the caption files below {address} have more than {MAX_CAPTION_BYTES // 2**20} MiB; "
                    "bind it to the archive instead"
                )
            listing.caption_files.append(_caption_file(objects, bucket, info, name))
        elif is_packed or is_sidecar(name) or not is_offered(name) or len(object_uri(bucket, info.key)) > MAX_URI:
            listing.pass_over([name])
        else:
            files.append(SourceFile(name, object_uri(bucket, info.key)))
    if not files:
        passed = f"; passed over: {listing.passed_kinds()}" if listing.passed_over else ""
        raise UsageError(f"no pictures below s3://{bucket}/{prefix}{passed}")
    return describe_listed(files, listing)


def is_bound(connection: Connection, archive_name: str, address: str) -> bool:
    """Whether what lies below the address is within a part of a bucket from which the archive has its pictures."""
    bucket, prefix = read_address(address)
    archive_id = archive.get_archive(connection, archive_name).archive_id
    return not bindings.has_dots(prefix) and bindings.covers(connection, bucket, prefix, pictures_of=archive_id)


def _listed(objects: ObjectStore, bucket: str, prefix: str) -> Iterator[ObjectInfo]:
    try:
        for number, info in enumerate(objects.list_external(bucket, prefix)):
            if number == MAX_OBJECTS:
                raise UsageError(
                    f"s3://{bucket}/{prefix} has more than {MAX_OBJECTS:,} objects; bind it to the archive instead"
                )
            yield info
    except ObjectMissing:
        raise UsageError(f"there is no bucket {bucket} in the object store") from None


def _caption_file(objects: ObjectStore, bucket: str, info: ObjectInfo, name: str) -> CaptionFile:
    folder, base = posixpath.split(name)
    data = objects.read_external(bucket, info.key, MAX_CAPTION_BYTES).data
    return CaptionFile(f"{folder}/" if folder else "", base, data)
