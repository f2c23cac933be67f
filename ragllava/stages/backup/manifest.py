"""What a backup consists of. Its manifest is written last, so a backup is there as a whole or not at all.

A vault holds `backups/<name>.json`, one manifest for each backup, and `objects/<2 digits>/<sha256>`: content, other
objects and pieces of tables, each under the hash of its bytes, so that backups share what they have in common.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ragllava.errors import NotFound, ObjectCorrupt, UsageError
from ragllava.json_records import from_json, to_json
from ragllava.stages.backup.vaults import Readable, Sink, Vault
from ragllava.stores.backup.loading import lines
from ragllava.stores.backup.snapshot import TablePart

FORMAT = 1  # of manifests; a later one is refused
MANIFESTS = "backups/"
OBJECTS = "objects/"
DAMAGED = "damaged/"  # what was below OBJECTS and did not have its hash
_PIECE_BYTES = 16 * 2**20  # of lines, before they are compressed
_READ_BYTES = 2**20
_LEVEL = 1  # of compression: the others take several times as long for a tenth less


@dataclass(frozen=True, slots=True)
class Piece:
    """Some lines, compressed: a file of the vault."""

    sha256: str
    size_bytes: int
    lines: int


@dataclass(frozen=True, slots=True)
class SavedTable:
    """The rows of a table, or the vectors of one index."""

    part: TablePart
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(piece.lines for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class SavedObject:
    """An object beside content. `etag` tells whether it has changed since."""

    key: str
    sha256: str
    size_bytes: int
    etag: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A backup. `content` and `content_bytes` count pictures, `objects` are lists of SavedObject, `ids` has the ids of
    images, jobs and archives, `absent` the hashes and keys that rows name and the object store did not have."""

    name: str
    made_at: datetime
    version: str
    revision: str
    identity: str
    tables: tuple[SavedTable, ...]
    sequences: Mapping[str, int]
    content: int
    content_bytes: int
    objects: tuple[Piece, ...]
    ids: Mapping[str, tuple[Piece, ...]]
    absent: tuple[str, ...] = ()
    format: int = field(default=FORMAT)

    @property
    def rows(self) -> int:
        """Of all tables."""
        return sum(table.rows for table in self.tables)

    def pieces(self) -> Iterator[Piece]:
        """All of them."""
        for table in self.tables:
            yield from table.pieces
        yield from self.objects
        for pieces in self.ids.values():
            yield from pieces


def file_of(sha256: str) -> str:
    """The name of the file with this hash."""
    return f"{OBJECTS}{sha256[:2]}/{sha256}"


def write_manifest(vault: Vault, manifest: Manifest) -> None:
    """Store it, with its own hash; all that it names is there."""
    body = json.dumps(to_json(manifest), sort_keys=True)
    document = {"sha256": hashlib.sha256(body.encode()).hexdigest(), "backup": json.loads(body)}
    vault.settle()
    vault.put(f"{MANIFESTS}{manifest.name}.json", json.dumps(document, sort_keys=True, indent=1).encode())
    vault.settle()


def list_names(vault: Vault) -> list[str]:
    """The names of the backups of a vault, the oldest first."""
    files = (name.removeprefix(MANIFESTS) for name, _ in vault.sizes(MANIFESTS))
    return sorted(name.removesuffix(".json") for name in files if name.endswith(".json"))


