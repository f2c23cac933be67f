"""Captions and metadata of pictures in a bucket. Captions have three sources; the first that gives one is used:

1. a caption file in its folder or above it, below the bound prefix, the nearest first: `captions.csv` or
   `metadata.csv`, also in other formats (ingest/listing.py);
2. a sidecar beside the picture, such as `dog.png.txt`, `dog.caption` or `dog.xmp` (ingest/sidecars.py);
3. the picture's own metadata `caption` (`x-amz-meta-caption`). Metadata are ASCII: other characters are encoded as
   S3 itself returns them (RFC 2047) or percent-encoded as in URLs, so a percent sign before two hexadecimal digits is
   written %25.

Metadata are the other columns of the caption file, over what a sidecar says besides its caption. Beside these, there is
what a picture says inside (imaging/embedded.py).
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

from sqlalchemy import Connection

from ragllava.errors import ObjectMissing, ServiceUnavailable, SettingsError, UsageError
from ragllava.jobs.isolation import reason_of
from ragllava.json_records import write_json_lines
from ragllava.metadata import clean_caption
from ragllava.source_files import said_about_page
from ragllava.stages.ingest.captions import (
    MAX_CAPTION_FILE_BYTES,
    NOTHING,
    Description,
    caption_rows,
    first_description,
    merge_descriptions,
)
from ragllava.stages.ingest.files import is_hidden, is_offered, packed_scheme, unreadable_package
from ragllava.stages.ingest.listing import is_caption_file
from ragllava.stages.ingest.sidecars import MAX_SIDECAR_BYTES, is_sidecar, sidecar_names, sidecar_stems
from ragllava.stages.ingest.sidecars import read_sidecar as parse_sidecar
from ragllava.stages.record_files.layouts import UNSTORABLE
from ragllava.stores.archives import image_changes
from ragllava.stores.archives.archive import document_of, page_of
from ragllava.stores.archives.image_changes import CaptionChange
from ragllava.stores.buckets import bound_objects, listed_captions
from ragllava.stores.buckets.bindings import Binding, BindingRole
from ragllava.stores.buckets.bound_objects import BoundObject, ObjectKind
from ragllava.stores.buckets.listed_captions import ListedCaption
from ragllava.stores.objects import ObjectStore

log = logging.getLogger(__name__)

_METADATA_NAME = "caption"


def kind_of(binding: Binding, key: str) -> ObjectKind:
    """The kind of an object, by its name."""
    name = key.removeprefix(binding.prefix)
    if is_hidden(name) or name.endswith("/"):
        return ObjectKind.OTHER
    if binding.role is BindingRole.INBOX:
        return ObjectKind.QUESTIONS
    if is_caption_file(name):
        return ObjectKind.CAPTIONS
    if is_sidecar(name):
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


def read_sidecar(objects: ObjectStore, bucket: str, key: str) -> Description:
    """What a sidecar says. Raises ObjectMissing."""
    try:
        return parse_sidecar(key, objects.read_external(bucket, key, MAX_SIDECAR_BYTES).data)
    except UsageError:  # larger than any caption
        return NOTHING


@dataclass(frozen=True, slots=True)
class CaptionFiles:
    """The caption files of one binding that were read, by key: the local file with their rows, and for unusable ones
    the reason."""

    rows: Mapping[str, Path] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def read_caption_files(objects: ObjectStore, binding: Binding, keys: Iterable[str]) -> Iterator[CaptionFiles]:
    """Read caption files of a binding, piece by piece, into local files that last as long as the block.

    Raises ServiceUnavailable, SettingsError, and OSError for a full disk. Any other error concerns one file and is its
    problem: these files come from outside.
    """
    rows: dict[str, Path] = {}
    problems: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, key in enumerate(sorted(keys)):
            name = PurePosixPath(key).name.lower()
            copy, listed = Path(folder) / f"{number}-{name}", Path(folder) / f"{number}.rows"
            try:
                objects.fetch_external(binding.bucket, key, copy, MAX_CAPTION_FILE_BYTES)
                write_json_lines(_json_rows(name, copy, _folder(binding, key)), listed)
            except ObjectMissing:
                continue
            except (ServiceUnavailable, SettingsError, OSError):
                raise
            except Exception as error:
                problems[key] = reason_of(error)
                log.warning(
                    problems[key],
                    exc_info=None if isinstance(error, UsageError) else error,
                    extra={"action": "caption_file_unusable", "binding": binding.address, "key": key},
                )
            else:
                rows[key] = listed
            finally:
                copy.unlink(missing_ok=True)
        yield CaptionFiles(rows, problems)


def list_captions(connection: Connection, binding: Binding, key: str, rows: Path | None) -> int:
    """Make `rows` the content of a caption file in the database, none for a file that is gone; returns the number of
    pictures whose captions are due for a refresh."""
    return listed_captions.replace_file(connection, binding.binding_id, key, _stored_rows(rows), _merged)


def captions_for(connection: Connection, binding: Binding, keys: Sequence[str]) -> dict[str, Description]:
    """The caption and the metadata that each of these pictures should have, from all sources beside the picture."""
    pictures = bound_objects.load_objects(connection, binding.binding_id, keys)
    names = {name for key in keys for name in sidecar_names(key)}
    sidecars = bound_objects.load_objects(connection, binding.binding_id, sorted(names))
    listed = listed_captions.captions_of(connection, binding.binding_id, keys)
    pages = listed_captions.page_captions_of(connection, binding.binding_id, keys)
    return {
        key: first_description(
            _said(listed.get(key), pages.get(key, {})), *_sidecars_of(key, sidecars), Description(picture.caption)
        )
        for key, picture in pictures.items()
    }


def _said(listed: ListedCaption | None, pages: Mapping[int, ListedCaption]) -> Description:
    of_pages = {page: Description(said.caption, said.metadata) for page, said in pages.items()}
    return Description(listed.caption, listed.metadata, pages=of_pages) if listed else Description(pages=of_pages)


def _sidecars_of(key: str, sidecars: Mapping[str, BoundObject]) -> Iterator[Description]:
    """In their order of precedence."""
    for name in sidecar_names(key):
        if name in sidecars:
            yield Description(sidecars[name].caption, sidecars[name].metadata)


def _folder(binding: Binding, key: str) -> str:
    """The folder of an object below the bound prefix: empty, or with a slash at its end."""
    folder, slash, _ = key.removeprefix(binding.prefix).rpartition("/")
    return folder + slash


def _json_rows(name: str, file: Path, folder: str) -> Iterator[dict[str, Any]]:
    """The rows of a caption file in a folder as they are kept until they are in the database: its names are relative to
    the folder."""
    for picture, description in caption_rows(name, file):
        whole = picture if picture.startswith(folder) else f"{folder}{picture}"
        if not UNSTORABLE.search(whole):  # no key has such a name
            yield {"name": whole, "caption": description.caption, "metadata": description.metadata}


def _stored_rows(rows: Path | None) -> Iterator[tuple[str, ListedCaption]]:
    if rows is None:
        return
    with rows.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield row["name"], ListedCaption(row["caption"], row["metadata"])


def _merged(parts: Sequence[ListedCaption]) -> ListedCaption:
    merged = merge_descriptions(Description(part.caption, part.metadata) for part in parts)
    return ListedCaption(merged.caption, merged.metadata)


def pictures_of_sidecars(connection: Connection, binding: Binding, sidecars: Sequence[str]) -> set[str]:
    """The pictures that these sidecars belong to."""
    stems = sorted({stem for key in sidecars for stem in sidecar_stems(key)})
    pictures = bound_objects.pictures_beside(connection, binding.binding_id, stems)
    return {key for key in pictures if not set(sidecars).isdisjoint(sidecar_names(key))}


def refresh_captions(
    connection: Connection,
    binding: Binding,
    keys: Sequence[str],
    *,
    may_remove: bool = True,
) -> list[str]:
    """Give the images of these pictures the captions and the metadata that they should have; returns the keys of those
    that changed.

    Pictures without an outcome are left out: their captions are refreshed when they have one.
    """
    if not keys:
        return []
    captions = captions_for(connection, binding, keys)
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
        said = said_about_page(page_of(uri), description.caption, description.metadata, description.page_captions)
        changes.append(CaptionChange(image_id, uri, said.caption, said.metadata))
    changed = image_changes.change_captions(connection, binding.archive_id, changes, may_remove=may_remove)
    return sorted({by_uri[document_of(uri)] for uri in changed})
