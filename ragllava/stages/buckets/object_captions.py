"""Captions and metadata of pictures in a bucket. Captions have three sources; the first that gives one is used:

1. a caption file at the top of the bound prefix: `captions.csv`, `.tsv`, `.jsonl`, `.json` or `.parquet`;
2. a sidecar, a text object beside the picture: the first line of `dog.png.txt` or `dog.txt`;
3. the picture's own metadata `caption` (`x-amz-meta-caption`). Metadata are ASCII: other characters are encoded as
   S3 itself returns them (RFC 2047) or percent-encoded as in URLs, so a percent sign before two hexadecimal digits is
   written %25.

Metadata are the other columns of the caption file. Beside these, there is what a picture says inside
(imaging/embedded.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from pathlib import PurePosixPath
from urllib.parse import quote, unquote

from sqlalchemy import Connection

from ragllava.errors import ObjectMissing, UsageError
from ragllava.metadata import clean_caption
from ragllava.stages.ingest.captions import (
    MAX_SIDECAR_BYTES,
    NOTHING,
    Captions,
    Description,
    parse_captions,
    sidecar_caption,
)
from ragllava.stages.ingest.files import is_hidden, is_offered, packed_scheme, sidecar_names, unreadable_package
from ragllava.stores.archives import image_changes
from ragllava.stores.archives.archive import document_of
from ragllava.stores.archives.image_changes import CaptionChange
from ragllava.stores.buckets import bound_objects
from ragllava.stores.buckets.bindings import Binding, BindingRole
from ragllava.stores.buckets.bound_objects import BoundObject, ObjectKind
from ragllava.stores.objects import ObjectStore

CAPTION_FILES = ("captions.csv", "captions.tsv", "captions.jsonl", "captions.json", "captions.parquet")
MAX_CAPTION_FILE_BYTES = 256 * 2**20
_METADATA_NAME = "caption"


def kind_of(binding: Binding, key: str) -> ObjectKind:
    """The kind of an object, by its name."""
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
    """The uri of an object, in the form of ingest/uris.py."""
    return f"s3://{bucket}/{quote(key)}"


def metadata_caption(metadata: Mapping[str, str]) -> str | None:
    """The caption in an object's metadata, in one of the encodings described at the top of this file."""
    raw = metadata.get(_METADATA_NAME)
    if raw is None:
        return None
    caption = raw
    try:
        if not raw.isascii():  # some stores return the bytes as they were sent, which HTTP decodes as Latin-1
            caption = raw.encode("latin-1").decode("utf-8")
        caption = str(make_header(decode_header(caption))) if "=?" in caption else unquote(caption, errors="strict")
    except (HeaderParseError, LookupError, UnicodeError):
        pass  # it is not encoded: the text itself is the caption
    return clean_caption(caption)


def read_sidecar(objects: ObjectStore, bucket: str, key: str) -> str | None:
    """The caption in a sidecar. Raises ObjectMissing."""
    try:
        return sidecar_caption(objects.read_external(bucket, key, MAX_SIDECAR_BYTES).data)
    except UsageError:  # larger than any caption
        return None


@dataclass(frozen=True, slots=True)
class CaptionFiles:
    """The content of the caption files of one binding. `problems` has the reason for each unusable file, by key."""

    captions: Captions | None = None
    problems: Mapping[str, str] = field(default_factory=dict)


def read_caption_files(objects: ObjectStore, binding: Binding, keys: Iterable[str]) -> CaptionFiles:
    """Read the caption files of a binding; of two rows for one picture, that of the first file by name is used."""
    captions: dict[str, Description] = {}
    problems: dict[str, str] = {}
    for key in sorted(keys):
        try:
            content = objects.read_external(binding.bucket, key, MAX_CAPTION_FILE_BYTES).data
            captions = dict(parse_captions(PurePosixPath(key).name.lower(), content).items()) | captions
        except ObjectMissing:
            continue
        except UsageError as error:
            problems[key] = str(error)
    return CaptionFiles(Captions(captions) if captions else None, problems)


def captions_for(
    connection: Connection, binding: Binding, keys: Sequence[str], caption_files: CaptionFiles
) -> dict[str, Description]:
    """The caption and the metadata that each of these pictures should have, from all sources beside the picture."""
    pictures = bound_objects.load_objects(connection, binding.binding_id, keys)
    names = {name for key in keys for name in sidecar_names(key)}
    sidecars = bound_objects.load_objects(connection, binding.binding_id, sorted(names))
    listed = _listed_captions(connection, binding, caption_files.captions)
    return {
        key: Description(
            listed[key].caption or _sidecar_caption(key, sidecars) or picture.caption, listed[key].metadata
        )
        for key, picture in pictures.items()
    }


def pictures_of_sidecars(connection: Connection, binding: Binding, sidecars: Sequence[str]) -> set[str]:
    """The pictures that these sidecars belong to."""
    stems = [key[: -len(".txt")] for key in sidecars]
    pictures = bound_objects.pictures_beside(connection, binding.binding_id, stems)
    return {key for key in pictures if not set(sidecars).isdisjoint(sidecar_names(key))}


def refresh_captions(
    connection: Connection,
    binding: Binding,
    keys: Sequence[str],
    caption_files: CaptionFiles,
    *,
    may_remove: bool = True,
) -> list[str]:
    """Give the images of these pictures the captions and the metadata that they should have; returns the keys of those
    that changed.

    Pictures without an outcome are left out: their captions are refreshed when they have one.
    """
    if not keys:
        return []
    captions = captions_for(connection, binding, keys, caption_files)
    pictures = bound_objects.load_objects(connection, binding.binding_id, captions)
    by_uri = {object_uri(binding.bucket, key): key for key in captions}
    images = image_changes.images_at(connection, binding.archive_id, by_uri)
    pages = {image.image_id: uri for uri, image in images.items() if document_of(uri) != uri}
    changes = []
    for uri, key in by_uri.items():
        image_id = pictures[key].image_id
        if image_id is not None and image_id not in pages:
            changes.append(CaptionChange(image_id, uri, captions[key].caption, captions[key].metadata))
    for image_id, uri in pages.items():
        description = captions[by_uri[document_of(uri)]]
        changes.append(CaptionChange(image_id, uri, description.caption, description.metadata))
    changed = image_changes.change_captions(connection, binding.archive_id, changes, may_remove=may_remove)
    return sorted({by_uri[document_of(uri)] for uri in changed})


def _sidecar_caption(key: str, sidecars: Mapping[str, BoundObject]) -> str | None:
    captions = (sidecars[name].caption for name in sidecar_names(key) if name in sidecars)
    return next((caption for caption in captions if caption is not None), None)


def _listed_captions(
    connection: Connection, binding: Binding, captions: Captions | None
) -> defaultdict[str, Description]:
    """The rows of the caption files by key; NOTHING for a picture without one."""
    listed: defaultdict[str, Description] = defaultdict(lambda: NOTHING)
    if captions is not None:
        # A base name in a caption file matches only if it is unique among all pictures, so all of them are needed.
        keys = bound_objects.keys_of_kind(connection, binding.binding_id, ObjectKind.PICTURE)
        listed.update(zip(keys, captions.assign([key.removeprefix(binding.prefix) for key in keys]), strict=True))
    return listed