def read_manifest(vault: Vault, name: str | None = None) -> Manifest:
    """The backup of this name, else the newest.

    Raises NotFound, ObjectCorrupt, and UsageError for one of a later version.
    """
    names = list_names(vault)
    if not names:
        raise NotFound(f"{vault.address} holds no complete backup; `ragllava backup` makes one")
    if name is not None and name not in names:
        raise NotFound(f"{vault.address} has no backup {name!r}; it has {', '.join(names[-5:])}")
    chosen = name or names[-1]
    with vault.open(f"{MANIFESTS}{chosen}.json") as stream:
        data = b"".join(pieces_of(stream))
    try:
        document: dict[str, Any] = json.loads(data)
        saved_format = int(document["backup"]["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(vault, chosen) from error
    if saved_format > FORMAT:
        raise UsageError(
            f"the backup {chosen} was made by a later version of RagLLaVA; install that one, and try again"
        )
    body = json.dumps(document["backup"], sort_keys=True)
    if document.get("sha256") != hashlib.sha256(body.encode()).hexdigest():
        raise _damaged(vault, chosen)
    return from_json(Manifest, document["backup"])


def _damaged(vault: Vault, name: str) -> ObjectCorrupt:
    return ObjectCorrupt(f"the manifest of the backup {name} in {vault.address} is damaged; choose another with --at")


def stored(vault: Vault) -> Iterator[tuple[str, int]]:
    """The hash and the size of every file below OBJECTS, a 256th of them listed at a time."""
    for number in range(256):
        for name, size in vault.sizes(f"{OBJECTS}{number:02x}/"):
            yield name.rpartition("/")[2], size


def write_lines(sink: Sink, written: Iterable[bytes], there: set[str]) -> tuple[Piece, ...]:
    """Store lines in compressed pieces, but those that are `there`. Each line has its end."""
    pieces: list[Piece] = []
    buffer: list[bytes] = []
    size = 0
    for line in written:
        buffer.append(line)
        size += len(line)
        if size >= _PIECE_BYTES:
            pieces.append(_write_piece(sink, buffer, there))
            buffer, size = [], 0
    if buffer:
        pieces.append(_write_piece(sink, buffer, there))
    return tuple(pieces)


def _write_piece(sink: Sink, buffer: list[bytes], there: set[str]) -> Piece:
    data = gzip.compress(b"".join(buffer), _LEVEL, mtime=0)
    piece = Piece(hashlib.sha256(data).hexdigest(), len(data), len(buffer))
    if piece.sha256 not in there:
        sink.put(file_of(piece.sha256), data)
        there.add(piece.sha256)
    return piece


def read_piece(vault: Vault, piece: Piece) -> bytes:
    """The lines of a piece. Raises ObjectMissing, ObjectCorrupt."""
    with vault.open(file_of(piece.sha256)) as stream:
        data = b"".join(pieces_of(stream))
    if hashlib.sha256(data).hexdigest() != piece.sha256:
        raise ObjectCorrupt(f"{vault.address}/{file_of(piece.sha256)} is damaged: it does not have its hash")
    try:
        content = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ObjectCorrupt(f"{vault.address}/{file_of(piece.sha256)} is no compressed file") from error
    if content.count(b"\n") != piece.lines:
        raise ObjectCorrupt(f"{vault.address}/{file_of(piece.sha256)} does not have the {piece.lines:,} lines it had")
    return content


def read_pieces(vault: Vault, pieces: Iterable[Piece]) -> Iterator[bytes]:
    """The lines of pieces, piece by piece."""
    return (read_piece(vault, piece) for piece in pieces)


@dataclass(frozen=True, slots=True)
class SavedContent:
    """The bytes of a picture, which a row of `blobs` names."""

    sha256: str
    size_bytes: int
    media_type: str


def saved_content(vault: Vault, manifest: Manifest) -> Iterator[SavedContent]:
    """The pictures of a backup, but those that the object store did not have."""
    blobs = next(table for table in manifest.tables if table.part.table == "blobs")
    columns = [blobs.part.columns.index(name) for name in ("sha256", "state", "size_bytes", "media_type")]
    absent = set(manifest.absent)
    for line in lines(read_pieces(vault, blobs.pieces)):
        cells = line.decode().split("\t")
        sha256, state, size, media_type = (cells[column] for column in columns)
        if state == "live" and sha256 not in absent:
            yield SavedContent(sha256, int(size), media_type)


def saved_objects(vault: Vault, manifest: Manifest) -> Iterator[SavedObject]:
    """The objects of a backup beside content."""
    for line in lines(read_pieces(vault, manifest.objects)):
        yield SavedObject(*json.loads(line))


def object_lines(objects: Iterable[SavedObject]) -> Iterator[bytes]:
    """As `saved_objects` reads them."""
    for each in objects:
        yield json.dumps([each.key, each.sha256, each.size_bytes, each.etag]).encode() + b"\n"


def pieces_of(stream: Readable) -> Iterator[bytes]:
    """What is read from a file, of at most 1 MiB each."""
    while piece := stream.read(_READ_BYTES):
        yield piece
