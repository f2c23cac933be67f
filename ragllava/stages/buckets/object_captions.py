"""Captions of pictures in a bucket. Three places may give one; the first that does counts:

1. a caption file at the top of the bound prefix: `captions.csv`, `.tsv`, `.jsonl`, `.json` or `.parquet`;
2. a text object beside the picture, `dog.png.txt` or `dog.txt`, of which the first line counts;
3. the picture's own metadata `caption` (`x-amz-meta-caption`). Metadata are ASCII: other characters stand there as
   S3 itself sends them back (RFC 2047) or percent-encoded as in addresses, so a percent sign before two hexadecimal
   digits is written %25.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

from sqlalchemy import Connection

from ragllava.errors import ObjectMissing, UsageError
from ragllava.stages.ingest.captions import (
    MAX_SIDECAR_BYTES,
    CaptionBook,
    clean_caption,
    read_captions,
    sidecar_caption,
)
from ragllava.stages.ingest.files import is_hidden, is_offered, packed_scheme, sidecar_names, unreadable_package
from ragllava.stores.archives import image_changes
from ragllava.stores.archives.image_changes import CaptionChange
from ragllava.stores.buckets import bound_objects
from ragllava.stores.buckets.bindings import Binding, BindingRole
from ragllava.stores.buckets.bound_objects import KnownObject, ObjectKind
from ragllava.stores.objects import ObjectStore

CAPTION_FILES = ("captions.csv", "captions.tsv", "captions.jsonl", "captions.json", "captions.parquet")
MAX_CAPTION_FILE_BYTES = 256 * 2**20
_METADATA_NAME = "caption"


def kind_of(binding: Binding, key: str) -> ObjectKind:
    """What an object is taken for, by its name."""
    name = key.removeprefix(binding.prefix)
    if is_hidden(name) or name.endswith("/"):
        return ObjectKind.OTHER
    if binding.role is BindingRole.INBOX:
        return ObjectKind.QUESTIONS
    if name.lower() in CAPTION_FILES:
        return ObjectKind.CAPTIONS
    if name.lower().endswith(".txt"):
        return ObjectKind.CAPTION
    if not is_offered(name) or packed_scheme(name) is not None or unreadable_package(name) is not None:
        return ObjectKind.OTHER
    return ObjectKind.PICTURE


def object_uri(bucket: str, key: str) -> str:
    """The uri of an object, as `stages.uris` reads it."""
    return f"s3://{bucket}/{quote(key)}"


def metadata_caption(metadata: Mapping[str, str]) -> str | None:
    """The caption in an object's metadata, decoded as the top of this file says."""
    raw = metadata.get(_METADATA_NAME)
    if raw is None:
        return None
    if not raw.isascii():  # some stores hand out the bytes as they came, which HTTP shows as Latin-1
        try:
            raw = raw.encode("latin-1").decode("utf-8")
        except UnicodeError:
            return clean_caption(raw)
    if "=?" in raw:
        try:
            return clean_caption(str(make_header(decode_header(raw))))
        except (HeaderParseError, LookupError, UnicodeError):
            return clean_caption(raw)
    try:
        return clean_caption(unquote(raw, errors="strict"))
    except UnicodeError:
        return clean_caption(raw)


def read_sidecar(objects: ObjectStore, bucket: str, key: str) -> str | None:
    """What a caption object says. Raises ObjectMissing."""
    try:
        return sidecar_caption(objects.get_external(bucket, key, MAX_SIDECAR_BYTES))
    except UsageError:  # larger than any caption
        return None


@dataclass(frozen=True, slots=True)
class Books:
    """The caption files of one binding. `problems` are those that cannot be used, with the reason."""

    captions: CaptionBook | None
    problems: Mapping[str, str]


def read_books(objects: ObjectStore, binding: Binding, keys: Iterable[str]) -> Books:
    """Read the caption files of a binding; of two captions for one picture, the file that is first by name counts."""
    captions: dict[str, str] = {}
    problems: dict[str, str] = {}
    for key in sorted(keys):
        try:
            found = _read_book(objects.get_external(binding.bucket, key, MAX_CAPTION_FILE_BYTES), key)
        except ObjectMissing:
            continue
        except UsageError as error:
            problems[key] = str(error)
        else:
            captions = found | captions
    return Books(CaptionBook(captions) if captions else None, problems)


def _read_book(content: bytes, key: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory(prefix="ragllava-") as folder:
        path = Path(folder) / PurePosixPath(key).name.lower()
        path.write_bytes(content)
        return dict(read_captions(path).items())


def wanted_captions(
    connection: Connection, binding: Binding, keys: Sequence[str], books: Books
) -> dict[str, str | None]:
    """The caption that each of these pictures should have, from all that is known now."""
    pictures = bound_objects.known_objects(connection, binding.binding_id, keys)
    names = {name for key in keys for name in sidecar_names(key)}
    beside = bound_objects.known_objects(connection, binding.binding_id, sorted(names))
    from_books = _from_books(connection, binding, books)
    return {key: from_books.get(key) or _beside(key, beside) or picture.caption for key, picture in pictures.items()}


def pictures_of_sidecars(connection: Connection, binding: Binding, sidecars: Sequence[str]) -> set[str]:
    """The pictures that these caption objects stand beside."""
    stems = [key[: -len(".txt")] for key in sidecars]
    found = bound_objects.pictures_beside(connection, binding.binding_id, stems)
    given = set(sidecars)
    return {key for key in found if given & set(sidecar_names(key))}


def refresh_captions(
    connection: Connection, binding: Binding, keys: Sequence[str], books: Books, *, may_remove: bool = True
) -> list[str]:
    """Give the images of these pictures the captions that they should have; returns the keys of those that changed.

    Pictures that wait for their outcome are left out: they are looked at again when they have it.
    """
    if not keys:
        return []
    wanted = wanted_captions(connection, binding, keys, books)
    known = bound_objects.known_objects(connection, binding.binding_id, list(wanted))
    by_uri = {object_uri(binding.bucket, key): key for key in wanted}
    changes = [
        CaptionChange(image_id, object_uri(binding.bucket, key), caption)
        for key, caption in wanted.items()
        if (image_id := known[key].image_id) is not None and (may_remove or caption is not None)
    ]
    return sorted(by_uri[uri] for uri in image_changes.change_captions(connection, binding.archive_id, changes))


def _beside(key: str, beside: Mapping[str, KnownObject]) -> str | None:
    found = (beside.get(name) for name in sidecar_names(key))
    return next((sidecar.caption for sidecar in found if sidecar is not None and sidecar.caption is not None), None)


def _from_books(connection: Connection, binding: Binding, books: Books) -> dict[str, str]:
    if books.captions is None:
        return {}
    # A bare name in a caption file fits only if one picture bears it, so all of them must be known.
    keys = bound_objects.picture_keys(connection, binding.binding_id)
    given = books.captions.assign([key.removeprefix(binding.prefix) for key in keys])
    return {key: caption for key, caption in zip(keys, given, strict=True) if caption is not None}
